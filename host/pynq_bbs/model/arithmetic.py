# SPDX-License-Identifier: Apache-2.0
"""The integers of DESIGN.md section 3 that are computed before anything runs.

Quantisation of floats, 256-entry tables, multipliers and biases; one definition for models
quantised here and for models that come quantised. Everything is float32, as in ONNX.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .graph import Combination, Float, Function, apply_functions

Int8 = NDArray[np.int8]
#: Scale and zero point of an INT8 tensor.
Scale = tuple[np.float32, int]

#: INT8 values as the engine's tables index them: entry q + 128 stands for q.
_ALL_INT8: Int8 = np.arange(-128, 128).astype(np.int8)

_INT32 = np.iinfo(np.int32)


def quantise(x: Float, scale: np.float32, zero_point: int, bits: int = 8) -> NDArray[Any]:
    """`saturate(round_half_even(x / scale) + zero_point)` as ONNX QuantizeLinear, INT8 or INT16."""
    largest = np.float32(2 ** (bits - 1) - 1)
    with np.errstate(over="ignore"):
        steps = np.asarray(x, np.float32) / np.float32(scale)
    np.rint(steps, out=steps)
    steps += np.float32(zero_point)
    np.maximum(steps, -largest - 1, out=steps)
    np.minimum(steps, largest, out=steps)
    return steps.astype(np.int8 if bits == 8 else np.int16)


def dequantise(q: NDArray[Any], scale: Float | np.float32, zero_point: int) -> Float:
    """`(q - zero_point) * scale` as ONNX DequantizeLinear; INT8 or INT32 in, float32 out."""
    difference = q.astype(np.int64) - zero_point
    return difference.astype(np.float32) * np.asarray(scale, np.float32)


def multiplier(x_scale: np.float32, w_scale: Float, y_scale: np.float32) -> Float:
    """`(x_scale * w_scale) / y_scale`, float32 in that order, one per row (M,).

    Raises:
        ModelError: a product or quotient leaves the range of float32.
    """
    with np.errstate(all="ignore"):
        m = sum_scale(x_scale, w_scale) / np.float32(y_scale)
    if not (np.isfinite(m).all() and (m > 0).all()):
        raise ModelError(
            f"scales {float(x_scale):g} (input), {float(np.min(w_scale)):g} to "
            f"{float(np.max(w_scale)):g} (weights) and {float(y_scale):g} (output) give a "
            "multiplier that float32 cannot hold; they must be positive and closer together."
        )
    return m


def sum_scale(x_scale: np.float32, w_scale: Float) -> Float:
    """Scale of the INT32 sums of a layer, `x_scale * w_scale`, one per row (M,).

    Raises:
        ModelError: a product is not a positive finite float32.
    """
    with np.errstate(all="ignore"):
        scale: Float = np.float32(x_scale) * np.asarray(w_scale, np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ModelError(
            f"scales {float(x_scale):g} (input) and {float(np.min(w_scale)):g} to "
            f"{float(np.max(w_scale)):g} (weights) have a product that is not a positive finite "
            "float32; they must be positive and closer to 1."
        )
    return scale


def integer_bias(bias: NDArray[Any], scale: Float) -> NDArray[np.int32]:
    """`round_half_even(bias / scale)`, limited to INT32; bias and scale (M,)."""
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    limited: NDArray[np.int32] = np.clip(steps, _INT32.min, _INT32.max).astype(np.int32)
    return limited


def round_shifted(value: NDArray[Any], shift: int) -> NDArray[np.int64]:
    """`round_half_even(value / 2**shift)` of integers below 2**62."""
    wide = value.astype(np.int64)
    odd = (wide >> shift) & 1
    half = (1 << shift) >> 1
    rounded: NDArray[np.int64] = (wide + half - (1 - odd if shift else 0)) >> shift
    return rounded


#: Bits of the larger of the two scales of a combination; the engine has 24, sign included.
_COMBINE_BITS = 22
_MOST_SHIFT = 47


def sum_of(
    tensor: str, a: Scale, b: Scale, y: Scale, functions: tuple[Function, ...] = ()
) -> Combination:
    """`functions(a + b)` of two INT8 tensors; `tensor` names b.

    Raises:
        ModelError: scales too far apart for 22 bits.
    """
    a_scale, b_scale, shift = _fixed_point(a[0] / y[0], b[0] / y[0])
    low, high = _limits(functions, *y)
    return Combination(tensor, a_scale, a[1], b_scale, b[1], shift, y[1], low, high)


def product_of(
    tensor: str, a: Scale, b: Scale, y: Scale, functions: tuple[Function, ...] = ()
) -> Combination:
    """`functions(a * b)` of two INT8 tensors; `tensor` names b.

    Raises:
        ModelError: a scale beyond 22 bits.
    """
    scale, _, shift = _fixed_point(np.float64(a[0]) * b[0] / y[0], np.float64(0))
    low, high = _limits(functions, *y)
    return Combination(tensor, scale, a[1], 0, b[1], shift, y[1], low, high, product=True)


def _fixed_point(a: np.floating[Any], b: np.floating[Any]) -> tuple[int, int, int]:
    """Both ratios as integers over 2 to the same shift, the larger one of 22 bits."""
    largest = float(max(a, b))
    if not 0 < largest < 1 << _COMBINE_BITS:
        raise ModelError(
            f"scales of an addition or multiplication have the ratio {largest:g} to the output's; "
            f"it must be positive and below {1 << _COMBINE_BITS}."
        )
    shift = min(_MOST_SHIFT, _COMBINE_BITS - int(np.frexp(largest)[1]))
    return int(np.rint(np.ldexp(float(a), shift))), int(np.rint(np.ldexp(float(b), shift))), shift


def _limits(functions: tuple[Function, ...], scale: np.float32, zero_point: int) -> tuple[int, int]:
    """The range that Relu and Clip leave of the integers."""
    table = clamp_table(functions, scale, zero_point)
    return (-128, 127) if table is None else (int(table[0]), int(table[-1]))


def clamp_table(functions: tuple[Function, ...], scale: np.float32, zero_point: int) -> Int8 | None:
    """Relu and Clip on integers that already have the output's scale, exactly.

    Quantisation never reverses an order, so quantising a clamped value and clamping the
    quantised one are the same. None where saturation to INT8 does all of it.
    """
    table = _ALL_INT8
    for function in functions:
        low, high = (0.0, np.inf) if function.name == "relu" else function.parameters
        limits = quantise(np.array([low, high], np.float32), scale, zero_point)
        table = np.minimum(np.maximum(table, limits[0]), limits[1])
    return table_or_none(table)


def function_table(
    functions: tuple[Function, ...],
    x_scale: np.float32,
    x_zero_point: int,
    y_scale: np.float32,
    y_zero_point: int,
) -> Int8:
    """Any pointwise function from one INT8 scale to another, (256,)."""
    x = dequantise(_ALL_INT8, x_scale, x_zero_point)
    return quantise(apply_functions(functions, x), y_scale, y_zero_point)


def then(first: Int8 | None, second: Int8 | None) -> Int8 | None:
    """One table that does what two do after each other; None is the table that does nothing."""
    if first is None or second is None:
        return second if first is None else first
    return table_or_none(second[first.astype(np.int64) + 128])


def table_or_none(table: Int8) -> Int8 | None:
    """None for the table that changes nothing."""
    return None if np.array_equal(table, _ALL_INT8) else table
