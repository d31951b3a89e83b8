# SPDX-License-Identifier: Apache-2.0
"""What the gathering of an image's windows has to do, tile by tile: for schedule and cycle model.

The same rules as `hls/columns.hpp` and `hls/gather.hpp`: how many reads of the image memory a
tile takes, how much of the image must be there before, and how much may be there without
overwriting what is still needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..builds import PORT_BYTES, Build
from ..interface import FLAG_FROM_CHAIN, FLAG_RESIDENT_INPUT, Command
from ..model.graph import Window
from .layout import tile_count
from .windows import whole_words

Counts = NDArray[np.int64]

#: Where a window lies that belongs to no pixel of the output.
_BEYOND = -32768
#: What is left in a memory is read this many iterations later (`kReuseDistance`).
REUSE_DISTANCE = 4
#: Geometries whose tiles are kept: the scheduler asks for the same ones with other cuts.
_KEPT = 256


@dataclass(frozen=True)
class Tiles:
    """The column tiles of an image's output, an entry each."""

    reads: Counts  # of the image memory, for a channel and row of taps
    needed: Counts  # tiles of the image that must be there, for every kernel row
    first: Counts  # word of the image that is read first, not counting turns of the ring


@dataclass(frozen=True)
class Loading:
    """How an image is gathered: iterations, and words (of the port, or of the chain) of it.

    There is an entry for each gathering of a tile's kernel row, in order: groups of tiles come as
    often as there are fillings.
    """

    trips: list[int]  # iterations of the one loop, those included in which it waits for pixels
    reads: list[int]  # of them those that read the image memory
    words: list[int]  # taken since the entry before
    end: int  # words that are taken behind the last tile


def image_tiles(c: Command, build: Build) -> int:
    """Column tiles of the image."""
    return tile_count(c.height * c.width, build.cols)


def is_whole(c: Command, build: Build) -> bool:
    """Whether a channel's share of the image memory holds all of the image."""
    return c.image_words * build.banks >= image_tiles(c, build) * build.cols


def steps(c: Command, build: Build) -> int:
    """Writes to the vector buffer for one tile of a part: a channel and a row of up to TAPS taps
    each."""
    taps = build.taps if c.dilation_x == 1 else 1
    return c.kernel_height * c.part_channels * -(-c.kernel_width // taps)


def column_steps(c: Command, build: Build) -> int:
    """Iterations in which the columns of a tile are worked out (`hls/columns.hpp`)."""
    return build.cols // build.placed + c.kernel_height + 1


def tile_words(c: Command, build: Build) -> int:
    """Words in which a tile of the image comes, from memory or from the chain."""
    return c.channels * (1 if c.flags & FLAG_FROM_CHAIN else build.cols // PORT_BYTES)


def tiles_of(c: Command, build: Build) -> Tiles:
    """What every tile of the command's output needs."""
    return _tiles(
        build.cols, build.banks, build.taps, c.tiles, c.height, c.width, c.out_height, c.out_width,
        c.stride_y, c.stride_x, c.pad_top, c.kernel_height, c.dilation_y,
    )  # fmt: skip


@lru_cache(_KEPT)
def _tiles(
    cols: int, banks: int, taps: int, tiles: int, height: int, width: int, out_height: int,
    out_width: int, stride_y: int, stride_x: int, pad_top: int, kernel_height: int, dilation_y: int,
) -> Tiles:  # fmt: skip
    pixels = out_height * out_width
    begin = np.arange(tiles, dtype=np.int64) * cols
    inside = begin < pixels
    last = np.minimum(begin + cols, pixels) - 1
    first_y = np.where(inside, begin // out_width * stride_y - pad_top, _BEYOND)
    last_y = np.where(inside, last // out_width * stride_y - pad_top, _BEYOND)
    below = np.arange(kernel_height) * dilation_y
    row = np.minimum(last_y[:, None] + below, height - 1)
    needed = np.where(row < 0, 0, ((row + 1) * width - 1) // cols + 1)
    reads = np.ones(tiles, np.int64)
    if not (stride_x == 1 and stride_y == 1 and out_width == width):
        # A read ends where a row of the output ends, and where it holds no more taps: of the row
        # that the tile begins in, the whole ones below, and the begin of another one.
        most = min((banks - taps) // stride_x + 1, cols) if stride_x in (1, 2, 4) else 1
        count = last + 1 - begin
        head = np.minimum(out_width - begin % out_width, count)
        whole, tail = np.divmod(count - head, out_width)
        served = -(-head // most) - (-out_width // most) * whole - (-tail // most)
        reads = np.where(inside, served, 1)
    return Tiles(
        reads,
        np.minimum(needed, tile_count(height * width, cols)),
        np.maximum(first_y, 0) * width // banks,
    )


def ring_words(c: Command, build: Build) -> int:
    """Words of the image memory that a channel needs at least, as a ring: from what the first tile
    of a group needs first to what its last one needs last."""
    tiles, group = tiles_of(c, build), c.tiles_per_block
    firsts = tiles.first[::group]
    needed = np.maximum.reduceat(tiles.needed.max(axis=1), np.arange(0, c.tiles, group))
    words = -(-needed * build.cols // build.banks) - firsts
    # From group to group the ring turns once a step at most (`hls/columns.hpp`).
    passed = np.diff(firsts, append=0).max(initial=0)
    return int(max(1, words.max(), -(-passed // column_steps(c, build))))


def channels_at_once(window: Window, build: Build) -> int:
    """Of so many channels the image memory holds what one column tile of the output needs."""
    command = Command(
        tiles=tile_count(window.out_height * window.out_width, build.cols),
        tiles_per_block=1,
        height=window.height,
        width=window.width,
        out_height=window.out_height,
        out_width=window.out_width,
        stride_y=window.strides[0],
        stride_x=window.strides[1],
        pad_top=window.pads[0],
        kernel_height=window.kernel[0],
        dilation_y=window.dilations[0],
    )
    return build.image_words // min(whole_words(window, build), ring_words(command, build))


def loading(c: Command, build: Build, repeats: int) -> Loading:
    """When the pixels come, if every group of tiles is gathered `repeats` times.

    A word is taken every `load_pace` iterations, and in every one in which a kernel row waits for
    pixels, as far as there is room.
    """
    tiles, banks = tiles_of(c, build), build.banks
    unit, count = tile_words(c, build), image_tiles(c, build)
    everything, pace, group = unit * count, c.load_pace, c.tiles_per_block
    firsts = tiles.first[::group]
    room = (unit * np.minimum((firsts + c.image_words) * banks // build.cols, count)).tolist()
    # Lists, because they are gone through one by one.
    row_reads = (steps(c, build) // c.kernel_height * tiles.reads).tolist()
    needed = (unit * tiles.needed).tolist()
    resident = bool(c.flags & FLAG_RESIDENT_INPUT)
    taken, now = everything if resident else 0, 0
    counted = taken
    # When a number of words was reached last: how far back that counts is a few iterations.
    moments: list[tuple[int, int, int]] = []  # words before, iteration of the first one, step
    trips, reads, words = [], [], []
    for g, most in enumerate(room):
        for t in [*range(g * group, min((g + 1) * group, c.tiles))] * repeats:
            count_reads = row_reads[t]
            for need in needed[t]:
                before = now
                if taken < need:
                    moments = [(taken, now + 1, 1)]
                    now += need - taken + REUSE_DISTANCE
                    taken = max(need, min(need + REUSE_DISTANCE, most))
                elif moments and need > 0:
                    waits = max(0, _reached(need, moments) + REUSE_DISTANCE - now)
                    if waits and taken < most:
                        moments = [*moments[-4:], (taken, now + 1, 1)]
                        taken = min(taken + waits, most)
                    now += waits
                if taken < most:
                    due = (now + count_reads) // pace - now // pace
                    if due:
                        moments = [*moments[-4:], (taken, (now // pace + 1) * pace, pace)]
                        taken += min(due, most - taken)
                now += count_reads
                trips.append(now - before)
                reads.append(count_reads)
                words.append(taken - counted)
                counted = taken
    return Loading(trips, reads, words, everything - taken)


def _reached(need: int, moments: list[tuple[int, int, int]]) -> int:
    """The iteration in which the word number `need` was taken; 0 if that is long ago."""
    for before, first, step in reversed(moments):
        if before < need:
            return first + (need - before - 1) * step
    return 0
