# SPDX-License-Identifier: Apache-2.0
"""How long the stages take for a filling: the parts that the cycle model is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builds import PORT_BYTES
from ..interface import FLAG_RESIDUAL, FLAG_TO_MEMORY
from .fillings import Fillings, Layer
from .gathering import steps, tile_words

#: Whole or not: what is an average over fillings is not.
Cycles = NDArray[Any]

#: Latency of a pipelined loop, the same for all of them.
PIPELINE_CYCLES = 20
#: A loop that is entered: until its pipeline is empty, and what it is told before.
ENTERED = PIPELINE_CYCLES + 1
#: Words that wait between a port and its stage (`kPortDepth`).
PORT_DEPTH = 64
#: Writes to the vector buffer that the gathering is ahead: in the stream, and in its pipeline.
_WRITES_AHEAD = 16 + PIPELINE_CYCLES


@dataclass(frozen=True)
class Bring:
    """What the stages before the multipliers do for fillings, an entry each."""

    writes: Cycles  # to the vector buffer
    gather: Cycles  # with all that is waited for
    words: Cycles  # that the port of the activations fetches
    fetch: Cycles
    columns: Cycles  # cycles to work out the columns of the tiles
    late: Cycles  # how much later a write comes than the multipliers would take it

    def at(self, which: slice) -> Bring:
        return Bring(*(x[which] for x in self._fields()))

    def crossed(self) -> Bring:
        """In a dimension of its own: each of these with each of the fillings worked on."""
        return Bring(*(x[:, None] for x in self._fields()))

    def _fields(self) -> tuple[Cycles, ...]:
        return (self.writes, self.gather, self.words, self.fetch, self.columns, self.late)


class Timing:
    """The stages of a layer, in cycles, at `rate` words of memory a cycle."""

    def __init__(self, layer: Layer, rate: float) -> None:
        self.layer, self.rate = layer, rate
        self._moves = bool(layer.c.flags & FLAG_TO_MEMORY) + bool(layer.c.flags & FLAG_RESIDUAL)
        build = layer.build
        #: slices of weights that wait before the block buffer
        self.queue = build.queue_words * build.rows * build.lanes // PORT_BYTES + PORT_DEPTH
        #: Share of the weights of the last group that come only while it is worked on. What comes
        #: before the multipliers begin fills the queue; from then on weights come that fill it up
        #: again, until the last group finds its own there.
        self.left = 1.0

    def others(self, f: Fillings) -> Cycles:
        """Words of memory that the work on each filling moves."""
        left = self.left if f is self.layer.last else 1.0
        return (f.weights + f.indices) * left + f.parameters + f.outputs * self._moves

    def ports(self, f: Fillings) -> Cycles:
        """Ports that compete with the activations', those with few words in proportion."""
        outputs = f.outputs * self._moves
        busiest = np.maximum.reduce((f.weights, f.indices, outputs))
        ports: Cycles = (f.weights + f.indices + outputs) / np.maximum(busiest, 1)
        return ports

    def load(self, words: Cycles, runs: Cycles, others: Cycles, ports: Cycles) -> Cycles:
        """Until `words` in `runs` have come while `ports` other ports move `others` words.

        The memory serves its ports in turn, until those have all they want.
        """
        alone = np.maximum(1 + PIPELINE_CYCLES * runs / np.maximum(words, 1), 1 / self.rate)
        shared = np.maximum((1 + ports) / self.rate, alone)
        together = np.minimum(others * shared / np.maximum(ports, 1), words * shared)
        cycles: Cycles = together + (words - together / shared) * alone
        return cycles

    def alone(self, words: int) -> float:
        """Until `words` of the image have come while nothing else is wanted."""
        if not self.layer.from_memory:
            return float(words)
        tile = tile_words(self.layer.c, self.layer.build)
        return words * max(1 + PIPELINE_CYCLES / tile, 1 / self.rate)

    def features(self, f: Fillings) -> Bring:
        """Plain features for the fillings of a group."""
        layer, writes = self.layer, self.layer.writes(f)
        words = f.tiles * f.features * layer.build.cols // PORT_BYTES
        gather = (words if layer.from_memory else writes) + ENTERED
        words = words * layer.from_memory
        fetch = words + f.tiles * PIPELINE_CYCLES * layer.from_memory
        return Bring(writes, gather, words, fetch, 0 * writes, 0.0 * writes)

    def windows(self, f: Fillings, at: slice, others: Cycles, ports: Cycles) -> Bring:
        """The windows of the groups at `at`, of as many tiles as `f`, for the first time."""
        layer, shape = self.layer, (at.stop - at.start, f.tiles)
        tiles = self._tiles(at)
        reads = layer.reads[tiles].reshape(shape)
        rest = layer.loading.rest[tiles].reshape(shape)
        beside = layer.loading.beside[tiles].reshape(shape)
        words = (rest + beside).sum(1) * layer.from_memory
        runs = words / tile_words(layer.c, layer.build)
        slow = self.load(words, runs, others, ports) / np.maximum(words, 1)
        # A tile begins when its words are there, and ends when those beside its windows are.
        # Before the first tile nothing waits in the stream.
        waits = rest + (rest > 0) * PIPELINE_CYCLES + 1
        own = np.stack((waits, reads + PIPELINE_CYCLES), 2).reshape(len(words), -1).cumsum(1)
        come = np.stack((rest, beside), 2).reshape(len(words), -1).cumsum(1)
        come = (come - (PORT_DEPTH if at.start else 0)) * np.maximum(slow, 1)[:, None]
        behind = come * layer.from_memory - own
        ends = own + np.maximum.accumulate(np.maximum(behind, 0), 1)
        count = steps(layer.c, layer.build)
        late = (ends[:, ::2] - layer.c.pace * count * np.arange(f.tiles)).max(1)
        return self._bring(f, ends[:, -1] + 1, words, runs, late)

    def windows_again(self, f: Fillings, at: slice) -> Bring:
        """The same windows for later passes and blocks, on average."""
        layer = self.layer
        reads = layer.reads[self._tiles(at)].reshape(-1, f.tiles).sum(1)
        words = layer.loading.again[at] / max(f.count - 1, 1) * layer.from_memory
        runs = words / tile_words(layer.c, layer.build)
        return self._bring(f, reads + f.tiles * ENTERED + 1, words, runs, 0 * words)

    def _tiles(self, at: slice) -> slice:
        group = self.layer.c.tiles_per_block
        return slice(at.start * group, at.stop * group)

    def _bring(
        self, f: Fillings, gather: Cycles, words: Cycles, runs: Cycles, late: Cycles
    ) -> Bring:
        writes = np.full(len(words), f.tiles * steps(self.layer.c, self.layer.build))
        columns = np.full(len(words), f.tiles * (self.layer.build.cols + ENTERED))
        return Bring(writes, gather, words, words + runs * PIPELINE_CYCLES, columns, late)

    def work(self, f: Fillings) -> Cycles:
        """Of each filling, if nothing were brought beside it."""
        stages = (
            f.multiply + f.visits * ENTERED,
            self._blocks(f) + f.visits * ENTERED,
            f.accumulate + f.visits * ENTERED,
            f.parameters + f.visits * ENTERED,
            f.requantise,
            f.outputs + f.runs * PIPELINE_CYCLES + f.visits,
            self.others(f) / self.rate,
        )
        cycles: Cycles = np.maximum.reduce(stages)
        return cycles

    def come(self, f: Fillings) -> tuple[Cycles, Cycles]:
        """Until the weights of each filling have come, and how much of that is before its blocks:
        while the other tiles of the block before go by, as far as the queue takes them."""
        # Row parameters come with them, and outputs of the tile that they meet first go.
        words = f.weights + f.indices + f.parameters + f.outputs * self._moves / f.tiles
        come = np.maximum(np.maximum(f.weights, f.unpack), words / self.rate)
        queued = np.minimum(1, self.queue * f.visits / np.maximum(f.unpack, 1))
        return come, np.minimum(f.multiply / f.tiles * (f.tiles - 1), come * queued)

    def _blocks(self, f: Fillings) -> Cycles:
        """Of the weight blocks of each filling: a block's words that were not in the queue come
        while its first tile goes by, so that takes longer."""
        come, before = self.come(f)
        tile = f.multiply / f.tiles
        left = self.left if f is self.layer.last else 1.0
        cycles: Cycles = tile * (f.tiles - 1) + np.maximum((come - before) * left, tile)
        return np.where(f.unpack > 0, cycles, 0)

    def cycles(self, f: Fillings, at: slice, b: Bring, *, first: bool = False) -> float:
        """Of the work on the fillings `at` of `f`, while each time one of `b` is brought.

        Args:
            first: nothing has been worked on before.
        """
        multiply, pace = f.multiply[at], self.layer.c.pace
        beside = np.minimum(b.writes, -(-multiply // pace))
        rest = b.writes - beside
        # Before the multipliers begin, the gathering has got ahead beside the filling before.
        ahead: Cycles = np.maximum(
            0 if first else multiply - (b.writes - _WRITES_AHEAD) * pace, 2 * PIPELINE_CYCLES
        )
        stall = np.maximum(b.gather * (beside / b.writes) - beside * pace, b.late - ahead)
        busy = multiply + f.visits[at] * ENTERED + np.maximum(stall, 0)
        busy = busy + np.where(rest > 0, rest + PIPELINE_CYCLES, 0)
        moved = (self.others(f)[at] + b.words) / self.rate
        found = np.maximum(busy, self.work(f)[at])
        for stage in (b.gather, b.fetch, b.columns, moved):
            found = np.maximum(found, stage)
        return float(found.sum())
