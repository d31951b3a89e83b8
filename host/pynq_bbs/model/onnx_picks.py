# SPDX-License-Identifier: Apache-2.0
"""Some of what lies along an axis of a sequence or of what recurrent layers give: a step, a
direction, a layer. And what joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from .onnx_file import FileNode
from .onnx_operands import (
    Context,
    Operand,
    checked_axis,
    computed,
    constant,
    result,
    shown,
    source,
)
from .onnx_recurrent import by_step, parts_of, together
from .onnx_values import (
    AtStep,
    Base,
    Hidden,
    Join,
    Linear,
    ModelInput,
    Opaque,
    Part,
    Sum,
    UnsupportedNode,
    Value,
    steps_of,
)


def gather(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value, indices = computed(inputs[0], "input"), constant(inputs[1], "indices").array
    axis = checked_axis(node.attributes.get("axis", 0), len(value.axes))
    if indices.size != 1 or indices.ndim > 1 or not context.sequences:
        raise UnsupportedNode(
            f"takes {indices.size} place(s) along axis {axis}; a single one of the steps, layers "
            "or directions of models with LSTM or GRU is supported"
        )
    size, index = value.axes[axis], int(indices.reshape(()))
    if size is None or not -size <= index < size:
        raise UnsupportedNode(f"takes index {index} of axis {axis}, its input is {shown(value)}")
    one = picked(node, value, axis, index % size, 1)
    if indices.ndim:
        return one
    shape = tuple(n for i, n in enumerate(one.axes) if n is not None and i != axis)
    return one.reshaped(shape, one.batch - (axis < one.batch))


def picked(node: FileNode, value: Value, axis: int, first: int, count: int) -> Value:
    """`count` of what lies along `axis` (of all, the batch among them), from `first` on."""
    at = axis - (axis > value.batch)
    if count == value.shape[at]:
        return value
    steps, shape = steps_of(value.base), list(value.shape)
    before = int(np.prod(shape[:at], dtype=np.int64))
    inner = int(np.prod(shape[at + 1 :], dtype=np.int64))
    sizes = (first * inner, count * inner, (shape[at] - first - count) * inner)
    shape[at] = count
    if isinstance(value.base, Opaque):
        return replace(value, base=Opaque(tuple(shape)), shape=tuple(shape))
    if isinstance(value.base, ModelInput) and before > 1:
        raise UnsupportedNode(f"takes some of axis {axis} of {shown(value)}, which do not lie one "
                              "after the other")  # fmt: skip
    if before == 1 and steps > 1 and value.axes[axis] == steps:
        if count > 1:
            raise UnsupportedNode(
                f"takes {count} of {steps} steps; one of them, or all, is supported"
            )
        flat = by_step(value.reshaped((steps, inner)))
        return replace(at_step(node, flat, first), shape=tuple(shape), batch=value.batch)
    if before != steps:
        raise UnsupportedNode(f"takes some of axis {axis} of {shown(value)}, which do not lie "
                              "one after the other")  # fmt: skip
    if steps == 1 and not isinstance(value.base, (Join, ModelInput)):
        base = Part(node.name, source(value), sizes[0], sizes[1], value.dtype)
        return replace(result(base), shape=tuple(shape), batch=value.batch)
    return replace(_features(node, value, sizes), shape=tuple(shape), batch=value.batch)


def _features(node: FileNode, value: Value, sizes: Sequence[int]) -> Value:
    """The middle one of three groups of features of a joined tensor or of an input."""
    base = value.base
    if isinstance(base, ModelInput):
        some = [size for size in sizes if size]
        return parts_of(value, some)[1 if sizes[0] else 0]
    if not isinstance(base, Join):
        raise UnsupportedNode("takes some of the features of every step; all are supported")
    widths = [part.base.shape[-1] for part in base.sources]
    firsts = [0, *accumulate(widths)]
    if sizes[0] not in firsts or sizes[0] + sizes[1] not in firsts:
        if base.steps > 1:
            raise UnsupportedNode("takes some of the features of every step; all are supported")
        return result(Part(node.name, value, sizes[0], sizes[1], value.dtype))
    own = base.sources[firsts.index(sizes[0]) : firsts.index(sizes[0] + sizes[1])]
    return together(node, [replace(part, steps=(*part.steps, *value.steps)) for part in own])


def at_step(node: FileNode, value: Value, step: int) -> Value:
    """One step of `value`, (features,). What is the same for every step is computed for that one
    alone."""
    base = _base_at_step(node, value.base, step)
    return replace(value, base=base, shape=base.shape, batch=0)


def _base_at_step(node: FileNode, base: Base, step: int) -> Base:
    if isinstance(base, ModelInput):
        features = base.shape[1]
        return replace(base, shape=(features,), steps=1, first=base.first + step * features)
    if isinstance(base, Linear):
        return replace(base, source=at_step(node, base.source, step), steps=1)
    if isinstance(base, Sum):
        left, right = (at_step(node, value, step) for value in base.sources)
        return replace(base, sources=(left, right), steps=1)
    if isinstance(base, Join):
        parts = tuple(at_step(node, value, step) for value in base.sources)
        return replace(base, sources=parts, steps=1)
    if isinstance(base, Hidden):
        cells = base.cells
        last = step == 0 if cells.reverse else step == cells.steps - 1 and not cells.has_lengths
        if last:
            return Hidden(cells, "y_h")
    return AtStep(base, step, node.name)


def joined_features(context: Context, node: FileNode, values: list[Value]) -> Value:
    """Concat of what belongs to models with LSTM or GRU: features of the same steps, or layers and
    directions."""
    axis = node.attributes.get("axis", 0)
    first = values[0]
    axis = checked_axis(axis, len(first.axes))
    at = axis - (axis > first.batch)
    alike = {(*value.axes[:axis], "", *value.axes[axis + 1 :]) for value in values}
    if len(alike) > 1 or axis == first.batch:
        raise UnsupportedNode(f"joins {', '.join(map(shown, values))} along axis {axis}")
    before = int(np.prod(first.shape[:at], dtype=np.int64))
    steps = max(steps_of(value.base) for value in values)
    if any(isinstance(value.base, ModelInput) for value in values) and at:
        steps = max(steps, first.shape[0])
    shape = list(first.shape)
    shape[at] = sum(value.shape[at] for value in values)
    if before != steps:
        raise UnsupportedNode(
            "joins sequences one behind the other; of the same steps side by side is supported"
        )
    parts: list[Value] = []
    for value in values:
        lying = by_step(value.reshaped((steps, value.features // steps)))
        if isinstance(value.base, Join):
            parts += [replace(p, steps=(*p.steps, *value.steps)) for p in value.base.sources]
        else:
            parts.append(replace(lying, shape=lying.base.shape))
    return replace(together(node, parts), shape=tuple(shape), batch=first.batch)
