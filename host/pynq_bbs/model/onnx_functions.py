# SPDX-License-Identifier: Apache-2.0
"""Functions of one value each, and what makes one of several: `x * sigmoid(x)` is as good a table
as any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .graph import Function
from .onnx_file import FileNode
from .onnx_linear import add, mul
from .onnx_operands import Context, Operand, computed, constant, floats, one_number, optional
from .onnx_values import (
    Constant,
    Linear,
    ModelInput,
    PerBatch,
    Quantise,
    Step,
    UnsupportedNode,
    Value,
)

#: Operators that are a function of each value by itself.
FUNCTIONS = {
    "Relu", "Clip", "Sigmoid", "Tanh", "Erf", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish",
    "Swish", "Gelu", "Softplus", "Mish", "Pow",
}  # fmt: skip

_ITSELF: tuple[Function, ...] = ()


def function(name: str) -> Callable[[Context, FileNode, list[Operand]], Value]:
    """Reads an operator that is the function of that name."""

    def read(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
        return floats(inputs[0], "input").then(Function(name))

    return read


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


def leaky_relu(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    slope = Function("leaky_relu", (_attribute(node, "alpha", 0.01),))
    return floats(inputs[0], "input").then(slope)


def elu(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    alpha = _attribute(node, "alpha", 1.0)
    return floats(inputs[0], "input").then(Function("elu", (alpha,)))


def hard_sigmoid(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    line = (_attribute(node, "alpha", 0.2), _attribute(node, "beta", 0.5))
    value = floats(inputs[0], "input").then(Function("affine", line))
    return value.then(Function("clip", (0.0, 1.0)))


def hard_swish(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    hard = (Function("affine", (1 / 6, 0.5)), Function("clip", (0.0, 1.0)))
    return floats(inputs[0], "input").then(_product(_ITSELF, hard))


def swish(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    gain = _attribute(node, "alpha", 1.0)
    curve = (Function("affine", (gain, 0.0)), Function("sigmoid"))
    return floats(inputs[0], "input").then(_product(_ITSELF, curve))


def mish(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    curve = (Function("softplus"), Function("tanh"))
    return floats(inputs[0], "input").then(_product(_ITSELF, curve))


def gelu(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = floats(inputs[0], "input")
    kind = node.attributes.get("approximate", b"none").decode()
    half = Function("affine", (0.5, 0.5))
    if kind == "none":
        curve = (Function("affine", (math.sqrt(0.5), 0.0)), Function("erf"), half)
        return value.then(_product(_ITSELF, curve))
    if kind != "tanh":
        raise UnsupportedNode(f"approximate is {kind!r}, must be none or tanh")
    cube = (Function("power", (3.0,)), Function("affine", (0.044715, 0.0)))
    inner = Function("sum", (), (_ITSELF, cube))
    gain = Function("affine", (math.sqrt(2 / math.pi), 0.0))
    return value.then(_product(_ITSELF, (inner, gain, Function("tanh"), half)))


def multiply(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    left, right = inputs
    if isinstance(left, Value) and isinstance(right, Value):
        left, right = floats(left, "operand"), floats(right, "operand")
        return _one_function("product", left, right) or mul(context, node, inputs)
    value, number = _with_number(left, right)
    if value is not None and number is not None and not _takes_factors(value):
        return value.then(Function("affine", (number, 0.0)))
    return mul(context, node, inputs)


def plus(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    left, right = inputs
    if isinstance(left, Value) and isinstance(right, Value):
        # Of integers the sum is that of both tensors, rounded as ONNX leaves open.
        rounded = any(map(_is_scale, (*left.steps, *right.steps)))
        if not rounded and left.steps != right.steps:
            return _one_function("sum", left, right) or add(context, node, inputs)
        return add(context, node, inputs)
    value, number = _with_number(left, right)
    if value is not None and number is not None and not _takes_factors(value):
        return value.then(Function("affine", (1.0, number)))
    return add(context, node, inputs)


def subtract(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    if isinstance(inputs[0], Value) and isinstance(inputs[1], Constant):
        return plus(context, node, [inputs[0], inputs[1].times(-1.0)])
    number = _number(inputs[0])
    if number is None:
        raise UnsupportedNode("subtracts a computed tensor; constants are supported")
    value = floats(inputs[1], "second operand")
    return value.then(Function("affine", (-1.0, number)))


def divide(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    divisor = constant(inputs[1], "divisor").value
    if not (np.isfinite(divisor).all() and divisor.all()):
        raise UnsupportedNode("divides by numbers of which one is zero or not finite")
    return multiply(context, node, [inputs[0], Constant(np.float32(1) / divisor)])


def power(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    exponent = _number(inputs[1])
    if exponent is None or exponent != int(exponent) or exponent < 1:
        raise UnsupportedNode("its exponent is not one whole number from 1 on")
    return floats(inputs[0], "input").then(Function("power", (exponent,)))


def _attribute(node: FileNode, name: str, default: float) -> float:
    number = node.attributes.get(name, default)
    if not isinstance(number, (int, float)) or not math.isfinite(number):
        raise UnsupportedNode(f"its {name} is {number}, must be a finite number")
    return float(number)


def _product(*chains: tuple[Function, ...]) -> Function:
    return Function("product", (), chains)


def _one_function(kind: str, left: Value, right: Value) -> Value | None:
    """Sum or product of two functions of one value as one; None where they are not that."""
    same = (left.base, left.axes, left.arrangement) == (right.base, right.axes, right.arrangement)
    common = 0
    for one, other in zip(left.steps, right.steps, strict=False):
        if one != other:
            break
        common += 1
    chains = left.steps[common:], right.steps[common:]
    functions = tuple(
        tuple(step for step in chain if isinstance(step, Function) and not step.on_host)
        for chain in chains
    )
    if not same or functions != chains:
        return None
    return replace(left, steps=left.steps[:common]).then(Function(kind, (), functions))


def _takes_factors(value: Value) -> bool:
    """Whether constants have to be part of the scale of a layer's integers, or of a layer of their
    own behind an input of integers."""
    base = value.base
    if isinstance(base, ModelInput):
        return any(map(_is_scale, value.steps))
    return isinstance(base, Linear) and not value.steps and base.weights.array.dtype.kind != "f"


def _is_scale(step: Step) -> bool:
    return not isinstance(step, Function)


def _with_number(left: Operand, right: Operand) -> tuple[Value | None, float | None]:
    """The computed operand, where it is of floats, and the number that the other one is."""
    if isinstance(right, Value):
        left, right = right, left
    if not isinstance(left, Value) or left.dtype != "float32":
        return None, None
    return left, _number(right)


def _number(operand: Operand) -> float | None:
    """The one finite number that a constant has everywhere."""
    constants = operand.each if isinstance(operand, PerBatch) else (operand,)
    numbers = set()
    for each in constants:
        if not isinstance(each, Constant) or each.array.size == 0:
            return None
        numbers.update(np.unique(each.value).tolist())
    number = float(numbers.pop()) if len(numbers) == 1 else math.nan
    return number if math.isfinite(number) else None
