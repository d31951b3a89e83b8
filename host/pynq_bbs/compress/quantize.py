# SPDX-License-Identifier: Apache-2.0
"""From float32 layers to the engine's integers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError
from ..model.arithmetic import (
    Scale,
    clamp_table,
    function_table,
    integer_bias,
    multiplier,
    product_of,
    sum_of,
    sum_scale,
)
from ..model.graph import (
    AtStep,
    Concat,
    Float,
    Layer,
    Model,
    QuantInput,
    QuantLayer,
    QuantModel,
    QuantOutput,
    View,
    image_shape,
    window_shape,
)
from ..model.moving import concatenated, copied, join, rescaled
from ..model.recurrent import HIDDEN_SCALE, RecurrentLayer, quantise_weights
from ..model.recurrent_floats import FloatRecurrent
from .activations import (
    observed_name,
    ready,
    split_functions,
)
from .calibrate import MIN_SCALE
from .observe import fixed_scale, has_fixed_scale, observe, read_tensors
from .scores import Float64, by_taps, from_taps
from .second_order import gptq

#: The largest bias that leaves as much of INT32 to the products.
_MOST_BIAS = 2**30


def quantize(
    model: Model,
    calibration: Iterable[Any],
    *,
    method: str = "minmax",
    weight_bits: int | Mapping[str, int] = 8,
    moments: Mapping[str, Float64] = MappingProxyType({}),
    progress: Callable[[int], None] | None = None,
) -> QuantModel:
    """Weights per row (symmetric: INT8 -127 to 127, INT4 -7 to 7), INT8 activations per tensor.

    Relu and Clip happen in the output's scale. Sigmoid and tanh are tables from a calibrated scale
    in front of them to a fixed one behind them (1/256 from 0, and 1/128 around 0), other curves are
    tables between calibrated scales. A model output without a function is the INT32 sums,
    dequantised per row; one that is also read by a layer is computed in both forms. Zero weights
    stay zero. A maximum keeps its input's scale; what an addition adds up, or a product multiplies,
    is INT8 on both sides (docs/arithmetic.md). What is joined to one tensor has that one's scale
    where a layer can give it, else it is requantised. LSTM and GRU have scales of their own
    (docs/recurrent.md).

    Args:
        model: float32 layers; not changed.
        calibration: samples like those of later use. An array (N, *shape), a dict of such arrays
            by input name, or an iterable of either, which is read once, batch by batch.
        method: `minmax`, `percentile`, `entropy` or `mse` (see `make_observer`).
        weight_bits: 8 or 4, or either by layer name (8 where it says nothing).
        moments: of the layers whose weights GPTQ rounds, of one group each, the sums of products
            of two features (`input_moments`); others' go to the nearest integer.
        progress: called with the number of samples seen so far.

    Raises:
        InputError: `weight_bits` is neither, or calibration data that does not fit the model's
            inputs, is empty or not finite.
        ModelError: weights or scales that float32 cannot hold.
    """
    bits = _bits_by_layer(model, weight_bits)
    scales = observe(model, calibration, method=method, progress=progress).scales()
    return Quantizer(model, scales, bits, moments).run()


class Quantizer:
    """Emits the integer layers of a model whose tensors have been observed."""

    def __init__(
        self,
        model: Model,
        observed: Mapping[str, Scale],
        weight_bits: Mapping[str, int],
        moments: Mapping[str, Float64] = MappingProxyType({}),
    ) -> None:
        self.weight_bits = weight_bits
        self.moments = moments
        self.model = model
        self.observed = observed
        self.scales = {i.tensor: observed[i.tensor] for i in model.inputs}
        self.layers: list[QuantLayer | RecurrentLayer] = []
        self.views: list[View] = []
        self.steps = {i.tensor: i.steps for i in model.inputs}
        #: (C, H, W), of a step where there are several
        self.shapes = {
            i.tensor: image_shape((i.tensor_shape or i.shape)[1 if i.steps > 1 else 0 :])
            for i in model.inputs
        }
        #: tensors that lie among the features of recurrent layers, and their copies
        self.within: dict[str, str] = {}
        #: scale of the sums of every layer that gives them, and their tensor, by float tensor
        self.sums: dict[str, tuple[str, Float]] = {}
        self.names = {i.tensor for i in model.inputs}
        for layer in model.layers:
            self.names |= {layer.name, *layer.outputs}

    def run(self, read: Collection[str] = ()) -> QuantModel:
        """The integer layers; those that give tensors `read` elsewhere give INT8 too."""
        read = read_tensors(self.model) | set(read)
        shown = {output.tensor for output in self.model.outputs}
        waiting = list(self.model.views)
        self._views(waiting)
        for layer in self.model.layers:
            try:
                if isinstance(layer, FloatRecurrent):
                    self._recurrent(layer)
                else:
                    self._layer(layer, layer.output in read, layer.output in shown)
            except ModelError as error:
                raise ModelError(f"layer {layer.name!r}: {error}") from None
            self._views(waiting)
        inputs = [
            QuantInput(
                i.name, i.tensor, i.shape, "float32", *self.scales[i.tensor], i.functions, i.steps,
                16 if i.state_bits else 8, i.arrangement, i.tensor_shape, i.batch_axis, i.first,
            )
            for i in self.model.inputs
        ]  # fmt: skip
        outputs = self._outputs()
        return QuantModel(
            self.model.name, inputs, self.layers, outputs, self.model.lengths, self.views
        )

    def _views(self, waiting: list[View]) -> None:
        """Those of `waiting` that can be made by now."""
        for view in ready(waiting, self.scales):
            self.steps[view.output] = 1
            if isinstance(view, Concat):
                self._concatenate(view)
                continue
            self.scales[view.output] = self.scales[view.input]
            if isinstance(view, AtStep):
                self.shapes[view.output] = self.shapes[view.input]
                if view.input in self.within:
                    self.within[view.output] = ""
            else:
                self.shapes[view.output] = image_shape(view.shape)
                view = replace(view, input=self._by_itself(view.input))
            self.views.append(view)

    def _concatenate(self, view: Concat) -> None:
        parts = [(name, self.shapes[name], self.scales[name]) for name in view.inputs]
        channels = sum(shape[0] for _, shape, _ in parts)
        self.shapes[view.output] = (channels, *parts[0][1][1:])
        self.steps[view.output] = steps = self.steps[view.inputs[0]]
        y = self.observed[view.output]
        if steps == 1 and not any(name in self.within for name in view.inputs):
            layers, made = concatenated(view.output, parts, y)
            self.layers += layers
            self.views.append(made)
        else:
            scales = {scale for _, _, scale in parts}
            y = y if len(scales) > 1 else scales.pop()
            moved = []
            for number, (name, shape, x) in enumerate(parts):
                if x != y:
                    self.layers.append(rescaled(f"{view.output}:x{number}", name, shape, x, y))
                    name = self.layers[-1].output
                moved.append((name, shape[0]))
            self.layers += join(view.output, moved)
        self.scales[view.output] = y

    def _by_itself(self, name: str) -> str:
        """The tensor, or a copy of it that does not lie among the features of a recurrent layer."""
        if name not in self.within:
            return name
        if not self.within[name]:
            copy = self.within[name] = self._new_name(name, ".copy")
            self.layers.append(copied(copy, name, self.shapes[name]))
            self.scales[copy], self.shapes[copy] = self.scales[name], self.shapes[name]
            self.steps[copy] = self.steps[name]
        return self.within[name]

    def _recurrent(self, layer: FloatRecurrent) -> None:
        x = self.scales[layer.input]
        bits = self.weight_bits.get(layer.name, 8)
        quantised = quantise_weights(layer.weights, *x, weight_bits=bits)
        self.layers.append(
            RecurrentLayer(
                layer.name, layer.input, layer.output, quantised, layer.reverse, layer.y_h,
                layer.y_state, layer.initial_h, layer.initial_state, bits,
            )
        )  # fmt: skip
        for name in layer.outputs:
            self.scales[name] = HIDDEN_SCALE, 0
            self.shapes[name] = (quantised.hidden_size, 1, 1)
            self.steps[name] = self.steps[layer.input] if name == layer.output else 1
            self.within[name] = ""
        if layer.y_state:
            self.scales[layer.y_state] = np.float32(2.0**-quantised.state_bits), 0

    def _layer(self, layer: Layer, is_read: bool, is_shown: bool) -> None:
        self.shapes[layer.output] = image_shape(window_shape(len(layer.weights), layer.window))
        self.steps[layer.output] = self.steps[layer.input]
        if layer.maximum:
            self._maximum(layer)
            return
        x_scale, x_zero_point = self.scales[layer.input]
        bits = self.weight_bits.get(layer.name, 8)
        moments = self.moments.get(layer.name)
        weights, w_scale = quantise_weights_of(layer, bits, x_scale, moments)
        scale = sum_scale(x_scale, w_scale)
        sums = QuantLayer(
            layer.name, layer.input, layer.output, weights, integer_bias(layer.bias, scale),
            x_zero_point, None, weight_bits=bits, window=layer.window,
            groups=layer.groups,
        )  # fmt: skip
        if is_read or layer.functions or layer.other:
            self.layers.append(self._requantised(layer, sums, w_scale))
        if is_shown and not layer.functions and not layer.other:
            if is_read:
                sums.name, sums.output = self._new_name(layer.name), self._new_name(layer.output)
            self.sums[layer.output] = sums.output, scale
            self.layers.append(sums)

    def _requantised(self, layer: Layer, sums: QuantLayer, w_scale: Float) -> QuantLayer:
        """The layer that gives INT8 where `sums` gives sums."""
        q_scale, q_zero_point = q = self.observed[observed_name(layer)]
        made = replace(
            sums, multiplier=multiplier(self.scales[layer.input][0], w_scale, q_scale),
            zero_point=q_zero_point,
        )  # fmt: skip
        if layer.other:
            y = self.scales[layer.output] = self.observed[layer.output]
            combined = product_of if layer.product else sum_of
            other = self._by_itself(layer.other)
            made.combination = combined(other, q, self.scales[other], y, layer.functions)
        else:
            self._add_functions(layer, made, q)
        return made

    def _maximum(self, layer: Layer) -> None:
        """The largest of the integers as they are; functions are a table behind it."""
        channels = len(layer.weights)
        made = QuantLayer(
            layer.name, layer.input, layer.output, np.ones(layer.weights.shape, np.int8),
            np.zeros(channels, np.int32), 0, np.ones(channels, np.float32), window=layer.window,
            groups=layer.groups, maximum=True,
        )  # fmt: skip
        self._add_functions(layer, made, self.scales[layer.input])
        self.layers.append(made)

    def _add_functions(self, layer: Layer, made: QuantLayer, q: Scale) -> None:
        """The layer's functions behind what `made` gives in scale and zero point `q`."""
        clamps, rest = split_functions(layer.functions)
        y = q
        if rest:
            fixed = has_fixed_scale(rest)
            y = fixed_scale(rest) if fixed else self.observed[layer.output]
        self.scales[layer.output] = y
        made.table = function_table(layer.functions, *q, *y) if rest else clamp_table(clamps, *q)

    def _outputs(self) -> list[QuantOutput]:
        outputs, inputs = [], {i.tensor for i in self.model.inputs}
        for out in self.model.outputs:
            made = QuantOutput(
                out.name, out.tensor, out.shape, "float32", functions=out.functions,
                arrangement=out.arrangement, batch_axis=out.batch_axis,
                steps=self.steps.get(out.tensor, 1),
            )  # fmt: skip
            if out.tensor in self.sums:
                tensor, scale = self.sums[out.tensor]
                outputs.append(replace(made, tensor=tensor, scale=scale))
            else:
                if out.tensor not in self.scales or out.tensor in inputs:
                    raise ModelError(f"output {out.name!r} does not come from a layer.")
                y_scale, zero_point = self.scales[out.tensor]
                scale = np.array([y_scale], np.float32)
                outputs.append(replace(made, scale=scale, zero_point=zero_point))
        return outputs

    def _new_name(self, name: str, kind: str = ".sums") -> str:
        name += kind
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name


def quantise_weights_of(
    layer: Layer, bits: int, x_scale: np.float32, moments: Float64 | None = None
) -> tuple[NDArray[np.int8], Float]:
    """Weights of `bits` bits and their scale (M,); rows of zeros without a bias have scale 1.

    A row of equal weights without a bias is an average: ones, and the scale exactly the weight. A
    row whose weights are next to nothing beside its bias has the scale that its bias needs.
    """
    if not (np.isfinite(layer.weights).all() and np.isfinite(layer.bias).all()):
        raise ModelError("weights or bias hold NaN or infinity; train or export the model again.")
    limit = 2 ** (bits - 1) - 1
    flat = layer.weights.reshape(len(layer.weights), -1)
    largest = np.abs(flat).max(axis=1)
    averages = (flat == largest[:, None]).all(axis=1) & (layer.bias == 0)
    steps = np.where(averages, np.float32(1), np.float32(limit))
    of_bias = np.abs(layer.bias) / (np.float64(x_scale) * _MOST_BIAS)
    scale = np.maximum(np.maximum(largest / steps, of_bias), MIN_SCALE).astype(np.float32)
    scale[(largest == 0) & (layer.bias == 0)] = 1.0
    if moments is not None:
        integers = gptq(by_taps(layer.weights), scale, limit, moments)
        return from_taps(integers, layer.weights.shape), scale
    integers = np.clip(np.rint(flat / scale[:, None]), -limit, limit).astype(np.int8)
    return integers.reshape(layer.weights.shape), scale


def _bits_by_layer(model: Model, weight_bits: int | Mapping[str, int]) -> Mapping[str, int]:
    if not isinstance(weight_bits, Mapping):
        weight_bits = {layer.name: weight_bits for layer in model.layers}
    for bits in weight_bits.values():
        if bits not in (4, 8):
            raise InputError(f"weight_bits is {bits!r}; the engine takes weights of 4 or 8 bits")
    return weight_bits
