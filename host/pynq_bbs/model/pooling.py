# SPDX-License-Identifier: Apache-2.0
"""Pooling as layers of windows, where one layer is not enough.

The engine has one multiplier a row, so all windows of an average divide by the same number. Where
padding does not count, a window at the border divides by less. But there are few such numbers: a
row for each of them and each channel computes the average as if all windows divided by it, a
constant of ones and zeros keeps it where they do, and a second layer adds up what is kept.
"""

from __future__ import annotations

from itertools import count

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .arithmetic import Scale, multiplier
from .graph import MOST_FIELD, Combination, Constant, QuantLayer, Window
from .moving import Pads, Shape


def ceiled(window: Window) -> Window:
    """ONNX's `ceil_mode`: one more window along an axis where the last one does not reach the end,
    as long as it begins before the padding behind the image."""
    pads = list(window.pads)
    for axis, size in enumerate((window.height, window.width)):
        stride, before = window.strides[axis], window.pads[axis]
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        room = size + before + window.pads[axis + 2] - reach
        windows = -(-room // stride) + 1
        if (windows - 1) * stride >= size + before:
            windows -= 1
        pads[axis + 2] = max(0, (windows - 1) * stride + reach - before - size)
    return Window(
        window.channels, window.height, window.width, window.kernel, window.strides,
        window.dilations, (pads[0], pads[1], pads[2], pads[3]),
    )  # fmt: skip


def average_pool(
    name: str, source: str, window: Window, x: Scale, y: Scale, *, counted: Pads = (0, 0, 0, 0)
) -> tuple[list[QuantLayer], list[Constant]]:
    """Tensor `name`: averages of `source` over `window`, from scale and zero point `x` to `y`.

    Args:
        counted: how much of the padding counts as pixels (top, left, bottom, right). None for
            ONNX's `count_include_pad` 0; for 1 all that the model gives, without what `ceiled`
            adds.

    Raises:
        ModelError: a window that counts nothing, or scales too far apart.
    """
    kinds = kinds_of_taps(window, counted)
    if kinds[0] < 1:
        raise ModelError(f"an average over {window} has windows that see nothing of the image")
    channels, size = window.channels, (window.out_height, window.out_width)
    rows = channels * len(kinds)
    # x_scale / (n * y_scale), as ONNX Runtime has it.
    divided = kinds.astype(np.float32) * np.float32(y[0])
    scales = np.array([multiplier(x[0], np.ones(1, np.float32), d)[0] for d in divided])
    first = QuantLayer(
        name=name,
        input=source,
        output=name,
        weights=np.ones((rows, 1, *window.kernel), np.int8),
        bias=np.zeros(rows, np.int32),
        input_zero_point=x[1],
        multiplier=np.tile(scales, channels),
        zero_point=y[1],
        window=window,
        groups=channels,
    )
    if len(kinds) == 1:
        return [first], []
    first.name = first.output = f"{name}:kinds"
    of_kind = (tap_counts(window, counted) == kinds[:, None, None]).astype(np.int8)
    mask = Constant(f"{name}:mask", np.tile(of_kind, (channels, 1, 1)))
    first.combination = Combination(mask.name, 1, y[1], 0, 0, 0, y[1], product=True)
    second = QuantLayer(
        name=name,
        input=first.output,
        output=name,
        weights=np.ones((channels, len(kinds), 1, 1), np.int8),
        bias=np.zeros(channels, np.int32),
        input_zero_point=y[1],
        multiplier=np.ones(channels, np.float32),
        zero_point=y[1],
        window=Window(rows, *size, (1, 1)),
        groups=channels,
    )
    return [first, second], [mask]


def tap_counts(window: Window, counted: Pads) -> NDArray[np.int64]:
    """How many taps of each window count, (output height, width): those in the image and in as
    much of its padding as is `counted`."""
    along_y, along_x = _counts_along(window, counted)
    return np.outer(along_y, along_x)


def kinds_of_taps(window: Window, counted: Pads) -> NDArray[np.int64]:
    """The different numbers in `tap_counts`, from the least on, without making all of them."""
    along_y, along_x = (np.unique(side) for side in _counts_along(window, counted))
    kinds: NDArray[np.int64] = np.unique(np.outer(along_y, along_x))
    return kinds


def _counts_along(window: Window, counted: Pads) -> list[NDArray[np.int64]]:
    """Taps that count, at every place along y and along x."""
    sides = []
    for axis, size in enumerate((window.height, window.width)):
        out = (window.out_height, window.out_width)[axis]
        first = np.arange(out) * window.strides[axis] - window.pads[axis]
        taps = first[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        inside = (taps >= -counted[axis]) & (taps < size + counted[axis + 2])
        sides.append(inside.sum(axis=1))
    return sides


def global_maximum(name: str, source: str, shape: Shape) -> list[QuantLayer]:
    """Tensor `name`: the largest pixel of every channel of `source` (C, H, W).

    A kernel ends at 15 pixels, so larger images go through several layers: a largest of largest
    ones is the largest. What a window has beyond the image is less than any pixel.
    """
    channels, *sizes = shape
    stages = next(n for n in count(1) if MOST_FIELD**n >= max(sizes))
    layers: list[QuantLayer] = []
    for left in range(stages, 0, -1):
        kernel = [next(k for k in count(1) if k**left >= size) for size in sizes]
        pads = (0, 0, -sizes[0] % kernel[0], -sizes[1] % kernel[1])
        sides = (kernel[0], kernel[1])
        window = Window(channels, sizes[0], sizes[1], sides, sides, pads=pads)
        to = name if left == 1 else f"{name}:{len(layers)}"
        layers.append(maximum_pool(to, source, window))
        source, sizes = to, [window.out_height, window.out_width]
    return layers


def maximum_pool(name: str, source: str, window: Window) -> QuantLayer:
    """Tensor `name`: the largest pixel of each window of every channel of `source`."""
    return QuantLayer(
        name=name,
        input=source,
        output=name,
        weights=np.ones((window.channels, 1, *window.kernel), np.int8),
        bias=np.zeros(window.channels, np.int32),
        input_zero_point=0,
        multiplier=np.ones(window.channels, np.float32),
        window=window,
        groups=window.channels,
        maximum=True,
    )
