# SPDX-License-Identifier: Apache-2.0
"""What a command makes every stage do, filling by filling: for the cycle model.

The same rules as `hls/sequence.hpp` and the stages that it orders about.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..builds import PORT_BYTES, TABLE_WORDS, Build
from ..interface import (
    FLAG_FROM_CHAIN,
    FLAG_GRU,
    FLAG_IMAGE,
    FLAG_INT4,
    FLAG_LSTM,
    FLAG_RESIDENT_INPUT,
    FLAG_RESIDENT_WEIGHTS,
    FLAG_RESIDUAL,
    FLAG_STATE_IN,
    FLAG_STATE_OUT,
    FLAG_SUMS_OUT,
    FLAG_TABLE,
    FLAG_TO_CHAIN,
    FLAG_TO_MEMORY,
    Command,
)
from .gathering import (
    REUSE_DISTANCE,
    Counts,
    Loading,
    image_tiles,
    loading,
    steps,
    tile_words,
    tiles_of,
)

#: Rows that an LSTM or GRU has for each unit (`kGates`).
_GATES = 4


class Fillings:
    """The fillings of the vector buffer for a group of column tiles, an entry each.

    With one pass a filling meets all weight blocks of a part; else there is one for each block and
    pass.
    The counts are iterations of the loops that work on a filling. With `again`, weights and row
    parameters are there since the group before. The `last` filling has the last tile.
    """

    def __init__(
        self, c: Command, build: Build, tiles: int, *, again: bool = False, last: bool = False
    ) -> None:
        self.tiles = tiles
        #: whether weights come from memory
        self.fetched = not (again or c.flags & FLAG_RESIDENT_WEIGHTS)
        of_part = _cut(c.part_rows // build.rows, c.rows_per_block // build.rows)
        blocks = np.tile(of_part, c.parts)
        passes = _cut(c.groups, c.groups_per_pass)
        self._one_pass, self._parts = len(passes) == 1, c.parts
        rows = np.repeat(blocks, len(passes))
        groups = np.tile(passes, len(blocks))
        last_pass = np.tile(np.arange(len(passes)) == len(passes) - 1, len(blocks))
        words = groups * c.keep  # of a row group
        lane_bits = build.rows * build.lanes
        bits = 4 if c.flags & FLAG_INT4 else 8
        sums_out = bool(c.flags & FLAG_SUMS_OUT)
        left_out = _left_out(c, build) if last else 0
        columns = tiles * build.cols - left_out
        outputs = columns * rows * last_pass * build.rows
        self.totals = self._add(tiles * rows * last_pass)  # row groups that outputs are made of
        units = _GATES if c.flags & (FLAG_LSTM | FLAG_GRU) else 1
        self.visits = self._add(np.ones_like(rows))
        self.last_visits = self._add(last_pass.astype(np.int64))  # those that make outputs
        whole = rows * build.rows // units == c.output_stride
        in_order = c.tiles_per_block == 1 or len(blocks) == 1
        #: runs of neighbouring outputs that are told one by one
        self.runs = self._add((0 if in_order else np.where(whole, 1, tiles)) * last_pass)
        #: runs of neighbouring words of weights, of indices and of row parameters
        self.fetches = self._add(np.ones_like(rows)) if not self._one_pass else _first(c.parts)
        self.weights = self._add(self.fetched * rows * -(-words * lane_bits * bits // 64))
        self.indices = self._add(self.fetched * rows * -(-words * lane_bits * c.index_bits // 64))
        self.parameters = self._add((not again) * rows * build.rows)
        slices = rows * words * lane_bits // PORT_BYTES
        self.unpack = self._add(slices) if self.fetched else self.visits
        multiply = np.maximum(rows * words, REUSE_DISTANCE)  # of a tile
        self.multiply = self._add(tiles * multiply)
        step = 2 if sums_out else build.requant_units

        def finish(columns: int) -> Counts:
            """Of a tile: parameters come a row a cycle, and outputs from the last of them on."""
            outputs = np.where(last_pass, build.rows * columns // step, 1)
            least = REUSE_DISTANCE + build.rows - 1
            return np.maximum(rows * (build.rows - 1 + outputs), least)

        whole, shortest = (tiles - 1) * finish(build.cols), finish(build.cols - left_out)
        self.finish = self._add(whole + shortest)
        #: as long as that takes at least: no tile is finished faster than it is multiplied
        self.drain = self._add(whole + np.maximum(shortest, multiply))
        self.requantised = self._add(outputs * (4 if sums_out else 1) // PORT_BYTES)
        self.outputs = self.requantised // units
        #: activation words that go to the chain
        self.links = self._add(tiles * rows * last_pass * build.rows // build.pack)
        space = build.lanes * c.bank_size
        first = np.arange(len(passes)) * c.groups_per_pass * space
        features = np.minimum(passes * space, c.features - first)
        #: features of a tile that are brought
        self.features = np.tile(features, c.parts if self._one_pass else len(blocks))

    def _add(self, of_visits: Counts) -> Counts:
        return of_visits.reshape(self._parts, -1).sum(1) if self._one_pass else of_visits

    @property
    def count(self) -> int:
        return len(self.features)


class Layer:
    """A command's groups of column tiles: `groups`, all but the first and the last one alike."""

    def __init__(self, c: Command, build: Build) -> None:
        self.c, self.build = c, build
        self.image = bool(c.flags & FLAG_IMAGE)
        self.from_chain = bool(c.flags & FLAG_FROM_CHAIN)
        self.cell = bool(c.flags & (FLAG_LSTM | FLAG_GRU))
        self.units = _GATES if self.cell else 1  # rows of an output
        self.weight_bits = 4 if c.flags & FLAG_INT4 else 8
        self.from_memory = not c.flags & (FLAG_FROM_CHAIN | FLAG_RESIDENT_INPUT)
        self.to_memory = bool(c.flags & FLAG_TO_MEMORY)
        self.to_chain = bool(c.flags & FLAG_TO_CHAIN)
        self.table_words = TABLE_WORDS if c.flags & FLAG_TABLE else 0
        #: of the states of an LSTM or GRU
        self.loaded_words = c.state_words if c.flags & FLAG_STATE_IN else 0
        self.stored_words = c.state_words if c.flags & FLAG_STATE_OUT else 0
        self.groups = -(-c.tiles // c.tiles_per_block)
        several = self.groups > 1
        stays = several and _stays(c, build)
        rest = c.tiles - (self.groups - 1) * c.tiles_per_block
        self.last = Fillings(c, build, rest, again=stays, last=True)
        self.full = Fillings(c, build, c.tiles_per_block, again=stays) if several else self.last
        self.first = Fillings(c, build, c.tiles_per_block) if stays else self.full

    @cached_property
    def loading(self) -> Loading:
        """How the pixels of the image come in."""
        return loading(self.c, self.build, self.last.count)

    @cached_property
    def reads(self) -> Counts:
        """Reads of the image memory for the windows of every tile."""
        return steps(self.c, self.build) * tiles_of(self.c, self.build).reads

    def sum(self, name: str) -> int:
        """Over all fillings."""
        first, full, last = (
            int(getattr(f, name).sum()) for f in (self.first, self.full, self.last)
        )
        return first + (self.groups - 2) * full + last if self.groups > 1 else last

    def plane_words(self, bits: int) -> int:
        """Words of memory that a plane of `bits` bits a lane takes."""
        build, c = self.build, self.c
        words = _cut(c.groups, c.groups_per_pass) * c.keep
        row_words = -(-words * (build.rows * build.lanes) * bits // (8 * PORT_BYTES))
        return int(row_words.sum()) * (c.rows // build.rows)

    def input_words(self) -> int:
        """Words of the input, as they are taken from memory or from the chain."""
        if self.image:
            if self.c.flags & FLAG_RESIDENT_INPUT:
                return 0
            return image_tiles(self.c, self.build) * tile_words(self.c, self.build)
        features = (self.groups - 1) * self.full.tiles * int(self.full.features.sum())
        features += self.last.tiles * int(self.last.features.sum())
        if self.from_chain:
            return features // self.build.pack
        return features * self.build.cols // PORT_BYTES

    def output_words(self) -> int:
        """Words that go to memory or to the chain."""
        return self.sum("outputs") + self.stored_words

    def writes(self, f: Fillings) -> Counts:
        """To the vector buffer, for each filling."""
        if self.image:
            return np.full(f.count, f.tiles * steps(self.c, self.build))
        return f.tiles * f.features // self.build.pack

    def multiply_trips(self) -> int:
        """Iterations of the one loop of the multipliers: their work, and what lies between."""
        full, last = self.writes(self.full), self.writes(self.last)
        begin = full if self.groups > 1 else last
        trips = 1 + self.sum("multiply") + int(begin[0]) + REUSE_DISTANCE
        trips += int(self._changes(self.last.multiply[:-1], last[1:]).sum())
        if self.groups > 1:
            inner = int(self._changes(self.full.multiply[:-1], full[1:]).sum())
            trips += (self.groups - 1) * inner
            trips += (self.groups - 2) * int(self._changes(self.full.multiply[-1:], full[:1])[0])
            trips += int(self._changes(self.full.multiply[-1:], last[:1])[0])
        return trips

    def _changes(self, multiply: Counts, writes: Counts) -> Counts:
        """Iterations between a filling and the next one, which has so many writes: those that
        were not taken beside the work, and until the last one may be read."""
        pace = self.c.pace
        rest = writes - -(-multiply // pace)
        age = multiply - (writes - 1) * pace - 1  # when the work ends, if all writes were taken
        return np.where(
            rest > 0,
            rest + REUSE_DISTANCE,
            np.maximum(REUSE_DISTANCE - np.minimum(age, REUSE_DISTANCE), 1),
        )


def _left_out(c: Command, build: Build) -> int:
    """Columns of the last tile that are not requantised, because nothing but the chain takes the
    outputs (`leaves_out` of `hls/check.hpp`)."""
    others = FLAG_TO_MEMORY | FLAG_RESIDUAL | FLAG_LSTM | FLAG_GRU
    if build.cols <= PORT_BYTES or c.flags & others:
        return 0
    return build.cols - -(-c.last_columns // PORT_BYTES) * PORT_BYTES


def _first(count: int) -> Counts:
    """A one and zeros behind it."""
    ones: Counts = np.zeros(count, np.int64)
    ones[0] = 1
    return ones


def _stays(c: Command, build: Build) -> bool:
    """Whether weights and row parameters stay in their buffers from group to group."""
    row_groups = c.rows // build.rows
    fits = row_groups * c.groups * c.keep <= build.block_words and row_groups <= build.block_rows
    return fits and c.groups <= c.groups_per_pass


def _cut(total: int, step: int) -> Counts:
    """`total` in steps, the last one what remains."""
    lengths = np.full(-(-total // step), step, np.int64)
    lengths[-1] = total - step * (len(lengths) - 1)
    return lengths
