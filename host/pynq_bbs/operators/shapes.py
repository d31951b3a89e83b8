# SPDX-License-Identifier: Apache-2.0
"""Operators that move, copy or choose elements and compute none, and those on shapes and types."""

from __future__ import annotations

from typing import Any

import numpy as np

from .call import Array, Call, Function, axes_of, checked_axis, checked_shape, numbers

#: numpy's name of each of ONNX's types that numpy has.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip


def _cast(call: Call, x: Array) -> Array:
    target = np.dtype(DTYPES[call.get("to")])
    if x.dtype.kind == "f" and target.kind in "iu":
        return np.trunc(x).astype(np.int64).astype(target)
    return x.astype(target)


def _cast_like(call: Call, x: Array, like: Array) -> Array:
    return x.astype(like.dtype)


def _transpose(call: Call, x: Array) -> Array:
    return x.transpose(call.get("perm"))


def _reshape(call: Call, x: Array, shape: Array) -> Array:
    target = numbers(shape)
    if not call.get("allowzero", 0):
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return x.reshape(target)


def _flatten(call: Call, x: Array) -> Array:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def _squeeze(call: Call, x: Array, axes: Array | None = None) -> Array:
    return x.squeeze(axes_of(call, axes, x.ndim))


def _unsqueeze(call: Call, x: Array, axes: Array | None = None) -> Array:
    count = len(call.get("axes") if axes is None else numbers(axes))
    return np.expand_dims(x, axes_of(call, axes, x.ndim + count) or ())


def _expand(call: Call, x: Array, shape: Array) -> Array:
    whole = np.broadcast_shapes(x.shape, tuple(numbers(shape)))
    return np.broadcast_to(x, checked_shape(whole))


def _concat(call: Call, *inputs: Array) -> Array:
    return np.concatenate(inputs, call.get("axis", 1))


def _split(call: Call, x: Array, split: Array | None = None) -> tuple[Array, ...]:
    axis = checked_axis(call.get("axis", 0), x.ndim)
    sizes = call.get("split") if split is None else numbers(split)
    if sizes is None:
        each = -(-x.shape[axis] // call.outputs)
        sizes = [each] * (call.outputs - 1) + [x.shape[axis] - each * (call.outputs - 1)]
    if sum(sizes) != x.shape[axis]:
        raise ValueError(f"splits {x.shape[axis]} into {sizes}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


def _slice(
    call: Call,
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    first = call.get("starts") if starts is None else numbers(starts)
    last = call.get("ends") if ends is None else numbers(ends)
    along = axes_of(call, axes, x.ndim)
    by = [1] * len(first) if steps is None else numbers(steps)
    cut = [slice(None)] * x.ndim
    for axis, *bounds in zip(along or range(len(first)), first, last, by, strict=True):
        cut[axis] = slice(*bounds)
    return x[tuple(cut)]


def _gather(call: Call, x: Array, indices: Array) -> Array:
    axis = checked_axis(call.get("axis", 0), x.ndim)
    size = x.shape[axis]
    if indices.size and not -size <= indices.min() <= indices.max() < size:
        raise ValueError(f"takes elements {indices.min()} to {indices.max()} of {size}")
    return np.take(x, indices, axis)


def _gather_elements(call: Call, x: Array, indices: Array) -> Array:
    axis = checked_axis(call.get("axis", 0), x.ndim)
    return np.take_along_axis(x, np.where(indices < 0, indices + x.shape[axis], indices), axis)


def _gather_nd(call: Call, x: Array, indices: Array) -> Array:
    batch = call.get("batch_dims", 0)
    rows = np.indices(indices.shape[:batch] + indices.shape[batch:-1])[:batch]
    return x[(*rows, *np.moveaxis(indices, -1, 0))]


def _pad(
    call: Call,
    x: Array,
    pads: Array | None = None,
    value: Array | None = None,
    axes: Array | None = None,
) -> Array:
    given = call.get("pads") if pads is None else numbers(pads)
    along = axes_of(call, axes, x.ndim)
    along = tuple(range(x.ndim)) if along is None else along
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        widths[axis] = given[i], given[i + len(along)]
    # Where less than nothing is added, elements go.
    kept = tuple(
        slice(max(-before, 0), size - max(-after, 0))
        for (before, after), size in zip(widths, x.shape, strict=True)
    )
    x, widths = x[kept], [(max(before, 0), max(after, 0)) for before, after in widths]
    checked_shape([n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)])
    mode: Any = call.get("mode", "constant")
    if mode == "constant":
        number = call.get("value", 0.0) if value is None else value.reshape(-1)[0]
        return np.pad(x, widths, constant_values=number)
    return np.pad(x, widths, mode)


def _tile(call: Call, x: Array, repeats: Array) -> Array:
    times = numbers(repeats)
    checked_shape([n * t for n, t in zip(x.shape, times, strict=True)])
    return np.tile(x, times)


def _shape(call: Call, x: Array) -> Array:
    return np.array(x.shape[call.get("start", 0) : call.get("end")], np.int64)


def _constant_of_shape(call: Call, shape: Array) -> Array:
    value = np.asarray(call.get("value", np.zeros(1, np.float32))).reshape(-1)
    return np.full(checked_shape(numbers(shape)), value[0], value.dtype)


def _constant(call: Call) -> Array:
    (name, value), *_ = call.attributes.items()
    dtype: Any = np.float32 if name in ("value_float", "value_floats") else None
    dtype = np.int64 if name in ("value_int", "value_ints") else dtype
    return np.asarray(value, dtype)


def _range(call: Call, start: Array, limit: Array, step: Array) -> Array:
    count = max(0, int(np.ceil((float(limit) - float(start)) / float(step))))
    checked_shape([count])
    return (start.reshape(()) + np.arange(count) * step.reshape(())).astype(start.dtype)


def _trilu(call: Call, x: Array, k: Array | None = None) -> Array:
    keep = np.triu if call.get("upper", 1) else np.tril
    return keep(x, 0 if k is None else int(k))


def _depth_to_space(call: Call, x: Array) -> Array:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        moved = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return moved.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(call: Call, x: Array) -> Array:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    moved = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return moved.reshape(n, c * b**2, h // b, w // b)


def _same(call: Call, x: Array, *rest: Any) -> Array:
    return x


def _dropout(call: Call, x: Array, *rest: Any) -> Array | tuple[Array, Array]:
    return x if call.outputs == 1 else (x, np.ones(x.shape, np.bool_))


OPERATORS: dict[str, Function] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": _same,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda call, x: np.array(x.size, np.int64),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
