# SPDX-License-Identifier: Apache-2.0
"""Operators that go over images: convolution, pooling, means over all pixels, padding.

A sequence (C, L) is an image of one row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .graph import MOST_FIELD, Window, image_shape
from .moving import Pads
from .onnx_file import FileNode
from .onnx_linear import with_bias
from .onnx_operands import (
    Context,
    Operand,
    axes_of,
    computed,
    constant,
    floats,
    numbers_of,
    one_number,
    optional,
    result,
    source,
)
from .onnx_values import (
    Constant,
    Dequantise,
    Linear,
    ModelInput,
    Opaque,
    Padded,
    Pool,
    UnsupportedNode,
    Value,
)
from .pooling import ceiled


def convolution(node: FileNode, value: Value, weights: Constant) -> Value:
    """Weights (M, C / groups, kernel) over an image; pads of a Pad before it are its own."""
    value, outer = _unpadded(value)
    value = _image(value)
    groups = int(node.attributes.get("group", 1))
    if weights.array.ndim != len(value.shape) + 1 or not weights.array.size:
        raise UnsupportedNode(
            f"weights have shape {weights.array.shape}, its input (batch, "
            f"{', '.join(map(str, value.shape))}); a kernel of as many dimensions is wanted"
        )
    if weights.array.dtype.kind == "f" and not np.isfinite(weights.array).all():
        raise UnsupportedNode("weights hold NaN or infinity")
    rows, per_group, *kernel = weights.array.shape
    if groups < 1 or per_group * groups != value.shape[0] or rows % groups:
        raise UnsupportedNode(
            f"weights of shape {weights.array.shape} in {groups} groups do not fit an input of "
            f"{value.shape[0]} channels"
        )
    if node.attributes.get("kernel_shape", kernel) != kernel:
        raise UnsupportedNode(f"kernel_shape is not that of its weights, {tuple(kernel)}")
    window = _window(node, value, tuple(kernel), outer)
    weights = weights.each(lambda a: a.reshape(rows, per_group, *window.kernel))
    return _result(value, Linear(node.name, _read(value, window), weights, None, window, groups))


def conv(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = convolution(node, floats(inputs[0], "input"), constant(inputs[1], "weights"))
    if optional(inputs, 2) is None:
        return value
    return with_bias(value, channels_first(constant(inputs[2], "bias"), value))


def channels_first(numbers: Constant, value: Value) -> Constant:
    """One number a channel, (M,), so that it broadcasts to `value` (M, H, W)."""
    return numbers.each(lambda a: a.reshape(-1, *[1] * (len(value.shape) - 1)))


def max_pool(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    return _pool(node, value, _kernel(node, value), True)


def global_max_pool(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = computed(inputs[0], "input")
    return _pool(node, value, value.shape[1:], True)


def average_pool(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return averages(node, floats(inputs[0], "input"))


def averages(node: FileNode, value: Value, *, beyond: bool = False) -> Value:
    """An average of what a place sees of the image, and of the padding where that counts; what
    `ceil_mode` adds then counts too if `beyond` is set."""
    kernel = _kernel(node, value)
    pooled = _pool(node, value, kernel, False)
    pool = pooled.base
    assert isinstance(pool, Pool)
    if node.attributes.get("count_include_pad", 0):
        given = _described(node, value, kernel, (0, 0, 0, 0))
        pool = replace(pool, counted=(pool.window if beyond else given).pads)
    if pool.taps[0] < 1:
        raise UnsupportedNode("some of its places see nothing but padding, which does not count")
    return replace(pooled, base=pool)


def global_average_pool(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    return global_average(node, floats(inputs[0], "input"))


def global_average(node: FileNode, value: Value) -> Value:
    """The average of all pixels, (C, 1, 1)."""
    return _pool(node, value, value.shape[1:], False)


def reduce_mean(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = floats(inputs[0], "input")
    rank = len(value.shape) + 1
    axes = sorted(axis - 1 for axis in axes_of(node, inputs, 1, rank) or [])
    kept = [axis for axis in range(rank - 1) if axis not in axes]
    if not axes or axes[0] < 0 or len(kept) != 1:
        raise UnsupportedNode(
            f"averages over axes {[axis + 1 for axis in axes]} of {rank}; an average over all "
            "pixels of every channel is supported"
        )
    # As the image was, where the model transposed it to channels last.
    pooled = global_average(node, value.transposed((*kept, *axes)))
    if node.attributes.get("keepdims", 1):
        return pooled.reshaped(tuple(1 if i in axes else n for i, n in enumerate(value.shape)))
    return pooled.reshaped((value.shape[kept[0]],))


def pad(context: Context, node: FileNode, inputs: list[Operand]) -> Value:
    value = source(_image(computed(inputs[0], "input")))
    mode = node.attributes.get("mode", b"constant").decode()
    if mode != "constant":
        raise UnsupportedNode(f"pads by {mode}; constant padding is supported")
    number = node.attributes.get("value", 0.0)
    if optional(inputs, 2) is not None:
        number = one_number(constant(inputs[2], "value").value, "value")
    before, behind = _padding(node, inputs, len(value.shape) + 1)
    count = len(value.shape) - 1
    if any((*before[:-count], *behind[:-count])) or min(*before, *behind) < 0:
        raise UnsupportedNode("crops, or pads channels; pixels around an image are supported")
    top, bottom = (side[-2] for side in (before, behind))  # of a sequence its channels': 0
    pads = (top, before[-1], bottom, behind[-1])
    sizes = (n + before[i] + behind[i] for i, n in enumerate(value.shape, 1))
    last = value.steps[-1] if value.steps else None
    if isinstance(last, Dequantise) and number == 0:  # 0 is the zero point of the integers
        inner, number = value.before_last(), last.zero_point
    else:
        inner, last = value, None
        number = int(number) - 128 if value.dtype == "uint8" else number
    base = Padded(node.name, inner, pads, float(number), tuple(sizes), inner.dtype)
    padded = result(base, dtype=inner.dtype)
    return padded.then(last) if last else padded


def _padding(
    node: FileNode, inputs: list[Operand], rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What Pad adds before and behind along every axis, the batch included."""
    pads = node.attributes.get("pads")
    if pads is None:
        pads = constant(optional(inputs, 1), "pads").value.reshape(-1)
    axes = axes_of(node, inputs, 3, rank)
    both = np.zeros((2, rank), np.int64)
    try:
        both[:, range(rank) if axes is None else axes] = np.reshape(pads, (2, -1))
    except (ValueError, IndexError):
        raise UnsupportedNode("its pads do not fit its input") from None
    before, behind = both.tolist()
    return tuple(before), tuple(behind)


def _unpadded(value: Value) -> tuple[Value, Pads]:
    """What a Pad right before a convolution pads, and how much."""
    base = value.base
    if not isinstance(base, Padded):
        return value, (0, 0, 0, 0)
    zero, inner = 0.0, base.source
    if value.steps:
        step = value.steps[-1]
        if len(value.steps) > 1 or not isinstance(step, Dequantise):
            raise UnsupportedNode(f"there is more than DequantizeLinear behind Pad {base.node!r}")
        zero, inner = float(step.zero_point), inner.then(step)
    if base.number != zero:
        raise UnsupportedNode(
            f"Pad {base.node!r} before it pads with {base.number:g}, which is not zero; only "
            "padding with zeros is supported"
        )
    return inner, base.pads


def _pool(node: FileNode, value: Value, kernel: tuple[int, ...], maximum: bool) -> Value:
    """Of every channel. A maximum is taken before a DequantizeLinear, which keeps the order of its
    numbers."""
    value = source(_image(value))
    last = value.steps[-1] if value.steps else None
    if maximum and isinstance(last, Dequantise):
        return _pool(node, value.before_last(), kernel, maximum).then(last)
    window = _window(node, value, kernel, (0, 0, 0, 0), average=not maximum)
    return _result(
        value, Pool(node.name, _read(value, window), window, maximum, value.dtype), value.dtype
    )


def _kernel(node: FileNode, value: Value) -> tuple[int, ...]:
    return numbers_of(node, "kernel_shape", len(value.shape) - 1, None)


def _image(value: Value) -> Value:
    if len(value.shape) not in (2, 3):
        raise UnsupportedNode(
            f"its input has {len(value.shape) + 1} dimensions; images (batch, channels, height, "
            "width) and sequences (batch, channels, length) are supported"
        )
    return value


def _read(value: Value, window: Window) -> Value:
    """`value` as the tensor (C, H, W) that a window goes over."""
    value = source(value)
    wanted = (window.channels, window.height, window.width)
    if isinstance(value.base, ModelInput):
        return value if value.shape == wanted else value.reshaped(wanted)
    as_it_lies = value.arrangement.axes == () and image_shape(value.base.shape) == wanted
    if not (as_it_lies or isinstance(value.base, Opaque)):
        raise UnsupportedNode(
            "its input is transposed or reshaped within the model, so that it does not lie as "
            "(channels, height, width); transposes at inputs and outputs are supported"
        )
    return value


def _result(value: Value, base: Linear | Pool, dtype: str = "float32") -> Value:
    """In as many dimensions as the operator's input has."""
    shape = base.shape
    return result(base, shape if len(value.shape) == 3 else (shape[0], shape[2]), dtype)


def _window(
    node: FileNode, value: Value, kernel: tuple[int, ...], outer: Pads, *, average: bool = False
) -> Window:
    """What the engine does of `_described`, with the places that `ceil_mode` adds."""
    given = _described(node, value, kernel, outer)
    window = _checked(given, average)
    return _checked(ceiled(given), average) if node.attributes.get("ceil_mode", 0) else window


def _described(node: FileNode, value: Value, kernel: tuple[int, ...], outer: Pads) -> Window:
    """The window of a node's attributes, over `value` with `outer` pads around it."""
    count = len(kernel)
    row = (1,) * (2 - count)  # of a sequence
    window = Window(
        value.shape[0],
        *_pair(row, value.shape[1:]),
        _pair(row, kernel),
        _pair(row, numbers_of(node, "strides", count, 1)),
        _pair(row, numbers_of(node, "dilations", count, 1)),
        outer,
    )
    if min(*window.kernel, *window.strides, *window.dilations) < 1:
        raise UnsupportedNode("kernel, strides and dilations must be 1 or more")
    return replace(window, pads=_pads(node, window, count))


def _shortened(window: Window) -> tuple[int, int]:
    """Strides no longer than it takes to leave the padded image, where there is just one place."""
    strides = []
    for axis, places in enumerate((window.out_height, window.out_width)):
        size = (window.height, window.width)[axis] + window.pads[axis] + window.pads[axis + 2]
        past = size - (window.kernel[axis] - 1) * window.dilations[axis]
        strides.append(min(past, window.strides[axis]) if places == 1 else window.strides[axis])
    return strides[0], strides[1]


def _pair(row: tuple[int, ...], values: Any) -> tuple[int, int]:
    first, second = (*row, *(int(v) for v in values))
    return first, second


def _pads(node: FileNode, window: Window, count: int) -> Pads:
    """Those of the node and those around its input (in `window`): top, left, bottom, right."""
    mode = node.attributes.get("auto_pad", b"NOTSET").decode()
    own = [0, 0, 0, 0]
    if mode == "NOTSET":
        given, none = numbers_of(node, "pads", 2 * count, 0), (0,) * (2 - count)
        own = [*_pair(none, given[:count]), *_pair(none, given[count:])]
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        for axis, size in enumerate((window.height, window.width)):
            size += window.pads[axis] + window.pads[axis + 2]
            reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
            stride = window.strides[axis]
            whole = max(0, (-(-size // stride) - 1) * stride + reach - size)
            less, more = whole // 2, whole - whole // 2
            own[axis::2] = [less, more] if mode == "SAME_UPPER" else [more, less]
    top, left, bottom, right = (a + b for a, b in zip(own, window.pads, strict=True))
    return top, left, bottom, right


def _checked(window: Window, average: bool) -> Window:
    """What the engine takes: fields of 4 bits, but for an average of all of an image."""
    window = replace(window, strides=_shortened(window))
    if min(window.pads) < 0:
        raise UnsupportedNode(f"its pads {window.pads} crop the image; 0 or more are supported")
    if min(window.out_height, window.out_width) < 1:
        raise UnsupportedNode(
            f"its kernel {window.kernel} is larger than its input of {window.height} x "
            f"{window.width} pixels with pads {window.pads}"
        )
    whole = window.kernel == (window.height, window.width) and not any(window.pads)
    fields = (*window.kernel, *window.strides, *window.dilations, *window.pads)
    if max(fields) > MOST_FIELD and not (whole and average):
        raise UnsupportedNode(
            f"its window has kernel {window.kernel}, strides {window.strides}, dilations "
            f"{window.dilations} and pads {window.pads}; up to {MOST_FIELD} each are supported"
        )
    return window
