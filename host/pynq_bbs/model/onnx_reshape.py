# SPDX-License-Identifier: Apache-2.0
"""Operators that show the same values in another shape, or tell a shape."""

from __future__ import annotations

import numpy as np

from .graph import Function
from .onnx_file import FileNode
from .onnx_operands import Context, Operand, axes_of, computed, constant, optional, shown
from .onnx_values import TRIAL_BATCHES, Constant, PerBatch, UnsupportedNode, Value


def shape_of(context: Context, node: FileNode, inputs: list[Operand]) -> list[Constant | PerBatch]:
    axes = computed(inputs[0], "input").axes
    axes = axes[node.attributes.get("start", 0) : node.attributes.get("end", len(axes))]

    def known(batch: int) -> Constant:
        return Constant(np.array([batch if n is None else n for n in axes], np.int64))

    if context.batch is not None or None not in axes:
        return [known(context.batch or 0)]
    return [PerBatch(tuple(known(batch) for batch in TRIAL_BATCHES))]


def flatten(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    rank = len(value.shape) + 1
    axis = node.attributes.get("axis", 1)
    axis += rank if axis < 0 else 0
    if value.batch or not 1 <= axis <= rank or any(d != 1 for d in value.shape[: axis - 1]):
        raise UnsupportedNode(f"axis {axis} mixes samples with features; 1 is supported")
    return value.reshaped((value.features,))


def reshape(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    target = _target(value, context, node, optional(inputs, 1))
    place = _batch_place(value, target, context.batch)
    shape = [d for i, d in enumerate(target) if i != place]
    if target[place] != -1 and shape.count(-1) == 1:
        known = int(np.prod([d or 1 for d in shape if d != -1], dtype=np.int64))
        shape[shape.index(-1)] = value.features // known if known else 0
    sizes = tuple(d for d in shape if d)
    kept = int(np.prod(sizes, dtype=np.int64)) == value.features
    if sizes != tuple(shape) or min(sizes, default=1) < 1 or not kept:
        raise UnsupportedNode(
            f"shape {_text(target)} does not keep the batch dimension of its input {shown(value)} "
            f"and the {value.features} features of a sample"
        )
    return value.reshaped(sizes, place)


def _target(value: Value, context: Context, node: FileNode, given: Operand) -> list[int | None]:
    """The shape that is asked for, -1 where it is open, None where it is the batch."""
    if isinstance(given, PerBatch):
        sizes = given.dimensions()
        if sizes is None:
            raise UnsupportedNode(
                "its shape has numbers that the batch is a factor of, which would mix samples with "
                "features"
            )
        return [*sizes]
    target: list[int | None] = [int(d) for d in constant(given, "shape").value.reshape(-1)]
    if node.attributes.get("allowzero", 0):
        return target
    if any(d == 0 and i >= len(value.axes) for i, d in enumerate(target)):
        raise UnsupportedNode(f"shape {target} copies a dimension that its input lacks")
    return [value.axes[i] if d == 0 else d for i, d in enumerate(target)]


def _batch_place(value: Value, target: list[int | None], batch: int | None) -> int:
    """Where in `target` the batch is: as many values stand before it as in the input."""
    before = int(np.prod(value.shape[: value.batch], dtype=np.int64))
    known = 1
    for place, size in enumerate(target):
        if known == before and (size in (None, -1) or size == batch):
            return place
        if size is None or size < 1:
            break
        known *= size
    raise UnsupportedNode(
        f"shape {_text(target)} does not keep the batch dimension of its input {shown(value)}"
        + ("; its first number must be 0 or -1" if before == 1 else "")
    )


def _text(target: list[int | None]) -> str:
    return f"[{', '.join('batch' if d is None else str(d) for d in target)}]"


def squeeze(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    rank = len(value.shape) + 1
    given = axes_of(node, inputs, 1, rank)
    axes = [i for i, n in enumerate(value.axes) if n == 1] if given is None else given
    if any(value.axes[axis] != 1 for axis in axes):
        raise UnsupportedNode(f"removes axes {axes}, of which one is not 1 or is the batch")
    shape = tuple(n for i, n in enumerate(value.axes) if n is not None and i not in axes)
    return value.reshaped(shape, value.batch - sum(axis < value.batch for axis in axes))


def unsqueeze(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    axes = axes_of(node, inputs, 1, len(value.shape) + 1, grows=True) or []
    rest = iter(value.axes)
    rank = len(value.shape) + 1 + len(axes)
    whole = [1 if i in axes else next(rest) for i in range(rank)]
    return value.reshaped(tuple(n for n in whole if n is not None), whole.index(None))


def transpose(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    axes = node.attributes.get("perm") or list(range(len(value.shape) + 1))[::-1]
    if sorted(axes) != list(range(len(value.shape) + 1)):
        raise UnsupportedNode(f"perm {axes} does not fit its input {shown(value)}")
    if any(isinstance(step, Function) and step.on_host for step in value.steps):
        raise UnsupportedNode("stands behind Softmax; transpose before it")
    batch = axes.index(value.batch)
    order = tuple(axis - (axis > value.batch) for axis in axes if axis != value.batch)
    return value.transposed(order).placed(batch)
