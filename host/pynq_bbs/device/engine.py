# SPDX-License-Identifier: Apache-2.0
"""A program on an open device: one memory block, commands for any batch, tensors in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceMemoryError
from ..interface import Command
from ..pack.cycles import LayerCycles, Memory, regions_of, run_cycles
from ..pack.layout import by_length
from ..pack.plan import Plan, make_plan, program_bases
from ..pack.program import Program
from ..pack.sums import INPUT, SUMS, WEIGHTS, sums_program
from .session import Session
from .tensors import DeviceTensors

#: Samples worked on at once. As columns more gain nothing: by then each weight block meets as many
#: column tiles as it ever does. As images they would only take memory.
MOST_COLUMNS = 512
MOST_IMAGES = 64
#: A run may take this long for nothing, and this many times what the cycle model says: the
#: emulator is slower than a board, a loaded host slower still.
_PATIENCE_S = 10.0
_PATIENCE_FACTOR = 200.0
#: Plans that are kept for batches of the same size.
_MOST_PLANS = 8

Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class _Commands:
    """Commands in device memory: of bank 0 from the word `first` on, and what they cost."""

    first: int
    layers: list[str]  # the layer of each
    cycles: list[LayerCycles]  # of each layer
    timeout: float

    def layer_name(self, index: int) -> str:
        return self.layers[index % len(self.layers)]


class EngineProgram:
    """Loads a program into a device's memory once and runs it for batch after batch.

    `run` is `prepare`, `put`, `execute` and `get`. With two banks one thread may put a batch while
    another one executes and gets; `prepare` may then be called while none does.
    """

    def __init__(
        self,
        program: Program,
        session: Session,
        memory: Memory,
        seconds: dict[str, float],
        *,
        every: bool = True,
        banks: int = 1,
    ) -> None:
        """
        Args:
            seconds: where the time of each part of a run is added up (`report.PARTS`).
            every: store every tensor, so that `run` can be asked for it; else only outputs.
            banks: batches that are in memory together; may be changed before `prepare`.
        """
        self._program = program
        self._session = session
        self._memory = memory
        self._seconds = seconds
        self._every = every
        self.banks = banks
        self._images = program.has_pixels
        self._most = MOST_IMAGES if self._images else MOST_COLUMNS
        self._stays = program_bases(program) is not None
        self._plan: Plan | None = None
        self._block: Any = None
        self._areas: list[Any] = []  # of each bank, its inputs and outputs
        self._tensors: DeviceTensors | None = None
        #: What `_made` made: plan and cycles by samples, lengths, and whether weights are there.
        self._planned: dict[tuple[int, tuple[int, ...], bool], tuple[Plan, list[LayerCycles]]] = {}
        #: The commands that load the weights, and those that find them in the block buffer.
        self._commands: dict[bool, _Commands] = {}
        self._columns: list[NDArray[np.int64] | None] = []  # of each bank, as `by_length`
        # On a board, invalidating any of a buffer may drop what was written to another part.
        self._transfer = Lock()

    @property
    def plan(self) -> Plan | None:
        """What is in device memory."""
        return self._plan

    def pieces(
        self,
        samples: int,
        lengths: NDArray[np.int64] | None = None,
        drain: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, int]]:
        """(first sample, end) of pieces that fit the device's memory; `prepare` was called for each
        when it comes.

        Args:
            lengths: steps of each sample (N,), where the program takes them.
            drain: called before `prepare` has anything to do: waits until no bank is in use.

        Raises:
            DeviceMemoryError: not even one column tile, or image, fits.
        """
        least = 1 if self._images else self._program.build.cols
        start = 0
        while start < samples:
            end = min(samples, start + self._most)
            own = None if lengths is None else lengths[start:end]
            try:
                if not self._is_prepared(end - start, own):
                    drain()
                self.prepare(end - start, own)
            except DeviceMemoryError:
                if end - start <= least:
                    raise
                self._most = max(least, (end - start) // 2 // least * least)
            else:
                yield start, end
                start = end

    def prepare(self, samples: int, lengths: NDArray[np.int64] | None = None) -> None:
        """Puts image and commands for so many samples into device memory.

        Raises:
            DeviceMemoryError: they do not fit.
        """
        if self._is_prepared(samples, lengths):
            return
        count, tiles = self._wanted(samples, lengths)
        plan, cycles = self._made(count, tiles, resident=False)
        with self._session.lock:
            self._plan = None  # until all of the new one lies in memory
            self._load(plan)
        self._commands = {False: self._costed(plan, cycles, plan.first_command)}
        self._columns = [None] * self.banks
        self._plan = plan

    def put(self, inputs: Tensors, lengths: NDArray[np.int64] | None = None, bank: int = 0) -> None:
        """Lays out `inputs` (N, values of a sample) in a bank, for which `prepare` was called."""
        start = perf_counter()
        columns = None
        if lengths is not None:
            columns, _ = by_length(lengths, self._program.build.cols)
        self._columns[bank] = columns
        assert self._tensors is not None
        with self._transfer:
            for tensor, values in inputs.items():
                for device, host in self._tensors.pairs(
                    bank, tensor, self._spread(values, columns)
                ):
                    device[...] = host
            laid_out = perf_counter()
            self._areas[bank].flush()
        self._seconds["layout"] += laid_out - start
        self._seconds["to device"] += perf_counter() - laid_out

    def execute(self, bank: int = 0) -> list[LayerCycles]:
        """Runs what was put in a bank; every layer's modelled cycles, of a sample where samples run
        one after the other.

        Raises:
            DeviceError and its kinds: the engine refused a command or did not finish.
        """
        session, plan = self._session, self._plan
        assert plan is not None
        with session.lock:
            resident = self._stays and session.owner is self
            commands = self._commands.get(resident) or self._load_commands(resident)
            session.owner = None  # until the block buffer holds all weights
            start = perf_counter()
            try:
                session.driver.run(
                    self._block.device_address,
                    self._block_words(plan),
                    commands.first + bank * plan.command_words,
                    len(plan.commands) * plan.runs,
                    timeout=commands.timeout,
                    layer_name=commands.layer_name,
                )
            finally:
                self._seconds["device"] += perf_counter() - start
            if self._stays:
                session.owner = self
        return commands.cycles

    def get(self, wanted: Iterable[str], bank: int = 0) -> dict[str, NDArray[np.generic]]:
        """The `wanted` tensors (N, values of a sample) of a bank that was executed."""
        start = perf_counter()
        with self._transfer:
            self._areas[bank].invalidate()
        invalidated = perf_counter()
        outputs = {tensor: self._tensor(bank, tensor) for tensor in wanted}
        self._seconds["from device"] += invalidated - start
        self._seconds["output"] += perf_counter() - invalidated
        return outputs

    def run(
        self, inputs: Tensors, wanted: Iterable[str], lengths: NDArray[np.int64] | None = None
    ) -> tuple[dict[str, NDArray[np.generic]], list[LayerCycles]]:
        """The `wanted` tensors (N, values of a sample) and what `execute` gives.

        Args:
            lengths: steps of each sample (N,), where the program takes them.

        Raises:
            DeviceError and its kinds: no memory; the engine refused a command or did not finish.
        """
        self.prepare(len(next(iter(inputs.values()))), lengths)
        self.put(inputs, lengths)
        cycles = self.execute()
        return self.get(wanted), cycles

    def sums(
        self, index: int, x: NDArray[np.int8], weights: NDArray[np.int8] | None = None
    ) -> NDArray[np.int32]:
        """The INT32 sums that the device computes for layer `index`, of one sample after the
        other (N, M * pixels), from its input `x` (N, values of a sample) and, if its weights are
        a tensor, that one. Of a recurrent layer those of its gates, from the features of a step."""
        alone = sums_program(self._program, index)
        given: dict[str, NDArray[np.generic]] = {INPUT: x}
        if weights is not None:
            given[WEIGHTS] = weights
        other = EngineProgram(alone, self._session, self._memory, dict(self._seconds))
        try:
            return other.run(given, [SUMS])[0][SUMS].astype(np.int32, copy=False)
        finally:
            other.close()

    def close(self) -> None:
        """Give the memory back. May be called again."""
        block, self._block, self._plan = self._block, None, None
        self._areas, self._tensors = [], None
        if block is not None:
            with self._session.lock:
                self._session.free(block)

    def _wanted(
        self, samples: int, lengths: NDArray[np.int64] | None
    ) -> tuple[int, tuple[int, ...]]:
        """The samples and lengths of the plan for so many."""
        if lengths is None:
            return samples, ()
        cols = self._program.build.cols
        _, tiles = by_length(lengths, cols)
        return len(tiles) * cols, tiles

    def _is_prepared(self, samples: int, lengths: NDArray[np.int64] | None) -> bool:
        plan = self._plan
        if plan is None or plan.banks != self.banks:
            return False
        return (plan.samples, plan.lengths) == self._wanted(samples, lengths)

    def _made(
        self, samples: int, lengths: tuple[int, ...], *, resident: bool
    ) -> tuple[Plan, list[LayerCycles]]:
        """The plan for so many samples, and the cycles of every layer. Images run one after the
        other, so commands and layout are those of any number of them."""
        runs = samples if self._images else 1
        key = (0 if self._images else samples, lengths, resident)
        if key not in self._planned:
            made = make_plan(
                self._program, samples, self._memory,
                every=self._every, resident=resident, lengths=lengths,
            )  # fmt: skip
            while len(self._planned) >= _MOST_PLANS:
                del self._planned[next(iter(self._planned))]
            self._planned[key] = made, self._layer_cycles(made.commands)
        plan, cycles = self._planned[key]
        return replace(plan, samples=samples, runs=runs, banks=self.banks), cycles

    def _block_words(self, plan: Plan) -> int:
        """All of the plan, and behind it the commands for weights that are there."""
        return plan.memory_words + self._stays * plan.banks * plan.command_words

    def _load(self, plan: Plan) -> None:
        image, words = self._program.image, self._block_words(plan)
        if self._block is None or len(self._block) < words:
            self.close()
            self._block = self._session.allocate(words)
            np.asarray(self._block)[: len(image)] = image
        block = np.asarray(self._block)
        first = plan.layout.first_sample
        block[first : plan.first_command] = 0
        block[plan.first_command : plan.memory_words] = plan.words()
        self._block.flush()
        ends = [first + bank * plan.bank_words for bank in range(plan.banks + 1)]
        self._areas = [self._block[a:b] for a, b in pairwise(ends)]
        self._tensors = DeviceTensors(self._program, plan, block)

    def _load_commands(self, resident: bool) -> _Commands:
        """Those that find the weights in the block buffer, behind the others."""
        plan = self._plan
        assert plan is not None and resident
        made, cycles = self._made(plan.samples, plan.lengths, resident=True)
        area = self._block[plan.memory_words : self._block_words(plan)]
        np.asarray(area)[:] = made.words()
        with self._transfer:
            area.flush()
        self._commands[resident] = self._costed(made, cycles, plan.memory_words)
        return self._commands[resident]

    def _costed(self, plan: Plan, cycles: list[LayerCycles], first: int) -> _Commands:
        modelled = plan.runs * sum(c.total for c in cycles) / self._memory.clock_hz
        layers = [self._program.layers[command.layer].name for command in plan.commands]
        return _Commands(first, layers, cycles, _PATIENCE_S + _PATIENCE_FACTOR * modelled)

    def _layer_cycles(self, commands: list[Command]) -> list[LayerCycles]:
        """Of each layer, which may have many commands, most of them in runs that are alike."""
        nothing = LayerCycles(0.0, 0, 0, 0, 0)
        layers = [nothing] * len(self._program.layers)
        known: dict[str, list[LayerCycles]] = {}
        for region in regions_of(commands):
            places = {"input": 0, "output": 0, "residual": 0, "state": 0, "cell_base": 0}
            alike = str([replace(command, **places) for command in region])
            if alike not in known:
                known[alike] = run_cycles(region, self._program.build, self._memory)
            for command, cost in zip(region, known[alike], strict=True):
                layers[command.layer] += cost
        return layers

    def _spread(
        self, values: NDArray[np.generic], columns: NDArray[np.int64] | None
    ) -> NDArray[np.generic]:
        """Values (N, of a sample) in the order of their columns."""
        if columns is None:
            return values
        assert self._plan is not None
        spread = np.zeros((self._plan.samples, values.shape[1]), values.dtype)
        spread[columns] = values
        return spread

    def _tensor(self, bank: int, tensor: str) -> NDArray[np.generic]:
        """What is stored, as (N, values of a sample)."""
        plan, shape, columns = self._plan, self._program.tensors[tensor], self._columns[bank]
        assert plan is not None and self._tensors is not None
        values: NDArray[np.generic] = np.empty((plan.samples, shape.size), shape.dtype)
        for device, host in self._tensors.pairs(bank, tensor, values):
            host[...] = device
        return values if columns is None else values[columns]
