# SPDX-License-Identifier: Apache-2.0
"""Operators of quantised models: QuantizeLinear, DequantizeLinear, and those on integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .onnx_constants import check_output_dtype, dequantised_constant, scale_and_zero_point
from .onnx_file import FileNode
from .onnx_linear import add, linear, mul, times, with_bias
from .onnx_operands import Context, Operand, computed, constant, floats, one_number, optional
from .onnx_parts import joined
from .onnx_values import Constant, Dequantise, Quantise, UnsupportedNode, Value
from .onnx_windows import averages, channels_first, convolution, global_average

#: The type of integers whose scale is only known when the model runs.
_DYNAMIC = "dynamically quantised"


def _integer_scale(inputs: list[Operand], rank: int) -> tuple[np.float32, int, str]:
    """Scale, zero point of the INT8 tensor and the file's dtype, of an activation."""
    constants = [None, *(None if i is None else constant(i, "scale") for i in inputs[1:])]
    scale, zero_point, dtype = scale_and_zero_point(constants, rank, 0)
    if scale.size != 1:
        raise UnsupportedNode("it has a scale per row; activations have one per tensor")
    if dtype not in ("int8", "uint8", "int32"):
        raise UnsupportedNode(f"its integers are {dtype}; int8 and uint8 are supported")
    shift = 128 if dtype == "uint8" else 0
    return np.float32(scale), int(zero_point) - shift, dtype


def quantize_linear(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    scale, zero_point, dtype = _integer_scale(inputs, len(value.shape) + 1)
    check_output_dtype(node, optional(inputs, 2))
    if value.dtype not in ("float32", "int32") or dtype == "int32":
        raise UnsupportedNode(f"quantises {value.dtype} to {dtype}; float32 to int8 is supported")
    return value.then(Quantise(scale, zero_point, dtype))


def dequantize_linear(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    if value.dtype == "int32":
        axis = node.attributes.get("axis", 1)
        constants = [None, *(None if i is None else constant(i, "scale") for i in inputs[1:])]
        scales, zero_points, _ = scale_and_zero_point(constants, len(value.shape) + 1, axis)
        if zero_points.any():
            raise UnsupportedNode("dequantises int32 with a zero point; it must be 0")
        return times(replace(value, dtype="float32"), Constant(scales))
    if value.dtype == _DYNAMIC:
        raise UnsupportedNode("reads integers of DynamicQuantizeLinear; products of them are "
                              "supported")  # fmt: skip
    if optional(inputs, 2) is None and value.dtype == "int8":
        constants = [None, constant(inputs[1], "scale"), Constant(np.zeros((), np.int8))]
        inputs = [inputs[0], *constants[1:]]
    scale, zero_point, dtype = _integer_scale(inputs, len(value.shape) + 1)
    if dtype != value.dtype:
        raise UnsupportedNode(f"its zero point is {dtype}, its input {value.dtype}")
    return value.then(Dequantise(scale, zero_point))


def _matrix(operand: Operand, scale: Operand, zero_point: Operand) -> Constant:
    """The right operand of an integer product, (M, K), with a scale of the same shape."""
    weights = _weights(operand, "right operand")
    if weights.array.ndim != 2:
        raise UnsupportedNode("its right operand is not a matrix of integers")
    return _scaled(weights.each(np.transpose), scale, zero_point)


def _weights(operand: Operand, what: str) -> Constant:
    weights = constant(operand, what)
    if weights.array.dtype.kind not in "iu" or not weights.array.ndim:
        raise UnsupportedNode(
            f"its {what} is {weights.array.dtype} of shape {weights.array.shape}, must be integers"
        )
    return weights


def _scaled(weights: Constant, scale: Operand, zero_point: Operand) -> Constant:
    """Integers (M, ...) less their zero point, each with its scale: one number or one a row."""
    rows = (-1, *[1] * (weights.array.ndim - 1))
    given = None if zero_point is None else constant(zero_point, "weights' zero point")
    steps = np.zeros(1, np.int64) if given is None else given.array.astype(np.int64)
    worth = np.ones(1, np.float32)
    if scale is not None:
        worth = constant(scale, "weights' scale").value.astype(np.float32)
    try:
        integers = weights.array.astype(np.int64)
        integers = integers - np.broadcast_to(steps.reshape(rows), (len(integers), *rows[1:]))
        full = np.broadcast_to(worth.reshape(rows), integers.shape)
    except ValueError:
        raise UnsupportedNode("its weights' scale or zero point is not one number or one per row"
                              ) from None  # fmt: skip
    return Constant(integers, full)


def qlinear_matmul(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    source = dequantize_linear(context, node, inputs[:3])
    product = linear(context, node, source, _matrix(*inputs[3:6]))
    return quantize_linear(context, node, [product, inputs[6], inputs[7]])


def qlinear_conv(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    source = dequantize_linear(context, node, inputs[:3])
    weights = _scaled(_weights(inputs[3], "weights"), inputs[4], inputs[5])
    product = convolution(node, source, weights)
    product = _with_integer_bias(product, source, weights, optional(inputs, 8))
    return quantize_linear(context, node, [product, inputs[6], inputs[7]])


def qgemm(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    source, weights = dequantised(context, node, inputs, 0), _weights(optional(inputs, 3), "B")
    if node.attributes.get("transA", 0) or len(source.shape) != 1 or weights.array.ndim != 2:
        raise UnsupportedNode("transA is 1, or an operand is no matrix; two matrices are supported")
    if not node.attributes.get("transB", 0):
        weights = weights.each(np.transpose)
    weights = _scaled(weights, optional(inputs, 4), optional(inputs, 5))
    weights = weights.times(node.attributes.get("alpha", 1.0))
    product = linear(context, node, source, weights)
    product = _with_integer_bias(product, source, weights, optional(inputs, 6))
    if optional(inputs, 7) is None:
        return product
    return requantised(context, node, product, inputs, 7)


def _with_integer_bias(value: Value, source: Value, weights: Constant, bias: Operand) -> Value:
    """INT32 in the scale of the sums added to `value`, a product of `source` and `weights`."""
    if bias is None:
        return value
    integers, last = constant(bias, "bias").array.reshape(-1), source.steps[-1]
    assert isinstance(last, Dequantise) and weights.scale is not None
    worth = last.scale * weights.scale.reshape(len(weights.array), -1)[:, 0]
    if integers.shape != worth.shape:
        raise UnsupportedNode(f"its bias has {integers.size} values for {worth.size} rows")
    return with_bias(value, channels_first(Constant(integers, worth), value))


def matmul_integer(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    weights = _matrix(inputs[1], None, optional(inputs, 3))
    return _sums(inputs, linear(context, node, _unscaled(inputs), weights))


def conv_integer(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    weights = _scaled(_weights(inputs[1], "weights"), None, optional(inputs, 3))
    return _sums(inputs, convolution(node, _unscaled(inputs), weights))


def _sums(inputs: list[Operand], product: Value) -> Value:
    """INT32, or the floats that they stand for where the operand's scale is dynamic."""
    dynamic = computed(inputs[0], "left operand").dtype == _DYNAMIC
    return product if dynamic else replace(product, dtype="int32")


def dynamic_quantize_linear(
    context: Context, node: FileNode, inputs: list[Operand]
) -> list[Value | Constant]:
    """Integers, scale and zero point of a range that is known when the model runs. Here it is
    calibrated as in a float model: integers are read as the floats that they stand for, one worth
    1."""
    value = replace(floats(inputs[0], "input"), dtype=_DYNAMIC)
    return [value, Constant(np.ones((), np.float32)), Constant(np.zeros((), np.uint8))]


def _unscaled(inputs: list[Operand]) -> Value:
    """The activations of an integer product, less their zero point (the third input)."""
    value = computed(inputs[0], "left operand")
    if value.dtype == _DYNAMIC:
        return replace(value, dtype="float32")
    if value.dtype not in ("int8", "uint8"):
        raise UnsupportedNode(f"its left operand is {value.dtype}, must be int8 or uint8")
    zero_point = -128 if value.dtype == "uint8" else 0
    given = optional(inputs, 2)
    if given is not None:
        array = constant(given, "left zero point").array
        zero_point += int(one_number(array, "left zero point"))
    return value.then(Dequantise(np.float32(1), zero_point))


def qlinear_add(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return requantised(context, node, add(context, node, _both(context, node, inputs)), inputs, 6)


def qlinear_mul(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return requantised(context, node, mul(context, node, _both(context, node, inputs)), inputs, 6)


def _both(context: Context, node: FileNode, inputs: list[Operand]) -> list[Operand]:
    """Two operands, of which one may be constant."""
    both: list[Operand] = []
    for first in (0, 3):
        operand = optional(inputs, first)
        if not isinstance(operand, Constant):
            both.append(dequantised(context, node, inputs, first))
            continue
        given = [None if n is None else constant(n, "scale") for n in inputs[first : first + 3]]
        both.append(dequantised_constant(given))
    return both


def qlinear_concat(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    parts = [dequantised(context, node, inputs, first) for first in range(2, len(inputs), 3)]
    return quantize_linear(context, node, [joined(node, parts), *inputs[:2]])


def qlinear_average_pool(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    _check_layout(node)
    # Unlike ONNX's own operator, onnxruntime's counts what ceil_mode adds as padding.
    pooled = averages(node, dequantised(context, node, inputs, 0), beyond=True)
    return requantised(context, node, pooled, inputs, 3)


def qlinear_global_average_pool(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    _check_layout(node)
    pooled = global_average(node, dequantised(context, node, inputs, 0))
    return requantised(context, node, pooled, inputs, 3)


def _check_layout(node: FileNode) -> None:
    if node.attributes.get("channels_last", 0):
        raise UnsupportedNode("channels_last is 1; 0 is supported")


def dequantised(context: Context, node: FileNode, inputs: list[Operand], first: int) -> Value:
    """An operand, its scale and its zero point, which may be left out."""
    return dequantize_linear(context, node, [optional(inputs, first + i) for i in range(3)])


def requantised(
    context: Context, node: FileNode, value: Value, inputs: list[Operand], first: int
) -> Value:
    """To scale and zero point; without one it is 0 in the type of the first operand."""
    scale, zero_point = optional(inputs, first), optional(inputs, first + 1)
    if zero_point is None:
        given = inputs[0]
        kind = given.array.dtype if isinstance(given, Constant) else computed(given, "input").dtype
        zero_point = Constant(np.zeros((), kind))
    return quantize_linear(context, node, [value, scale, zero_point])
