# SPDX-License-Identifier: Apache-2.0
"""Between the arrays that users hand in and get, and the tensors of a model. Runs on boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.arithmetic import dequantise, quantise
from ..model.graph import (
    Float,
    GraphInput,
    GraphOutput,
    QuantInput,
    QuantOutput,
    apply_functions,
)


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
        x = apply_functions(spec.functions, float_input(spec, x))
        return spec.arrangement.apply(quantise(x, spec.scale, spec.zero_point, spec.bits))[:, own]
    array = as_array(spec.name, x)
    if array.dtype != np.dtype(spec.dtype):
        raise InputError(
            f"input {spec.name!r} is {array.dtype}, must be {spec.dtype}: the model comes "
            "quantised and takes integers."
        )
    flat = np.ascontiguousarray(flattened(spec, array))
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
        floats = spec.arrangement.apply(_dequantised(spec, tensor))
        values: NDArray[Any] = apply_functions(spec.functions, floats)
        result = values if spec.dtype == "float32" else values.astype(np.int8)
    else:
        result = spec.arrangement.apply(tensor)
    if spec.dtype == "uint8":
        result = np.ascontiguousarray(result ^ np.int8(-128)).view(np.uint8)
    shown = result.reshape(len(tensor), *spec.shape)
    return np.moveaxis(shown, 0, spec.batch_axis) if spec.batch_axis else shown


def _dequantised(spec: QuantOutput, tensor: NDArray[Any]) -> Float:
    scale = spec.scale
    if scale.size == 1 and tensor.dtype == np.int8:
        return _int8_values(scale.item(), spec.zero_point)[tensor.view(np.uint8)]
    if scale.size > 1:  # one for each row, of every pixel or step
        pixels = tensor.shape[1] // (spec.steps * scale.size)
        scale = np.tile(np.repeat(scale, pixels), spec.steps)
    return dequantise(tensor, scale, spec.zero_point)


@lru_cache(maxsize=64)
def _int8_values(scale: float, zero_point: int) -> Float:
    """What each INT8 stands for, by its bits as UINT8."""
    every = np.arange(256, dtype=np.uint8).view(np.int8)
    return dequantise(every, np.float32(scale), zero_point)


def shown_outputs(
    specs: Sequence[QuantOutput], tensors: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """All outputs of a model by name, from their tensors (N, features)."""
    return joined(specs, [dequantize_output(spec, tensors[spec.tensor]) for spec in specs])


def float_output(spec: GraphOutput, tensor: Float) -> Float:
    """An output, or a part of one, from its float tensor (N, features)."""
    values = apply_functions(spec.functions, spec.arrangement.apply(tensor))
    return np.moveaxis(values.reshape(len(values), *spec.shape), 0, spec.batch_axis)


def joined(
    specs: Sequence[GraphOutput | QuantOutput], values: Sequence[NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Outputs by name; of one name are parts of it, along its first axis."""
    parts: dict[str, list[NDArray[Any]]] = {}
    for spec, value in zip(specs, values, strict=True):
        parts.setdefault(spec.name, []).append(value)
    axes = {spec.name: 0 if spec.batch_axis else 1 for spec in specs}
    return {
        name: made[0] if len(made) == 1 else np.concatenate(made, axis=axes[name])
        for name, made in parts.items()
    }


def float_input(spec: GraphInput | QuantInput, x: Any) -> Float:
    name, array = spec.name, as_array(spec.name, x)
    if array.dtype.kind not in "fiu":
        raise InputError(f"input {name!r} is {array.dtype}, must be real numbers (float32).")
    with np.errstate(over="ignore"):
        flat = flattened(spec, array).astype(np.float32)
    if not np.isfinite(flat).all():
        raise InputError(
            f"input {name!r} holds NaN, infinity or numbers beyond float32; "
            "every value must be finite."
        )
    return flat


def as_array(name: str, x: Any) -> NDArray[Any]:
    try:
        return np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"input {name!r} is not an array: {error}") from None


def flattened(spec: GraphInput | QuantInput, array: NDArray[Any]) -> NDArray[Any]:
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
    return (np.moveaxis(array, axis, 0) if axis else array).reshape(array.shape[axis], -1)


def by_name(given: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """What a user hands in by input name: as it is, or the array itself where there is one input.

    Raises:
        InputError: an input is missing or unknown.
    """
    if not isinstance(given, Mapping):
        if len(names) != 1:
            raise InputError(
                f"the model has {len(names)} inputs ({', '.join(names)}): give a dict of "
                "arrays by name"
            )
        given = {names[0]: given}
    inputs: Mapping[str, Any] = given
    if set(inputs) != set(names):
        raise InputError(
            f"given inputs: {', '.join(sorted(map(str, inputs))) or 'none'}; "
            f"the model takes exactly: {', '.join(names)}"
        )
    return inputs


def samples_of(tensors: Mapping[str, NDArray[Any]]) -> int:
    """How many samples all the inputs (N, ...) have.

    Raises:
        InputError: not all have as many.
    """
    sizes = {len(values) for values in tensors.values()}
    if len(sizes) != 1:
        raise InputError(f"the inputs have different batch sizes: {sorted(sizes)}")
    return sizes.pop()


def checked_lengths(name: str, given: Any, steps: int, samples: int) -> NDArray[np.int64]:
    """The steps (N,) of each of the `samples`, which have `steps` at most.

    Raises:
        InputError: other numbers, or not as many.
    """
    lengths = as_array(name, given)
    if lengths.shape != (samples,) or lengths.dtype.kind not in "iu":
        raise InputError(
            f"input {name!r} is {lengths.dtype} {lengths.shape}, must be integers ({samples},): "
            "the steps of each sample"
        )
    if lengths.min() < 1 or lengths.max() > steps:
        raise InputError(
            f"input {name!r} goes from {lengths.min()} to {lengths.max()}, a sample has 1 to "
            f"{steps} steps"
        )
    return lengths.astype(np.int64)
