# SPDX-License-Identifier: Apache-2.0
"""Programs that are fully connected layers one after the other, as plain matrices.

That is all that matrix libraries can run of a model, so it is what they are compared on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..builds import TABLE_WORDS
from ..errors import InputError
from ..model.arrangement import AS_IT_IS
from ..model.graph import QuantInput, QuantOutput, apply_functions
from ..pack.program import PackedLayer, Program
from .dense import stored_matrix


@dataclass(frozen=True)
class IntegerLayer:
    """`clip(round_half_even((weights @ x + bias) * multiplier) + zero_point, low, high)`, or the
    sums themselves where there is no multiplier; zero points of inputs are in the bias."""

    name: str
    weights: NDArray[np.int8]  # (M, K), zeros in their places
    bias: NDArray[np.int32]  # (M,)
    multiplier: NDArray[np.float32] | None  # (M,)
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class FloatLayer:
    """`clip(weights @ x + bias, low, high)`, without rounding."""

    weights: NDArray[np.float32]  # (M, K)
    bias: NDArray[np.float32]  # (M,)
    low: float
    high: float


@dataclass(frozen=True)
class Chain:
    """A model that is layers one after the other, with one input and one output."""

    input: QuantInput
    layers: list[IntegerLayer]
    output: QuantOutput

    def float_layers(self) -> list[FloatLayer]:
        """The same network in float32, quantisation left out but for the values that it limits.

        The first takes the input as users hand it in (as float32), the last gives the output
        before the functions behind it.
        """
        layers = []
        scale, zero = np.float32(self.input.scale), self.input.zero_point
        if self.input.dtype != "float32":
            scale, zero = np.float32(1), -128 if self.input.dtype == "uint8" else 0
        for index, layer in enumerate(self.layers):
            step = np.float32(1) if layer.multiplier is None else layer.multiplier[:, None]
            weights = layer.weights.astype(np.float32) * step
            bias = layer.bias * np.ravel(step) + np.float32(layer.zero_point)
            low, high = float(layer.low), float(layer.high)
            if layer.multiplier is None:
                low, high = -np.inf, np.inf
            if index == 0:
                bias = bias + weights.sum(axis=1) * np.float32(zero)
                weights = weights / scale
            layers.append(FloatLayer(weights, np.asarray(bias, np.float32), low, high))
        layers[-1] = self._last(layers[-1])
        return layers

    def _last(self, layer: FloatLayer) -> FloatLayer:
        """With the output's scale in it."""
        if self.output.dtype != "float32":
            shift = 128.0 if self.output.dtype == "uint8" else 0.0
            bias = np.asarray(layer.bias + np.float32(shift), np.float32)
            return FloatLayer(layer.weights, bias, layer.low + shift, layer.high + shift)
        scale = np.broadcast_to(self.output.scale, layer.bias.shape).astype(np.float32)
        zero = np.float32(self.output.zero_point)
        # A scale for each row is of sums only, which have no limits.
        low, high = ((v - float(zero)) * float(scale[0]) for v in (layer.low, layer.high))
        return FloatLayer(layer.weights * scale[:, None], (layer.bias - zero) * scale, low, high)

    def finished(self, y: NDArray[np.generic]) -> NDArray[np.generic]:
        """The output (N, *shape) from what the last layer gives (N, M)."""
        if self.output.functions:
            y = apply_functions(self.output.functions, y.astype(np.float32, copy=False))
        return y.reshape(len(y), *self.output.shape)


def chain_of(program: Program) -> Chain:
    """The program as a chain.

    Raises:
        InputError: it is not one; says which layer stands in the way.
    """
    if len(program.inputs) != 1 or len(program.outputs) != 1 or program.lengths:
        raise InputError("the model has several inputs or outputs")
    source, output = program.inputs[0], program.outputs[0]
    if source.functions or source.arrangement != AS_IT_IS or output.arrangement != AS_IT_IS:
        raise InputError("the model rearranges its input or output, or applies functions to it")
    if output.functions and output.dtype != "float32":
        raise InputError("the model's output is quantised behind a function")
    last, layers = source.tensor, []
    for layer in program.layers:
        plain = not (layer.cell or layer.window or layer.sum_columns or layer.weight_tensor)
        target = program.tensors[layer.output]
        alone = target.pixels * target.steps == 1 and not target.whole and not layer.first_row
        if not (plain and alone and layer.combination is None and layer.input == last):
            raise InputError(f"layer {layer.name!r} is no fully connected layer behind another")
        layers.append(_integer_layer(layer, program, target.features))
        last = layer.output
    if output.tensor != last or not layers:
        raise InputError("the output is not the last layer's")
    return Chain(source, layers, output)


def _integer_layer(layer: PackedLayer, program: Program, rows: int) -> IntegerLayer:
    image = program.image
    parameters = image[layer.parameters :][:rows]
    multiplier = (parameters >> np.uint64(32)).astype(np.uint32).view(np.float32)
    low, high = _limits(layer, image)
    return IntegerLayer(
        layer.name,
        stored_matrix(layer, image, program.build)[:rows],
        (parameters & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32),
        None if layer.sums_out else multiplier,
        0 if layer.sums_out else layer.zero_point,
        low,
        high,
    )


def _limits(layer: PackedLayer, image: NDArray[np.uint64]) -> tuple[int, int]:
    """The least and the largest value of a layer's table."""
    every = np.arange(-128, 128)
    table = every
    if layer.table >= 0:
        table = image[layer.table : layer.table + TABLE_WORDS].view(np.int8).astype(np.int64)
    low, high = int(table.min()), int(table.max())
    if not np.array_equal(table, np.clip(every, low, high)):
        raise InputError(f"layer {layer.name!r} has a function that does more than limit values")
    return low, high
