# SPDX-License-Identifier: Apache-2.0
"""Which tensors a model needs: only those that an operator or an output reads. And which layers
make them: an addition is part of a layer that makes one of its operands, where it can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .graph import Window, image_shape
from .moving import check_channels
from .onnx_reader import Key, Reading
from .onnx_values import (
    Base,
    Linear,
    ModelInput,
    Opaque,
    Operator,
    Padded,
    Pool,
    Step,
    Sum,
    Value,
    shown_parts,
    steps_of,
)

#: Cuts a value's steps in two: what is part of a tensor, and what its reader does.
Split = Callable[[Value], tuple[tuple[Step, ...], tuple[Step, ...]]]


class Plan:
    """The bases that the outputs depend on, in an order in which they can run, and the forms
    (steps) in which each is needed.

    `adds` says of an addition which of its operands the layer makes that adds the other one; it has
    no form of its own then. Of the others no layer makes either.
    """

    def __init__(self, reading: Reading, split: Split) -> None:
        self.split = split
        self.forms: dict[Base, list[tuple[Step, ...]]] = {}
        self.adds: dict[Sum, int] = {}
        self._names = reading.names
        self._used = set(reading.names.values())
        self._layers: set[str] = set()
        reads: Counter[Key] = Counter()
        waiting = [part for value in reading.outputs.values() for part in shown_parts(value)]
        while waiting:
            value = waiting.pop()
            steps, _ = split(value)
            reads[value.base, steps] += 1
            forms = self.forms.setdefault(value.base, [])
            if steps not in forms:
                forms.append(steps)
                if len(forms) == 1:
                    waiting.extend(value.base.sources)
        # Nodes are read in an order in which they can run, so names are in that order too.
        order: dict[Base, None] = {}
        for base, _ in reading.names:
            _add_behind_sources(order, base)
        given = list(reading.inputs)
        inputs = [base for base in self.forms if isinstance(base, ModelInput)]
        self.inputs = sorted(inputs, key=lambda base: given.index(base.name))
        self.operators: list[Operator] = [
            base
            for base in order
            if base in self.forms and not isinstance(base, (ModelInput, Padded, Opaque))
        ]
        places = {base: place for place, base in enumerate(self.operators)}
        for base in self.operators:
            if isinstance(base, Sum):
                self._fuse(base, reads, reading.quantised, places)

    def _fuse(
        self, base: Sum, reads: Counter[Key], quantised: bool, places: dict[Operator, int]
    ) -> None:
        """Let the later layer of those that make just what is added make the sum."""
        found = -1
        for index, value in enumerate(base.sources):
            steps, _ = self.split(value)
            source = value.base
            moves = isinstance(source, Pool) and source.maximum
            if moves or not isinstance(source, (Linear, Pool)) or bool(steps) != quantised:
                continue
            if reads[source, steps] == 1 and places[source] > found:
                found, self.adds[base] = places[source], index
        if base in self.adds:
            value = base.sources[self.adds[base]]
            self.forms[value.base].remove(self.split(value)[0])

    def tensor(self, base: Base, steps: tuple[Step, ...]) -> str:
        """The tensor's name: the file's where it has one."""
        key: Key = (base, steps)
        if key not in self._names:
            self._names[key] = _unused(_title(base), self._used)
        return self._names[key]

    def unnamed(self, operator: Operator) -> str:
        """A name for a tensor on the way to what `operator` gives, which the file has none for."""
        return _unused(operator.node, self._used)

    def layer(self, operator: Operator) -> str:
        """A name for one more layer made from this operator."""
        return _unused(operator.node, self._layers)


def _add_behind_sources(order: dict[Base, None], base: Base) -> None:
    """A node may have made several bases, which only the last of them has a name for."""
    if base not in order:
        for source in base.sources:
            _add_behind_sources(order, source.base)
        order[base] = None


def unmoved(base: Base) -> tuple[NDArray[np.bool_], Window | None]:
    """Weights and window of a layer that gives `base` as it is.

    Raises:
        ModelError: so many channels that their matrix would not fit memory.
    """
    steps = steps_of(base)
    channels, height, width = image_shape(base.shape[1:] if steps > 1 else base.shape)
    check_channels(channels)
    weights = np.eye(channels, dtype=np.bool_)
    if height == width == 1:
        return weights, None
    return weights[:, :, None, None], Window(channels, height, width, (1, 1))


def _title(base: Base) -> str:
    if isinstance(base, ModelInput):
        return base.name
    return "tensor" if isinstance(base, Opaque) else base.node


def _unused(name: str, used: set[str]) -> str:
    """`name`, with a number where it is taken; taken from now on."""
    unique, count = name, 1
    while unique in used:
        count += 1
        unique = f"{name}_{count}"
    used.add(unique)
    return unique
