# SPDX-License-Identifier: Apache-2.0
"""Windows over images as matrices: the order of their taps, and which pixels a tile needs.

Features of a window are ordered [kernel row][channel block][kernel column][channel of the block].
A channel block is as wide as a bank, so that a bank holds the channels of one tap, and the taps of
a kernel row lie in neighbouring lanes (`hls/gather.hpp`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..model.graph import Window


def tap_features(window: Window, channels: int, bank_size: int) -> int:
    """Features of a window over `channels` channels, padding included."""
    blocks = -(-channels // bank_size)
    return window.kernel[0] * window.kernel[1] * blocks * bank_size


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


def ring_words(window: Window, build: Build, tiles_per_block: int) -> int:
    """Words of the image memory that a channel needs at least, as a ring, if `tiles_per_block`
    column tiles are gathered together: what `tiles_needed` and `first_word` of `hls/gather.hpp`
    ask for, and the tile that is being brought.
    """
    cols, banks = build.cols, build.banks
    pixels = window.out_height * window.out_width
    first = np.arange(0, pixels, cols * tiles_per_block)
    last = np.minimum(first + cols * tiles_per_block, pixels) - 1
    top = np.maximum(first // window.out_width * window.strides[0] - window.pads[0], 0)
    low = last // window.out_width * window.strides[0] - window.pads[0]
    low = np.minimum(low + (window.kernel[0] - 1) * window.dilations[0], window.height - 1)
    image_tiles = -(-window.height * window.width // cols)
    needed = np.where(low < 0, 0, ((low + 1) * window.width - 1) // cols + 1)
    words = -(-np.minimum(needed, image_tiles) * cols // banks) - top * window.width // banks
    # From group to group the start of the ring moves by two turns at most (`hls/columns.hpp`).
    turns = np.diff(top * window.width // banks, append=0).max(initial=0)
    return int(min(max(1, words.max(), -(-turns // 2)), whole_words(window, build)))


def whole_words(window: Window, build: Build) -> int:
    """Words of the image memory that a channel of the whole image takes."""
    tiles = -(-window.height * window.width // build.cols)
    return -(-tiles * build.cols // build.banks)


def reads_per_tile(window: Window, build: Build) -> float:
    """Reads of the image memory for the taps of one channel, kernel row and column: one where
    windows lie as their pixels do, else one for each run of columns (`hls/columns.hpp`)."""
    if window.strides == (1, 1) and window.out_width == window.width:
        return 1.0
    pixel = np.arange(window.out_height * window.out_width)
    column = pixel % build.cols
    per_read = {1: build.cols, 2: build.cols // 2, 4: build.cols // 4}.get(window.strides[1], 1)
    starts = (pixel % window.out_width == 0) | (column % max(per_read, 1) == 0)
    return float(np.count_nonzero(starts)) / -(-len(pixel) // build.cols)


def writes_per_tile(window: Window, build: Build) -> int:
    """Words that one tile's taps make for the vector buffer."""
    together = build.taps if window.dilations[1] == 1 else 1
    return window.kernel[0] * window.channels * -(-window.kernel[1] // together)
