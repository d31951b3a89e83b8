# SPDX-License-Identifier: Apache-2.0
"""The numbers of integer layers: weights and biases of constants, scales and tables of steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arithmetic import Scale, clamp_table, function_table, integer_bias, sum_scale, then
from .graph import Float, Function
from .onnx_values import Constant, Dequantise, Quantise, Step, Value

Steps = tuple[Step, ...]
Int8 = NDArray[np.int8]

#: What sigmoid and tanh read where the file gives no scale: -range to range.
FUNCTION_RANGES = {"sigmoid": 8.0, "tanh": 4.0}

#: A stored bias scale this close to x_scale * w_scale differs from it by rounding only.
_SAME_SCALE = 1e-5

#: The largest INT8 weight.
_LARGEST = 127

#: What a layer's input lacks.
UNQUANTISED = (
    "its input is not quantised; put QuantizeLinear and DequantizeLinear right before it, behind "
    "any function"
)


class Refusal(Exception):  # noqa: N818 - becomes a line of UnsupportedModelError
    """Why a layer cannot be one of integers."""


def split(value: Value) -> tuple[Steps, Steps]:
    """Up to the last QuantizeLinear a tensor's steps are the producer's, then its reader's; what
    the host does is always the reader's."""
    steps = value.steps
    end = next(
        (i for i, s in enumerate(steps) if isinstance(s, Function) and s.on_host), len(steps)
    )
    cut = max((i + 1 for i, s in enumerate(steps[:end]) if isinstance(s, Quantise)), default=0)
    return steps[:cut], steps[cut:]


def scale_of(source: Value) -> Dequantise:
    """Scale and zero point of what a layer reads."""
    _, reader = split(source)
    if len(reader) != 1 or not isinstance(reader[0], Dequantise):
        raise Refusal(UNQUANTISED)
    return reader[0]


def requantised(steps: Steps) -> tuple[Scale, Int8 | None]:
    """Scale and zero point of a layer's sums, and the table behind; `steps` hold a Quantise, and
    end with one."""
    first = next(i for i, s in enumerate(steps) if isinstance(s, Quantise))
    y = steps[first]
    assert isinstance(y, Quantise)
    functions = functions_of(steps[:first])
    curved = [f for f in functions if not f.clamps]
    if curved and curved[0].name not in FUNCTION_RANGES:
        raise Refusal(
            f"what {curved[0].name} reads has no scale; put QuantizeLinear and DequantizeLinear "
            "before it"
        )
    if curved:
        to: Scale = np.float32(FUNCTION_RANGES[curved[0].name] / 127.0), 0
        table: Int8 | None = function_table(functions, *to, y.scale, y.zero_point)
    else:
        to = y.scale, y.zero_point
        table = clamp_table(functions, *to)
    return to, then(table, later_table(steps[first + 1 :]))


def functions_of(steps: Steps) -> tuple[Function, ...]:
    return tuple(step for step in steps if isinstance(step, Function))


def host_functions(steps: Steps) -> tuple[Function, ...]:
    """All that the host does behind the first DequantizeLinear of an output, or behind sums."""
    functions = []
    for step in steps:
        if isinstance(step, Function):
            functions.append(step)
        else:
            name = "quantise" if isinstance(step, Quantise) else "dequantise"
            functions.append(Function(name, (float(step.scale), float(step.zero_point))))
    return tuple(functions)


def later_table(steps: Steps) -> Int8 | None:
    """Everything behind the first QuantizeLinear: (Dequantise, functions, Quantise) again and
    again."""
    table: Int8 | None = None
    start = 0
    for i, step in enumerate(steps):
        if isinstance(step, Quantise):
            x = steps[start]
            assert isinstance(x, Dequantise)  # integers take no function
            between = functions_of(steps[start:i])
            table = then(
                table,
                function_table(between, x.scale, x.zero_point, step.scale, step.zero_point),
            )
            start = i + 1
    return table


def integer_weights(weights: Constant) -> tuple[Int8, Float]:
    """Integers as they are, and a scale a row; where a row has several, as blocks make them, they
    are rounded to one."""
    if weights.scale is None:
        raise Refusal(
            "its weights are float32 while its input is INT8; quantise them "
            "(DequantizeLinear of an INT8 constant)"
        )
    scales = weights.scale.reshape(len(weights.scale), -1)
    scale = scales[:, 0]
    if not (scales == scale[:, None]).all():
        return _rounded(weights.array.astype(np.float64) * weights.scale)
    low, high = int(weights.array.min()), int(weights.array.max())
    if low < -128 or high > 127:
        raise Refusal(
            f"its weights less their zero point reach from {low} to {high}, beyond INT8; "
            "quantise them symmetrically, with zero point 0 (UINT8: 128)"
        )
    return np.ascontiguousarray(weights.array, np.int8), np.ascontiguousarray(scale, np.float32)


def _rounded(values: NDArray[np.float64]) -> tuple[Int8, Float]:
    """INT8 with one scale a row, of weights with several."""
    flat = values.reshape(len(values), -1)
    scale = (np.abs(flat).max(axis=1) / 127).astype(np.float32)
    scale[scale == 0] = 1
    integers = np.clip(np.rint(flat / scale[:, None]), -127, 127).astype(np.int8)
    return integers.reshape(values.shape), scale


def finer(
    weights: Int8, w_scale: Float, bias: Constant | None, x_scale: np.float32
) -> tuple[Int8, Float]:
    """The same numbers as other integers, whose sums have steps that the bias fits best.

    A row of one weight is free to be any integer of the scale that makes it the same number. With
    the largest, a bias is off by up to 1/254 of the input's scale; of the fractions with
    denominators up to 127 most have one much nearer to what is added for a step of the input.
    Other weights, and biases that are integers of their sums, stay as they are.
    """
    rows = weights.reshape(len(weights), -1).astype(np.int64)
    if bias is None or (np.count_nonzero(rows, axis=1) != 1).any():
        return weights, w_scale
    if bias.scale is not None and np.allclose(
        bias.scale, sum_scale(x_scale, w_scale), _SAME_SCALE, 0
    ):
        return weights, w_scale
    worth = np.abs(rows.sum(axis=1)) * w_scale.astype(np.float64)
    added = bias.value.astype(np.float64) / (worth * np.float64(x_scale))
    steps = np.arange(1, _LARGEST + 1)
    off = np.abs(np.rint(added[:, None] * steps) / steps - added[:, None])
    chosen = steps[off.argmin(axis=1)]
    each = chosen.reshape(-1, *[1] * (weights.ndim - 1))
    return (np.sign(weights) * each).astype(np.int8), (worth / chosen).astype(np.float32)


def bias_of(bias: Constant | None, scale: Float) -> NDArray[np.int32]:
    """INT32 in the scale of the sums; stored integers as they are where their scale is that."""
    if bias is None:
        return np.zeros(len(scale), np.int32)
    rounded = integer_bias(bias.value, scale)
    if bias.scale is None:
        return rounded
    same = np.abs(bias.scale - scale) <= _SAME_SCALE * scale
    return np.where(same, bias.array, rounded).astype(np.int32)
