# SPDX-License-Identifier: Apache-2.0
"""Products of matrices and convolutions, of floats and of quantised tensors; quantisation."""

from __future__ import annotations

import numpy as np

from .call import Array, Call, Function, checked_axis
from .shapes import DTYPES
from .windows import Windows


def _matmul(call: Call, a: Array, b: Array) -> Array:
    return np.asarray(a @ b)


def _gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Array:
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    product = a.dtype.type(call.get("alpha", 1.0)) * (a @ b)
    return product if c is None else product + a.dtype.type(call.get("beta", 1.0)) * c


def _convolved(call: Call, x: Array, weights: Array) -> Array:
    """(N, M, places...) of images (N, C, ...) and weights (M, C / groups, ...) of any rank."""
    groups, rank = call.get("group", 1), weights.ndim - 2
    seen = Windows.of(call, x.shape[2:], weights.shape[2:]).see(x, 0)
    places = seen.shape[2 : 2 + rank]
    grouped = seen.reshape(len(x), groups, -1, *seen.shape[2:])
    order = (0, 1, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    columns = grouped.transpose(order).reshape(len(x), groups, int(np.prod(places)), -1)
    rows = weights.reshape(groups, len(weights) // groups, -1).transpose(0, 2, 1)
    return (columns @ rows).transpose(0, 1, 3, 2).reshape(len(x), len(weights), *places)


def _conv(call: Call, x: Array, weights: Array, bias: Array | None = None) -> Array:
    sums = _convolved(call, x, weights)
    return sums if bias is None else sums + bias.reshape(-1, *[1] * (x.ndim - 2))


def _centred(x: Array, zero_point: Array | None, axis: int = -1) -> Array:
    """Integers less their zero point, in float64: sums of their products are exact there."""
    wide = x.astype(np.float64)
    if zero_point is None:
        return wide
    steps = zero_point.astype(np.float64)
    if steps.ndim == 1 and steps.size > 1 and axis >= 0:
        steps = steps.reshape(-1, *[1] * (x.ndim - 1 - axis))
    return np.asarray(wide - steps)


def _matmul_integer(
    call: Call, a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None
) -> Array:
    if a_zero is not None and a_zero.ndim == 1:
        a_zero = a_zero[:, None]
    return (_centred(a, a_zero) @ _centred(b, b_zero)).astype(np.int32)


def _conv_integer(
    call: Call, x: Array, w: Array, x_zero: Array | None = None, w_zero: Array | None = None
) -> Array:
    return _convolved(call, _centred(x, x_zero), _centred(w, w_zero, 0)).astype(np.int32)


def _requantised(sums: Array, scale: Array, y_zero: Array) -> Array:
    """`saturate(round(sums * scale) + zero point)`, in float32 as DESIGN has it."""
    return _saturated(np.rint(sums.astype(np.float32) * scale), y_zero)


def _saturated(rounded: Array, zero_point: Array) -> Array:
    info = np.iinfo(zero_point.dtype)
    shifted = rounded + zero_point.astype(rounded.dtype)
    return np.clip(shifted, info.min, info.max).astype(zero_point.dtype)


def _qlinear_matmul(
    call: Call, a: Array, a_scale: Array, a_zero: Array, b: Array, b_scale: Array, b_zero: Array,
    y_scale: Array, y_zero: Array,
) -> Array:  # fmt: skip
    scales = [s.astype(np.float32) for s in (a_scale, b_scale, y_scale)]
    sums = _matmul_integer(call, a, b, a_zero, b_zero)
    left = scales[0][:, None] if scales[0].ndim == 1 else scales[0]
    return _requantised(sums, left * scales[1] / scales[2], y_zero)


def _qlinear_conv(
    call: Call, x: Array, x_scale: Array, x_zero: Array, w: Array, w_scale: Array, w_zero: Array,
    y_scale: Array, y_zero: Array, bias: Array | None = None,
) -> Array:  # fmt: skip
    sums = _conv_integer(call, x, w, x_zero, w_zero)
    rows = (-1, *[1] * (x.ndim - 2))
    sums = sums if bias is None else sums + bias.reshape(rows)
    scale = x_scale * w_scale / y_scale
    return _requantised(sums, scale.reshape(rows) if scale.size > 1 else scale, y_zero)


def _by_axis(call: Call, numbers: Array, x: Array) -> Array:
    """A scale or zero point so that it broadcasts to `x`: one, one a place of an axis, or one a
    block of places."""
    if numbers.size == 1 and numbers.ndim < 2:
        return numbers.reshape(())
    axis, block = checked_axis(call.get("axis", 1), x.ndim), call.get("block_size", 0)
    if block:
        return np.repeat(numbers, block, axis)[(slice(None),) * axis + (slice(x.shape[axis]),)]
    return numbers.reshape(-1, *[1] * (x.ndim - 1 - axis))


def _quantize_linear(call: Call, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    if zero_point is None:
        dtype = DTYPES[call.get("output_dtype", 0) or 2]
        zero_point = np.zeros(scale.shape, dtype)
    rounded = np.rint(x / _by_axis(call, scale, x))
    return _saturated(rounded, _by_axis(call, zero_point, x))


def _dequantize_linear(
    call: Call, x: Array, scale: Array, zero_point: Array | None = None
) -> Array:
    wide = x.astype(np.int64)
    if zero_point is not None:
        wide = wide - _by_axis(call, zero_point, x)
    return wide.astype(scale.dtype) * _by_axis(call, scale, x)


def _dynamic_quantize_linear(call: Call, x: Array) -> tuple[Array, ...]:
    low, high = (np.float32(edge) for edge in (min(x.min(), 0), max(x.max(), 0)))
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero_point = np.asarray(np.clip(np.rint(-low / scale), 0, 255), np.uint8)
    y = np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.uint8)
    return y, np.asarray(scale, np.float32), zero_point


OPERATORS: dict[str, Function] = {
    "Conv": _conv,
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize_linear,
    "DynamicQuantizeLinear": _dynamic_quantize_linear,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize_linear,
}
