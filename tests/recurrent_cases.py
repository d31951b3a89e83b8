# SPDX-License-Identifier: Apache-2.0
"""Random LSTM and GRU layers, each alone in a model, and what must come out of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynq_bbs.builds import Build, load_build
from pynq_bbs.compress.prune import bank_prune
from pynq_bbs.model.graph import QuantInput, QuantModel, QuantOutput
from pynq_bbs.model.recurrent import RecurrentLayer, quantise_gru, quantise_lstm, run_recurrent
from pynq_bbs.pack.recurrent import prune_recurrent

TEST_BUILDS = Path(__file__).parent / "builds"
BUILDS = [
    load_build(name if "." not in name else str(TEST_BUILDS / name))
    for name in ("8x2x4.json", "16x2x16.json", "32x4x1")
]
KINDS = ("lstm", "gru_after", "gru_before")
X_SCALE = np.float32(3 / 127)


def random_recurrent(rng: np.random.Generator, kind: str, inputs: int, units: int) -> Any:
    """Weights that reach all of what gates and states can be."""
    gates, reach = 4 if kind == "lstm" else 3, 2 / np.sqrt(units)
    shapes = ((gates * units, inputs), (gates * units, units), (2 * gates * units,))
    w, r, b = (rng.uniform(-reach, reach, shape).astype(np.float32) for shape in shapes)
    zero_point = int(rng.integers(-20, 20))
    if kind == "lstm":
        return quantise_lstm(w, r, b, X_SCALE, zero_point)
    return quantise_gru(w, r, b, X_SCALE, zero_point, linear_before_reset=kind == "gru_after")


@dataclass
class Case:
    """A layer alone in a model: what goes in by tensor, and what must come out."""

    layer: RecurrentLayer
    banks: dict[str, tuple[int, int]]
    steps: int
    samples: int
    given: dict[str, NDArray[Any]] = field(default_factory=dict)
    lengths: NDArray[np.int64] | None = None

    def model(self) -> QuantModel:
        la = self.layer
        units = la.quantised.hidden_size
        inputs = [
            QuantInput(n, n, v.shape[1:], str(v.dtype), np.float32(1), 0,
                       steps=self.steps if n == la.input else 1, bits=8 * v.itemsize)
            for n, v in self.given.items()
        ]  # fmt: skip
        outputs = [
            QuantOutput(la.output, la.output, (self.steps, units), "int8"),
            QuantOutput(la.y_h, la.y_h, (units,), "int8"),
            QuantOutput(la.y_state, la.y_state, (units,), "int16"),
        ]
        return QuantModel("case", inputs, [la], [o for o in outputs if o.name],
                          "" if self.lengths is None else "lengths")  # fmt: skip

    def inputs(self) -> dict[str, NDArray[Any]]:
        lengths = {} if self.lengths is None else {"lengths": self.lengths}
        return self.given | lengths

    def expected(self) -> dict[str, NDArray[Any]]:
        la = self.layer
        y, y_h, state = run_recurrent(
            la.quantised, self.given[la.input].swapaxes(0, 1), self.given.get(la.initial_h),
            self.given.get(la.initial_state), self.lengths, la.reverse,
        )  # fmt: skip
        made = {la.output: y.swapaxes(0, 1), la.y_h: y_h, la.y_state: state}
        return {name: values for name, values in made.items() if name}


def random_case(build: Build, kind: str, seed: int, shape: tuple[int, ...] = ()) -> Case:
    rng = np.random.default_rng([seed, KINDS.index(kind), build.cols])
    most = 2 * build.cell_words // build.cols  # of which a tile's states fit
    sizes = [int(rng.integers(1, n)) for n in (min(40, most), 40, 7, 2 * build.cols + 7)]
    units, inputs, steps, samples = shape or sizes
    maybe = [name if rng.random() < 0.6 else "" for name in ("y_h", "y_state", "h", "state")]
    layer = RecurrentLayer(
        "cells", "x", "y", random_recurrent(rng, kind, inputs, units), rng.random() < 0.5, *maybe
    )
    banks: dict[str, tuple[int, int]] = {}

    def prune(name: str, weights: NDArray[np.int8]) -> NDArray[np.int8]:
        size = int(rng.choice([s for s in (1, 2, 4, 8, 16) if build.takes_bank(s)]))
        banks[name] = size, int(rng.integers(1, size + 1))
        if layer.weight_bits == 4:
            weights = np.clip(weights, -8, 7)
        return bank_prune(weights, *banks[name])

    if rng.random() < 0.7:
        layer = replace(layer, weight_bits=int(rng.choice([4, 8, 8])))
        layer = prune_recurrent(layer, prune, build)
    given = {"x": rng.integers(-128, 128, (samples, steps, inputs), np.int8)}
    if layer.initial_h:
        given["h"] = rng.integers(-128, 128, (samples, units), np.int8)
    if layer.initial_state:
        given["state"] = rng.integers(-32768, 32768, (samples, units), np.int16)
    lengths = rng.integers(1, steps + 1, samples) if rng.random() < 0.6 else None
    return Case(layer, banks, steps, samples, given, lengths)
