# SPDX-License-Identifier: Apache-2.0
"""What every supported operator does to a `Value`; one function for each.

A function takes the reader's context, the node and its inputs, and returns the node's output. It
raises `UnsupportedNode` with a reason that completes "node 'x' (Op): ...".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Function
from .onnx_constants import check_output_dtype, scale_and_zero_point
from .onnx_file import FileNode
from .onnx_values import Constant, Dequantise, Linear, Quantise, UnsupportedNode, Value

#: What a node reads: a computed value, a constant, or nothing (an optional input left out).
Operand = Value | Constant | None

#: Where a node runs, and what to say about it.
ENGINE, HOST = "engine", "host"


@dataclass(frozen=True)
class Context:
    """What operators need to know of the whole model."""

    batch: int | None  # the inputs' first dimension where the file fixes it


Operator = Callable[[Context, FileNode, "list[Operand]"], Value]


def _float(value: Value) -> Value:
    if value.dtype != "float32":
        raise UnsupportedNode(f"works on {value.dtype} here; put DequantizeLinear before it")
    return value


def _computed(operand: Operand, what: str) -> Value:
    if not isinstance(operand, Value):
        raise UnsupportedNode(f"its {what} must be computed from the model's input")
    return operand


def _constant(operand: Operand, what: str) -> Constant:
    if isinstance(operand, Value):
        raise UnsupportedNode(f"its {what} is computed from the model's input, must be constant")
    if operand is None:
        raise UnsupportedNode(f"its {what} is missing")
    return operand


def _optional(inputs: list[Operand], index: int) -> Operand:
    return inputs[index] if index < len(inputs) else None


def _one_number(array: NDArray[Any], what: str) -> Any:
    if array.size != 1:
        raise UnsupportedNode(f"its {what} has {array.size} values; one per tensor is supported")
    return array.reshape(-1)[0]


def _linear(
    node: FileNode, source: Value, weights: Constant, shape: tuple[int, ...] | None = None
) -> Value:
    """Weights (M, K) on the last axis of `source`, or on all of it where a `shape` is given."""
    if weights.array.ndim != 2 or not weights.array.size:
        raise UnsupportedNode(f"weights have shape {weights.array.shape}, must be a matrix")
    rows, features = weights.array.shape
    if shape is None:
        if not source.shape:
            raise UnsupportedNode("its input has a batch dimension only")
        if source.features != source.shape[-1]:
            columns = source.features // source.shape[-1]
            raise UnsupportedNode(
                f"its input has shape (batch, {', '.join(map(str, source.shape))}): {columns} "
                "columns per sample; one column per sample is supported"
            )
        shape = (*source.shape[:-1], rows)
    if features != source.features:
        raise UnsupportedNode(f"weights take {features} features, its input has {source.features}")
    if weights.array.dtype.kind == "f" and not np.isfinite(weights.array).all():
        raise UnsupportedNode("weights hold NaN or infinity")
    return Value(Linear(node.name, source, weights), (), shape, "float32")


def _with_bias(value: Value, bias: Constant) -> Value:
    """A constant that is the same for every sample, added to the result of a linear operator."""
    base = value.base
    if not isinstance(base, Linear) or value.steps:
        raise UnsupportedNode("adds a constant to what is not the result of Gemm or MatMul")
    # The batch dimension, where the constant has one, must be 1 and goes.
    wanted, given = value.shape, bias.array.shape
    if len(given) == len(wanted) + 1 and given[0] == 1:
        bias = bias.each(lambda a: a[0])
    try:
        flat = bias.each(lambda a: np.broadcast_to(a, wanted).reshape(-1))
    except ValueError:
        raise UnsupportedNode(
            f"adds a constant of shape {given} to (batch, {', '.join(map(str, wanted))}); "
            "it must be the same for every sample and not enlarge the result"
        ) from None
    if not np.isfinite(flat.value).all():
        raise UnsupportedNode("the bias holds NaN or infinity")
    if base.bias is not None:
        flat = _sum(base.bias, flat)
    return replace(value, base=replace(base, bias=flat))


def _sum(first: Constant, second: Constant) -> Constant:
    if first.scale is not None and second.scale is not None:
        if np.array_equal(first.scale, second.scale):
            return Constant(first.array + second.array, first.scale)
    return Constant(first.value.astype(np.float32) + second.value.astype(np.float32))


def _times(value: Value, factor: NDArray[Any]) -> Value:
    """The result of a linear operator times a constant, as part of its weights."""
    base = value.base
    if not isinstance(base, Linear) or value.steps:
        raise UnsupportedNode("multiplies what is not the result of Gemm or MatMul")
    try:
        rows = np.broadcast_to(factor.astype(np.float32), (1, *value.shape)).reshape(-1)
    except ValueError:
        raise UnsupportedNode(
            f"multiplies by a constant of shape {factor.shape}; one number, or one per row, "
            "is supported"
        ) from None
    bias = None if base.bias is None else base.bias.times(rows)
    return replace(value, base=replace(base, weights=base.weights.times(rows[:, None]), bias=bias))


def gemm(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    source, weights = _float(_computed(inputs[0], "A")), _constant(inputs[1], "B")
    if node.attributes.get("transA", 0):
        raise UnsupportedNode("transA is 1, which would mix the samples of a batch")
    if len(source.shape) != 1:
        raise UnsupportedNode(f"A has {len(source.shape) + 1} dimensions, must have 2")
    if not node.attributes.get("transB", 0):
        weights = weights.each(np.transpose)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    result = _linear(node, source, weights if alpha == 1.0 else weights.times(alpha))
    if _optional(inputs, 2) is not None:
        bias = _constant(inputs[2], "C")
        result = _with_bias(result, bias if beta == 1.0 else bias.times(beta))
    return result


def matmul(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    left, right = inputs
    if isinstance(left, Value) and isinstance(right, Value):
        raise UnsupportedNode("both operands are computed from the model's input")
    if isinstance(left, Value):
        weights = _constant(right, "right operand")
        if weights.array.ndim != 2:
            raise UnsupportedNode(f"weights have shape {weights.array.shape}, must be a matrix")
        return _linear(node, _float(left), weights.each(np.transpose))
    source, weights = _float(_computed(right, "right operand")), _constant(left, "left operand")
    if len(source.shape) < 2 or source.shape[-1] != 1 or source.features != source.shape[-2]:
        raise UnsupportedNode(
            "its weights stand on the left, which needs an input of shape (batch, features, 1), "
            f"not (batch, {', '.join(map(str, source.shape))})"
        )
    shape = (*source.shape[:-2], weights.array.shape[0], 1)
    return _linear(node, source, weights, shape)


def add(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    left, right = inputs
    if isinstance(left, Value) and isinstance(right, Value):
        raise UnsupportedNode("adds two computed tensors; only a constant bias is supported")
    if isinstance(right, Value):
        left, right = right, left
    value, bias = _computed(left, "operand"), _constant(right, "other operand")
    if value.dtype == "int32":
        return _with_bias(value, Constant(bias.array, np.ones(bias.array.shape, np.float32)))
    return _with_bias(_float(value), bias)


def mul(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    left, right = inputs
    if isinstance(right, Value):
        left, right = right, left
    return _times(_float(_computed(left, "operand")), _constant(right, "other operand").value)


def relu(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return _float(_computed(inputs[0], "input")).then(Function("relu"))


def sigmoid(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return _float(_computed(inputs[0], "input")).then(Function("sigmoid"))


def tanh(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return _float(_computed(inputs[0], "input")).then(Function("tanh"))


def clip(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = _float(_computed(inputs[0], "input"))
    limits = [node.attributes.get("min", -np.inf), node.attributes.get("max", np.inf)]
    for index in (1, 2):
        if _optional(inputs, index) is not None:
            limit = _constant(inputs[index], ("min", "max")[index - 1])
            limits[index - 1] = _one_number(limit.value, "limit")
    low, high = float(limits[0]), float(limits[1])
    if np.isnan(low) or np.isnan(high):
        raise UnsupportedNode("its limits are not numbers")
    if (low, high) == (-np.inf, np.inf):
        return value
    return value.then(Function("clip", (low, high)))


def identity(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return _computed(inputs[0], "input")


def dropout(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    training = _optional(inputs, 2)
    if training is not None and _constant(training, "training_mode").value.any():
        raise UnsupportedNode("it is in training mode; export the model for inference")
    return _computed(inputs[0], "input")


def cast(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    from onnx import TensorProto

    value = _computed(inputs[0], "input")
    if node.attributes.get("to") != TensorProto.FLOAT:
        raise UnsupportedNode("casts to something other than float32")
    if value.dtype == "int8":
        return value.then(Dequantise(np.float32(1), 0))
    if value.dtype == "uint8":
        return value.then(Dequantise(np.float32(1), -128))
    return replace(value, dtype="float32")


def flatten(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = _computed(inputs[0], "input")
    rank = len(value.shape) + 1
    axis = node.attributes.get("axis", 1)
    axis += rank if axis < 0 else 0
    if not 1 <= axis <= rank or any(d != 1 for d in value.shape[: axis - 1]):
        raise UnsupportedNode(f"axis {axis} mixes samples with features; 1 is supported")
    return value.reshaped((value.features,))


def reshape(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = _computed(inputs[0], "input")
    target = [int(d) for d in _constant(_optional(inputs, 1), "shape").value.reshape(-1)]
    old = (context.batch, *value.shape)
    if not node.attributes.get("allowzero", 0):
        if any(d == 0 and i >= len(old) for i, d in enumerate(target)):
            raise UnsupportedNode(f"shape {target} copies a dimension that its input lacks")
        target = [old[i] or 0 if d == 0 and i else d for i, d in enumerate(target)]
    if not target or target[0] not in (
        {0, -1} if context.batch is None else {0, -1, context.batch}
    ):
        raise UnsupportedNode(
            f"shape {target} does not keep the batch dimension; its first number must be 0 or -1"
        )
    shape = target[1:]
    if target[0] != -1 and shape.count(-1) == 1:
        known = int(np.prod([d for d in shape if d != -1], dtype=np.int64))
        shape[shape.index(-1)] = value.features // known if known else 0
    if any(d < 1 for d in shape) or int(np.prod(shape, dtype=np.int64)) != value.features:
        raise UnsupportedNode(
            f"shape {target} does not keep the {value.features} features of a sample"
        )
    return value.reshaped(tuple(shape))


def _integer_scale(inputs: list[Operand], rank: int) -> tuple[np.float32, int, str]:
    """Scale, zero point of the INT8 tensor and the file's dtype, of an activation."""
    constants = [None, *(None if i is None else _constant(i, "scale") for i in inputs[1:])]
    scale, zero_point, dtype = scale_and_zero_point(constants, rank, 0)
    if scale.size != 1:
        raise UnsupportedNode("it has a scale per row; activations have one per tensor")
    if dtype not in ("int8", "uint8", "int32"):
        raise UnsupportedNode(f"its integers are {dtype}; int8 and uint8 are supported")
    shift = 128 if dtype == "uint8" else 0
    return np.float32(scale), int(zero_point) - shift, dtype


def quantize_linear(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = _computed(inputs[0], "input")
    scale, zero_point, dtype = _integer_scale(inputs, len(value.shape) + 1)
    check_output_dtype(node, _optional(inputs, 2))
    if value.dtype not in ("float32", "int32") or dtype == "int32":
        raise UnsupportedNode(f"quantises {value.dtype} to {dtype}; float32 to int8 is supported")
    return value.then(Quantise(scale, zero_point, dtype))


def dequantize_linear(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = _computed(inputs[0], "input")
    if value.dtype == "int32":
        axis = node.attributes.get("axis", 1)
        constants = [None, *(None if i is None else _constant(i, "scale") for i in inputs[1:])]
        scales, zero_points, _ = scale_and_zero_point(constants, len(value.shape) + 1, axis)
        if zero_points.any():
            raise UnsupportedNode("dequantises int32 with a zero point; it must be 0")
        return _times(replace(value, dtype="float32"), scales)
    if _optional(inputs, 2) is None and value.dtype == "int8":
        constants = [None, _constant(inputs[1], "scale"), Constant(np.zeros((), np.int8))]
        inputs = [inputs[0], *constants[1:]]
    scale, zero_point, dtype = _integer_scale(inputs, len(value.shape) + 1)
    if dtype != value.dtype:
        raise UnsupportedNode(f"its zero point is {dtype}, its input {value.dtype}")
    return value.then(Dequantise(scale, zero_point))


def _integer_weights(operand: Operand, scale: Operand, zero_point: Operand) -> Constant:
    """The right operand of an integer product, (M, K), with a scale of the same shape."""
    weights = _constant(operand, "right operand")
    if weights.array.ndim != 2 or weights.array.dtype.kind not in "iu":
        raise UnsupportedNode("its right operand is not a matrix of integers")
    columns = weights.array.shape[1]
    given = None if zero_point is None else _constant(zero_point, "right zero point")
    steps = np.zeros(1, np.int64) if given is None else given.array.astype(np.int64)
    worth = np.ones(1, np.float32)
    if scale is not None:
        worth = _constant(scale, "right scale").value.astype(np.float32)
    try:
        integers = weights.array.astype(np.int64) - np.broadcast_to(steps.reshape(-1), (columns,))
        full = np.broadcast_to(worth.reshape(-1), integers.shape)
    except ValueError:
        raise UnsupportedNode("its right scale or zero point is not one number or one per row"
                              ) from None  # fmt: skip
    return Constant(integers.T, full.T)


def qlinear_matmul(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    source = dequantize_linear(context, node, [inputs[0], inputs[1], inputs[2]])
    weights = _integer_weights(inputs[3], inputs[4], inputs[5])
    product = _linear(node, source, weights)
    return quantize_linear(context, node, [product, inputs[6], inputs[7]])


def matmul_integer(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = _computed(inputs[0], "left operand")
    if value.dtype not in ("int8", "uint8"):
        raise UnsupportedNode(f"its left operand is {value.dtype}, must be int8 or uint8")
    zero_point = -128 if value.dtype == "uint8" else 0
    given = _optional(inputs, 2)
    if given is not None:
        array = _constant(given, "left zero point").array
        zero_point += int(_one_number(array, "left zero point"))
    source = value.then(Dequantise(np.float32(1), zero_point))
    product = _linear(node, source, _integer_weights(inputs[1], None, _optional(inputs, 3)))
    return replace(product, dtype="int32")


#: operator -> function, where it runs, what `check_onnx` says of it
OPERATORS: dict[str, tuple[Operator, str, str]] = {
    "Gemm": (gemm, ENGINE, "linear layer"),
    "MatMul": (matmul, ENGINE, "linear layer"),
    "QLinearMatMul": (qlinear_matmul, ENGINE, "linear layer"),
    "MatMulInteger": (matmul_integer, ENGINE, "linear layer"),
    "Add": (add, ENGINE, "bias of the linear layer before it"),
    "Mul": (mul, ENGINE, "scale of the linear layer before it"),
    "Relu": (relu, ENGINE, "fused with the layer before it"),
    "Clip": (clip, ENGINE, "fused with the layer before it"),
    "Sigmoid": (sigmoid, ENGINE, "fused with the layer before it, as a table"),
    "Tanh": (tanh, ENGINE, "fused with the layer before it, as a table"),
    "QuantizeLinear": (quantize_linear, ENGINE, "requantisation of the layer before it"),
    "DequantizeLinear": (dequantize_linear, ENGINE, "scale of what follows"),
    "Cast": (cast, HOST, "a change of type only, nothing to run"),
    "Flatten": (flatten, HOST, "a change of shape only, nothing to run"),
    "Reshape": (reshape, HOST, "a change of shape only, nothing to run"),
    "Identity": (identity, HOST, "nothing to run"),
    "Dropout": (dropout, HOST, "nothing to run at inference"),
}
