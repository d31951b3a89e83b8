# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU: the matrices of a step, packed as any layer's over the features of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..errors import InputError
from ..model.graph import Combination, QuantLayer, QuantModel
from ..model.moving import copied
from ..model.recurrent import GATES, QuantMatrix, RecurrentLayer
from .program import PackedCell, PackedLayer, Tensor

#: How a plain layer is packed: in banks of (size, keep), or in those that suit it.
Pack = Callable[[QuantLayer, "tuple[int, int] | None"], PackedLayer]


@dataclass(frozen=True)
class StepFeatures:
    """Where the features of a step lie: [r h, x, h], each filled up to whole row groups."""

    units: int
    inputs: int
    gated: bool  # whether r h are among them
    build: Build

    @classmethod
    def of(cls, cell: PackedCell, build: Build) -> StepFeatures:
        return cls(cell.units, cell.inputs, cell.reset is not None, build)

    @property
    def x(self) -> int:
        return self.build.padded(self.units) if self.gated else 0

    @property
    def h(self) -> int:
        return self.x + self.build.padded(self.inputs)

    @property
    def total(self) -> int:
        return self.h + self.build.padded(self.units)

    @property
    def states(self) -> int:
        """Words of the cell memory, of two states, for one column tile."""
        return self.build.padded(self.units) * self.build.cols // 2


@dataclass(frozen=True)
class _Spread:
    """A matrix of a step: how many rows and features it has when packed, and where its own lie."""

    matrix: QuantMatrix
    rows: int
    features: int
    places: NDArray[np.int64]

    def weights(self) -> NDArray[np.int8]:
        """(rows, features), zero where the model has nothing."""
        weights = np.zeros((self.rows, self.features), np.int8)
        weights[: len(self.matrix.weights), self.places] = self.matrix.weights
        return weights

    def own(self, weights: NDArray[np.int8]) -> QuantMatrix:
        """The matrix with what `weights`, spread, hold of it."""
        return replace(self.matrix, weights=weights[: len(self.matrix.weights), self.places])


def _matrices(layer: RecurrentLayer, build: Build) -> dict[str, _Spread]:
    """By name: the gates', and `:reset` where a GRU's reset gate comes first."""
    quantised = layer.quantised
    units, gated = np.arange(quantised.hidden_size), quantised.reset is not None
    at = StepFeatures(len(units), quantised.input_size, gated, build)
    both = np.concatenate([at.x + np.arange(at.inputs), at.h + units])
    places = np.concatenate([units, both]) if gated else both
    rows = build.padded(len(units))
    made = {layer.name: _Spread(quantised.matrix, GATES * rows, at.total, places)}
    if quantised.reset is not None:
        made[_reset(layer)] = _Spread(quantised.reset, rows, at.total - at.x, both - at.x)
    return made


def _reset(layer: RecurrentLayer) -> str:
    return f"{layer.name}:reset"


def prune_recurrent(
    layer: RecurrentLayer,
    prune: Callable[[str, NDArray[np.int8]], NDArray[np.int8]],
    build: Build,
) -> RecurrentLayer:
    """The layer with what `prune` leaves of its matrices, as they are packed for `build`.

    Args:
        prune: from a matrix's name and weights (rows, features) to weights of the same shape; the
            gates have the layer's name, `:reset` stands behind it where that is on its own.
    """
    matrices = {
        name: spread.own(prune(name, spread.weights()))
        for name, spread in _matrices(layer, build).items()
    }
    reset = matrices.get(_reset(layer))
    quantised = replace(layer.quantised, matrix=matrices[layer.name], reset=reset)
    return replace(layer, quantised=quantised)


def own_inputs(model: QuantModel) -> QuantModel:
    """The model with inputs once more for every further recurrent layer that reads them, as x or as
    initial h: the host puts each where that layer works."""
    inputs = {i.tensor: i for i in model.inputs}
    taken = {n for la in model.layers if isinstance(la, QuantLayer) for n in la.reads[1:]}
    taken |= {name for view in model.views for name in view.reads}

    def own(name: str, other: str) -> str:
        if name in inputs and name in taken:
            inputs[other] = replace(inputs[name], tensor=other)
            return other
        taken.add(name)
        return name

    layers: list[QuantLayer | RecurrentLayer] = []
    for layer in model.layers:
        if isinstance(layer, RecurrentLayer):
            x, h = own(layer.input, f"{layer.name}:x"), own(layer.initial_h, f"{layer.name}:h")
            layer = replace(layer, input=x, initial_h=h)
        layers.append(layer)
    return replace(model, inputs=list(inputs.values()), layers=layers)


def pack_recurrent(
    layer: RecurrentLayer,
    banks: dict[str, tuple[int, int]],
    build: Build,
    pack: Pack,
    *,
    has_lengths: bool,
) -> PackedLayer:
    """The layer, for tensors that lie where it works.

    Args:
        banks: (size, keep) by name of the matrices, as `prune_recurrent` has them.

    Raises:
        InputError: what `pack` refuses.
    """
    quantised = layer.quantised
    packed = {
        name: pack(_plain(layer, name, spread), banks.get(name))
        for name, spread in _matrices(layer, build).items()
    }
    units = quantised.hidden_size
    copies = has_lengths and (layer.initial_h if layer.reverse else layer.y_h)
    cell = PackedCell(
        kind=quantised.kind,
        units=units,
        inputs=quantised.input_size,
        reverse=layer.reverse,
        shift=quantised.shift,
        y_h=layer.y_h,
        y_state=layer.y_state,
        initial_h=layer.initial_h,
        initial_state=layer.initial_state,
        reset=packed.get(_reset(layer)),
        copy=pack(copied(f"{layer.name}:y", layer.output, (units, 1, 1)), None) if copies else None,
    )
    gates = 4 if quantised.kind == "lstm" else 3
    weights_per_row = gates * (quantised.input_size + units) // GATES
    return replace(packed[layer.name], cell=cell, weights_per_row=weights_per_row)


def recurrent_tensors(layer: RecurrentLayer, steps: int) -> dict[str, Tensor]:
    """What the layer writes."""
    units = layer.quantised.hidden_size
    written = {
        layer.output: Tensor(units, steps=steps),
        layer.y_h: Tensor(units),
        layer.y_state: Tensor(units, bits=16),
    }
    return {name: tensor for name, tensor in written.items() if name}


def _plain(layer: RecurrentLayer, name: str, spread: _Spread) -> QuantLayer:
    """A matrix of a step as a layer over the step's features."""
    own = slice(0, len(spread.matrix.weights))
    bias, multiplier = np.zeros(spread.rows, np.int32), np.ones(spread.rows, np.float32)
    bias[own], multiplier[own] = spread.matrix.folded_bias, spread.matrix.multiplier
    # rhe((q + 128) h, 8)
    gated = Combination(layer.output, 1, -128, 0, 0, 8, 0, product=True)
    return QuantLayer(
        name=name,
        input=layer.input,
        output=layer.output,
        weights=spread.weights(),
        bias=bias,
        input_zero_point=0,
        multiplier=multiplier,
        table=layer.quantised.table,
        weight_bits=layer.weight_bits,
        combination=gated if spread.matrix is layer.quantised.reset else None,
    )


def check_recurrent(layer: RecurrentLayer, tensors: dict[str, Tensor], build: Build) -> None:
    """Raises an InputError where a build has no cells for the layer, or the `tensors` that there
    are before it are not what it reads."""
    quantised, named = layer.quantised, f"layer {layer.name!r}:"
    if build.cell_words == 0:
        raise InputError(
            f"{named} build {build.name} has no cells and runs no LSTM or GRU: compile for one "
            "whose cell_words are more than 0, such as 32x4x1"
        )
    units = quantised.hidden_size
    if StepFeatures(units, quantised.input_size, False, build).states > build.cell_words:
        raise InputError(
            f"{named} it has {units} units, build {build.name} holds the states of "
            f"{2 * build.cell_words // build.cols} for a column tile"
        )
    steps = tensors[layer.input].steps if layer.input in tensors else 1
    wanted = {
        layer.input: Tensor(quantised.input_size, steps=steps),
        layer.initial_h: Tensor(units),
        layer.initial_state: Tensor(units, bits=16),
    }
    for name, tensor in wanted.items():
        if name and tensors.get(name) != tensor:
            found = tensors.get(name, "nothing that an input or a layer before it gives")
            raise InputError(f"{named} it reads {name!r} as {tensor}, which is {found}")
