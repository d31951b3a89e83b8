# SPDX-License-Identifier: Apache-2.0
"""Every supported operator, by name: what it does to a `Value`, and where it runs.

A function takes the reader's context, the node and its inputs, and returns the node's output. It
raises `UnsupportedNode` with a reason that completes "node 'x' (Op): ...". Functions of one value
and changes of shape are here, the others in modules of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .graph import Function
from .onnx_file import FileNode
from .onnx_linear import add, batch_normalization, gemm, matmul, mul
from .onnx_operands import (
    Context,
    Operand,
    Reader,
    axes_of,
    checked_axis,
    computed,
    constant,
    floats,
    one_number,
    optional,
)
from .onnx_parts import concat, slice_channels, split
from .onnx_quantised import (
    conv_integer,
    dequantised,
    dequantize_linear,
    dynamic_quantize_linear,
    matmul_integer,
    qgemm,
    qlinear_add,
    qlinear_average_pool,
    qlinear_concat,
    qlinear_conv,
    qlinear_global_average_pool,
    qlinear_matmul,
    qlinear_mul,
    quantize_linear,
    requantised,
)
from .onnx_values import Dequantise, Quantise, UnsupportedNode, Value
from .onnx_windows import (
    average_pool,
    conv,
    global_average_pool,
    global_max_pool,
    max_pool,
    pad,
    reduce_mean,
)

#: Where a node runs.
ENGINE, HOST = "engine", "host"


def relu(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return floats(inputs[0], "input").then(Function("relu"))


def sigmoid(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return floats(inputs[0], "input").then(Function("sigmoid"))


def tanh(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return floats(inputs[0], "input").then(Function("tanh"))


def leaky_relu(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    slope = float(node.attributes.get("alpha", 0.01))
    if not np.isfinite(slope):
        raise UnsupportedNode(f"its alpha is {slope}")
    return floats(inputs[0], "input").then(Function("leaky_relu", (slope,)))


def clip(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    limits = [node.attributes.get("min", -np.inf), node.attributes.get("max", np.inf)]
    for index in (1, 2):
        if optional(inputs, index) is not None:
            limit = constant(inputs[index], ("min", "max")[index - 1])
            limits[index - 1] = one_number(limit.value, "limit")
    low, high = float(limits[0]), float(limits[1])
    if np.isnan(low) or np.isnan(high):
        raise UnsupportedNode("its limits are not numbers")
    if (low, high) == (-np.inf, np.inf):
        return value
    last = value.steps[-1] if value.steps else None
    if isinstance(last, Quantise):  # integers in a narrower range, as Brevitas has them
        zero = last.zero_point + (128 if last.dtype == "uint8" else 0)
        # Clamped before they are quantised: an order that quantisation never reverses.
        limits = [float(np.float32(limit - zero) * last.scale) for limit in (low, high)]
        before = replace(value, steps=value.steps[:-1], dtype="float32")
        return before.then(Function("clip", (limits[0], limits[1]))).then(last)
    return floats(value, "input").then(Function("clip", (low, high)))


def identity(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return computed(inputs[0], "input")


def dropout(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    training = optional(inputs, 2)
    if training is not None and constant(training, "training_mode").value.any():
        raise UnsupportedNode("it is in training mode; export the model for inference")
    return computed(inputs[0], "input")


def cast(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    from onnx import TensorProto

    value = computed(inputs[0], "input")
    if node.attributes.get("to") != TensorProto.FLOAT:
        raise UnsupportedNode("casts to something other than float32")
    if value.dtype == "int8":
        return value.then(Dequantise(np.float32(1), 0))
    if value.dtype == "uint8":
        return value.then(Dequantise(np.float32(1), -128))
    return replace(value, dtype="float32")


def flatten(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    rank = len(value.shape) + 1
    axis = node.attributes.get("axis", 1)
    axis += rank if axis < 0 else 0
    if not 1 <= axis <= rank or any(d != 1 for d in value.shape[: axis - 1]):
        raise UnsupportedNode(f"axis {axis} mixes samples with features; 1 is supported")
    return value.reshaped((value.features,))


def reshape(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    target = [int(d) for d in constant(optional(inputs, 1), "shape").value.reshape(-1)]
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


def squeeze(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    rank = len(value.shape) + 1
    given = axes_of(node, inputs, 1, rank)
    axes = [i for i, n in enumerate(value.shape, 1) if n == 1] if given is None else given
    if 0 in axes or any(value.shape[axis - 1] != 1 for axis in axes):
        raise UnsupportedNode(f"removes axes {axes}, of which one is not 1 or is the batch")
    return value.reshaped(tuple(n for i, n in enumerate(value.shape, 1) if i not in axes))


def unsqueeze(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    axes = axes_of(node, inputs, 1, len(value.shape) + 1, grows=True) or []
    rank = len(value.shape) + 1 + len(axes)
    if 0 in axes:
        raise UnsupportedNode("adds an axis before the batch")
    rest = iter(value.shape)
    return value.reshaped(tuple(1 if i in axes else next(rest) for i in range(1, rank)))


def transpose(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    axes = node.attributes.get("perm") or list(range(len(value.shape) + 1))[::-1]
    if sorted(axes) != list(range(len(value.shape) + 1)) or axes[0] != 0:
        raise UnsupportedNode(f"perm {axes} mixes samples with features; the batch must stay first")
    if any(isinstance(step, Function) and step.on_host for step in value.steps):
        raise UnsupportedNode("stands behind Softmax; transpose before it")
    return value.transposed(tuple(axis - 1 for axis in axes[1:]))


def softmax(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = floats(inputs[0], "input")
    rank = len(value.shape) + 1
    axis = checked_axis(node.attributes.get("axis", 1 if context.opset < 13 else -1), rank)
    # Older operator sets mean all axes from that one on.
    size = int(np.prod(value.shape[axis - 1 :] if context.opset < 13 else value.shape[-1:]))
    if axis == 0 or (context.opset >= 13 and axis != rank - 1):
        raise UnsupportedNode(f"its axis is {axis}; the last one is supported")
    return value.then(Function("softmax", (float(size),)))


def _between_integers(operator: Reader) -> Reader:
    """An operator of floats between its DequantizeLinear and its QuantizeLinear."""

    def read(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
        made = operator(context, node, [dequantised(context, node, inputs, 0)])
        assert isinstance(made, Value)
        return requantised(context, node, made, inputs, 3)

    return read


def _meant_softmax(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    """Softmax of the operator set that an attribute names."""
    return softmax(replace(context, opset=node.attributes.get("opset", 13)), node, inputs)


#: operator -> function, where it runs, what `check_onnx` says of it
OPERATORS: dict[str, tuple[Reader, str, str]] = {
    "Gemm": (gemm, ENGINE, "linear layer"),
    "MatMul": (matmul, ENGINE, "linear layer"),
    "QLinearMatMul": (qlinear_matmul, ENGINE, "linear layer"),
    "MatMulInteger": (matmul_integer, ENGINE, "linear layer"),
    "Conv": (conv, ENGINE, "convolution"),
    "QLinearConv": (qlinear_conv, ENGINE, "convolution"),
    "ConvInteger": (conv_integer, ENGINE, "convolution"),
    "MaxPool": (max_pool, ENGINE, "pooling"),
    "GlobalMaxPool": (global_max_pool, ENGINE, "pooling"),
    "AveragePool": (average_pool, ENGINE, "pooling"),
    "GlobalAveragePool": (global_average_pool, ENGINE, "pooling"),
    "ReduceMean": (reduce_mean, ENGINE, "pooling"),
    "Concat": (concat, ENGINE, "a view of its inputs, or requantised"),
    "Split": (split, ENGINE, "views of its input"),
    "Slice": (slice_channels, ENGINE, "a view of its input"),
    "Pad": (pad, ENGINE, "padding of the convolution behind it"),
    "BatchNormalization": (batch_normalization, ENGINE, "part of the layer before it"),
    "Add": (add, ENGINE, "bias of the layer before it, or addition of two tensors"),
    "Mul": (mul, ENGINE, "scale of the layer before it, or product of two tensors"),
    "Relu": (relu, ENGINE, "fused with the layer before it"),
    "Clip": (clip, ENGINE, "fused with the layer before it"),
    "LeakyRelu": (leaky_relu, ENGINE, "fused with the layer before it, as a table"),
    "Sigmoid": (sigmoid, ENGINE, "fused with the layer before it, as a table"),
    "Tanh": (tanh, ENGINE, "fused with the layer before it, as a table"),
    "QuantizeLinear": (quantize_linear, ENGINE, "requantisation of the layer before it"),
    "DequantizeLinear": (dequantize_linear, ENGINE, "scale of what follows"),
    "DynamicQuantizeLinear": (dynamic_quantize_linear, ENGINE, "a calibrated scale in its place"),
    "Softmax": (softmax, HOST, "applied to the model's output"),
    "Cast": (cast, HOST, "a change of type only, nothing to run"),
    "Flatten": (flatten, HOST, "a change of shape only, nothing to run"),
    "Reshape": (reshape, HOST, "a change of shape only, nothing to run"),
    "Squeeze": (squeeze, HOST, "a change of shape only, nothing to run"),
    "Unsqueeze": (unsqueeze, HOST, "a change of shape only, nothing to run"),
    "Transpose": (transpose, HOST, "done where the host hands values in and out, or by weights"),
    "Identity": (identity, HOST, "nothing to run"),
    "Dropout": (dropout, HOST, "nothing to run at inference"),
}

#: The same of domain com.microsoft.
MICROSOFT: dict[str, tuple[Reader, str, str]] = {
    "QGemm": (qgemm, ENGINE, "linear layer"),
    "QLinearAdd": (qlinear_add, ENGINE, "addition of two tensors"),
    "QLinearMul": (qlinear_mul, ENGINE, "product of two tensors"),
    "QLinearConcat": (
        qlinear_concat,
        ENGINE,
        "a view of its inputs, or requantised",
    ),
    "QLinearSigmoid": (_between_integers(sigmoid), ENGINE, "table of the layer before it"),
    "QLinearLeakyRelu": (_between_integers(leaky_relu), ENGINE, "table of the layer before it"),
    "QLinearSoftmax": (_between_integers(_meant_softmax), HOST, "applied to the model's output"),
    "QLinearAveragePool": (qlinear_average_pool, ENGINE, "pooling"),
    "QLinearGlobalAveragePool": (qlinear_global_average_pool, ENGINE, "pooling"),
    "QuantizeLinear": (quantize_linear, ENGINE, "requantisation of the layer before it"),
    "DequantizeLinear": (dequantize_linear, ENGINE, "scale of what follows"),
}
