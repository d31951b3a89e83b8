# SPDX-License-Identifier: Apache-2.0
"""Where tensors lie that are parts of others: slices, concatenations, other shapes of the same.

A tensor lies as [column tile][feature][COLS], so features one after the other of a tensor are a
tensor themselves, with more between its tiles. A slice is read where it lies in its tensor, and
the parts of a concatenation are written where they lie in it: neither takes a command. The tiles
of a step lie by themselves, so a step is read where it lies too. What a layer cannot reach so is
copied by a layer of its own:

* a part of two concatenations that do not lie in each other, and a constant;
* where words or rows at a time hold several features, what does not begin or end with whole ones;
* a tensor whose layer combines it with another one of other strides, one that is the weights of a
  product, or whose average is taken over all its tiles as one;
* what a recurrent layer works on, unless it is an input of the model, which the host puts there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

import numpy as np

from ..builds import Build
from ..errors import InputError
from ..model.graph import AtStep, Concat, QuantInput, QuantLayer, QuantModel, Slice, View
from ..model.moving import copied, joined, moved, without_pads
from ..model.recurrent import RecurrentLayer
from .program import Tensor
from .recurrent import check_recurrent, recurrent_tensors
from .windows import sums_all

AnyLayer = QuantLayer | RecurrentLayer
Step = AnyLayer | View
#: Tensor -> the tensor that it lies in, and from which feature on.
Inside = dict[str, tuple[str, int]]


def settled(model: QuantModel, build: Build) -> tuple[list[AnyLayer], dict[str, Tensor]]:
    """The layers that run, those that copy among them, and all tensors with where they lie.

    Raises:
        InputError: a tensor that nothing gives, a view that does not fit the tensor it is of, or a
            recurrent layer that is not for this build.
    """
    model = without_pads(model)
    steps, tensors = _in_order(model, build)
    placing = _Placing(model, tensors, build)
    placing.place(steps)
    placing.emit(steps)
    return placing.layers, placing.placed()


def input_tensor(spec: QuantInput, model: QuantModel) -> Tensor:
    """A model input (C, H, W) is an image where the model has windows, else plain features."""
    windows = any(isinstance(layer, QuantLayer) and layer.window for layer in model.layers)
    shape = spec.tensor_shape or spec.shape
    if len(shape) == 3 and windows:
        return Tensor(*shape)
    return Tensor(spec.features // spec.steps, steps=spec.steps, bits=spec.bits)


def output_tensor(layer: QuantLayer, source: Tensor) -> Tensor:
    """What `layer` writes."""
    bits = 32 if layer.multiplier is None else 8
    if layer.window is None:
        return Tensor(len(layer.weights), steps=source.steps, bits=bits)
    size = (layer.window.out_height, layer.window.out_width)
    return Tensor(len(layer.weights), *size, bits=bits)


def within_features(model: QuantModel) -> set[str]:
    """Tensors that lie among the features of recurrent layers, or may."""
    recurrent = [layer for layer in model.layers if isinstance(layer, RecurrentLayer)]
    within = {name for layer in recurrent for name in layer.outputs}
    steps = [view for view in model.views if isinstance(view, AtStep)]
    return within | {view.output for view in steps if view.input in within}


def _in_order(model: QuantModel, build: Build) -> tuple[list[Step], dict[str, Tensor]]:
    """Layers and views, each behind what it reads, and the tensors of all."""
    tensors = {i.tensor: input_tensor(i, model) for i in model.inputs}
    tensors |= {c.name: _tensor(c.values.shape) for c in model.constants}
    within = within_features(model)
    steps: list[Step] = []
    waiting: list[View] = list(model.views)

    def add_views() -> None:
        while ready := [v for v in waiting if tensors.keys() >= set(v.reads)]:
            for view in ready:
                for name in view.reads if not isinstance(view, AtStep) else ():
                    _check_whole(name, tensors[name], within)
                add(view, {view.output: _view_tensor(view, tensors)})
                waiting.remove(view)

    def add(step: Step, written: dict[str, Tensor]) -> None:
        if twice := sorted(written.keys() & tensors.keys()):
            raise InputError(f"tensor {twice[0]!r} is written twice")
        tensors.update(written)
        steps.append(step)

    add_views()
    for layer in model.layers:
        if isinstance(layer, RecurrentLayer):
            check_recurrent(layer, tensors, build)
            add(layer, recurrent_tensors(layer, tensors[layer.input].steps))
        elif missing := [name for name in layer.reads if name not in tensors]:
            raise InputError(
                f"layer {layer.name!r}: it reads {missing[0]!r}, which no input and no layer "
                "before it gives"
            )
        else:
            add(layer, {layer.output: output_tensor(layer, tensors[layer.input])})
        add_views()
    if waiting:
        raise InputError(f"nothing gives all of what {waiting[0]} is of")
    return steps, tensors


def _check_whole(name: str, tensor: Tensor, within: set[str]) -> None:
    """Raises an InputError where a view cannot be of a tensor."""
    if tensor.steps > 1:
        raise InputError(f"tensor {name!r} has {tensor.steps} steps: a view is of one step only")
    if tensor.bits != 8:
        kind = "sums" if tensor.bits == 32 else "states"
        raise InputError(f"tensor {name!r} has INT{tensor.bits} {kind}: it cannot be a part")
    if name in within:
        raise InputError(
            f"tensor {name!r} lies among the features of a recurrent layer: it cannot be a part. "
            "join() it to a tensor of its own first"
        )


def _tensor(shape: tuple[int, ...]) -> Tensor:
    """(features,) or (C, H, W)."""
    features, height, width = (*shape, 1, 1)[:3]
    return Tensor(features, height, width)


def _view_tensor(view: View, tensors: dict[str, Tensor]) -> Tensor:
    if isinstance(view, AtStep):
        steps = tensors[view.input].steps
        if not 0 <= view.step < steps:
            raise InputError(f"{view} does not fit its input, which has {steps} step(s)")
        return replace(tensors[view.input], steps=1)
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

    def __init__(self, model: QuantModel, tensors: dict[str, Tensor], build: Build) -> None:
        self._model = model
        self._tensors = tensors
        self._build = build
        self._inside: Inside = {}
        self._steps: dict[str, int] = {}  # tensor that is one of the steps of another -> which
        self._owned: dict[str, str] = {}  # tensor -> its copy that lies by itself
        self.layers: list[AnyLayer] = []

    def emit(self, steps: list[Step]) -> None:
        """The layers of all steps, one after the other."""
        for step in steps:
            if isinstance(step, QuantLayer):
                self.layers.append(self._readable(step))
            elif isinstance(step, RecurrentLayer):
                self.layers.append(self._supplied(step))
            elif isinstance(step, Slice):
                self._slice(step)
            elif isinstance(step, Concat):
                self._concatenate(step)

    def placed(self) -> dict[str, Tensor]:
        """All tensors, each in the one that it lies in."""
        placed = {}
        for name, tensor in self._tensors.items():
            whole, first = self._root(name)
            if whole != name:
                tensor = replace(tensor, whole=whole, first=first, step=self._step(name))
            placed[name] = tensor
        return placed

    def place(self, steps: list[Step]) -> None:
        """Puts as many tensors as may be where others would need copies of them."""
        for step in steps:
            if isinstance(step, Slice) and step.first % self._build.pack == 0:
                self._inside[step.output] = (step.input, step.first)
            elif isinstance(step, AtStep):
                self._inside[step.output] = (step.input, 0)
                self._steps[step.output] = step.step
        # The longest first: shorter ones may lie in them.
        concats = sorted((s for s in steps if isinstance(s, Concat)), key=lambda s: -len(s.inputs))
        alone = {c.name for c in self._model.constants}
        alone |= {c.output for c in concats if not self._whole_rows(c)}
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
        own, around = self._tensors[name], self._tensors[whole]
        fills = (around.features, around.steps) == (own.features, own.steps)
        if fills and whole not in alone and whole != self._root(place[0])[0]:
            self._inside[whole] = place

    def _place_run(self, concat: Concat) -> None:
        """A concatenation where all its parts lie one after the other anyway."""
        whole, start = self._root(concat.inputs[0])
        runs = self._tensors[whole].steps == 1 and all(
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

    def _step(self, name: str) -> int:
        """The step of its root that a tensor begins with."""
        step = 0
        while name in self._inside:
            step += self._steps.get(name, 0)
            name, _ = self._inside[name]
        return step

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
            self._owned[name] = self._copy(next(self._free(name)), name)
        return self._owned[name]

    def _supplied(self, layer: RecurrentLayer) -> RecurrentLayer:
        """The layer with copies of its x and initial h where it works. Where samples begin in
        several slots, it copies the initial h itself."""
        given = {i.tensor for i in self._model.inputs}
        x, h = layer.input, layer.initial_h
        if x not in given:
            x = self._copy(f"{layer.name}:x", x)
        if h and h not in given and not (layer.reverse and self._model.lengths):
            h = self._copy(f"{layer.name}:h", h)
        return replace(layer, input=x, initial_h=h)

    def _slice(self, view: Slice) -> None:
        if self._inside.get(view.output) == (view.input, view.first):
            return
        source = self._tensors[view.input]
        matrix = np.eye(view.shape[0], source.features, view.first, dtype=np.int8)
        self._add(moved(view.output, view.input, matrix, source.shape))

    def _concatenate(self, concat: Concat) -> None:
        whole, start = self._root(concat.output)
        astray = [p for p in self._parts(concat) if self._root(p[0]) != (whole, start + p[1])]
        free = self._free(concat.output)
        if self._whole_rows(concat) or not astray:
            for name, first in astray:
                copy = next(free)
                self._inside[copy] = (concat.output, first)
                self._copy(copy, name)
            return
        names = [*islice(free, len(concat.inputs) - 1), concat.output]
        for layer in joined(names, concat.inputs, [self._tensors[n].shape for n in concat.inputs]):
            self._add(layer)

    def _copy(self, to: str, source: str) -> str:
        return self._add(copied(to, source, self._tensors[source].shape))

    def _add(self, layer: QuantLayer) -> str:
        """Adds a layer that moves features, and its tensor, which it returns."""
        if layer.output not in self._tensors:
            self._tensors[layer.output] = output_tensor(layer, self._tensors[layer.input])
        self.layers.append(self._readable(layer))
        return layer.output

    def _free(self, name: str) -> Iterator[str]:
        """Names for tensors beside `name`."""
        return (n for n in (f"{name}/{i}" for i in count()) if n not in self._tensors)
