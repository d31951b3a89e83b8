# SPDX-License-Identifier: Apache-2.0
"""The cycle model: what a command costs, from the command itself and the build's parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..builds import PORT_BYTES, Build
from ..interface import (
    COMMAND_WORDS,
    FLAG_FROM_CHAIN,
    FLAG_IMAGE,
    FLAG_INT4,
    FLAG_RESIDENT_WEIGHTS,
    FLAG_RESIDUAL,
    FLAG_SUMS_OUT,
    FLAG_TABLE,
    FLAG_TO_MEMORY,
    Command,
)
from .windows import Counts, Loading, image_tiles, loading, steps, tile_words, tiles_of

#: Cycles to fetch, decode and check a command and to start the region.
COMMAND_CYCLES = 100
#: Latency of a pipelined loop, the same for all of them.
PIPELINE_CYCLES = 20
_TABLE_WORDS = 256 // PORT_BYTES
#: What one tile leaves in a memory is read this many cycles later (`kReuseDistance`).
_REUSE = 4

_WEIGHTS = "memory.hpp:fetch:words(weights)"
_INDICES = "memory.hpp:fetch:words(indices)"
_PARAMETERS = "memory.hpp:fetch:words(program)"
_LOAD = "memory.hpp:fetch:words(activations)"
_RESIDUALS = "memory.hpp:fetch:words(residuals)"
_STORES = "memory.hpp:deliver:stores"
_LINKS = "memory.hpp:deliver:links"
_COLUMNS = "columns.hpp:columns:cols"
_FEATURES = "gather.hpp:gather_features:feature_words"
_RING = "gather.hpp:keep_from:ring"
_WINDOWS = "gather.hpp:gather_tile:windows"
_IMAGE_REST = "gather.hpp:gather_image:image_rest"
_IMAGE_END = "gather.hpp:gather_image:image_end"
_UNPACK = "unpack.hpp:unpack:slices"
_MULTIPLY = "multiply.hpp:multiply_visit:csb_words"
_FILL_REST = "multiply.hpp:multiply:fill_rest"
_ACCUMULATE = "accumulate.hpp:accumulate:rows"
_TABLE = "accumulate.hpp:accumulate:table"
_TABLE_BYTES = "requantise.hpp:requantise:table_bytes"
_REQUANTISE = "requantise.hpp:requantise:output_words"


@dataclass(frozen=True)
class Memory:
    """What the board gives the engine."""

    clock_hz: float
    bytes_per_second: float

    @property
    def bytes_per_cycle(self) -> float:
        return self.bytes_per_second / self.clock_hz


@dataclass(frozen=True)
class LayerCycles:
    """Modelled cycles of one command, and what they are made of."""

    total: float
    multiply: int  # cycles in which the multipliers work
    bytes_read: int
    bytes_written: int
    macs: int  # executed products over the padded batch: rows x kept weights x columns

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    @property
    def utilisation(self) -> float:
        """Share of the cycles in which the multipliers work, 0 to 1."""
        return self.multiply / self.total


class _Fillings:
    """The fillings of the vector buffer for a group of column tiles, an entry each.

    With one pass a filling meets all weight blocks; else there is one for each block and pass.
    Iterations of the loops that work on a filling, and of those that bring it.
    """

    def __init__(self, c: Command, build: Build, tiles: int) -> None:
        self.tiles = tiles
        blocks = _cut(c.rows // build.rows, c.rows_per_block // build.rows)
        passes = _cut(c.groups, c.groups_per_pass)
        self._one_pass = len(passes) == 1
        rows = np.repeat(blocks, len(passes))
        groups = np.tile(passes, len(blocks))
        last_pass = np.tile(np.arange(len(passes)) == len(passes) - 1, len(blocks))
        words = groups * c.keep  # of a row group
        lane_bits = build.rows * build.lanes
        fetched = 0 if c.flags & FLAG_RESIDENT_WEIGHTS else 1
        bits = 4 if c.flags & FLAG_INT4 else 8
        outputs = tiles * rows * last_pass * (build.rows * build.cols)
        stored = 4 * outputs if c.flags & FLAG_SUMS_OUT else outputs
        units = 2 if c.flags & FLAG_SUMS_OUT else build.requant_units
        #: visits of a filling, and runs of the loops that move outputs
        self.visits = self._add(np.ones_like(rows))
        self.runs = self._add(tiles * last_pass)
        self.weights = self._add(fetched * rows * -(-words * lane_bits * bits // 64))
        self.indices = self._add(fetched * rows * -(-words * lane_bits * c.index_bits // 64))
        self.parameters = self._add(rows * build.rows)
        self.unpack = self._add(fetched * rows * words * lane_bits // PORT_BYTES)
        self.multiply = self._add(tiles * np.maximum(rows * words, _REUSE))
        self.accumulate = self._add(tiles * np.maximum(rows * build.rows, _REUSE))
        self.requantise = self._add(outputs // units)
        self.outputs = self._add(stored // PORT_BYTES)
        space = build.lanes * c.bank_size
        first = np.arange(len(passes)) * c.groups_per_pass * space
        features = np.minimum(passes * space, c.features - first)
        self.features = features if self._one_pass else np.tile(features, len(blocks))

    def _add(self, of_visits: Counts) -> Counts:
        return of_visits.sum(keepdims=True) if self._one_pass else of_visits

    @property
    def count(self) -> int:
        return len(self.features)


class _Layer:
    """What a command makes the stages do."""

    def __init__(self, c: Command, build: Build) -> None:
        self.c, self.build = c, build
        self.image = bool(c.flags & FLAG_IMAGE)
        self.groups = -(-c.tiles // c.tiles_per_block)
        last = c.tiles - (self.groups - 1) * c.tiles_per_block
        self.last = _Fillings(c, build, last)
        #: all groups but the last one are alike
        self.full = _Fillings(c, build, c.tiles_per_block) if self.groups > 1 else self.last

    @cached_property
    def loading(self) -> Loading:
        return loading(self.c, self.build, self.last.count)

    def sum(self, name: str) -> int:
        """Over all fillings."""
        full, last = getattr(self.full, name), getattr(self.last, name)
        return (self.groups - 1) * int(full.sum()) + int(last.sum())

    def writes(self, f: _Fillings) -> Counts:
        """To the vector buffer, for each filling."""
        if self.image:
            return np.full(f.count, f.tiles * steps(self.c, self.build))
        return f.tiles * f.features // max(PORT_BYTES // self.build.cols, 1)

    def taken(self, work: _Fillings) -> Counts:
        """Writes that are taken beside the work on each filling, at most."""
        return -(-work.multiply // self.c.pace)

    def fill_rest(self) -> int:
        """Writes that are taken while the multipliers wait."""
        full, last = self.writes(self.full), self.writes(self.last)
        beside_full, beside_last = self.taken(self.full), self.taken(self.last)
        between = int(np.maximum(full[1:] - beside_full[:-1], 0).sum())
        end = int(np.maximum(last[1:] - beside_last[:-1], 0).sum())
        turn = max(int(full[0] - beside_full[-1]), 0)
        last_turn = max(int(last[0] - beside_full[-1]), 0)
        if self.groups == 1:
            return int(last[0]) + end
        return (
            int(full[0]) + (self.groups - 1) * between + (self.groups - 2) * turn + last_turn + end
        )


def trip_counts(command: Command, build: Build) -> dict[str, int]:
    """How often every pipelined loop of `hls/` iterates for a command that the engine accepts.

    Names are `file:function:label`, with the port behind where a function is several processes.
    Left out: `drain`, which empties the chain behind the last command of a run.
    """
    c, layer = command, _Layer(command, build)
    table = _TABLE_WORDS if c.flags & FLAG_TABLE else 0
    outputs, to_memory = layer.sum("outputs"), bool(c.flags & FLAG_TO_MEMORY)
    trips = {
        "engine.cpp:bbs_engine:command_words": COMMAND_WORDS,
        _WEIGHTS: layer.sum("weights"),
        _INDICES: layer.sum("indices"),
        _PARAMETERS: table + layer.sum("parameters"),
        _RESIDUALS: outputs if c.flags & FLAG_RESIDUAL else 0,
        _STORES: outputs if to_memory else 0,
        _LINKS: 0 if to_memory else outputs,
        _UNPACK: layer.sum("unpack"),
        _MULTIPLY: layer.sum("multiply"),
        _FILL_REST: layer.fill_rest(),
        _ACCUMULATE: layer.sum("accumulate"),
        _TABLE: table,
        _TABLE_BYTES: table * PORT_BYTES,
        _REQUANTISE: layer.sum("requantise"),
        **dict.fromkeys((_COLUMNS, _FEATURES, _RING, _WINDOWS, _IMAGE_REST, _IMAGE_END), 0),
    }
    return trips | (_image_trips(layer) if layer.image else _feature_trips(layer))


def _feature_trips(layer: _Layer) -> dict[str, int]:
    c, build = layer.c, layer.build
    features = (layer.groups - 1) * layer.full.tiles * int(layer.full.features.sum())
    features += layer.last.tiles * int(layer.last.features.sum())
    port_words = features * build.cols // PORT_BYTES
    if c.flags & FLAG_FROM_CHAIN:
        return {_LOAD: 0, _FEATURES: features // max(PORT_BYTES // build.cols, 1)}
    return {_LOAD: port_words, _FEATURES: port_words}


def _image_trips(layer: _Layer) -> dict[str, int]:
    c, build, load = layer.c, layer.build, layer.loading
    taken = sum(int(x.sum()) for x in (load.rest, load.beside, load.again)) + load.end
    return {
        _LOAD: 0 if c.flags & FLAG_FROM_CHAIN else taken,
        _COLUMNS: c.tiles * build.cols * layer.last.count,
        _RING: load.turns,
        _WINDOWS: steps(c, build) * int(tiles_of(c, build).reads.sum()) * layer.last.count,
        _IMAGE_REST: int(load.rest.sum()),
        _IMAGE_END: load.end,
    }


def _cut(total: int, step: int) -> Counts:
    """`total` in steps, the last one what remains."""
    lengths = np.full(-(-total // step), step, np.int64)
    lengths[-1] = total - step * (len(lengths) - 1)
    return lengths
