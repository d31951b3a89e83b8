# SPDX-License-Identifier: Apache-2.0
"""The cycle model: what a command costs, from the command itself and the build's parameters.

Modelled, not measured. Everything follows from how often each pipelined loop of `hls/` iterates
(`trip_counts`); a loop starts an iteration a cycle, and takes `PIPELINE_CYCLES` more whenever it
is entered, until its pipeline is empty. A test counts the trips in the source itself, and replays
them cycle by cycle with streams of the source's depths and a memory that serves its ports in turn.

The model adds up fillings of the vector buffer: where the features fit one pass, a filling is one
tile group with all its weight blocks; else it is one block in one pass. The stages work side by
side on a filling, so it takes as long as the slowest of them, or as all its bytes take at the
memory's rate. Beside it the features of the next filling are loaded, which costs more where

* weights or outputs then come too slowly, because the ports share the memory;
* the load is ordered too late to be done in time: orders wait in streams of bounded depth.

Added to that: the first features and weights (nothing runs beside them), or the table where it
takes longer, the last row's way out, and a fixed cost for fetching and checking the command.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..builds import PORT_BYTES, Build
from ..interface import COMMAND_WORDS, FLAG_INT4, FLAG_SUMS_OUT, FLAG_TABLE, Command

#: Cycles to fetch, decode and check a command and to start the region.
COMMAND_CYCLES = 100
#: Latency of a pipelined loop, the same for all of them.
PIPELINE_CYCLES = 20
_TABLE_BYTES = 256
#: What one tile leaves in a memory is read this many cycles later (`kReuseDistance`).
_REUSE = 4
#: Rows that the streams before requantisation take.
_ROWS_IN_FLIGHT = 8
#: Orders (`kVisitDepth`) that the sequence is ahead of the store, and the one in work.
_ORDERS_AHEAD = 9
#: Words that wait between a port and its stage (`kPortDepth`).
_PORT_DEPTH = 64

_WEIGHTS = "memory.hpp:fetch:words(weights)"
_INDICES = "memory.hpp:fetch:words(indices)"
_PARAMETERS = "memory.hpp:fetch:words(program)"
_LOAD = "memory.hpp:fetch:words(activations)"
_FILL = "multiply.hpp:fill_vectors:feature_words"
_UNPACK = "unpack.hpp:unpack:slices"
_MULTIPLY = "multiply.hpp:multiply_visit:csb_words"
_ACCUMULATE = "accumulate.hpp:accumulate:rows"
_TABLE = "requantise.hpp:requantise:table_bytes"
_REQUANTISE = "requantise.hpp:requantise:output_words"
_STORE = "memory.hpp:store:words"


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
    """`times` equal fillings of the vector buffer, and the visits that use each."""

    times: int
    tiles: int
    features: int
    groups: int
    blocks: list[tuple[int, int]]  # (rows of a weight block, how many such blocks)
    last_pass: bool


class _Work(dict[str, tuple[int, int]]):
    """Loop name -> (iterations, how often the loop is entered)."""

    def add(self, other: _Work, times: int = 1) -> None:
        for loop, (trips, runs) in other.items():
            before = self.get(loop, (0, 0))
            self[loop] = (before[0] + times * trips, before[1] + times * runs)

    def trips(self, loop: str) -> int:
        return self.get(loop, (0, 0))[0]

    def cycles(self, loop: str) -> int:
        """An iteration a cycle, and every time until the pipeline is empty."""
        trips, runs = self.get(loop, (0, 0))
        return trips + runs * PIPELINE_CYCLES if trips else 0


def trip_counts(command: Command, build: Build) -> dict[str, int]:
    """How often every pipelined loop of `hls/` iterates for a command that the engine accepts.

    Names are `file:function:label`, with the port behind where a function is several processes.
    """
    total = _command_work(command)
    for f in _fillings(command, build):
        total.add(_filling_work(command, build, f), f.times)
    return {loop: trips for loop, (trips, _) in total.items()}


def _command_work(c: Command) -> _Work:
    """What is done once a command."""
    table = _TABLE_BYTES // PORT_BYTES if c.flags & FLAG_TABLE else 0
    return _Work(
        {
            "engine.cpp:bbs_engine:command_words": (COMMAND_WORDS, 1),
            _PARAMETERS: (table, 1),
            "accumulate.hpp:accumulate:table": (table, 1),
            _TABLE: (table * PORT_BYTES, 1 if table else 0),
        }
    )


def _filling_work(c: Command, build: Build, f: _Filling) -> _Work:
    trips = f.tiles * f.features * build.cols // PORT_BYTES
    work = _Work(
        {
            _LOAD: (trips, f.tiles),
            _FILL: (trips, f.tiles),
        }
    )
    for rows, times in f.blocks:
        work.add(_visit_work(c, build, f, rows), times)
    return work


def _visit_work(c: Command, build: Build, f: _Filling, rows: int) -> _Work:
    """A weight block of `rows` rows meets the tiles of a filling."""
    words = f.groups * c.keep  # of a row
    weights = rows * _plane_row_words(words, build, 4 if c.flags & FLAG_INT4 else 8)
    indices = rows * _plane_row_words(words, build, c.index_bits)
    outputs = f.tiles * rows * _row_words(c, build) if f.last_pass else 0
    return _Work(
        {
            _WEIGHTS: (weights, 1),
            _INDICES: (indices, 1),
            _PARAMETERS: (rows, 1),
            _UNPACK: (rows * words * build.lanes // PORT_BYTES, 1),
            _MULTIPLY: (f.tiles * max(rows * words, _REUSE), 1),
            _ACCUMULATE: (f.tiles * max(rows, _REUSE), 1),
            # one loop over all of the command: it is not entered again
            _REQUANTISE: (outputs, 0),
            _STORE: (outputs, f.tiles),
        }
    )


def layer_cycles(command: Command, build: Build, memory: Memory) -> LayerCycles:
    """Modelled cycles, bytes and products of one command that the engine accepts."""
    c = command
    rate = memory.bytes_per_cycle / PORT_BYTES
    steps = [(f, _filling_work(c, build, f)) for f in _fillings(c, build)]
    everything = _command_work(c)
    for f, work in steps:
        everything.add(work, f.times)
    row = c.keep * min(c.groups, c.groups_per_pass)
    lead, ahead = _lead(build, steps[0][1], rate)
    # Nothing is requantised before the table is there; a few rows wait in the streams.
    table = everything.cycles(_TABLE) + 2 * PIPELINE_CYCLES - _ROWS_IN_FLIGHT * row
    total = COMMAND_CYCLES + max(lead, table) + 4 * PIPELINE_CYCLES + _row_words(c, build)
    for i, (f, work) in enumerate(steps):
        # Loaded beside these fillings: their like, and beside the last of them the next kind.
        then = steps[i + 1][1] if i + 1 < len(steps) else _Work()
        for loaded, times in ((work, f.times - 1), (then, 1)):
            if times:
                total += _beside(f, work, loaded, row, build, rate, ahead)
                total += (times - 1) * _beside(f, work, loaded, row, build, rate, 0)
                ahead = 0  # only the first time, weights are there already
    macs = c.rows * c.groups * build.lanes * c.keep * c.tiles * build.cols
    read = PORT_BYTES * sum(everything.trips(x) for x in everything if ":fetch:" in x)
    written = PORT_BYTES * everything.trips(_STORE)
    return LayerCycles(total, macs // build.products_per_cycle, read, written, macs)


def _share(work: _Work, features: int, rate: float) -> float:
    """Words a cycle that a port gets while `features` words are loaded beside `work`.

    The memory serves its ports in turn; a port with fewer words than the busiest one competes in
    that proportion. Beside busy outputs, weights and indices compete only until they are there.
    """
    planes, outputs = (work.trips(_WEIGHTS), work.trips(_INDICES)), work.trips(_STORE)
    together = sum(planes) / max(planes)
    if outputs > max(planes):
        together = together * min(1.0, max(planes) / features) + 1 if features else 1.0
    else:
        together += outputs / max(planes)
    return min(1.0, rate / (1 + together))


def _lead(build: Build, first: _Work, rate: float) -> tuple[float, float]:
    """Cycles until the vector buffer is filled for the first time, and the words of weights and
    indices that are fetched meanwhile: as many as the block buffer takes."""
    planes = first.trips(_WEIGHTS), first.trips(_INDICES)
    buffered = build.block_words * build.lanes // PORT_BYTES + _PORT_DEPTH
    part = min(1.0, buffered / first.trips(_UNPACK))
    share = min(1.0, rate / (1 + sum(planes) / max(planes)))
    load = max(first.cycles(_LOAD), first.trips(_LOAD) / rate) + PIPELINE_CYCLES
    slowed = max(load, first.trips(_LOAD) / share + 2 * PIPELINE_CYCLES)
    cycles = min(load + max(planes) * part / share * (1 - share), slowed)
    if share < 1:  # row parameters come on a port of their own, up to a stream full
        cycles += min(first.trips(_PARAMETERS), _PORT_DEPTH) * share / rate
    return cycles, min(sum(planes) * part, cycles * rate - first.trips(_LOAD))


def _beside(
    f: _Filling, work: _Work, loaded: _Work, row: int, build: Build, rate: float, ahead: float
) -> float:
    """Cycles of one filling while the next one is loaded.

    Args:
        loaded: the work of that next filling; empty where this is the last one.
        row: cycles until the first row is multiplied.
        ahead: words of weights and indices that have been fetched already.
    """
    busy = max(work.cycles(x) for x in (_MULTIPLY, _ACCUMULATE, _UNPACK, _STORE))
    busy = max(busy, work.cycles(_REQUANTISE) + row)
    ports = tuple(work.trips(x) for x in (_WEIGHTS, _INDICES, _STORE))
    moved = sum(ports) + work.trips(_PARAMETERS) - ahead
    share = _share(work, loaded.trips(_LOAD), rate)
    # While features are loaded, the busiest port keeps up with this part of the work. Weights are
    # buffered, but the buffer is filled up again only while the block meets further tiles.
    pace = min(1.0, share * busy / max(ports))
    spare = build.block_words if f.tiles > 1 and max(ports) > ports[-1] else 0
    # The load is ordered when the streams of orders have room: so many visits before the end.
    visits = sum(times for _, times in f.blocks)
    orders = _ORDERS_AHEAD / f.tiles if f.last_pass else _ORDERS_AHEAD
    window = busy * min(1.0, orders / visits)
    features, slowed = loaded.trips(_LOAD), window / pace
    load = max(loaded.cycles(_LOAD), min(features / share, features + slowed * (1 - share)))
    starved = max(0.0, min(load * (1 - pace), slowed - window) - spare)
    late = max(0.0, load - starved - window)
    return max(busy + starved + late, (loaded.trips(_LOAD) + moved) / rate)


def _fillings(c: Command, build: Build) -> Iterator[_Filling]:
    one_pass = c.groups == c.groups_per_pass
    blocks = _runs(c.rows, c.rows_per_block)
    for tiles, tile_times in _runs(c.tiles, c.tiles_per_block):
        if one_pass:
            yield _Filling(tile_times, tiles, c.features, c.groups, blocks, True)
            continue
        for rows, times in blocks:
            for first_group in range(0, c.groups, c.groups_per_pass):
                groups = min(c.groups_per_pass, c.groups - first_group)
                space = build.lanes * c.bank_size
                features = min(groups * space, c.features - first_group * space)
                last = first_group + groups == c.groups
                yield _Filling(tile_times * times, tiles, features, groups, [(rows, 1)], last)


def _runs(total: int, step: int) -> list[tuple[int, int]]:
    """`total` cut into steps, as (length, how often): the whole ones and the rest."""
    whole, rest = divmod(total, step)
    return [(n, times) for n, times in ((step, whole), (rest, 1)) if n and times]


def _plane_row_words(words: int, build: Build, bits: int) -> int:
    """Port words of a row of `words` CSB words in a plane of `bits` bits a lane."""
    return -(-words * build.lanes * bits // (8 * PORT_BYTES))


def _row_words(c: Command, build: Build) -> int:
    """Port words of an output row of one tile."""
    return build.cols * (4 if c.flags & FLAG_SUMS_OUT else 1) // PORT_BYTES
