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

The clocks go on from command to command where one follows the other (`clocks.py`): each stage
begins with a command when it has done with the one before, the first filling is brought beside the
last work of that, and what comes by the chain comes as it is made. A command is told to the stages
once it is checked, which is when the one before is sequenced.

Assumed: a port gets an equal share of the memory while others want words, and its own words until
then come evenly. Whole networks are within 2 % of the replay; what a single short layer adds, of
which the memory is much asked or whose successor asks it, may be off by a tenth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..boards import Board
from ..builds import PORT_BYTES, Build
from ..interface import COMMAND_WORDS, FLAG_FOLLOWS, FLAG_RESIDUAL, Command
from .clocks import Clocks
from .fillings import Layer
from .gathering import column_steps
from .timing import PIPELINE_CYCLES, Timing

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
#: Steps of `sequence` for a visit: what every stage is told.
_VISIT_STEPS = 5
#: From the end of a command to the start of one that does not follow it: handshakes of the
#: region's processes. Assumed, not measured.
REGION_CYCLES = 20

_WEIGHTS = "memory.hpp:fetch_burst:words(weights)"
_INDICES = "memory.hpp:fetch_burst:words(indices)"
_PARAMETERS = "memory.hpp:fetch_burst:words(program)"
_LOAD = "memory.hpp:fetch_burst:words(activations)"
_RESIDUALS = "memory.hpp:fetch_burst:words(residuals)"
_STORES = "memory.hpp:deliver_outputs:stores"
_LINKS = "memory.hpp:deliver_outputs:links"
_COLUMNS = "columns.hpp:place_tiles:steps"
_FEATURES = "gather.hpp:gather_features:feature_words"
_WINDOWS = "gather.hpp:gather_image:windows"
_UNPACK = "unpack.hpp:unpack_planes:slices"
_MULTIPLY = "multiply.hpp:multiply:csb_words"
_TABLE = "finish.hpp:load_table:table_words"
_STATES = "finish.hpp:pass_states:state_words"
_FINISH = "finish.hpp:finish_rows:rows"
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
    (by `fetch_residuals`, beside the command before it), the multipliers' last iteration, in which
    they are told of the end, and `drain`, which empties the chain behind the last command.
    """
    c, layer = command, Layer(command, build)
    gates = layer.sum("requantised") + max(build.cols // 2, 1) * layer.sum("last_visits")
    trips = {
        **_read(layer),
        "run.hpp:check_job:command_words": COMMAND_WORDS,
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
    """Modelled cycles, bytes and products of one command that the engine accepts, by itself.

    A start of the engine takes `RUN_CYCLES` besides: its first command is fetched and checked
    beforehand.
    """
    return _cycles([command], build, memory)[0]


def run_cycles(commands: Sequence[Command], build: Build, memory: Memory) -> list[LayerCycles]:
    """As `layer_cycles` of commands one after the other: of each what it adds to those before it,
    which it overlaps with where it follows them."""
    return [cost for region in regions_of(commands) for cost in _cycles(region, build, memory)]


def regions_of(commands: Sequence[Command]) -> list[list[Command]]:
    """The commands, parted where one does not follow those before it."""
    regions: list[list[Command]] = []
    for command in commands:
        if not regions or not command.flags & FLAG_FOLLOWS:
            regions.append([])
        regions[-1].append(command)
    return regions


def _cycles(region: Sequence[Command], build: Build, memory: Memory) -> list[LayerCycles]:
    """Of commands that follow each other, each what it adds."""
    clocks, costs = Clocks(), list[LayerCycles]()
    done, moved = 0.0, 0
    for number, c in enumerate(region):
        layer = Layer(c, build)
        timing = Timing(layer, memory.bytes_per_cycle / PORT_BYTES)
        total, starts = timing.run(clocks)
        # Behind the multipliers' own pipeline there are two more, or three, and the words of a row
        # group.
        pipelines = 4 if layer.cell else 3
        total += pipelines * PIPELINE_CYCLES + build.rows * build.cols / build.requant_units
        macs = c.rows * c.groups * build.lanes * c.keep * c.tiles * build.cols
        read = PORT_BYTES * sum(_read(layer).values())
        written = PORT_BYTES * layer.output_words() if layer.to_memory else 0
        moved += read + written
        # The memory is not busy all the time before the multipliers begin, and outputs come after
        # that.
        later = read + written - PORT_BYTES * (timing.first_words + layer.sum("weights"))
        later -= PORT_BYTES * layer.sum("indices")
        total = max(total, starts[0] + 2 * PIPELINE_CYCLES + later / memory.bytes_per_cycle)
        total = max(total, moved / memory.bytes_per_cycle)
        clocks.told = _next_told(clocks, layer, timing.rate)
        if number + 1 == len(region):  # the region ends
            total = REGION_CYCLES + max(total, clocks.gathered, clocks.told)
        costs.append(
            LayerCycles(total - done, macs // build.products_per_cycle, read, written, macs)
        )
        done = total
    return costs


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


def _next_told(clocks: Clocks, layer: Layer, rate: float) -> float:
    """When the command that follows is checked, at `rate` words of memory a cycle: its words come
    from the start, as the ports want their first ones too, and are taken when the command before
    is sequenced."""
    read = _read(layer)
    ports = 1 + sum(words > 0 for port, words in read.items() if port != _RESIDUALS)
    there = clocks.told + COMMAND_WORDS * max(1.0, ports / rate) + PIPELINE_CYCLES
    sequenced = max(clocks.told + _VISIT_STEPS * layer.sum("visits"), clocks.sequenced())
    return max(there, sequenced + COMMAND_WORDS) + PIPELINE_CYCLES + CHECK_CYCLES
