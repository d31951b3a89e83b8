# SPDX-License-Identifier: Apache-2.0
"""From float32 layers to the engine's integers, and across the border of an integer model.

Needs numpy only: `quantize_input` and `dequantize_output` run on boards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
    product_of,
    quantise,
    sum_of,
    sum_scale,
)
from ..model.floats import layer_sums
from ..model.graph import (
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
    Slice,
    apply_functions,
    image_shape,
    window_shape,
)
from ..model.moving import concatenated
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
    weight_bits: int | Mapping[str, int] = 8,
    progress: Callable[[int], None] | None = None,
) -> QuantModel:
    """Weights per row (symmetric: INT8 -127 to 127, INT4 -7 to 7), INT8 activations per tensor.

    Relu and Clip happen in the output's scale. Sigmoid and tanh are tables from a calibrated
    scale in front of them to a fixed one behind them (1/256 from 0, and 1/128 around 0), LeakyRelu
    is one between calibrated scales. A model output without a function is the INT32 sums,
    dequantised per row; one that is also read by a layer is computed in both forms. Zero weights
    stay zero. A maximum keeps its input's scale; what an addition adds up, or a product multiplies,
    is INT8 on both sides (docs/arithmetic.md). What is joined to one tensor has that one's scale
    where a layer can give it, else it is requantised.

    Args:
        model: float32 layers; not changed.
        calibration: samples like those of later use. An array (N, *shape), a dict of such arrays
            by input name, or an iterable of either, which is read once, batch by batch.
        method: `minmax`, `percentile`, `entropy` or `mse` (see `make_observer`).
        weight_bits: 8 or 4, or either by layer name (8 where it says nothing).
        progress: called with the number of samples seen so far.

    Raises:
        InputError: `weight_bits` is neither, or calibration data that does not fit the model's
            inputs, is empty or not finite.
        ModelError: weights or scales that float32 cannot hold.
    """
    bits = _bits_by_layer(model, weight_bits)
    observed = observe(model, calibration, method=method, progress=progress)
    return Quantizer(model, observed, bits).run()


def observe(
    model: Model,
    calibration: Iterable[Any],
    *,
    method: str = "minmax",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Scale]:
    """The scales that a `Quantizer` needs, from one pass over the samples; see `quantize`."""
    read = read_tensors(model)
    observers: dict[str, Observer] = {}
    for graph_input in model.inputs:
        observers[graph_input.tensor] = make_observer(method)
    for layer in model.layers:
        if is_int8(layer, read):
            observers[_observed(layer)] = make_observer(method)
        if layer.other or not _has_fixed_scale(layer.functions):
            observers[layer.output] = make_observer(method)
    for view in model.views:
        if isinstance(view, Concat):
            observers[view.output] = make_observer(method)
    seen = 0
    for batch in batches(model, calibration):
        for tensor, values in activations(model, batch):
            if tensor in observers:
                observers[tensor].update(values)
        seen += len(next(iter(batch.values())))
        if progress:
            progress(seen)
    if not seen:
        raise InputError("calibration holds no samples; give at least one.")
    observed = {t: o.quantisation() for t, o in observers.items()}
    _share(model, observed)
    return observed


def run_float(model: Model, inputs: Mapping[str, Any] | NDArray[Any]) -> dict[str, Float]:
    """Every tensor of the float model, by name, as (N, features).

    Args:
        model: what `load_onnx` returns for a float model.
        inputs: (N, *shape) by input name, or the array itself where there is one input.

    Raises:
        InputError: an input is missing, unknown, of a wrong shape or dtype, or not finite.
    """
    batch = _model_inputs(model, inputs)
    shown = {i.tensor for i in model.inputs} | {layer.output for layer in model.layers}
    shown |= {view.output for view in model.views}
    return {name: value for name, value in activations(model, batch) if name in shown}


def quantize_input(spec: QuantInput, x: Any) -> NDArray[Any]:
    """A model input as the INT8 or INT16 tensor (N, features) that the first layers read.

    Args:
        spec: the input's description; its `dtype` says what `x` must be. Where that is float32,
            any real numbers do and are converted.
        x: (N, *spec.shape), N at least 1.

    Raises:
        InputError: shape, dtype, NaN or infinity; the message names the input.
    """
    if spec.dtype == "float32":
        x = apply_functions(spec.functions, _float_input(spec.name, spec.shape, x))
        return spec.arrangement.apply(quantise(x, spec.scale, spec.zero_point, spec.bits))
    array = _array(spec.name, x)
    if array.dtype != np.dtype(spec.dtype):
        raise InputError(
            f"input {spec.name!r} is {array.dtype}, must be {spec.dtype}: the model comes "
            "quantised and takes integers."
        )
    flat = np.ascontiguousarray(_flattened(spec.name, spec.shape, array))
    flat = spec.arrangement.apply(flat)
    return flat.view(np.int8) ^ np.int8(-128) if spec.dtype == "uint8" else flat


def dequantize_output(spec: QuantOutput, tensor: NDArray[Any]) -> NDArray[Any]:
    """A model output (N, *spec.shape) of dtype `spec.dtype` from its tensor (N, features).

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
    return result.reshape(len(tensor), *spec.shape)


class Quantizer:
    """Emits the integer layers of a model whose tensors have been observed."""

    def __init__(
        self, model: Model, observed: Mapping[str, Scale], weight_bits: Mapping[str, int]
    ) -> None:
        self.weight_bits = weight_bits
        self.model = model
        self.observed = observed
        self.scales = {i.tensor: observed[i.tensor] for i in model.inputs}
        self.layers: list[QuantLayer] = []
        self.views: list[Slice | Concat] = []
        self.shapes = {i.tensor: image_shape(i.tensor_shape or i.shape) for i in model.inputs}
        #: scale of the sums of every layer that gives them, and their tensor, by float tensor
        self.sums: dict[str, tuple[str, Float]] = {}
        self.names = {i.tensor for i in model.inputs}
        for layer in model.layers:
            self.names |= {layer.name, layer.output}

    def run(self, read: Collection[str] = ()) -> QuantModel:
        """The integer layers; those that give tensors `read` elsewhere give INT8 too."""
        read = read_tensors(self.model) | set(read)
        shown = {output.tensor for output in self.model.outputs}
        waiting = list(self.model.views)
        self._views(waiting)
        for layer in self.model.layers:
            try:
                self._layer(layer, layer.output in read, layer.output in shown)
            except ModelError as error:
                raise ModelError(f"layer {layer.name!r}: {error}") from None
            shape = window_shape(len(layer.weights), layer.window)
            self.shapes[layer.output] = image_shape(shape)
            self._views(waiting)
        inputs = [
            QuantInput(
                i.name, i.tensor, i.shape, "float32", *self.scales[i.tensor], i.functions,
                arrangement=i.arrangement, tensor_shape=i.tensor_shape,
            )
            for i in self.model.inputs
        ]  # fmt: skip
        outputs = self._outputs()
        return QuantModel(self.model.name, inputs, self.layers, outputs, views=self.views)

    def _views(self, waiting: list[Slice | Concat]) -> None:
        """Those of `waiting` that can be made by now."""
        for view in _ready(waiting, self.scales):
            if isinstance(view, Slice):
                self.scales[view.output] = self.scales[view.input]
                self.shapes[view.output] = image_shape(view.shape)
                self.views.append(view)
                continue
            y = self.scales[view.output] = self.observed[view.output]
            parts = [(name, self.shapes[name], self.scales[name]) for name in view.inputs]
            layers, made = concatenated(view.output, parts, y)
            channels = sum(shape[0] for _, shape, _ in parts)
            self.shapes[view.output] = (channels, *parts[0][1][1:])
            self.layers += layers
            self.views.append(made)

    def _layer(self, layer: Layer, is_read: bool, is_shown: bool) -> None:
        if layer.maximum:
            self._maximum(layer)
            return
        x_scale, x_zero_point = self.scales[layer.input]
        bits = self.weight_bits.get(layer.name, 8)
        weights, w_scale = _quantise_weights(layer, bits, x_scale)
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
        q_scale, q_zero_point = q = self.observed[_observed(layer)]
        made = replace(
            sums, multiplier=multiplier(self.scales[layer.input][0], w_scale, q_scale),
            zero_point=q_zero_point,
        )  # fmt: skip
        if layer.other:
            y = self.scales[layer.output] = self.observed[layer.output]
            combined = product_of if layer.product else sum_of
            other = self.scales[layer.other]
            made.combination = combined(layer.other, q, other, y, layer.functions)
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
            fixed = _has_fixed_scale(rest)
            y = _fixed_scale(rest) if fixed else self.observed[layer.output]
        self.scales[layer.output] = y
        made.table = function_table(layer.functions, *q, *y) if rest else clamp_table(clamps, *q)

    def _outputs(self) -> list[QuantOutput]:
        outputs = []
        for out in self.model.outputs:
            made = QuantOutput(
                out.name, out.tensor, out.shape, "float32", functions=out.functions,
                arrangement=out.arrangement,
            )  # fmt: skip
            if out.tensor in self.sums:
                tensor, scale = self.sums[out.tensor]
                outputs.append(replace(made, tensor=tensor, scale=scale))
            else:
                if out.tensor not in {made.output for made in (*self.layers, *self.views)}:
                    raise ModelError(f"output {out.name!r} does not come from a layer.")
                y_scale, zero_point = self.scales[out.tensor]
                scale = np.array([y_scale], np.float32)
                outputs.append(replace(made, scale=scale, zero_point=zero_point))
        return outputs

    def _new_name(self, name: str) -> str:
        name += ".sums"
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


def _has_fixed_scale(functions: tuple[Function, ...]) -> bool:
    """Whether a function's range, or that of none, need not be calibrated."""
    curved = [f.name for f in functions if not f.clamps]
    return not curved or curved[-1] in _FIXED_SCALES


def _fixed_scale(functions: tuple[Function, ...]) -> Scale:
    """Clamps behind a function only narrow its range, so the last other function decides."""
    return _FIXED_SCALES[[f for f in functions if not f.clamps][-1].name]


def _bits_by_layer(model: Model, weight_bits: int | Mapping[str, int]) -> Mapping[str, int]:
    if not isinstance(weight_bits, Mapping):
        weight_bits = {layer.name: weight_bits for layer in model.layers}
    for bits in weight_bits.values():
        if bits not in (4, 8):
            raise InputError(f"weight_bits is {bits!r}; the engine takes weights of 4 or 8 bits")
    return weight_bits


def read_tensors(model: Model) -> set[str]:
    """What layers and views read."""
    read = {name for layer in model.layers for name in (layer.input, layer.other)}
    return read | {name for view in model.views for name in view.reads}


def _share(model: Model, observed: dict[str, Scale]) -> None:
    """Give tensors that are joined the scale of the joined one, so that they can lie in it. Not
    inputs, maxima and curves, which have theirs."""
    given = {spec.tensor for spec in model.inputs}
    for view in reversed(model.views):
        if isinstance(view, Concat):
            for name in view.inputs:
                if name in observed and name not in given:
                    observed[name] = observed[view.output]


def _ready(waiting: list[Slice | Concat], known: Mapping[str, object]) -> Iterator[Slice | Concat]:
    """Each view of `waiting` once all that it reads is `known`; it waits no longer then."""
    for view in list(waiting):
        if all(name in known for name in view.reads):
            waiting.remove(view)
            yield view


def _viewed(view: Slice | Concat, tensors: Mapping[str, Float]) -> Float:
    """A view of tensors (N, features)."""
    if isinstance(view, Concat):
        return np.concatenate([tensors[name] for name in view.inputs], axis=1)
    first = view.first * int(np.prod(view.shape[1:]))
    return tensors[view.input][:, first : first + int(np.prod(view.shape))]


def is_int8(layer: Layer, read: set[str]) -> bool:
    """Whether a layer has a scale of its own to be calibrated: not for sums alone, nor maxima."""
    return not layer.maximum and bool(layer.output in read or layer.functions or layer.other)


def _observed(layer: Layer) -> str:
    """What is calibrated for a layer: its output, or what stands before its first sigmoid or tanh,
    or before an addition or multiplication."""
    before = layer.other or _split(layer.functions)[1]
    return f"\0before {layer.output}" if before else layer.output


def activations(model: Model, batch: Mapping[str, Float]) -> Iterator[tuple[str, Float]]:
    """Every tensor in turn, those that `_observed` names before a function included."""
    tensors: dict[str, Float] = {}
    waiting = list(model.views)

    def views() -> Iterator[tuple[str, Float]]:
        for view in _ready(waiting, tensors):
            tensors[view.output] = _viewed(view, tensors)
            yield view.output, tensors[view.output]

    for spec in model.inputs:
        values = apply_functions(spec.functions, batch[spec.name])
        tensors[spec.tensor] = spec.arrangement.apply(values)
        yield spec.tensor, tensors[spec.tensor]
    yield from views()
    for layer in model.layers:
        clamps, rest = _split(layer.functions)
        with np.errstate(over="ignore", invalid="ignore"):
            before = layer_sums(layer, tensors[layer.input])
            if layer.other:
                yield _observed(layer), before
                other = tensors[layer.other]
                before = before * other if layer.product else before + other
            before = apply_functions(clamps, before)
        if rest:
            yield _observed(layer), before
        tensors[layer.output] = apply_functions(rest, before)
        yield layer.output, tensors[layer.output]
        yield from views()


def batches(model: Model, calibration: Iterable[Any]) -> Iterator[dict[str, Float]]:
    whole = isinstance(calibration, (np.ndarray, Mapping))
    for item in [calibration] if whole else calibration:
        batch = _model_inputs(model, item)
        for start in range(0, len(next(iter(batch.values()))), _CALIBRATION_BATCH):
            yield {name: x[start : start + _CALIBRATION_BATCH] for name, x in batch.items()}


def _model_inputs(model: Model, given: Any) -> dict[str, Float]:
    """The checked inputs of a float model, (N, features) each."""
    specs: dict[str, GraphInput] = {spec.name: spec for spec in model.inputs}
    if not isinstance(given, Mapping):
        if len(specs) != 1:
            raise InputError(
                f"the model has {len(specs)} inputs ({', '.join(specs)}); "
                "give a dict with an array for each."
            )
        given = {next(iter(specs)): given}
    if set(given) != set(specs):
        raise InputError(
            f"inputs given: {', '.join(map(str, given)) or 'none'}; the model has: "
            f"{', '.join(specs)}. Give exactly these."
        )
    batch = {name: _float_input(name, spec.shape, given[name]) for name, spec in specs.items()}
    counts = {name: len(x) for name, x in batch.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"inputs differ in their number of samples: {counts}.")
    return batch


def _float_input(name: str, shape: tuple[int, ...], x: Any) -> Float:
    array = _array(name, x)
    if array.dtype.kind not in "fiu":
        raise InputError(f"input {name!r} is {array.dtype}, must be real numbers (float32).")
    with np.errstate(over="ignore"):
        flat = _flattened(name, shape, array).astype(np.float32)
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


def _flattened(name: str, shape: tuple[int, ...], array: NDArray[Any]) -> NDArray[Any]:
    if array.shape[1:] != shape or array.ndim != len(shape) + 1 or len(array) == 0:
        wanted = "(N, " + ", ".join(map(str, shape)) + ")"
        hint = ""
        if array.shape == shape:
            hint = " This is one sample without a batch dimension: give x[None]."
        raise InputError(
            f"input {name!r} has shape {array.shape}, must be {wanted} with at least "
            f"one sample.{hint}"
        )
    return array.reshape(len(array), -1)
