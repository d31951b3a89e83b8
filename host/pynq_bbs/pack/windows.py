# SPDX-License-Identifier: Apache-2.0
<<<<<<< HEAD
"""Windows over images as matrices: the order of their taps, and which pixels a tile needs.

Features of a window are ordered [kernel row][channel block][kernel column][channel of the block].
A channel block is as wide as a bank, so that a bank holds the channels of one tap, and the taps of
a kernel row lie in neighbouring lanes (`hls/gather.hpp`).
=======
"""What the gathering of an image's windows has to do, tile by tile: for the cycle model.

The same rules as `hls/columns.hpp` and `hls/gather.hpp`: how many reads of the image memory a
tile takes, how much of the image must be there before, and how much may be there without
overwriting what is still needed.
>>>>>>> cycles
"""

from __future__ import annotations

<<<<<<< HEAD
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
    reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
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
    return int(min(max(1, words.max()), whole_words(window, build)))


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
=======
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..builds import PORT_BYTES, Build
from ..interface import FLAG_FROM_CHAIN, FLAG_RESIDENT_INPUT, Command

Counts = NDArray[np.int64]

#: Pixels of a word of the image memory beyond COLS (`kBanks`).
_MORE_PIXELS = 8
#: Where a window lies that belongs to no pixel of the output.
_BEYOND = -32768
#: Geometries whose tiles are kept: the scheduler asks for the same ones with other cuts.
_KEPT = 256


@dataclass(frozen=True)
class Tiles:
    """The column tiles of an image's output, an entry each."""

    reads: Counts  # of the image memory, for a channel and row of taps
    needed: Counts  # tiles of the image that must be there
    first: Counts  # word of the image that is read first, not counting turns of the ring


@dataclass(frozen=True)
class Loading:
    """How the pixels of an image come in, in words (of the port, or of the chain)."""

    rest: Counts  # for each tile: taken because it cannot begin without them (`image_rest`)
    beside: Counts  # for each tile: taken beside its windows
    again: Counts  # for each group of tiles: beside the same windows, gathered for later passes
    end: int  # behind the last tile (`image_end`)
    turns: int  # of the ring (`ring`)


def image_tiles(c: Command, build: Build) -> int:
    """Column tiles of the image."""
    return -(-c.height * c.width // build.cols)


def steps(c: Command, build: Build) -> int:
    """Writes to the vector buffer for one tile: a channel and a row of up to TAPS taps each."""
    taps = build.taps if c.dilation_x == 1 else 1
    return c.kernel_height * c.channels * -(-c.kernel_width // taps)


def tile_words(c: Command, build: Build) -> int:
    """Words in which a tile of the image comes, from memory or from the chain."""
    return c.channels * (1 if c.flags & FLAG_FROM_CHAIN else build.cols // PORT_BYTES)


def tiles_of(c: Command, build: Build) -> Tiles:
    """What every tile of the command's output needs."""
    return _tiles(
        build.cols, c.tiles, c.height, c.width, c.out_height, c.out_width, c.stride_y, c.stride_x,
        c.pad_top, (c.kernel_height - 1) * c.dilation_y,
    )  # fmt: skip


@lru_cache(_KEPT)
def _tiles(
    cols: int, tiles: int, height: int, width: int, out_height: int, out_width: int,
    stride_y: int, stride_x: int, pad_top: int, below: int,
) -> Tiles:  # fmt: skip
    pixels = out_height * out_width
    begin = np.arange(tiles, dtype=np.int64) * cols
    inside = begin < pixels
    last = np.minimum(begin + cols, pixels) - 1
    first_y = np.where(inside, begin // out_width * stride_y - pad_top, _BEYOND)
    last_y = np.where(inside, last // out_width * stride_y - pad_top, -1)
    row = np.minimum(last_y + below, height - 1)
    needed = np.where(row < 0, 0, ((row + 1) * width - 1) // cols + 1)
    reads = np.ones(tiles, np.int64)
    if not (stride_x == 1 and stride_y == 1 and out_width == width):
        # A read ends where a row of the output ends, and after a fixed number of columns.
        block = {1: cols, 2: max(cols // 2, 1), 4: max(cols // 4, 1)}.get(stride_x, 1)
        starts = np.zeros(tiles, np.int64)
        for step, sign in ((block, 1), (out_width, 1), (math.lcm(block, out_width), -1)):
            starts += sign * (last // step - (begin - 1) // step)
        reads = np.where(inside, starts, 1)
    return Tiles(
        reads,
        np.minimum(needed, -(-height * width // cols)),
        np.maximum(first_y, 0) * width // (cols + _MORE_PIXELS),
    )


def loading(c: Command, build: Build, repeats: int) -> Loading:
    """When the pixels come, if every group of tiles is gathered `repeats` times.

    A word is taken every `load_pace` reads as far as there is room; what a tile then lacks is
    taken before it begins.
    """
    tiles, banks = tiles_of(c, build), build.cols + _MORE_PIXELS
    unit, count = tile_words(c, build), image_tiles(c, build)
    everything = unit * count
    taken = everything if c.flags & FLAG_RESIDENT_INPUT else 0
    group = c.tiles_per_block
    firsts = tiles.first[::group]
    room = unit * np.minimum((firsts + c.image_words) * banks // build.cols, count)
    # Lists, because they are gone through one by one: a group may be a single tile.
    chances = (steps(c, build) * tiles.reads // c.load_pace).tolist()
    needed = (unit * tiles.needed).tolist()
    rest, beside, again = [0] * c.tiles, [0] * c.tiles, [0] * len(firsts)
    for g, most in enumerate(room.tolist()):
        if taken == everything:
            break
        first, last = g * group, min((g + 1) * group, c.tiles)
        for t in range(first, last):
            if taken < needed[t]:
                rest[t] = needed[t] - taken
                taken = needed[t]
            if taken < most:
                beside[t] = min(chances[t], most - taken)
                taken += beside[t]
        if repeats > 1 and taken < most:
            again[g] = min((repeats - 1) * sum(chances[first:last]), most - taken)
            taken += again[g]
    return Loading(
        np.array(rest, np.int64),
        np.array(beside, np.int64),
        np.array(again, np.int64),
        everything - taken,
        int(firsts.max()) // c.image_words,
    )
>>>>>>> cycles
