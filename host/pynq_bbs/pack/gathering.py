# SPDX-License-Identifier: Apache-2.0
"""What the gathering of an image's windows has to do, tile by tile: for the cycle model.

The same rules as `hls/columns.hpp` and `hls/gather.hpp`: how many reads of the image memory a
tile takes, how much of the image must be there before, and how much may be there without
overwriting what is still needed.
"""

from __future__ import annotations

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
