# SPDX-License-Identifier: Apache-2.0
"""Operators that join tensors along their channels, or take some channels of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .onnx_file import FileNode
from .onnx_operands import (
    Context,
    Operand,
    as_columns,
    as_image,
    axes_of,
    checked_axis,
    computed,
    constant,
    optional,
    result,
    shown,
    source,
)
from .onnx_picks import joined_features, picked
from .onnx_values import Dequantise, Join, ModelInput, Opaque, Part, UnsupportedNode, Value


def concat(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    values = [computed(x, "every input") for x in inputs]
    if context.sequences:
        return joined_features(context, node, values)
    axis = node.attributes.get("axis", 0)
    if isinstance(axis, int) and all(_is_last(value, axis) for value in values):
        if len({value.axes[:-1] for value in values}) > 1:
            raise UnsupportedNode(f"joins {', '.join(map(shown, values))} along their last axis")
        return as_columns(_joined(node, [as_image(source(v)) for v in values]), values[0])
    return joined(node, values)


def joined(node: FileNode, values: list[Value]) -> Value:
    """One behind the other; before a DequantizeLinear that all of them have."""
    if not values:
        raise UnsupportedNode("joins nothing")
    values = [_channels(node, value) for value in values]
    last = [value.steps[-1] if value.steps else None for value in values]
    if isinstance(last[0], Dequantise) and len(set(last)) == 1:
        inner = [value.before_last() for value in values]
        if len({value.dtype for value in inner}) == 1:
            return _joined(node, inner).then(last[0])
    return _joined(node, values)


def _joined(node: FileNode, values: list[Value]) -> Value:
    first = values[0]
    if {value.dtype for value in values} not in ({"float32"}, {"int8"}, {"uint8"}):
        types = ", ".join(value.dtype for value in values)
        raise UnsupportedNode(f"joins {types}; all float32, int8 or uint8 is supported")
    pixels = {(len(value.shape), *value.shape[1:]) for value in values}
    if len(pixels) > 1:
        raise UnsupportedNode("joins images of different sizes")
    base = Join(node.name, tuple(values), first.dtype)
    return result(base, (sum(v.shape[0] for v in values), *first.shape[1:]), first.dtype)


def split(context: Context, node: FileNode, inputs: list[Operand]) -> list[Value]:
    value = computed(inputs[0], "input")
    axis = checked_axis(node.attributes.get("axis", 0), len(value.axes))
    channels, count = value.axes[axis], len(node.outputs)
    if channels is None:
        raise UnsupportedNode("splits the batch")
    sizes = node.attributes.get("split")
    if optional(inputs, 1) is not None:
        sizes = constant(inputs[1], "split").value.reshape(-1)
    if sizes is None:
        each = -(-channels // count)
        sizes = [each] * (count - 1) + [channels - each * (count - 1)]
    sizes = [int(n) for n in sizes]
    if len(sizes) != count or min(sizes) < 1 or sum(sizes) != channels:
        raise UnsupportedNode(f"splits {channels} channels into {sizes} for {count} outputs")
    firsts = np.cumsum([0, *sizes])
    return [_cut(context, node, value, axis, int(firsts[i]), n) for i, n in enumerate(sizes)]


def slice_channels(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    if not value.shape:
        raise UnsupportedNode("its input has a batch dimension only")
    rank = len(value.shape) + 1
    given = [
        node.attributes.get(name)
        if optional(inputs, at) is None
        else constant(inputs[at], name).value.reshape(-1)
        for at, name in ((1, "starts"), (2, "ends"), (4, "steps"))
    ]
    starts, ends = given[:2]
    if starts is None or ends is None:
        raise UnsupportedNode("its starts or ends are missing")
    axes = axes_of(node, inputs, 3, rank)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(axes) if given[2] is None else given[2]
    if not len(starts) == len(ends) == len(axes) == len(steps) or max([0, *axes]) >= rank:
        raise UnsupportedNode("its starts, ends, axes and steps do not fit its input")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = value.axes[axis]
        if size is None or step != 1:
            raise UnsupportedNode("cuts samples, or takes some of several; channels one after the "
                                  "other are supported")  # fmt: skip
        inside = range(size)[int(start) : int(end)]
        if not inside:
            raise UnsupportedNode("nothing is left of its channels")
        if len(inside) < size:
            value = _cut(context, node, value, axis, inside[0], len(inside))
    return value


def _cut(
    context: Context, node: FileNode, value: Value, axis: int, first: int, count: int
) -> Value:
    """So many of what lies along `axis`, from the `first` on."""
    if context.sequences:
        return picked(node, value, axis, first, count)
    if _is_last(value, axis):
        return as_columns(_part(node, as_image(source(value)), first, count), value)
    return _part(node, _channels(node, value, axis), first, count)


def _part(node: FileNode, value: Value, first: int, channels: int) -> Value:
    """Some channels; before a DequantizeLinear."""
    last = value.steps[-1] if value.steps else None
    if isinstance(last, Dequantise):
        return _part(node, value.before_last(), first, channels).then(last)
    if value.dtype not in ("float32", "int8", "uint8"):
        raise UnsupportedNode(f"works on {value.dtype}; float32, int8 and uint8 are supported")
    base = Part(node.name, value, first, channels, value.dtype)
    return result(base, (channels, *value.shape[1:]), value.dtype)


def _is_last(value: Value, axis: int) -> bool:
    """Whether it is the last axis of a value of several columns."""
    return len(value.shape) > 1 and axis in (-1, len(value.shape)) and value.axes[axis] is not None


def _channels(node: FileNode, value: Value, axis: int | None = None) -> Value:
    """A value whose first dimension are the channels of its tensor, and which the node's axis
    means."""
    value = source(value)
    rank = len(value.shape) + 1
    if axis is None:
        axis = node.attributes.get("axis", 0)
        if not isinstance(axis, int):
            raise UnsupportedNode(f"its axis is {axis}, must be an integer")
        axis = checked_axis(axis, rank)
    if axis != 1 or not 2 <= rank <= 4 or value.batch:
        raise UnsupportedNode(
            f"works along axis {axis} of {rank}; axis 1, the channels of images, sequences and "
            "plain features, is supported"
        )
    image = value.shape if len(value.shape) != 2 else (value.shape[0], 1, value.shape[1])
    if isinstance(value.base, ModelInput):
        if value.shape == image:
            return value
        return replace(value.reshaped(image), shape=value.shape)
    as_it_lies = value.arrangement.axes == () and value.base.shape in (image, (*image, 1, 1))
    if not (as_it_lies or isinstance(value.base, Opaque)):
        raise UnsupportedNode(
            "its input is transposed or reshaped within the model, so that its channels do not "
            "lie one after the other; do it behind the operator"
        )
    return value
