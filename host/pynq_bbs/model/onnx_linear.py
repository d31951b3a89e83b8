# SPDX-License-Identifier: Apache-2.0
"""Fully connected operators, and what can be part of them: biases, scales, normalisation.

The sum and the product of two computed tensors are here too, because Add and Mul are both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .arrangement import AS_IT_IS
from .graph import MOST_FIELD, Function, Window, image_shape
from .onnx_file import FileNode
from .onnx_operands import (
    Context,
    Operand,
    as_columns,
    as_image,
    computed,
    constant,
    floats,
    optional,
    per_row,
    result,
    shown,
    source,
)
from .onnx_recurrent import by_step
from .onnx_values import (
    Constant,
    Dequantise,
    Linear,
    ModelInput,
    Opaque,
    Product,
    Sum,
    UnsupportedNode,
    Value,
    steps_of,
)

#: Features that a matrix of one weight a row may have.
_MOST_DIAGONAL = 1 << 13


def linear(
    context: Context,
    node: FileNode,
    value: Value,
    weights: Constant,
    shape: tuple[int, ...] | None = None,
) -> Value:
    """Weights (M, K) on the last axis of `value`, or on all of it where a `shape` is given."""
    if weights.array.ndim != 2 or not weights.array.size:
        raise UnsupportedNode(f"weights have shape {weights.array.shape}, must be a matrix")
    rows, features = weights.array.shape
    if weights.array.dtype.kind == "f" and not np.isfinite(weights.array).all():
        raise UnsupportedNode("weights hold NaN or infinity")
    value = source(value)
    if shape is None:
        if value.batch == len(value.shape):
            raise UnsupportedNode(f"its input is {shown(value)}: its features must be last")
        if features != value.shape[-1]:
            raise UnsupportedNode(
                f"weights take {features} features, its input has {value.shape[-1]}"
            )
        if value.features != features:
            every = _every_step if context.sequences else _every_pixel
            return every(node, value, weights).placed(value.batch)
        shape = (*value.shape[:-1], rows)
    if features != value.features:
        raise UnsupportedNode(f"weights take {features} features, its input has {value.features}")
    if steps_of(value.base) > 1:
        raise UnsupportedNode("reads all steps at once; take one of them, or every one by itself")
    if isinstance(value.base, ModelInput):
        if len(value.shape) > 1:
            value = value.reshaped((features,))
        return result(Linear(node.name, value, weights), shape).placed(value.batch)
    weights = weights.each(value.arrangement.undo)
    image = image_shape(value.base.shape)
    if image[1:] == (1, 1):
        return result(Linear(node.name, value, weights), shape).placed(value.batch)
    # All pixels of an image at once: a window that has just one place.
    if max(image[1:]) > MOST_FIELD:
        raise UnsupportedNode(
            f"reads all {image[1]} x {image[2]} pixels of an image; {MOST_FIELD} each way are "
            "supported. Pool the image first"
        )
    taps = weights.each(lambda a: np.ascontiguousarray(a).reshape(rows, *image))
    return result(Linear(node.name, value, taps, None, Window(*image, image[1:])), shape)


def _every_step(node: FileNode, value: Value, weights: Constant) -> Value:
    """The same layer for each step of a sequence."""
    features, steps = value.shape[-1], value.features // value.shape[-1]
    x = by_step(value.reshaped((steps, features)))
    made = result(Linear(node.name, x, weights, steps=steps))
    return made.reshaped((*value.shape[:-1], len(weights.array)))


def _every_pixel(node: FileNode, value: Value, weights: Constant) -> Value:
    """The same layer for each column of a sample, which is a pixel."""
    image = as_image(value)
    channels, height, width = image.shape
    window = Window(channels, height, width, (1, 1))
    taps = weights.each(lambda a: np.ascontiguousarray(a)[:, :, None, None])
    return as_columns(result(Linear(node.name, image, taps, None, window)), value)


def with_bias(value: Value, bias: Constant) -> Value:
    """A constant that is the same for every sample, added to the result of a linear operator."""
    value = with_factors(value)
    base = value.base
    if not isinstance(base, Linear) or value.steps:
        raise UnsupportedNode("adds a constant to what is not the result of Gemm, MatMul or Conv")
    rows = per_row(value, bias, "adds")
    if not np.isfinite(rows.value).all():
        raise UnsupportedNode("the bias holds NaN or infinity")
    if base.bias is not None:
        rows = _sum(base.bias, rows)
    return replace(value, base=replace(base, bias=rows))


def _sum(first: Constant, second: Constant) -> Constant:
    if first.scale is not None and second.scale is not None:
        if np.array_equal(first.scale, second.scale):
            return Constant(first.array + second.array, first.scale)
    return Constant(first.value.astype(np.float32) + second.value.astype(np.float32))


def with_factors(value: Value) -> Value:
    """The result of a linear operator with the numbers that it is multiplied by, and that are added
    to it, in its weights and biases; anything else as it is."""
    base, steps = value.base, value.steps
    while isinstance(base, Linear) and steps:
        step = steps[0]
        if not isinstance(step, Function) or step.name != "affine":
            break
        gain, offset = step.parameters
        bias = Constant(np.full(len(base.weights.array), offset, np.float32))
        if base.bias is not None:
            bias = _sum(base.bias.times(gain), bias)
        base, steps = replace(base, weights=base.weights.times(gain), bias=bias), steps[1:]
    return replace(value, base=base, steps=steps)


def times(value: Value, factor: Constant) -> Value:
    """The result of a linear operator times a constant, as part of its weights."""
    value = with_factors(value)
    base = value.base
    if not isinstance(base, Linear) or value.steps:
        raise UnsupportedNode("multiplies what is not the result of Gemm, MatMul or Conv")
    rows = per_row(value, factor, "multiplies by").value.astype(np.float32)
    each = rows.reshape(-1, *[1] * (base.weights.array.ndim - 1))
    bias = None if base.bias is None else base.bias.times(rows)
    return replace(value, base=replace(base, weights=base.weights.times(each), bias=bias))


def gemm(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value, weights = floats(inputs[0], "A"), constant(inputs[1], "B")
    if node.attributes.get("transA", 0):
        raise UnsupportedNode("transA is 1, which would mix the samples of a batch")
    if len(value.shape) != 1:
        raise UnsupportedNode(f"A has {len(value.shape) + 1} dimensions, must have 2")
    if not node.attributes.get("transB", 0):
        weights = weights.each(np.transpose)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    product = linear(context, node, value, weights if alpha == 1.0 else weights.times(alpha))
    if optional(inputs, 2) is not None:
        bias = constant(inputs[2], "C")
        product = with_bias(product, bias if beta == 1.0 else bias.times(beta))
    return product


def matmul(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    left, right = inputs
    if isinstance(left, Value) and isinstance(right, Value):
        raise UnsupportedNode("both operands are computed from the model's input")
    if isinstance(left, Value):
        weights = constant(right, "right operand")
        if weights.array.ndim != 2:
            raise UnsupportedNode(f"weights have shape {weights.array.shape}, must be a matrix")
        return linear(context, node, floats(left, "left operand"), weights.each(np.transpose))
    value, weights = floats(right, "right operand"), constant(left, "left operand")
    if len(value.shape) < 2 or value.shape[-1] != 1 or value.features != value.shape[-2]:
        raise UnsupportedNode(
            "its weights stand on the left, which needs an input of shape (batch, features, 1), "
            f"not (batch, {', '.join(map(str, value.shape))})"
        )
    shape = (*value.shape[:-2], weights.array.shape[0], 1)
    return linear(context, node, value, weights, shape)


def add(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    left, right = inputs
    if isinstance(left, Value) and isinstance(right, Value):
        return added(node, left, right)
    if isinstance(right, Value):
        left, right = right, left
    value, bias = computed(left, "operand"), constant(right, "other operand")
    if value.dtype == "int32":
        return with_bias(value, Constant(bias.array, np.ones(bias.array.shape, np.float32)))
    return with_bias(_as_linear(node, floats(value, "operand")), bias)


def _as_linear(node: FileNode, value: Value) -> Value:
    """A value that biases and scales can be part of: one of a linear operator, which here has one
    weight a row where the value is of anything else."""
    value = with_factors(value)
    plain = isinstance(value.base, (Linear, Opaque)) and not value.steps
    if plain or steps_of(value.base) > 1:  # of steps, `with_bias` and `times` say what is wrong
        return value
    channels, height, width = image_shape(source(value).base.shape)
    if height == width == 1:
        if channels > _MOST_DIAGONAL:
            raise UnsupportedNode(f"works on {channels} features; {_MOST_DIAGONAL} are supported")
        window, weights = None, np.eye(channels)
    else:
        window, weights = Window(channels, height, width, (1, 1)), np.ones((channels, 1, 1, 1))
    given = Constant(weights.astype(np.float32))
    if value.steps and isinstance(value.steps[-1], Dequantise):
        given = Constant(weights.astype(np.int64), np.ones(weights.shape, np.float32))
    base = Linear(node.name, value, given, None, window, channels if window else 1)
    made = replace(result(base, value.shape), arrangement=value.arrangement)
    return made.placed(value.batch)


def added(node: FileNode, left: Value, right: Value) -> Value:
    """The sum of two tensors of one shape."""
    return _paired(node, left, right, Sum)


def multiplied(node: FileNode, left: Value, right: Value) -> Value:
    """Their product."""
    return _paired(node, left, right, Product)


def _paired(node: FileNode, left: Value, right: Value, kind: type[Sum]) -> Value:
    does = "multiplies" if kind is Product else "adds"
    left, right = (with_factors(source(floats(v, "operand"))) for v in (left, right))
    if left.axes != right.axes:
        raise UnsupportedNode(
            f"{does} tensors of shapes {shown(left)} and {shown(right)}; two of the same shape are "
            "supported"
        )
    steps = max(steps_of(left.base), steps_of(right.base))
    if steps > 1:
        rows = (steps, left.features // steps)
        sides = by_step(left.reshaped(rows)), by_step(right.reshaped(rows))
        return result(kind(node.name, sides, steps)).reshaped(left.shape, left.batch)
    left, right = _lying_as(left, right), _lying_as(right, left)
    images = [image_shape(value.base.shape) for value in (left, right)]
    if images[0] != images[1] or left.arrangement != right.arrangement:
        raise UnsupportedNode(
            f"{does} tensors that lie in different orders; transpose neither or both"
        )
    base = kind(node.name, (left, right))
    return replace(result(base, left.shape), arrangement=left.arrangement, batch=left.batch)


def _lying_as(value: Value, other: Value) -> Value:
    """An input of the model in the order in which another tensor lies; anything else as it is."""
    base, order = value.base, other.arrangement
    if isinstance(base, Opaque):
        return replace(value, base=Opaque(other.base.shape), arrangement=order)
    if not isinstance(base, ModelInput) or isinstance(other.base, (ModelInput, Opaque)):
        return value
    if order == AS_IT_IS:
        return value.reshaped(other.base.shape)
    seen = value.reshaped(tuple(order.factors[axis] for axis in order.axes))
    lying = seen.transposed(tuple(int(axis) for axis in np.argsort(order.axes)))
    lying = lying.reshaped(other.base.shape)
    return replace(lying, shape=value.shape, arrangement=order)


def mul(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    left, right = inputs
    if isinstance(left, Value) and isinstance(right, Value):
        return multiplied(node, left, right)
    if isinstance(right, Value):
        left, right = right, left
    factor = constant(right, "other operand")
    return times(_as_linear(node, floats(left, "operand")), factor)


def batch_normalization(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = _as_linear(node, floats(inputs[0], "input"))
    if node.attributes.get("training_mode", 0):
        raise UnsupportedNode("it is in training mode; export the model for inference")
    names = ("scale", "bias", "mean", "variance")
    scale, bias, mean, variance = (
        constant(inputs[i + 1], name).value.astype(np.float64) for i, name in enumerate(names)
    )
    if not scale.shape == bias.shape == mean.shape == variance.shape == value.shape[:1]:
        raise UnsupportedNode("its numbers are not one a channel")
    spread = variance + node.attributes.get("epsilon", 1e-5)
    if not (np.isfinite([scale, bias, mean, variance]).all() and (spread > 0).all()):
        raise UnsupportedNode("its numbers are not finite, or a variance is not positive")
    gain = scale / np.sqrt(spread)
    shape = (-1, *[1] * (len(value.shape) - 1))
    value = times(value, Constant(gain.astype(np.float32).reshape(shape)))
    return with_bias(value, Constant((bias - mean * gain).astype(np.float32).reshape(shape)))
