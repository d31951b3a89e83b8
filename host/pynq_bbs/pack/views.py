# SPDX-License-Identifier: Apache-2.0
"""Where tensors lie that are parts of others: slices, concatenations, other shapes of the same.

A tensor lies as [column tile][feature][COLS], so features one after the other of a tensor are a
tensor themselves, with more between its tiles. A slice is read where it lies in its tensor, and
the parts of a concatenation are written where they lie in it: neither takes a command. What a
layer cannot reach so is copied by a layer of its own:

* a part of two concatenations that do not lie in each other, and a constant;
* where words or rows at a time hold several features, what does not begin or end with whole ones;
* a tensor whose layer combines it with another one of other strides, one that is the weights of a
  product, or whose average is taken over all its tiles as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..errors import InputError
from ..model.graph import Concat, QuantLayer, QuantModel, Slice
from ..model.moving import merged, moved, without_pads
from .program import Tensor
from .windows import sums_all

Step = QuantLayer | Slice | Concat
#: Tensor -> the tensor that it lies in, and from which feature on.
Inside = dict[str, tuple[str, int]]


def settled(model: QuantModel, build: Build) -> tuple[list[QuantLayer], dict[str, Tensor]]:
    """The layers that run, those that copy among them, and all tensors with where they lie.

    Raises:
        InputError: a tensor that nothing gives, or a view that does not fit the tensor it is of.
    """
    steps, tensors = _in_order(without_pads(model))
    constants = {constant.name for constant in model.constants}
    placing = _Placing(tensors, constants, build)
    placing.place(steps)
    placing.emit(steps)
    return placing.layers, placing.placed()


def input_tensor(shape: tuple[int, ...], model: QuantModel) -> Tensor:
    """A model input (C, H, W) is an image where the model has windows, else plain features."""
    if len(shape) == 3 and any(layer.window for layer in model.layers):
        return Tensor(*shape)
    return Tensor(int(np.prod(shape, dtype=np.int64)))


def output_tensor(layer: QuantLayer) -> Tensor:
    """What `layer` writes."""
    if layer.window is None:
        return Tensor(len(layer.weights))
    return Tensor(len(layer.weights), layer.window.out_height, layer.window.out_width)


def _in_order(model: QuantModel) -> tuple[list[Step], dict[str, Tensor]]:
    """Layers and views, each behind what it reads, and the tensors of all."""
    tensors = {i.tensor: input_tensor(i.shape, model) for i in model.inputs}
    tensors |= {c.name: _tensor(c.values.shape) for c in model.constants}
    sums = {layer.output for layer in model.layers if layer.multiplier is None}
    steps: list[Step] = []
    waiting: list[Slice | Concat] = list(model.views)

    def add_views() -> None:
        while ready := [v for v in waiting if tensors.keys() >= set(v.reads)]:
            for view in ready:
                if part := sums & {*view.reads, view.output}:
                    raise InputError(f"tensor {min(part)!r} has INT32 sums: it cannot be a part")
                add(view, _view_tensor(view, tensors))
                waiting.remove(view)

    def add(step: Step, tensor: Tensor) -> None:
        if step.output in tensors:
            raise InputError(f"tensor {step.output!r} is written twice")
        tensors[step.output] = tensor
        steps.append(step)

    add_views()
    for layer in model.layers:
        if missing := [name for name in layer.reads if name not in tensors]:
            raise InputError(
                f"layer {layer.name!r}: it reads {missing[0]!r}, which no input and no layer "
                "before it gives"
            )
        add(layer, output_tensor(layer))
        add_views()
    if waiting:
        raise InputError(f"nothing gives all of what {waiting[0]} is of")
    return steps, tensors


def _tensor(shape: tuple[int, ...]) -> Tensor:
    """(features,) or (C, H, W)."""
    features, height, width = (*shape, 1, 1)[:3]
    return Tensor(features, height, width)


def _view_tensor(view: Slice | Concat, tensors: dict[str, Tensor]) -> Tensor:
    if isinstance(view, Slice):
        own, whole = _tensor(view.shape), tensors[view.input]
        if own.pixels != whole.pixels or not 0 <= view.first <= whole.features - own.features:
            raise InputError(f"{view} does not fit its input, which is {whole}")
        return own
    parts = [tensors[name] for name in view.inputs]
    if len({part.shape[1:] for part in parts}) != 1:
        raise InputError(f"the parts of {view.output!r} differ in pixels: {parts}")
    return replace(parts[0], features=sum(part.features for part in parts))


class _Placing:
    """Decides where each tensor lies (`place`), then which layers that takes (`emit`)."""

    def __init__(self, tensors: dict[str, Tensor], constants: set[str], build: Build) -> None:
        self._tensors = tensors
        self._constants = constants
        self._build = build
        self._inside: Inside = {}
        self._owned: dict[str, str] = {}  # tensor -> its copy that lies by itself
        self.layers: list[QuantLayer] = []

    def emit(self, steps: list[Step]) -> None:
        """The layers of all steps, one after the other."""
        for step in steps:
            if isinstance(step, QuantLayer):
                self.layers.append(self._readable(step))
            elif isinstance(step, Slice):
                self._slice(step)
            else:
                self._concatenate(step)

    def placed(self) -> dict[str, Tensor]:
        """All tensors, each in the one that it lies in."""
        placed = {}
        for name, tensor in self._tensors.items():
            whole, first = self._root(name)
            placed[name] = tensor if whole == name else replace(tensor, whole=whole, first=first)
        return placed

    def place(self, steps: list[Step]) -> None:
        """Puts as many tensors as may be where others would need copies of them."""
        for step in steps:
            if isinstance(step, Slice) and step.first % self._build.pack == 0:
                self._inside[step.output] = (step.input, step.first)
        # The longest first: shorter ones may lie in them.
        concats = sorted((s for s in steps if isinstance(s, Concat)), key=lambda s: -len(s.inputs))
        alone = self._constants | {c.output for c in concats if not self._whole_rows(c)}
        for concat in concats:
            if concat.output not in alone:
                for name, first in self._parts(concat):
                    self._place_part(name, (concat.output, first), alone)
        for step in steps:
            other = step.combination if isinstance(step, QuantLayer) else None
            if other and self._stride(step.output) != self._stride(other.tensor):
                self._inside.pop(step.output, None)
        for concat in concats:
            self._place_run(concat)

    def _place_part(self, name: str, place: tuple[str, int], alone: set[str]) -> None:
        """Into a concatenation, unless it lies in another tensor already, with more beside it."""
        whole, _ = self._root(name)
        fills = self._tensors[whole].features == self._tensors[name].features
        if fills and whole not in alone and whole != self._root(place[0])[0]:
            self._inside[whole] = place

    def _place_run(self, concat: Concat) -> None:
        """A concatenation where all its parts lie one after the other anyway."""
        whole, start = self._root(concat.inputs[0])
        runs = all(
            self._root(name) == (whole, start + first) for name, first in self._parts(concat)
        )
        if runs and concat.output not in self._inside and whole != concat.output:
            self._inside[concat.output] = whole, start

    def _parts(self, concat: Concat) -> Iterator[tuple[str, int]]:
        """Its parts, and from which feature on each lies."""
        first = 0
        for name in concat.inputs:
            yield name, first
            first += self._tensors[name].features

    def _whole_rows(self, concat: Concat) -> bool:
        """Whether each part begins with a row group, so that no layer writes beyond its part."""
        return all(first % self._build.row_step == 0 for _, first in self._parts(concat))

    def _root(self, name: str) -> tuple[str, int]:
        first = 0
        while name in self._inside:
            name, start = self._inside[name]
            first += start
        return name, first

    def _stride(self, name: str) -> int:
        """Features between the tiles of a tensor."""
        return self._build.padded(self._tensors[self._root(name)[0]].features)

    def _readable(self, layer: QuantLayer) -> QuantLayer:
        """The layer with copies of what it cannot read where it lies."""
        combination = layer.combination
        if combination and self._stride(combination.tensor) != self._stride(layer.output):
            combination = replace(combination, tensor=self._own(combination.tensor))
        source, weights = layer.input, layer.weight_tensor
        if layer.window and not layer.window.is_pixel and sums_all(layer):
            source = self._own(source)
        if weights:
            weights = self._own(weights)
        return replace(layer, input=source, weight_tensor=weights, combination=combination)

    def _own(self, name: str) -> str:
        """A tensor of these values with nothing between its tiles."""
        features = self._tensors[name].features
        if self._tensors[self._root(name)[0]].features == features:
            return name
        if name not in self._owned:
            self._owned[name] = self._move(self._fresh(name), name, np.eye(features))
        return self._owned[name]

    def _slice(self, view: Slice) -> None:
        if self._inside.get(view.output) == (view.input, view.first):
            return
        of = self._tensors[view.input].features
        self._move(view.output, view.input, np.eye(view.shape[0], of, view.first))

    def _concatenate(self, concat: Concat) -> None:
        whole, start = self._root(concat.output)
        astray = [p for p in self._parts(concat) if self._root(p[0]) != (whole, start + p[1])]
        if self._whole_rows(concat) or not astray:
            for name, first in astray:
                copy = self._fresh(concat.output)
                self._inside[copy] = (concat.output, first)
                self._move(copy, name, np.eye(self._tensors[name].features))
            return
        # Each part where it belongs and zeros elsewhere, plus those before it.
        rows, before = self._tensors[concat.output].features, ""
        for name, first in self._parts(concat):
            last = first + self._tensors[name].features == rows
            to = concat.output if last else self._fresh(concat.output)
            self._move(to, name, np.eye(rows, self._tensors[name].features, -first), before)
            before = to

    def _move(self, to: str, source: str, matrix: NDArray[np.float64], plus: str = "") -> str:
        """Adds a layer that writes features of `source` to tensor `to`, plus those of another."""
        tensor = self._tensors[source]
        layer = moved(to, source, matrix.astype(np.int8), tensor.shape)
        if to not in self._tensors:
            self._tensors[to] = Tensor(len(matrix), tensor.height, tensor.width)
        self.layers.append(self._readable(merged(layer, plus) if plus else layer))
        return to

    def _fresh(self, name: str) -> str:
        count = 0
        while f"{name}/{count}" in self._tensors:
            count += 1
        return f"{name}/{count}"
