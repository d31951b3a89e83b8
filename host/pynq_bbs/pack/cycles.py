# SPDX-License-Identifier: Apache-2.0
"""The cycle model: what a command costs, from the command itself and the build's parameters.

Modelled, not measured. Everything follows from how often each pipelined loop of `hls/` iterates
(`trip_counts`, exact); a loop starts an iteration a cycle, and takes `PIPELINE_CYCLES` more
whenever it is entered, until its pipeline is empty. A test counts the trips in the source itself,
and replays them cycle by cycle with streams of the source's depths and a memory that serves its
ports in turn.

The model goes through the fillings of the vector buffer with two clocks (`timing.py`): where the
features fit one pass, a filling is one group of tiles with all its weight blocks; else it is one
block in one pass. The multipliers wait

* for the writes that they take every `pace` cycles, where the gathering is slower, or cannot go on
  because pixels have not come;
* for the writes of the next filling that are left when the work is done;
* for weights, for outputs that are not taken, and for the memory, each of which has a clock too.

The next command is fetched and checked meanwhile, and costs what is longer than the work.

Assumed: a port gets an equal share of the memory while others want words, and its own words until
then come evenly. Whole networks are within 2 % of the replay; a single short layer that asks much
of the memory may be off by 8 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..boards import Board
from ..builds import PORT_BYTES, Build
from ..interface import COMMAND_WORDS, FLAG_RESIDUAL, Command
from .fillings import Layer
from .gathering import column_steps
from .timing import PIPELINE_CYCLES, ROWS_DEPTH, STEPS, Timing

#: Products of two numbers of 32 bits in the check of a command (`times` in `hls/check.hpp`).
CHECK_PRODUCTS = 13
#: To decode and check a command, once its words are there. Its products follow each other through
#: one multiplier, 4 cycles each and one to hand over; the short ones take less through another one
#: beside it. Ten more to decode, until the first product has its operands, to compare and to choose
#: what is reported. Assumed, not measured.
CHECK_CYCLES = 5 * CHECK_PRODUCTS + 10
#: What the first command of a run costs before anything works on it; the others are fetched and
#: checked beside the command before them.
RUN_CYCLES = 2 * (COMMAND_WORDS + PIPELINE_CYCLES) + CHECK_CYCLES
#: From the end of a command to the start of the next one: handshakes of the region's processes,
#: and the sums that say where the next command lies. Assumed, not measured.
REGION_CYCLES = 20

_WEIGHTS = "memory.hpp:fetch:words(weights)"
_INDICES = "memory.hpp:fetch:words(indices)"
_PARAMETERS = "memory.hpp:fetch:words(program)"
_LOAD = "memory.hpp:fetch:words(activations)"
_RESIDUALS = "memory.hpp:fetch:words(residuals)"
_STORES = "memory.hpp:deliver:stores"
_LINKS = "memory.hpp:deliver:links"
_COLUMNS = "columns.hpp:columns:steps"
_FEATURES = "gather.hpp:gather_features:feature_words"
_WINDOWS = "gather.hpp:gather_image:windows"
_UNPACK = "unpack.hpp:unpack:slices"
_MULTIPLY = "multiply.hpp:multiply:csb_words"
_TABLE = "finish.hpp:load_table:table_words"
_STATES = "finish.hpp:pass_states:state_words"
_FINISH = "finish.hpp:finish:rows"
_GATES = "cell.hpp:cell_visit:gate_words"
_LOADED = "cell.hpp:load_states:loaded"
_STORED = "cell.hpp:store_states:stored"


@dataclass(frozen=True)
class Memory:
    """What the board gives the engine."""

    clock_hz: float
    bytes_per_second: float

    @classmethod
    def of(cls, board: Board) -> Memory:
        """What long bursts get of that board's memory, at its engine's clock."""
        return cls(board.clock_mhz * 1e6, board.usable_ddr_gb_per_s * 1e9)

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

    def __add__(self, other: LayerCycles) -> LayerCycles:
        """Of both, one after the other."""
        return LayerCycles(
            self.total + other.total,
            self.multiply + other.multiply,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
            self.macs + other.macs,
        )

    @property
    def utilisation(self) -> float:
        """Share of the cycles in which the multipliers work, 0 to 1."""
        return self.multiply / self.total


def trip_counts(command: Command, build: Build) -> dict[str, int]:
    """How often every pipelined loop of `hls/` iterates for a command that the engine accepts.

    Names are `file:function:label`, with the port behind where a function is several processes.
    Left out is what depends on the command's place in a run: where its own words come from
    (by `fetch_residuals`, beside the command before it), and `drain`, which
    empties the chain behind the last command.
    """
    c, layer = command, Layer(command, build)
    gates = layer.sum("requantised") + max(build.cols // 2, 1) * layer.sum("last_visits")
    trips = {
        **_read(layer),
        "engine.cpp:prepare:command_words": COMMAND_WORDS,
        _STORES: layer.output_words() if layer.to_memory else 0,
        _LINKS: 0 if layer.to_memory else layer.output_words(),
        _UNPACK: layer.sum("unpack"),
        _FEATURES: 0 if layer.image else layer.input_words(),
        _MULTIPLY: layer.multiply_trips(),
        _TABLE: layer.table_words,
        _STATES: layer.loaded_words,
        _FINISH: layer.sum("finish"),
        _GATES: gates if layer.cell else 0,
        _LOADED: 2 * layer.loaded_words,
        _STORED: 2 * layer.stored_words,
        _COLUMNS: 0,
        _WINDOWS: 0,
    }
    if layer.image:
        tiles = c.tiles * layer.last.count
        trips[_COLUMNS] = tiles * column_steps(c, build)
        trips[_WINDOWS] = sum(layer.loading.trips) + layer.loading.end
    return trips


def layer_cycles(command: Command, build: Build, memory: Memory) -> LayerCycles:
    """Modelled cycles, bytes and products of one command that the engine accepts.

    A run takes `RUN_CYCLES` besides: its first command is fetched and checked beforehand.
    """
    c, layer = command, Layer(command, build)
    timing = Timing(layer, memory.bytes_per_cycle / PORT_BYTES)
    total, starts = timing.run(_table(layer))
    # Behind the multipliers' own pipeline there are two more, or three, and the words of a row
    # group.
    pipelines = 4 if layer.cell else 3
    total += pipelines * PIPELINE_CYCLES + build.rows * build.cols / build.requant_units
    macs = c.rows * c.groups * build.lanes * c.keep * c.tiles * build.cols
    read = PORT_BYTES * sum(_read(layer).values())
    written = PORT_BYTES * layer.output_words() if layer.to_memory else 0
    # The memory is not busy all the time before the multipliers begin, and outputs come after that.
    later = read + written - PORT_BYTES * (timing.first_words + layer.sum("weights"))
    later -= PORT_BYTES * layer.sum("indices")
    total = max(total, starts[0] + 2 * PIPELINE_CYCLES + later / memory.bytes_per_cycle)
    total = max(total, (read + written) / memory.bytes_per_cycle)
    total = REGION_CYCLES + max(total, _next_command(layer, timing.rate))
    return LayerCycles(float(total), macs // build.products_per_cycle, read, written, macs)


def _read(layer: Layer) -> dict[str, int]:
    """Words that every port reads, which are the trips of its loop."""
    residuals = layer.sum("outputs") if layer.c.flags & FLAG_RESIDUAL else layer.loaded_words
    return {
        _WEIGHTS: layer.sum("weights"),
        _INDICES: layer.sum("indices"),
        _PARAMETERS: layer.table_words + layer.sum("parameters"),
        _LOAD: 0 if layer.from_chain else layer.input_words(),
        _RESIDUALS: residuals,
    }


def _table(layer: Layer) -> float:
    """Cycles from the start until the multipliers may begin without waiting for the table."""
    c = layer.c
    if not layer.table_words:
        return 0.0
    row = c.keep * min(c.groups, c.groups_per_pass)
    return layer.table_words + 2 * PIPELINE_CYCLES + STEPS - ROWS_DEPTH * row


def _next_command(layer: Layer, rate: float) -> float:
    """Cycles until the command that follows is checked, at `rate` words of memory a cycle: its
    words come from the start, as the ports want their first ones too."""
    read = _read(layer)
    ports = 1 + sum(words > 0 for port, words in read.items() if port != _RESIDUALS)
    return COMMAND_WORDS * max(1.0, ports / rate) + 2 * PIPELINE_CYCLES + CHECK_CYCLES
