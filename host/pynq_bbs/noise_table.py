# SPDX-License-Identifier: Apache-2.0
"""Signal-to-noise ratios of layers, as a table and as options of `compile`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .report import table


@dataclass(frozen=True)
class LayerNoise:
    """Signal-to-noise ratios in dB of what a layer gives, against float.

    `quantised` is of the dense layer; `pruned` has one for each of the sparsities asked for, None
    where the layer cannot have it. No noise at all is inf.
    """

    name: str
    weights: int
    quantised: float
    pruned: tuple[float | None, ...]

    @property
    def least(self) -> float:
        """Of all its ratios."""
        return min(db for db in (self.quantised, *self.pruned) if db is not None)


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found, in the order of the model's layers; prints itself."""

    sparsities: tuple[float, ...]
    layers: tuple[LayerNoise, ...]
    whole: LayerNoise

    def suggested(self, least: float = 10.0) -> dict[str, dict[str, float]]:
        """`layers` for `compile`: for each layer the largest sparsity that leaves it `least` dB, 0
        where none does; those that cannot be pruned are left out."""
        suggestion = {}
        for layer in self.layers:
            known = dict(zip(self.sparsities, layer.pruned, strict=True))
            good = [s for s, db in known.items() if db is not None and db >= least]
            if any(db is not None for db in known.values()):
                suggestion[layer.name] = {"sparsity": max(good, default=0.0)}
        return suggestion

    def text(self, *, worst_first: bool = False) -> str:
        """A table; layers in the model's order, or from the least ratio on."""
        layers = list(self.layers)
        if worst_first:
            layers.sort(key=lambda layer: layer.least)
        rows = [("layer", "weights", "quantised", *(f"{100 * s:g} %" for s in self.sparsities))]
        rows += [
            (la.name, str(la.weights), _decibels(la.quantised), *map(_decibels, la.pruned))
            for la in (*layers, self.whole)
        ]
        return table(rows)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


def _decibels(db: float | None) -> str:
    return "-" if db is None else "exact" if db == math.inf else f"{db:.1f} dB"
