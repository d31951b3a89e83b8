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
from .onnx_functions import (
    FUNCTIONS,
    clip,
    divide,
    elu,
    function,
    gelu,
    hard_sigmoid,
    hard_swish,
    leaky_relu,
    mish,
    multiply,
    plus,
    power,
    subtract,
    swish,
)
from .onnx_linear import batch_normalization, gemm, matmul
from .onnx_operands import (
    Context,
    Operand,
    Reader,
    checked_axis,
    computed,
    constant,
    floats,
    optional,
)
from .onnx_parts import concat, slice_channels, split
from .onnx_picks import gather
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
from .onnx_recurrent import dynamic_quantize_lstm, gru, lstm
from .onnx_reshape import flatten, reshape, shape_of, squeeze, transpose, unsqueeze
from .onnx_values import Dequantise, Lengths, UnsupportedNode, Value
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
AS_TABLE = "fused with the layer before it, as a table"


def identity(context: Context, node: FileNode, inputs: list[Operand]) -> Value | Lengths:
    return inputs[0] if isinstance(inputs[0], Lengths) else computed(inputs[0], "input")


def dropout(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    training = optional(inputs, 2)
    if training is not None and constant(training, "training_mode").value.any():
        raise UnsupportedNode("it is in training mode; export the model for inference")
    return computed(inputs[0], "input")


def cast(context: Context, node: FileNode, inputs: list[Operand]) -> Value | Lengths:
    from onnx import TensorProto

    if isinstance(inputs[0], Lengths):
        return inputs[0]
    value = computed(inputs[0], "input")
    if node.attributes.get("to") != TensorProto.FLOAT:
        raise UnsupportedNode("casts to something other than float32")
    if value.dtype == "int8":
        return value.then(Dequantise(np.float32(1), 0))
    if value.dtype == "uint8":
        return value.then(Dequantise(np.float32(1), -128))
    return replace(value, dtype="float32")


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


def _unconverted(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    """What is left of QONNX says what is wrong with it."""
    raise UnsupportedNode(
        "QONNX's Quant is supported with constants: a scale a tensor or a channel, zero point 0, "
        "2 to 8 bits"
    )


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
    "LSTM": (lstm, ENGINE, "recurrent layer"),
    "GRU": (gru, ENGINE, "recurrent layer"),
    "Gather": (gather, ENGINE, "a step or a part of its input"),
    "Concat": (concat, ENGINE, "a view of its inputs, or requantised"),
    "Split": (split, ENGINE, "views of its input"),
    "Slice": (slice_channels, ENGINE, "a view of its input"),
    "Pad": (pad, ENGINE, "padding of the convolution behind it"),
    "BatchNormalization": (batch_normalization, ENGINE, "part of the layer before it"),
    "Add": (plus, ENGINE, "bias of the layer before it, or addition of two tensors"),
    "Sub": (subtract, ENGINE, "bias of the layer before it"),
    "Mul": (multiply, ENGINE, "scale of the layer before it, or product of two tensors"),
    "Div": (divide, ENGINE, "scale of the layer before it"),
    "Relu": (function("relu"), ENGINE, "fused with the layer before it"),
    "Clip": (clip, ENGINE, "fused with the layer before it"),
    "Sigmoid": (function("sigmoid"), ENGINE, AS_TABLE),
    "Tanh": (function("tanh"), ENGINE, AS_TABLE),
    "Erf": (function("erf"), ENGINE, AS_TABLE),
    "Pow": (power, ENGINE, AS_TABLE),
    "LeakyRelu": (leaky_relu, ENGINE, AS_TABLE),
    "Elu": (elu, ENGINE, AS_TABLE),
    "HardSigmoid": (hard_sigmoid, ENGINE, AS_TABLE),
    "HardSwish": (hard_swish, ENGINE, AS_TABLE),
    "Swish": (swish, ENGINE, AS_TABLE),
    "Gelu": (gelu, ENGINE, AS_TABLE),
    "Softplus": (function("softplus"), ENGINE, AS_TABLE),
    "Mish": (mish, ENGINE, AS_TABLE),
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
    "Shape": (shape_of, HOST, "known when the model is read"),
    "Identity": (identity, HOST, "nothing to run"),
    "Dropout": (dropout, HOST, "nothing to run at inference"),
}

#: Operators for which the batch may be any axis; for the others it is the first.
BATCH_ANYWHERE = FUNCTIONS | {
    "LSTM", "GRU", "DynamicQuantizeLSTM", "Gather", "Concat", "Split", "Slice", "MatMul", "Add",
    "Sub", "Mul", "Div", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Shape",
    "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip

#: Operators that may give more than one output.
SEVERAL_OUTPUTS = {"LSTM", "GRU", "DynamicQuantizeLSTM", "Split", "DynamicQuantizeLinear"}

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
    "QLinearSigmoid": (
        _between_integers(function("sigmoid")),
        ENGINE,
        "table of the layer before it",
    ),
    "QLinearLeakyRelu": (_between_integers(leaky_relu), ENGINE, "table of the layer before it"),
    "QLinearSoftmax": (_between_integers(_meant_softmax), HOST, "applied to the model's output"),
    "DynamicQuantizeLSTM": (dynamic_quantize_lstm, ENGINE, "recurrent layer"),
    "QLinearAveragePool": (qlinear_average_pool, ENGINE, "pooling"),
    "QLinearGlobalAveragePool": (qlinear_global_average_pool, ENGINE, "pooling"),
    "QuantizeLinear": (quantize_linear, ENGINE, "requantisation of the layer before it"),
    "DequantizeLinear": (dequantize_linear, ENGINE, "scale of what follows"),
}

#: The same of QONNX's domains, of nodes that are in no other form.
QONNX: dict[str, tuple[Reader, str, str]] = {"Quant": (_unconverted, HOST, "")}
