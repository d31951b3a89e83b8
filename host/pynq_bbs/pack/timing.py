# SPDX-License-Identifier: Apache-2.0
"""When the stages of a layer come to the fillings of the vector buffer: for the cycle model.

Two clocks go along: that of the gathering, tile by tile, and that of the multipliers, filling by
filling. Each waits for the other: the gathering is a few writes ahead at most, and the multipliers
stop where a write that they take beside their work has not come.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..builds import PORT_BYTES
from ..interface import FLAG_RESIDUAL
from .clocks import Arrival, Clocks
from .fillings import Fillings, Layer
from .gathering import REUSE_DISTANCE, column_steps, steps, tile_words

#: Latency of a pipelined loop, the same for all of them.
PIPELINE_CYCLES = 20
#: A loop that is entered: until its pipeline is empty, and what it is told before.
ENTERED = PIPELINE_CYCLES + 1
#: Words that wait between a port and its stage (`kPortDepth`).
PORT_DEPTH = 64
#: Writes to the vector buffer that wait before the multipliers.
_WRITES_DEPTH = 16
#: Tiles that may begin before the columns of the next one are worked on: a stream of two, and one.
_TILES_AHEAD = 3
#: Row groups that wait in the stream of sums.
ROWS_DEPTH = 8
#: What stands outside of loops before the first one of a command.
STEPS = 6


@dataclass(frozen=True)
class Work:
    """What the work on a filling takes of each stage."""

    multiply: int
    tiles: int
    visits: int
    rows: int  # cycles in which the row parameters come
    drain: float  # cycles of the slowest of the stages that outputs go through
    slack: float  # how much later than the multipliers these may be
    come: float  # cycles in which the weights of a visit come
    ahead: float  # in which as many come as wait before the block buffer
    planes: int  # words of weights and indices
    moved: int  # words of memory in all
    ports: float  # that move them
    links: int  # words of the outputs, where they go to the chain


@dataclass
class Gathering:
    """The gathering's clock."""

    now: float = 0.0
    fetched: float = 0.0  # when the port had what was taken until then
    words: int = 0  # taken until then
    taken: float = 0.0  # the multipliers have taken all writes
    columns: float = 0.0  # when those of the last tile were worked out
    begun: tuple[float, ...] = (0.0,) * _TILES_AHEAD  # the last tiles
    arrival: Arrival | None = (
        None  # of what comes by the chain; all is there where nothing is known
    )

    def begin_tile(self, steps: int) -> None:
        """Waits for the columns of a tile, which take `steps`."""
        self.columns = max(self.columns, self.begun[0]) + steps
        self.now = max(self.now, self.columns)
        self.begun = (*self.begun[1:], self.now)


class Timing:
    """The stages of a layer, in cycles, at `rate` words of memory a cycle."""

    def __init__(self, layer: Layer, rate: float) -> None:
        self.layer, self.rate = layer, rate
        c, build = layer.c, layer.build
        #: words of the input that came before the multipliers began
        self.first_words = 0
        self._moves = layer.to_memory + bool(c.flags & FLAG_RESIDUAL)
        #: slices of weights that wait before the block buffer
        self._queue = build.queue_words * build.rows * build.lanes // PORT_BYTES + PORT_DEPTH
        #: of all fillings, one after the other
        self.works = self._works(layer.last)
        if layer.groups > 1:
            between = self._works(layer.full) * (layer.groups - 2)
            self.works = self._works(layer.first) + between + self.works
        #: Parts of a filling's tile that are gathered one after the other, each with pixels to
        #: wait for.
        self._kernel_rows = c.kernel_height if layer.image else 1
        #: cycles in which the columns of a tile are worked out
        self._columns = column_steps(c, build)
        #: Whether tiles of the input do not lie side by side, so that each is fetched by itself.
        features = c.channels if layer.image else int(layer.last.features[0])
        self._apart = c.input_stride != features

    def _works(self, f: Fillings) -> list[Work]:
        """Of each filling."""
        works = []
        for i in range(f.count):
            visits, tiles, outputs = int(f.visits[i]), f.tiles, int(f.outputs[i])
            weights, indices = int(f.weights[i]), int(f.indices[i])
            unpack = int(f.unpack[i]) if f.fetched else 0
            planes = weights + indices
            parameters = int(f.parameters[i])
            moved = planes + parameters + outputs * self._moves
            busiest = max(weights, indices, outputs, 1)
            ports = planes + outputs * self._moves
            entered = int(f.fetches[i]) * ENTERED
            drain = max(int(f.drain[i]), int(f.requantised[i]), outputs + int(f.runs[i]) * ENTERED)
            # Row groups that stream and pipeline take before they stand in the way.
            rows = max(int(f.totals[i]), 1)
            flight = ROWS_DEPTH + PIPELINE_CYCLES * rows / int(f.multiply[i])
            # Row parameters come with the weights, and outputs of the tile they meet first go.
            words = planes + parameters + outputs * self._moves / tiles
            come = max(weights + entered, unpack, words / self.rate) / visits if unpack else 0.0
            ahead = come * self._queue * visits / max(unpack, 1)
            works.append(
                Work(
                    multiply=int(f.multiply[i]),
                    tiles=tiles,
                    visits=visits,
                    rows=parameters + entered if parameters else 0,
                    drain=drain,
                    slack=flight * drain / rows,
                    come=come,
                    ahead=ahead,
                    planes=planes,
                    moved=moved,
                    ports=ports / busiest,
                    links=int(f.links[i]),
                )
            )
        return works

    def run(self, clocks: Clocks) -> tuple[float, list[float]]:
        """Goes through the command, and leaves in `clocks` when each stage is free.

        Returns when its last sums are finished, and when the multipliers began with each filling.
        """
        arrival = clocks.chain.popleft() if self.layer.from_chain and clocks.chain else None
        gathering = self._gathering(clocks, arrival)
        starts: list[float] = []
        begin, end = 0.0, clocks.worked
        rows, served = clocks.rows, clocks.served
        drained = self._finish_begins(clocks)
        # fetched and unpacked
        weights = max(clocks.told + STEPS + 2 * PIPELINE_CYCLES, clocks.weights)
        made = Arrival()
        busy: Work | None = None
        for number, work in enumerate([*self.works, None]):
            if work is not None:  # is brought while `busy` is worked on
                free = clocks.ahead if busy is None else begin
                stall, brought, taken = self._bring(number, work, busy, free, gathering)
                writes = self._writes(number) * work.tiles * self._kernel_rows
            if busy is not None:
                rest = busy.multiply + (stall if work is not None else 0.0)
                end, weights = _finish(busy, begin, begin + rest, weights)
                rows = max(rows, begin - PORT_DEPTH) + busy.rows
                end = max(end, rows)
                drained = max(drained, begin + PIPELINE_CYCLES) + busy.drain
                moved = busy.moved / self.rate  # by the memory, some of it before
                served = max(served + moved, begin + moved - busy.ahead)
                end = max(end, drained - busy.slack, served)
                last = max(drained, end + PIPELINE_CYCLES)
                made.add(
                    busy.links, begin + 3 * PIPELINE_CYCLES, last + 2 * PIPELINE_CYCLES + STEPS
                )
                each = (end - begin) / busy.visits
                clocks.visits.extend(begin + each * visit for visit in range(busy.visits))
                clocks.ahead = begin
            if work is not None:
                left = writes - taken
                change = left + REUSE_DISTANCE if left > 0 else 1
                if busy is None:
                    change = 1 + REUSE_DISTANCE
                begin = max(end + change, brought + PIPELINE_CYCLES + REUSE_DISTANCE + 1)
                if busy is None:
                    self.first_words = gathering.words
                starts.append(begin)
            busy = work
        rest = self.layer.loading.end * max(1.0, 1 / self.rate) if self.layer.image else 0.0
        clocks.gathered, clocks.taken = gathering.now + rest + ENTERED, gathering.taken
        clocks.columns, clocks.worked, clocks.weights = gathering.columns, end, weights
        clocks.rows, clocks.served = rows, served
        clocks.drained = max(drained, end + PIPELINE_CYCLES)
        if self.layer.to_chain:
            clocks.chain.append(made)
        return max(end, drained - PIPELINE_CYCLES), starts

    def _gathering(self, clocks: Clocks, arrival: Arrival | None) -> Gathering:
        """As it begins with the command."""
        layer, told = self.layer, clocks.told + STEPS
        if layer.image:  # waits for the columns of the first tile
            columns = max(told + PIPELINE_CYCLES, clocks.columns)
            begin = columns + self._columns
        else:
            columns, begin = 0.0, told + (PIPELINE_CYCLES if layer.from_memory else 0)
        now = max(begin, clocks.gathered)
        return Gathering(
            now=now, fetched=told, taken=clocks.taken, columns=columns, arrival=arrival
        )

    def _finish_begins(self, clocks: Clocks) -> float:
        """When row groups are finished at the earliest."""
        begin = max(clocks.told + STEPS, clocks.drained + ENTERED)
        if not self.layer.table_words:
            return begin
        return max(begin, clocks.told + STEPS + PIPELINE_CYCLES) + self.layer.table_words + ENTERED

    def _writes(self, number: int) -> int:
        """To the vector buffer, of each part of a filling."""
        layer = self.layer
        if layer.image:
            return steps(layer.c, layer.build) // self._kernel_rows
        return int(layer.last.features[number % layer.last.count]) // layer.build.pack

    def _bring(
        self, number: int, work: Work, busy: Work | None, begin: float, gathering: Gathering
    ) -> tuple[float, float, int]:
        """Gathers a filling while `busy` is worked on from `begin` on; the first one of a command
        while the last one of the command before is, whose writes are taken as they come.

        Returns how long the multipliers stand still for it, when it is there, and how many of its
        writes they take beside their work.
        """
        writes, pace = self._writes(number), self.layer.c.pace
        taken = (
            min(writes * work.tiles * self._kernel_rows, -(-busy.multiply // pace)) if busy else 0
        )
        parts = self._parts_of(number, work.tiles, writes)
        words = sum(words for *_, words in parts) if self.layer.from_memory else 0
        slow = self._slow(words, busy)
        stall = 0.0
        if number and not self.layer.image:
            gathering.now += ENTERED
        for part, (trips, reads, words) in enumerate(parts):
            ahead = _WRITES_DEPTH + PIPELINE_CYCLES * writes // max(reads, 1)
            if self.layer.image and part % self._kernel_rows == 0:
                gathering.begin_tile(self._columns)
            before = gathering.now
            there = done = self._fetch(gathering, before + trips, words, slow)
            first = there - reads if self.layer.image else before
            last = (part + 1) * writes - ahead
            if last > 0:  # there is room when the multipliers have taken this one
                beside = begin + stall + min(last, taken) * pace
                done = max(done, beside + max(last - taken, 0))
            else:  # one of the filling before
                done = max(done, gathering.taken + last * pace)
            gathering.now = done
            for at, when in ((part * writes, first), ((part + 1) * writes - 1, there)):
                if at < taken:
                    stall = max(stall, when + PIPELINE_CYCLES - begin - at * pace)
        every = writes * len(parts)
        gathering.taken = max(
            begin + stall + min(every, taken) * pace + max(every - taken, 0), gathering.now
        )
        return stall, gathering.now, taken

    def _parts_of(self, number: int, tiles: int, writes: int) -> list[tuple[int, int, int]]:
        """Of each part of a filling the iterations of the gathering, those of them that make
        writes, and the words of memory that are taken."""
        layer = self.layer
        if not layer.image:
            features = writes * layer.build.pack
            words = features * layer.build.cols // PORT_BYTES if layer.from_memory else writes
            trips = words
            return [(trips, trips, words)] * tiles
        group, again = divmod(number, layer.last.count)
        first = group * layer.c.tiles_per_block * layer.last.count + again * tiles
        at = slice(first * self._kernel_rows, (first + tiles) * self._kernel_rows)
        loading = layer.loading
        resident = not (layer.from_memory or layer.from_chain)
        words_of = [0] * tiles * self._kernel_rows if resident else loading.words[at]
        return list(zip(loading.trips[at], loading.reads[at], words_of, strict=True))

    def _fetch(self, gathering: Gathering, done: float, words: int, slow: float) -> float:
        """When the `words` of a part have come, `done` at the earliest."""
        if not words:
            return done
        gathering.words += words
        if self.layer.from_chain:
            arrival = gathering.arrival
            return done if arrival is None else max(done, arrival.when(gathering.words))
        if self._apart:
            c, build = self.layer.c, self.layer.build
            slow += PIPELINE_CYCLES / (tile_words(c, build) if self.layer.image else words)
        ahead = PORT_DEPTH + PIPELINE_CYCLES
        gathering.fetched = max(
            gathering.fetched + words * slow, gathering.now + (words - ahead) * slow
        )
        return max(done, gathering.fetched + PIPELINE_CYCLES + STEPS)

    def _slow(self, words: int, busy: Work | None) -> float:
        """Cycles for each of the `words` of the input that come while `busy` is worked on.

        The memory serves the ports in turn, until those have all they want.
        """
        alone = max(1.0, 1 / self.rate)
        if words == 0:
            return alone
        if busy is None:  # the first weights and row parameters, as many as wait before the stages
            first = self.works[0]
            share = min(1.0, first.ahead / first.come) if first.come else 0.0
            others = first.planes / first.visits * share
            ports = first.ports + 1
            others += self.layer.table_words + min(first.rows, PORT_DEPTH + PIPELINE_CYCLES)
        else:
            others, ports = busy.moved, busy.ports
        if others == 0 or ports == 0:  # row parameters alone are few
            return alone
        shared = max((1 + ports) / self.rate, alone)
        together = min(others * shared / ports, words * shared)
        return (together + (words - together / shared) * alone) / words


def _finish(work: Work, begin: float, end: float, weights: float) -> tuple[float, float]:
    """When the work on a filling ends, and when its last weights have come.

    A block's words that were not in the queue come while its first tile goes by, so that takes
    longer.
    """
    if not work.come:
        return end, weights
    tile = work.multiply / (work.visits * work.tiles)
    others = tile * (work.tiles - 1)
    steady = others + max(work.come - min(others, work.ahead), tile)
    first = max(weights + work.come, begin + work.come - work.ahead)
    done = max(begin + tile, first) + others + (work.visits - 1) * steady
    latest = max(first + (work.visits - 1) * work.come, done - steady + work.come - work.ahead)
    return max(end, done), latest if work.visits > 1 else first
