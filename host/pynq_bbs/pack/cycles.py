# SPDX-License-Identifier: Apache-2.0
"""The cycle model: what a command costs, from the command itself and the build's parameters.

Modelled, not measured. It follows the engine's loops (`hls/sequence.hpp`) by fillings of the
vector buffer: where the features fit one pass, a filling is one tile group with all its weight
blocks; else it is one block in one pass. The stages work side by side on a filling, so it takes
as long as its slowest stage:

* multiply: one CSB word a cycle for every tile, plus the loop's fill once a block;
* unpack: eight lanes of a CSB word a cycle, once a block;
* requantise: one port word of output a cycle, in the last pass;
* load: one port word a cycle, for the activations of the *next* filling;
* memory: all bytes of the filling, read and written, at the memory's rate.

Added to that: the first filling and the first weights (nothing runs beside them), the last row's
way out, and a fixed cost for fetching and checking the command. Assumed: every pipelined loop
starts an iteration a cycle, and memory delivers its rate at any mix of ports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..builds import PORT_BYTES, Build
from ..interface import FLAG_SUMS_OUT, FLAG_TABLE, Command

#: Cycles to fetch, decode and check a command and to start the region.
COMMAND_CYCLES = 100
#: Cycles for a pipelined loop to fill and drain once a visit.
PIPELINE_CYCLES = 20
_TABLE_BYTES = 256


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


@dataclass(frozen=True)
class _Filling:
    """`times` equal fillings of the vector buffer, and the work done over each."""

    times: int
    tiles: int
    features: int
    groups: int
    rows: int
    blocks: int
    last_pass: bool


def layer_cycles(command: Command, build: Build, memory: Memory) -> LayerCycles:
    """Modelled cycles, bytes and products of one command."""
    c = command
    rate = memory.bytes_per_cycle
    table_bytes = _TABLE_BYTES if c.flags & FLAG_TABLE else 0
    row_out = build.cols * (4 if c.flags & FLAG_SUMS_OUT else 1) // PORT_BYTES
    total = COMMAND_CYCLES + table_bytes / rate + row_out + PIPELINE_CYCLES
    multiply, written, read = 0, 0, table_bytes
    first = True
    for f in _fillings(c, build):
        words = f.rows * f.groups * c.keep
        load = f.features * f.tiles * build.cols
        weights = _weight_bytes(c, build, f.rows, f.groups)
        out = f.rows * f.tiles * row_out * f.last_pass
        if first:
            one_row = _weight_bytes(c, build, 1, f.groups)
            total += max(load / PORT_BYTES, (load + one_row) / rate)
            first = False
        total += f.times * max(
            words * f.tiles + f.blocks * PIPELINE_CYCLES,
            words * build.lanes // PORT_BYTES,
            out,
            load / PORT_BYTES,
            (load + weights + out * PORT_BYTES) / rate,
        )
        multiply += f.times * words * f.tiles
        read += f.times * (load + weights)
        written += f.times * out * PORT_BYTES
    macs = c.rows * c.groups * build.lanes * c.keep * c.tiles * build.cols
    return LayerCycles(total, multiply, read, written, macs)


def _fillings(c: Command, build: Build) -> Iterator[_Filling]:
    one_pass = c.groups == c.groups_per_pass
    blocks = -(-c.rows // c.rows_per_block)
    for tiles, tile_times in _runs(c.tiles, c.tiles_per_block):
        if one_pass:
            yield _Filling(tile_times, tiles, c.features, c.groups, c.rows, blocks, True)
            continue
        for rows, row_times in _runs(c.rows, c.rows_per_block):
            for first_group in range(0, c.groups, c.groups_per_pass):
                groups = min(c.groups_per_pass, c.groups - first_group)
                space = build.lanes * c.bank_size
                features = min(groups * space, c.features - first_group * space)
                last = first_group + groups == c.groups
                yield _Filling(tile_times * row_times, tiles, features, groups, rows, 1, last)


def _runs(total: int, step: int) -> list[tuple[int, int]]:
    """`total` cut into steps, as (length, how often): the whole ones and the rest."""
    whole, rest = divmod(total, step)
    return [(n, times) for n, times in ((step, whole), (rest, 1)) if n and times]


def _weight_bytes(c: Command, build: Build, rows: int, groups: int) -> int:
    """Weights, indices and row parameters of `rows` rows of one pass."""
    row = groups * c.keep * build.lanes
    indices = -(-row * c.index_bits // 64) * PORT_BYTES
    return rows * (row + indices + PORT_BYTES)
