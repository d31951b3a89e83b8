# SPDX-License-Identifier: Apache-2.0
"""Operators that reduce axes to a number, and normalisations, which do so on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .call import Array, Call, Function, axes_of, checked_axis

_Reduction = Callable[[Array, Any, bool], Any]


def _reduce(reduction: _Reduction) -> Function:
    """An operator from a function of a tensor, axes (None: all) and whether they stay as ones."""

    def run(call: Call, x: Array, given: Array | None = None) -> Array:
        axes, keep = axes_of(call, given, x.ndim), bool(call.get("keepdims", 1))
        if not axes and call.get("noop_with_empty_axes", 0):
            axes = ()
        elif axes is not None and not axes:
            axes = None
        return np.asarray(reduction(x, axes, keep)).astype(x.dtype)

    return run


def _bounds(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype.kind == "f":
        return -np.inf, np.inf
    if dtype.kind == "b":
        return False, True
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def _largest(x: Array, axes: Any, keep: bool) -> Any:
    return np.max(x, axis=axes, keepdims=keep, initial=_bounds(x.dtype)[0])


def _smallest(x: Array, axes: Any, keep: bool) -> Any:
    return np.min(x, axis=axes, keepdims=keep, initial=_bounds(x.dtype)[1])


def _mean(x: Array, axes: Any, keep: bool) -> Any:
    return np.mean(x, axis=axes, keepdims=keep, dtype=np.float64 if x.dtype.kind in "iu" else None)


def _log_sum_exp(x: Array, axes: Any, keep: bool) -> Any:
    top = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    total = np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True)) + top
    return total if keep else np.squeeze(total, axes)


def _arg(largest: bool) -> Function:
    def run(call: Call, x: Array) -> Array:
        axis = checked_axis(call.get("axis", 0), x.ndim)
        find = np.argmax if largest else np.argmin
        if call.get("select_last_index", 0):
            found = x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis)
        else:
            found = find(x, axis=axis)
        found = np.asarray(found, np.int64)
        return np.expand_dims(found, axis) if call.get("keepdims", 1) else found

    return run


def _cumulative_sum(call: Call, x: Array, axis: Array) -> Array:
    along = checked_axis(int(axis), x.ndim)
    x = np.flip(x, along) if call.get("reverse", 0) else x
    sums = np.cumsum(x, along, dtype=x.dtype)
    sums = sums - x if call.get("exclusive", 0) else sums
    return np.flip(sums, along) if call.get("reverse", 0) else sums


def _softmax(call: Call, x: Array, log: bool = False) -> Array:
    """Along one axis; older operator sets mean all axes from that one on."""
    old = call.opset < 13
    axis = checked_axis(call.get("axis", 1 if old else -1), x.ndim)
    axes = tuple(range(axis, x.ndim)) if old else (axis,)
    shifted = x - x.max(axis=axes, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=axes, keepdims=True)
    return shifted - np.log(total) if log else powers / total


def _log_softmax(call: Call, x: Array) -> Array:
    return _softmax(call, x, log=True)


def _layer_normalization(
    call: Call, x: Array, scale: Array, bias: Array | None = None
) -> tuple[Array, ...]:
    axes = tuple(range(checked_axis(call.get("axis", -1), x.ndim), x.ndim))
    wide = x.astype(np.float32) if x.dtype == np.float16 else x
    mean = wide.mean(axis=axes, keepdims=True)
    centred = wide - mean
    variance = np.mean(centred * centred, axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(variance + wide.dtype.type(call.get("epsilon", 1e-5)))
    y = (centred * inverse).astype(x.dtype) * scale
    return (y if bias is None else y + bias, mean, inverse)[: call.outputs]


def _rms_normalization(call: Call, x: Array, scale: Array) -> Array:
    axes = tuple(range(checked_axis(call.get("axis", -1), x.ndim), x.ndim))
    wide = x.astype(np.float32) if x.dtype == np.float16 else x
    mean = np.mean(wide * wide, axis=axes, keepdims=True)
    return (wide / np.sqrt(mean + call.get("epsilon", 1e-5))).astype(x.dtype) * scale


def _batch_normalization(
    call: Call, x: Array, scale: Array, bias: Array, mean: Array, variance: Array
) -> Array:
    shape = (-1, *[1] * (x.ndim - 2))
    gain = scale / np.sqrt(variance + variance.dtype.type(call.get("epsilon", 1e-5)))
    return (x - mean.reshape(shape)) * gain.reshape(shape) + bias.reshape(shape)


def _instance_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    return _normalized(call, x, x.ndim) * _by_channel(x, scale) + _by_channel(x, bias)


def _group_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    groups = call.get("num_groups")
    if call.opset < 21:  # one number a group until then
        scale, bias = (np.repeat(v, x.shape[1] // groups) for v in (scale, bias))
    grouped = x.reshape(len(x), groups, -1)
    y = _normalized(call, grouped, 3).reshape(x.shape)
    return y * _by_channel(x, scale) + _by_channel(x, bias)


def _normalized(call: Call, x: Array, rank: int) -> Array:
    """Mean 0 and variance 1 over all axes behind the second."""
    axes = tuple(range(2, rank))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.mean(centred * centred, axis=axes, keepdims=True)
    return centred / np.sqrt(variance + x.dtype.type(call.get("epsilon", 1e-5)))


def _by_channel(x: Array, numbers: Array) -> Array:
    return numbers.reshape(-1, *[1] * (x.ndim - 2))


OPERATORS: dict[str, Function] = {
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "BatchNormalization": _batch_normalization,
    "CumSum": _cumulative_sum,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _log_softmax,
    "RMSNormalization": _rms_normalization,
    "ReduceL1": _reduce(lambda x, axes, keep: np.sum(np.abs(x), axis=axes, keepdims=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: np.sqrt(np.sum(x * x, axis=axes, keepdims=keep))),
    "ReduceLogSum": _reduce(lambda x, axes, keep: np.log(np.sum(x, axis=axes, keepdims=keep))),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_largest),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(_smallest),
    "ReduceProd": _reduce(lambda x, axes, keep: np.prod(x, axis=axes, keepdims=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: np.sum(x, axis=axes, keepdims=keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: np.sum(x * x, axis=axes, keepdims=keep)),
    "Softmax": _softmax,
}
