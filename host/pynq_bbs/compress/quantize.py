# SPDX-License-Identifier: Apache-2.0
"""From float32 layers to the engine's integers, and across the border of an integer model.

Needs numpy only: `quantize_input` and `dequantize_output` run on boards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError
from ..model.arithmetic import (
    Scale,
    clamp_table,
    dequantise,
    function_table,
    integer_bias,
    multiplier,
    quantise,
    sum_of,
    sum_scale,
)
from ..model.floats import layer_sums
from ..model.graph import (
    AtStep,
    Concat,
    Float,
    Function,
    GraphInput,
    Layer,
    Model,
    QuantInput,
    QuantLayer,
    QuantModel,
    QuantOutput,
    View,
    apply_functions,
    image_shape,
    window_shape,
)
from ..model.moving import concatenated, copied, join, rescaled
from ..model.recurrent import HIDDEN_SCALE, RecurrentLayer, quantise_weights
from ..model.recurrent_floats import FloatRecurrent
from .calibrate import MIN_SCALE, Observer, make_observer

#: Samples of calibration data worked on at a time.
_CALIBRATION_BATCH = 256

#: The largest bias that leaves as much of INT32 to the products.
_MOST_BIAS = 2**30

#: Output scale and zero point of functions whose range is known.
_FIXED_SCALES: dict[str, Scale] = {
    "sigmoid": (np.float32(1 / 256), -128),
    "tanh": (np.float32(1 / 128), 0),
}


def quantize(
    model: Model,
    calibration: Iterable[Any],
    *,
    method: str = "minmax",
    weight_bits: int = 8,
    progress: Callable[[int], None] | None = None,
) -> QuantModel:
    """Weights per row (symmetric: INT8 -127 to 127, INT4 -7 to 7), INT8 activations per tensor.

    Relu and Clip happen in the output's scale. Sigmoid and tanh are tables from a calibrated
    scale in front of them to a fixed one behind them (1/256 from 0, and 1/128 around 0). A model
    output without a function is the INT32 sums, dequantised per row; one that is also read by a
    layer is computed in both forms. Zero weights stay zero. A maximum keeps its input's scale; what
    an addition adds up is INT8 on both sides (docs/arithmetic.md). What is joined to one tensor
    has that one's scale where a layer can give it, else it is requantised. LSTM and GRU have scales
    of their own (docs/recurrent.md).

    Args:
        model: float32 layers; not changed.
        calibration: samples like those of later use. An array (N, *shape), a dict of such arrays
            by input name, or an iterable of either, which is read once, batch by batch.
        method: `minmax`, `percentile`, `entropy` or `mse` (see `make_observer`).
        weight_bits: 8 or 4.
        progress: called with the number of samples seen so far.

    Raises:
        InputError: `weight_bits` is neither, or calibration data that does not fit the model's
            inputs, is empty or not finite.
        ModelError: weights or scales that float32 cannot hold.
    """
    if weight_bits not in (4, 8):
        raise InputError(f"weight_bits is {weight_bits!r}; the engine takes weights of 4 or 8 bits")
    read = {name for layer in model.layers for name in layer.reads}
    read |= {name for view in model.views for name in view.reads}
    shown = {output.tensor for output in model.outputs}
    observers: dict[str, Observer] = {}
    for graph_input in model.inputs:
        observers[graph_input.tensor] = make_observer(method)
    for layer in model.layers:
        if isinstance(layer, FloatRecurrent):
            continue
        if _is_int8(layer, read):
            observers[_observed(layer)] = make_observer(method)
        if layer.other or _observes_result(layer):
            observers[layer.output] = make_observer(method)
    for view in model.views:
        if isinstance(view, Concat):
            observers[view.output] = make_observer(method)
    seen = 0
    for batch in _batches(model, calibration):
        for tensor, values in _activations(model, batch):
            if tensor in observers:
                observers[tensor].update(values)
        seen += len(next(iter(batch.values())))
        if progress:
            progress(seen)
    if not seen:
        raise InputError("calibration holds no samples; give at least one.")
    observed = {t: o.quantisation() for t, o in observers.items()}
    _share(model, observed)
    observed |= _initial_scales(model)
    return _Quantizer(model, observed, weight_bits).run(read, shown)


def run_float(model: Model, inputs: Mapping[str, Any] | NDArray[Any]) -> dict[str, Float]:
    """Every tensor of the float model, by name, as (N, features).

    Args:
        model: what `load_onnx` returns for a float model.
        inputs: (N, *shape) by input name, or the array itself where there is one input.

    Raises:
        InputError: an input is missing, unknown, of a wrong shape or dtype, or not finite.
    """
    batch = _model_inputs(model, inputs)
    shown = {i.tensor for i in model.inputs} | {view.output for view in model.views}
    shown |= {name for layer in model.layers for name in _written(layer)}
    return {name: value for name, value in _activations(model, batch) if name in shown}


def quantize_input(spec: QuantInput, x: Any) -> NDArray[Any]:
    """A model input as the INT8 or INT16 tensor (N, features) that the first layers read.

    Args:
        spec: the input's description; its `dtype` says what `x` must be. Where that is float32,
            any real numbers do and are converted.
        x: `spec.shape` with the batch as axis `spec.batch_axis`, N at least 1.

    Raises:
        InputError: shape, dtype, NaN or infinity; the message names the input.
    """
    own = slice(spec.first, spec.first + spec.features)
    if spec.dtype == "float32":
        x = apply_functions(spec.functions, _float_input(spec, x))
        return spec.arrangement.apply(quantise(x, spec.scale, spec.zero_point, spec.bits))[:, own]
    array = _array(spec.name, x)
    if array.dtype != np.dtype(spec.dtype):
        raise InputError(
            f"input {spec.name!r} is {array.dtype}, must be {spec.dtype}: the model comes "
            "quantised and takes integers."
        )
    flat = np.ascontiguousarray(_flattened(spec, array))
    flat = spec.arrangement.apply(flat)[:, own]
    return flat.view(np.int8) ^ np.int8(-128) if spec.dtype == "uint8" else flat


def dequantize_output(spec: QuantOutput, tensor: NDArray[Any]) -> NDArray[Any]:
    """A model output, or a part of one, of dtype `spec.dtype` from its tensor (N, features):
    `spec.shape` with the batch as axis `spec.batch_axis`.

    Args:
        spec: the output's description.
        tensor: INT8, INT16 states, or INT32 where the layer that made it gives sums.
    """
    result: NDArray[Any] = tensor
    if spec.dtype == "float32" or spec.functions:
        scale = spec.scale
        if scale.size > 1:  # one for each row, of every pixel or step
            pixels = tensor.shape[1] // (spec.steps * scale.size)
            scale = np.tile(np.repeat(scale, pixels), spec.steps)
        floats = spec.arrangement.apply(dequantise(tensor, scale, spec.zero_point))
        values: NDArray[Any] = apply_functions(spec.functions, floats)
        result = values if spec.dtype == "float32" else values.astype(np.int8)
    else:
        result = spec.arrangement.apply(tensor)
    if spec.dtype == "uint8":
        result = np.ascontiguousarray(result ^ np.int8(-128)).view(np.uint8)
    return np.moveaxis(result.reshape(len(tensor), *spec.shape), 0, spec.batch_axis)


def shown_outputs(
    specs: Sequence[QuantOutput], tensors: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """All outputs of a model by name, from their tensors (N, features)."""
    parts: dict[str, list[NDArray[Any]]] = {}
    axes = {spec.name: 0 if spec.batch_axis else 1 for spec in specs}
    for spec in specs:
        parts.setdefault(spec.name, []).append(dequantize_output(spec, tensors[spec.tensor]))
    return {
        name: made[0] if len(made) == 1 else np.concatenate(made, axis=axes[name])
        for name, made in parts.items()
    }


class _Quantizer:
    """Emits the integer layers of a model whose tensors have been observed."""

    def __init__(self, model: Model, observed: dict[str, Scale], weight_bits: int) -> None:
        self.weight_bits = weight_bits
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
            self.names |= {layer.name, *_written(layer)}

    def run(self, read: set[str], shown: set[str]) -> QuantModel:
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
        for view in _ready(waiting, self.scales):
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
        quantised = quantise_weights(layer.weights, *x, weight_bits=self.weight_bits)
        self.layers.append(
            RecurrentLayer(
                layer.name, layer.input, layer.output, quantised, layer.reverse, layer.y_h,
                layer.y_state, layer.initial_h, layer.initial_state, self.weight_bits,
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
        weights, w_scale = _quantise_weights(layer, self.weight_bits, x_scale)
        scale = sum_scale(x_scale, w_scale)
        sums = QuantLayer(
            layer.name, layer.input, layer.output, weights, integer_bias(layer.bias, scale),
            x_zero_point, None, weight_bits=self.weight_bits, window=layer.window,
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
        q_scale, q_zero_point = q = self.observed[_observed(layer)]
        made = replace(
            sums, multiplier=multiplier(self.scales[layer.input][0], w_scale, q_scale),
            zero_point=q_zero_point,
        )  # fmt: skip
        if layer.other:
            y = self.scales[layer.output] = self.observed[layer.output]
            other = self._by_itself(layer.other)
            made.combination = sum_of(other, q, self.scales[other], y, layer.functions)
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
        clamps, rest = _split(layer.functions)
        y = q
        if rest:
            y = self.observed[layer.output] if _observes_result(layer) else _fixed_scale(rest)
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


def _quantise_weights(
    layer: Layer, bits: int, x_scale: np.float32
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
    integers = np.clip(np.rint(flat / scale[:, None]), -limit, limit).astype(np.int8)
    return integers.reshape(layer.weights.shape), scale


def _split(functions: tuple[Function, ...]) -> tuple[tuple[Function, ...], tuple[Function, ...]]:
    """The clamps that go first, and everything from the first other function on."""
    count = next((i for i, f in enumerate(functions) if not f.clamps), len(functions))
    return functions[:count], functions[count:]


def _fixed_scale(functions: tuple[Function, ...]) -> Scale:
    """Clamps behind a function only narrow its range, so the last other function decides."""
    return _FIXED_SCALES[[f for f in functions if not f.clamps][-1].name]


def _observes_result(layer: Layer) -> bool:
    """Whether a layer ends in a function whose range is not known, so that its result is
    calibrated too."""
    curves = [f for f in layer.functions if not f.clamps]
    return bool(curves) and curves[-1].name not in _FIXED_SCALES


def _initial_scales(model: Model) -> dict[str, Scale]:
    """Of inputs that recurrent layers start from."""
    scales: dict[str, Scale] = {
        layer.initial_h: (HIDDEN_SCALE, 0)
        for layer in model.layers
        if isinstance(layer, FloatRecurrent)
    }
    for spec in model.inputs:
        if spec.state_bits:
            scales[spec.tensor] = np.float32(2.0**-spec.state_bits), 0
    return scales


def _written(layer: Layer | FloatRecurrent) -> tuple[str, ...]:
    return layer.outputs if isinstance(layer, FloatRecurrent) else (layer.output,)


def _share(model: Model, observed: dict[str, Scale]) -> None:
    """Give tensors that are joined the scale of the joined one, so that they can lie in it. Not
    inputs, maxima and curves, which have theirs."""
    given = {spec.tensor for spec in model.inputs}
    for view in reversed(model.views):
        if isinstance(view, Concat):
            for name in view.inputs:
                if name in observed and name not in given:
                    observed[name] = observed[view.output]


def _ready(waiting: list[View], known: Mapping[str, object]) -> Iterator[View]:
    """Each view of `waiting` once all that it reads is `known`; it waits no longer then."""
    for view in list(waiting):
        if all(name in known for name in view.reads):
            waiting.remove(view)
            yield view


def _viewed(view: View, tensors: Mapping[str, Float], steps: Mapping[str, int]) -> Float:
    """A view of tensors (N, values of a sample), which have so many steps."""
    if isinstance(view, Concat):
        parts = [tensors[n].reshape(len(tensors[n]), steps[n], -1) for n in view.inputs]
        joined: Float = np.concatenate(parts, axis=2)
        return joined.reshape(len(joined), -1)
    if isinstance(view, AtStep):
        whole = tensors[view.input]
        return np.asarray(whole.reshape(len(whole), steps[view.input], -1)[:, view.step])
    first = view.first * int(np.prod(view.shape[1:]))
    return tensors[view.input][:, first : first + int(np.prod(view.shape))]


def _is_int8(layer: Layer, read: set[str]) -> bool:
    """Whether a layer has a scale of its own to be calibrated: not for sums alone, nor maxima."""
    return not layer.maximum and bool(layer.output in read or layer.functions or layer.other)


def _observed(layer: Layer) -> str:
    """What is calibrated for a layer: its output, or what stands before its first sigmoid or tanh,
    or before an addition."""
    before = layer.other or _split(layer.functions)[1]
    return f"\0before {layer.output}" if before else layer.output


def _activations(model: Model, batch: Mapping[str, Float]) -> Iterator[tuple[str, Float]]:
    """Every tensor in turn, those that `_observed` names before a function included."""
    tensors: dict[str, Float] = {}
    steps = {spec.tensor: spec.steps for spec in model.inputs}
    waiting = list(model.views)

    def views() -> Iterator[tuple[str, Float]]:
        for view in _ready(waiting, tensors):
            steps[view.output] = steps[view.reads[0]] if isinstance(view, Concat) else 1
            tensors[view.output] = _viewed(view, tensors, steps)
            yield view.output, tensors[view.output]

    for spec in model.inputs:
        values = spec.arrangement.apply(apply_functions(spec.functions, batch[spec.name]))
        size = int(np.prod(spec.tensor_shape or spec.shape, dtype=np.int64))
        tensors[spec.tensor] = values[:, spec.first : spec.first + size]
        yield spec.tensor, tensors[spec.tensor]
    yield from views()
    for layer in model.layers:
        if isinstance(layer, FloatRecurrent):
            made = layer(tensors, batch.get(model.lengths))
            tensors |= made
            steps |= {name: 1 for name in made} | {layer.output: steps[layer.input]}
            yield from made.items()
            yield from views()
            continue
        clamps, rest = _split(layer.functions)
        steps[layer.output] = steps[layer.input]
        x = tensors[layer.input]
        with np.errstate(over="ignore", invalid="ignore"):
            columns = x.reshape(len(x) * steps[layer.input], -1)
            before = layer_sums(layer, columns).reshape(len(x), -1)
            if layer.other:
                yield _observed(layer), before
                before = before + tensors[layer.other]
            before = apply_functions(clamps, before)
        if rest:
            yield _observed(layer), before
        tensors[layer.output] = apply_functions(rest, before)
        yield layer.output, tensors[layer.output]
        yield from views()


def _batches(model: Model, calibration: Iterable[Any]) -> Iterator[dict[str, Float]]:
    whole = isinstance(calibration, Mapping) or hasattr(calibration, "__array__")
    for item in [calibration] if whole else calibration:
        batch = _model_inputs(model, item)
        for start in range(0, len(next(iter(batch.values()))), _CALIBRATION_BATCH):
            yield {name: x[start : start + _CALIBRATION_BATCH] for name, x in batch.items()}


def _model_inputs(model: Model, given: Any) -> dict[str, Float]:
    """The checked inputs of a float model, (N, features) each."""
    specs: dict[str, GraphInput] = {spec.name: spec for spec in model.inputs}
    names = [*specs, *filter(None, [model.lengths])]
    if not isinstance(given, Mapping):
        if len(names) != 1:
            raise InputError(
                f"the model has {len(names)} inputs ({', '.join(names)}); "
                "give a dict with an array for each."
            )
        given = {names[0]: given}
    if set(given) != set(names):
        raise InputError(
            f"inputs given: {', '.join(map(str, given)) or 'none'}; the model has: "
            f"{', '.join(names)}. Give exactly these."
        )
    batch = {name: _float_input(spec, given[name]) for name, spec in specs.items()}
    if model.lengths:
        batch[model.lengths] = _lengths(model, given[model.lengths])
    counts = {name: len(x) for name, x in batch.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"inputs differ in their number of samples: {counts}.")
    return batch


def _lengths(model: Model, given: Any) -> NDArray[Any]:
    """Steps of each sample, whole numbers."""
    lengths = _array(model.lengths, given)
    steps = max(spec.steps for spec in model.inputs)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths):
        raise InputError(
            f"input {model.lengths!r} is {lengths.dtype} {lengths.shape}, must be integers (N,): "
            "the steps of each sample."
        )
    if lengths.min() < 1 or lengths.max() > steps:
        raise InputError(
            f"input {model.lengths!r} goes from {lengths.min()} to {lengths.max()}, a sample has 1 "
            f"to {steps} steps."
        )
    return lengths.astype(np.int64)


def _float_input(spec: GraphInput | QuantInput, x: Any) -> Float:
    name, array = spec.name, _array(spec.name, x)
    if array.dtype.kind not in "fiu":
        raise InputError(f"input {name!r} is {array.dtype}, must be real numbers (float32).")
    with np.errstate(over="ignore"):
        flat = _flattened(spec, array).astype(np.float32)
    if not np.isfinite(flat).all():
        raise InputError(
            f"input {name!r} holds NaN, infinity or numbers beyond float32; "
            "every value must be finite."
        )
    return flat


def _array(name: str, x: Any) -> NDArray[Any]:
    try:
        return np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"input {name!r} is not an array: {error}") from None


def _flattened(spec: GraphInput | QuantInput, array: NDArray[Any]) -> NDArray[Any]:
    shape, axis = spec.shape, spec.batch_axis
    kept = array.shape[:axis] + array.shape[axis + 1 :]
    if kept != shape or array.ndim != len(shape) + 1 or array.shape[axis] == 0:
        sizes = [*map(str, shape)]
        wanted = ", ".join([*sizes[:axis], "N", *sizes[axis:]])
        hint = ""
        if array.shape == shape:
            one = ", ".join([":"] * axis + ["None"])
            hint = f" This is one sample without a batch dimension: give x[{one}]."
        raise InputError(
            f"input {spec.name!r} has shape {array.shape}, must be ({wanted}) with at least "
            f"one sample.{hint}"
        )
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
