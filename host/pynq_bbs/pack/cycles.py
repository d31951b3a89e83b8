# SPDX-License-Identifier: Apache-2.0
"""The cycle model: what a command costs, from the command itself and the build's parameters.

Modelled, not measured. Everything follows from how often each pipelined loop of `hls/` iterates
(`trip_counts`, exact); a loop starts an iteration a cycle, and takes `PIPELINE_CYCLES` more
whenever it is entered, until its pipeline is empty. A test counts the trips in the source itself,
and replays them cycle by cycle with streams of the source's depths and a memory that serves its
ports in turn.

The model adds up fillings of the vector buffer: where the features fit one pass, a filling is one
group of tiles with all its weight blocks; else it is one block in one pass. The stages work side
by side on a filling while the next one is brought, so it takes as long as the slowest of them, or
as all its bytes take at the memory's rate. The multipliers wait besides

* for the writes that they take every `pace` cycles, where the gathering is slower, or cannot begin
  a tile because pixels of it have not come;
* for the writes of the next filling that are left when the work is done.

Added to that: the first filling, or the table where it takes longer; the first weight block, of
which only the queue's part has come by then; the last row's way out; and a fixed cost for fetching
and checking the command.

Assumed: a port gets an equal share of the memory while others want words, and its own words until
then come evenly; weights that are fetched ahead come off the last group's; groups of tiles do not
influence each other beyond the next one. Of layers with many fillings the replay is met within
2 %, of networks too; a single short layer may be off by a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..builds import PORT_BYTES, Build
from ..interface import COMMAND_WORDS, FLAG_RESIDUAL, FLAG_TABLE, FLAG_TO_MEMORY, Command
from .fillings import Fillings, Layer
from .timing import PIPELINE_CYCLES, Timing

#: Cycles to fetch, decode and check a command and to start the region.
COMMAND_CYCLES = 100
_TABLE_WORDS = 256 // PORT_BYTES
#: What stands outside of loops on the way to the first loop of the multipliers.
_STEPS = 6
#: Row groups that the streams before requantisation take.
_ROWS_IN_FLIGHT = 8

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


def trip_counts(command: Command, build: Build) -> dict[str, int]:
    """How often every pipelined loop of `hls/` iterates for a command that the engine accepts.

    Names are `file:function:label`, with the port behind where a function is several processes.
    Left out is what depends on the command's place in a run: where its own words come from
    (`first_command_words`, or `fetch_program` beside the command before), and `drain`, which
    empties the chain behind the last command.
    """
    c, layer = command, Layer(command, build)
    table = _TABLE_WORDS if c.flags & FLAG_TABLE else 0
    outputs, to_memory = layer.sum("outputs"), bool(c.flags & FLAG_TO_MEMORY)
    words = layer.input_words()
    trips = {
        "engine.cpp:prepare:command_words": COMMAND_WORDS,
        _WEIGHTS: layer.sum("weights"),
        _INDICES: layer.sum("indices"),
        _PARAMETERS: table + layer.sum("parameters"),
        _LOAD: 0 if layer.from_chain else words,
        _RESIDUALS: outputs if c.flags & FLAG_RESIDUAL else 0,
        _STORES: outputs if to_memory else 0,
        _LINKS: 0 if to_memory else outputs,
        _UNPACK: layer.sum("unpack"),
        _FEATURES: 0 if layer.image else words,
        _MULTIPLY: layer.sum("multiply"),
        _FILL_REST: layer.fill_rest(),
        _ACCUMULATE: layer.sum("accumulate"),
        _TABLE: table,
        _TABLE_BYTES: table * PORT_BYTES,
        _REQUANTISE: layer.sum("requantise"),
    }
    return trips | _image_trips(layer)


def _image_trips(layer: Layer) -> dict[str, int]:
    if not layer.image:
        return dict.fromkeys((_COLUMNS, _RING, _WINDOWS, _IMAGE_REST, _IMAGE_END), 0)
    fillings = layer.last.count  # of each tile
    return {
        _COLUMNS: layer.c.tiles * layer.build.cols * fillings,
        _RING: layer.loading.turns,
        _WINDOWS: int(layer.reads.sum()) * fillings,
        _IMAGE_REST: int(layer.loading.rest.sum()),
        _IMAGE_END: layer.loading.end,
    }


def layer_cycles(command: Command, build: Build, memory: Memory) -> LayerCycles:
    """Modelled cycles, bytes and products of one command that the engine accepts."""
    c, layer = command, Layer(command, build)
    timing = Timing(layer, memory.bytes_per_cycle / PORT_BYTES)
    total = COMMAND_CYCLES + _lead(layer, timing)
    total += _window_steps(layer, timing) if layer.image else _feature_steps(layer, timing)
    # Behind the multipliers there are three more pipelines, and the words of a row group.
    total += 3 * PIPELINE_CYCLES + build.rows * build.cols / build.requant_units
    macs = c.rows * c.groups * build.lanes * c.keep * c.tiles * build.cols
    read, written = _bytes(layer)
    total = max(total, COMMAND_CYCLES + (read + written) / memory.bytes_per_cycle)
    return LayerCycles(float(total), macs // build.products_per_cycle, read, written, macs)


def _bytes(layer: Layer) -> tuple[int, int]:
    """Read and written."""
    flags, outputs = layer.c.flags, layer.sum("outputs")
    read = sum(layer.sum(x) for x in ("weights", "indices", "parameters"))
    read += 0 if layer.from_chain else layer.input_words()
    read += _TABLE_WORDS if flags & FLAG_TABLE else 0
    read += outputs if flags & FLAG_RESIDUAL else 0
    return PORT_BYTES * read, PORT_BYTES * (outputs if flags & FLAG_TO_MEMORY else 0)


def _feature_steps(layer: Layer, t: Timing) -> float:
    """Cycles of all fillings, from the first word that is multiplied on."""
    full, last, groups = layer.full, layer.last, layer.groups
    inner, end, first = slice(-1), slice(last.count - 1, None), slice(1)
    bring = t.features(last)
    total = t.cycles(last, inner, bring.at(slice(1, None))) + float(t.work(last)[-1])
    if groups == 1:
        return total
    total += t.cycles(full, end, bring.at(first))
    bring = t.features(full)
    total += (groups - 1) * t.cycles(full, inner, bring.at(slice(1, None)))
    return total + (groups - 2) * t.cycles(full, end, bring.at(first))


def _window_steps(layer: Layer, t: Timing) -> float:
    """The same where the features are windows: every group of tiles is a case of its own."""
    full, last, groups = layer.full, layer.last, layer.groups
    inner, end = slice(-1), slice(last.count - 1, None)
    # Pixels that no window needs come beside the work on the last filling.
    total = max(float(t.work(last)[-1]), t.alone(layer.loading.end))
    if last.count > 1:
        for f, at in ((full, slice(0, groups - 1)), (last, slice(groups - 1, groups))):
            total += t.cycles(f, inner, t.windows_again(f, at).crossed())
    others, ports = t.others(full)[end], t.ports(full)[end]
    later = max(groups - 1, 1)
    for f, at in (
        (full, slice(1, min(later, 2))),
        (full, slice(2, later)),
        (last, slice(later, groups)),
    ):
        if at.stop > at.start:
            bring = t.windows(f, at, others, ports).crossed()
            total += t.cycles(full, end, bring, first=at.start == 1 and full.count == 1)
    return total


def _lead(layer: Layer, t: Timing) -> float:
    """Cycles until the vector buffer is filled for the first time.

    Notes in `t` how many weights come meanwhile: as many as wait before the block buffer.
    """
    build, f = layer.build, layer.full
    weights, indices = layer.sum("weights"), layer.sum("indices")
    planes = weights + indices
    queued = planes * min(1.0, t.queue / max(layer.sum("unpack"), 1))
    ports = planes / max(weights, indices, 1)
    if layer.image:
        b = t.windows(f, slice(0, 1), np.array([queued]), np.array([ports]))
        lead = float(b.gather[0]) + build.cols + PIPELINE_CYCLES
    else:
        b = t.features(f)
        runs = np.array([f.tiles])
        load = t.load(b.words[:1], runs, np.array([queued]), np.array([ports]))
        lead = max(float(b.gather[0]), float(load[0]) + PIPELINE_CYCLES * layer.from_memory)
    lead += 2 * PIPELINE_CYCLES + _STEPS
    if planes:
        spare = max(lead * t.rate - float(b.words[0]), 0.0)
        fetched = min(queued, spare, (lead - 2 * PIPELINE_CYCLES) * ports)
        t.left = max(0.0, 1 - fetched / int((layer.last.weights + layer.last.indices).sum()))
        lead += _first_block(f, t, fetched)
    return max(lead, _table(layer))


def _first_block(f: Fillings, t: Timing, fetched: float) -> float:
    """Cycles that the first weight block costs more than one that comes beside another one:
    of it only `fetched` words are there, and its first tile takes as long as the others."""
    visits = int(f.visits[0])
    words = int(f.weights[0] + f.indices[0]) / visits
    come, hidden = (float(x[0]) / visits for x in t.come(f))
    come *= max(0.0, 1 - fetched / words)
    tile = int(f.multiply[0]) / visits / f.tiles
    return max(come, tile) - max(come - hidden, tile)


def _table(layer: Layer) -> float:
    """Cycles from the start until the multipliers may begin without waiting for the table."""
    c = layer.c
    if not c.flags & FLAG_TABLE:
        return 0.0
    row = c.keep * min(c.groups, c.groups_per_pass)
    return PORT_BYTES * _TABLE_WORDS + 3 * PIPELINE_CYCLES + _STEPS - _ROWS_IN_FLIGHT * row
