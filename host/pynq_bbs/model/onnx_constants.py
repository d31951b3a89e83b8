# SPDX-License-Identifier: Apache-2.0
"""Folding: nodes whose inputs are all known when the model is read.

Quantised weights keep their integers through anything that only moves elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .onnx_file import FileNode
from .onnx_operands import checked_axis
from .onnx_values import TRIAL_BATCHES, Constant, PerBatch, UnsupportedNode

#: These move elements and change none.
_MOVING = {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}

#: These compute; their results are no larger than their inputs make plausible.
_COMPUTING = {
    "Constant", "Cast", "Neg", "Abs", "Sqrt", "Reciprocal", "Add", "Sub", "Mul", "Div", "Pow",
    "MatMul", "Concat", "Slice", "Gather", "Shape", "Clip", "Relu", "Equal", "Where", "Expand",
    "ConstantOfShape",
}  # fmt: skip

#: Values that may be made of constants while a model is read, all nodes together.
MOST_FOLDED = 1 << 28
_TOO_MUCH = "is more of constants than memory should be spent on; simplify the model first"

#: Integers that DequantizeLinear is folded for.
_INTEGERS = {"int4", "uint4", "int8", "uint8", "int16", "uint16", "int32"}


def fold_per_batch(
    node: FileNode, inputs: Sequence[Constant | PerBatch | None], opset: int, room: int
) -> list[Constant] | list[Constant | PerBatch]:
    """The outputs of a node that reads constants only, of which some may depend on the batch;
    `room` values at most.

    Raises:
        UnsupportedNode: as `fold`.
    """
    if not any(isinstance(each, PerBatch) for each in inputs):
        return fold(node, [each for each in inputs if not isinstance(each, PerBatch)], opset, room)
    trials = [
        fold(node, [c.each[i] if isinstance(c, PerBatch) else c for c in inputs], opset, room)
        for i in range(len(TRIAL_BATCHES))
    ]
    return [
        outputs[0] if all(np.array_equal(c.value, outputs[0].value) for c in outputs)
        else PerBatch(outputs)
        for outputs in zip(*trials, strict=True)
    ]  # fmt: skip


def fold(node: FileNode, inputs: list[Constant | None], opset: int, room: int) -> list[Constant]:
    """The outputs of a node that reads constants only, `room` values at most.

    Raises:
        UnsupportedNode: an operator that is not folded, one that fails, or too large results.
    """
    if node.op == "DequantizeLinear":
        return [_dequantise(node, inputs)]
    if node.op == "QuantizeLinear":
        return [_quantise(node, inputs)]
    if node.op not in _MOVING | _COMPUTING:
        raise UnsupportedNode(f"{node.op} of constants is not folded; simplify the model first")
    if sum(c.array.size for c in inputs if c is not None) > room:
        raise UnsupportedNode(_TOO_MUCH)
    if node.op in _MOVING and inputs[0] is not None:
        rest = [None if c is None else c.value for c in inputs[1:]]
        return [inputs[0].each(lambda array: _evaluate(node, [array, *rest], opset, room)[0])]
    values = [None if c is None else c.value for c in inputs]
    _check_size(node, values, room)
    return [Constant(array) for array in _evaluate(node, values, opset, room)]


def _check_size(node: FileNode, values: list[NDArray[Any] | None], room: int) -> None:
    """Small files can ask for constants of any size, by numbers that no shape inference sees."""
    index = {"ConstantOfShape": 0, "Expand": 1}.get(node.op)
    sizes = None if index is None else values[index]
    if sizes is None:
        return
    count = math.prod(max(int(size), 1) for size in sizes.reshape(-1))
    if count > room:
        raise UnsupportedNode(f"it makes a constant of {count} values, which {_TOO_MUCH}")


def scale_and_zero_point(
    inputs: list[Constant | None], rank: int, axis: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    """The second and third input of QuantizeLinear and DequantizeLinear, and the integers' dtype.

    Both are shaped to broadcast over a tensor of that rank: one number, or one per `axis`.
    """
    scale, zero_point, dtype = _numbers(inputs)
    if scale.size == 1 and zero_point.size == 1:
        return scale.reshape(()), zero_point.reshape(()), dtype
    if scale.ndim != 1 or zero_point.shape != scale.shape or not -rank <= axis < rank:
        raise UnsupportedNode(
            f"scale of shape {scale.shape} and zero point of shape {zero_point.shape} are neither "
            "one number nor one per row"
        )
    shape = [1] * rank
    shape[axis] = scale.size
    return scale.reshape(shape), zero_point.reshape(shape), dtype


def _numbers(
    inputs: list[Constant | None],
) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    """Scale, zero point and the integers' dtype, as they are given."""
    if inputs[1] is None:
        raise UnsupportedNode("it has no scale")
    scale = inputs[1].value.astype(np.float32)
    given = inputs[2] if len(inputs) > 2 else None
    zero_point = np.zeros(scale.shape, np.int64)
    dtype = "uint8"
    if given is not None:
        dtype, zero_point = str(given.array.dtype), given.array.astype(np.int64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise UnsupportedNode("its scale is not positive and finite")
    return scale, zero_point, dtype


def _blocked(
    inputs: list[Constant | None], shape: tuple[int, ...], axis: int, block: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scale and zero point that are given for each `block` of values along `axis`, for each."""
    scale, zero_point, _ = _numbers(inputs)
    axis = checked_axis(axis, len(shape))
    wanted = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
    if block < 1 or scale.shape != wanted or zero_point.shape != wanted:
        raise UnsupportedNode(
            f"scale of shape {scale.shape} and zero point of shape {zero_point.shape} do not fit "
            f"blocks of {block} of a tensor of shape {shape}"
        )
    each = np.arange(shape[axis]) // block
    return scale.take(each, axis), zero_point.take(each, axis)


def check_output_dtype(node: FileNode, zero_point: object) -> None:
    """QuantizeLinear's later way of naming its type; the usual one is the zero point's type."""
    if zero_point is None and node.attributes.get("output_dtype", 0) not in (0, 2):  # 2: uint8
        raise UnsupportedNode("it has an output_dtype; give it a zero point of that type instead")


def _dequantise(node: FileNode, inputs: list[Constant | None]) -> Constant:
    axis, block = node.attributes.get("axis", 1), node.attributes.get("block_size", 0)
    return dequantised_constant(inputs, axis, block)


def dequantised_constant(inputs: list[Constant | None], axis: int = 1, block: int = 0) -> Constant:
    """Integers, their scale and their zero point, as DequantizeLinear has them."""
    constant = inputs[0]
    if constant is None or str(constant.array.dtype) not in _INTEGERS or constant.scale is not None:
        raise UnsupportedNode("its input is not a tensor of integers of 4 to 32 bits")
    if block:
        scale, zero_point = _blocked(inputs, constant.array.shape, axis, block)
    else:
        scale, zero_point, _ = scale_and_zero_point(inputs, constant.array.ndim, axis)
    try:
        integers = constant.array.astype(np.int64) - zero_point
        full = np.broadcast_to(scale, integers.shape)
    except ValueError:
        raise UnsupportedNode("its scale does not fit the shape of its input") from None
    return Constant(integers, full)


def _quantise(node: FileNode, inputs: list[Constant | None]) -> Constant:
    if inputs[0] is None or inputs[0].value.dtype.kind != "f":
        raise UnsupportedNode("its input is not a tensor of floats")
    x = inputs[0].value.astype(np.float32)
    scale, zero_point, dtype = scale_and_zero_point(inputs, x.ndim, node.attributes.get("axis", 1))
    check_output_dtype(node, inputs[2] if len(inputs) > 2 else None)
    if dtype not in ("int8", "uint8"):
        raise UnsupportedNode(f"it quantises to {dtype}; int8 and uint8 are supported")
    shift = 128 if dtype == "uint8" else 0
    try:
        steps = np.broadcast_to(zero_point - shift, x.shape).astype(np.float32)
        # Scaled here, so that every element has its own scale and zero point.
        quantised = np.clip(np.rint(x / scale) + steps, -128, 127)
    except ValueError:
        raise UnsupportedNode("its scale does not fit the shape of its input") from None
    return Constant((quantised + shift).astype(dtype))


def _evaluate(
    node: FileNode, arrays: list[NDArray[Any] | None], opset: int, room: int
) -> list[NDArray[Any]]:
    """One node through ONNX's own reference implementation."""
    from onnx import helper, shape_inference
    from onnx.reference import ReferenceEvaluator

    feeds = {n: np.asarray(a) for n, a in zip(node.inputs, arrays, strict=True) if a is not None}
    try:
        graph = helper.make_graph(
            [node.proto],
            "constants",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
                )
                for name, array in feeds.items()
            ],
            [helper.make_empty_tensor_value_info(name) for name in node.outputs if name],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        for made in shape_inference.infer_shapes(model).graph.output:
            if math.prod(d.dim_value for d in made.type.tensor_type.shape.dim) > room:
                raise UnsupportedNode(_TOO_MUCH)
        results = ReferenceEvaluator(model).run(None, feeds)
    except UnsupportedNode:
        raise
    except Exception as error:  # whatever the reference raises, the node cannot be folded
        raise UnsupportedNode(f"cannot be evaluated: {str(error)[:200]}") from None
    return [np.asarray(r) for r in results]
