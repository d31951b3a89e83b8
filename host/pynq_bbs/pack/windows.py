# SPDX-License-Identifier: Apache-2.0
"""Windows over images as matrices: the order of their taps.

Features of a window are ordered [kernel row][channel block][kernel column][channel of the block].
A channel block is as wide as a bank, so that a bank holds the channels of one tap, and the taps of
a kernel row lie in neighbouring lanes (`hls/gather.hpp`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..model.graph import QuantLayer, Window
from .layout import tile_count


def tap_matrix(weights: NDArray[np.int8], bank_size: int) -> NDArray[np.int8]:
    """Weights (M, C, kernel height, kernel width) as (M, features)."""
    rows, channels, height, width = weights.shape
    blocks = -(-channels // bank_size)
    padded = np.zeros((rows, blocks * bank_size, height, width), np.int8)
    padded[:, :channels] = weights
    split = padded.reshape(rows, blocks, bank_size, height, width)
    return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2)).reshape(rows, -1)


def gathered(
    x: NDArray[np.int8], window: Window, bank_size: int, pad_value: int
) -> NDArray[np.int8]:
    """Images (N, C, H, W) as columns (N * output pixels, features)."""
    top, left, bottom, right = window.pads
    blocks = -(-window.channels // bank_size)
    spare = blocks * bank_size - window.channels
    padded = np.pad(
        x, ((0, 0), (0, spare), (top, bottom), (left, right)), constant_values=pad_value
    )
    reach = tuple((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    axes: Any = (2, 3)  # numpy's annotations know of one axis only
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    views = views[:, :, :: window.strides[0], :: window.strides[1]]
    views = views[..., :: window.dilations[0], :: window.dilations[1]]
    samples, _, height, width, kh, kw = views.shape
    split = views.reshape(samples, blocks, bank_size, height, width, kh, kw)
    ordered = split.transpose(0, 3, 4, 5, 1, 6, 2)  # sample, y, x, ky, block, kx, channel
    return np.ascontiguousarray(ordered).reshape(samples * height * width, -1)


def sums_all(layer: QuantLayer) -> bool:
    """Whether every row adds up all pixels of one channel with one weight: a global average."""
    window = layer.window
    assert window is not None
    one_channel = layer.weights.shape[1] == 1 and layer.groups == window.channels
    if layer.maximum or not one_channel or len(layer.weights) != window.channels:
        return False
    whole = window.kernel == (window.height, window.width) and not any(window.pads)
    flat = layer.weights.reshape(len(layer.weights), -1)
    return whole and bool(np.all(flat == flat[:, :1]))


def whole_words(window: Window, build: Build) -> int:
    """Words of the image memory that a channel of the whole image takes."""
    tiles = tile_count(window.height * window.width, build.cols)
    return -(-tiles * build.cols // build.banks)
