# SPDX-License-Identifier: Apache-2.0
"""The interface most users need: open a program on a device, run batches, read the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boards import DEFAULT_BOARD, load_board
from .cpu.device import CpuDevice
from .cpu.program import CpuProgram
from .device.engine import EngineProgram
from .device.session import Session, open_device
from .device.submissions import BANKS, Submissions
from .endpoints import Described, Endpoints, Tensors
from .errors import DeviceError, InputError
from .pack import archive
from .pack.cycles import LayerCycles, Memory
from .pack.fits import MemoryUse
from .pack.pipeline import Pipeline
from .pack.program import Program
from .report import LayerReport, Report
from .verify import Verifier


@dataclass
class _Piece:
    """What is run at once of a batch: its tensors, and which sample of the batch is the first."""

    tensors: Tensors
    lengths: NDArray[np.int64] | None
    first: int

    @property
    def samples(self) -> int:
        return len(next(iter(self.tensors.values())))


@dataclass
class _Cost:
    """Cycles of every layer, and how often they were spent."""

    cycles: list[LayerCycles]
    runs: int = 0


class Accelerator:
    """A program on a device. A context manager; not for use by several threads at once.

    Of a pipeline it is a `PipelineAccelerator`.
    """

    #: Samples that are well run at once: more gain nothing and take memory.
    step = 2048

    def __new__(cls, program: Program | Pipeline | str | Path, *_: Any, **__: Any) -> Accelerator:
        several = isinstance(program, Pipeline)
        if isinstance(program, (str, Path)):
            several = archive.kind(program) == "pipeline"
        if cls is Accelerator and several:
            from .pipeline_accelerator import PipelineAccelerator

            return object.__new__(PipelineAccelerator)
        return object.__new__(cls)

    def __init__(
        self,
        program: Program | Pipeline | str | Path,
        device: str = "auto",
        *,
        verify: bool = False,
        board: str = DEFAULT_BOARD,
        bitfile: str | Path | None = None,
        attach: bool = False,
        threads: int = 0,
        memory_bytes: int | None = None,
        strict: bool | None = None,
        session: Session | None = None,
    ) -> None:
        """
        Args:
            program: a compiled program or pipeline, or the path of its file.
            device: "auto" (a board if there is one, else emulated), "board", "emulated",
                "emulated-pynq", "standin" or "cpu".
            verify: compare every layer's output with the cpu device's, bit for bit.
            board: whose clock and memory rate the modelled figures are for.
            bitfile: the overlay's `.bit`, for a board.
            attach: the board's overlay is loaded already and stays as it is.
            threads: most threads of the cpu device, 0 for all processors.
            memory_bytes, strict: of an emulated board, see `open_device`.
            session: an open device to share with other programs, which stays open; `device` and
                what else is about opening one then says nothing.

        Raises:
            ProgramError: the program file is missing or damaged.
            InputError: an option that does not fit.
            BuildError: the device's engine is not the program's build, or unknown board.
            DeviceError, ToolchainError: the device cannot be opened.
        """
        assert not isinstance(program, Pipeline)  # is another class's
        self._program = program if isinstance(program, Program) else Program.load(program)
        on_cpu = device == "cpu" and session is None
        if verify and on_cpu:
            raise InputError(
                "verify compares a device with the cpu device; with device='cpu' there is "
                "nothing to compare. Leave verify out, or use device='emulated'"
            )
        chosen = load_board(board)
        memory = Memory.of(chosen)
        self._endpoints = Endpoints(self._program)
        self._cpu = CpuDevice(self._program, threads) if verify or on_cpu else None
        self._verifier: Verifier | None = None
        self._submissions: Submissions[_Piece] | None = None
        self._cost = _Cost([])
        self._closed = False
        self._images = self._program.has_pixels
        with ExitStack() as cleanup:
            if session is None and not on_cpu:
                session = cleanup.enter_context(
                    open_device(
                        device,
                        self._program.build,
                        board=board,
                        memory_bytes=memory_bytes,
                        strict=strict,
                        bitfile=bitfile,
                        attach=attach,
                    )
                )
            name = session.name if session else "cpu"
            self._report = _new_report(self._program, name, chosen.name, memory)
            self._engine = self._opened(session, memory, every=verify)
            cleanup.callback(self._engine.close)
            self._cleanup = cleanup.pop_all()

    @property
    def inputs(self) -> Described:
        """Name -> (shape without the batch, dtype) of every input."""
        return dict(self._endpoints.inputs)

    @property
    def outputs(self) -> Described:
        """Name -> (shape without the batch, dtype) of every output."""
        return dict(self._endpoints.outputs)

    def run(self, x: Any) -> Any:
        """Run a batch of any size.

        Args:
            x: an array (N, *shape), or a dict of such arrays by input name where there are more;
                among them (N,) integers where the samples of a model have lengths. The batch
                stands where the model has it, which for sequences may be behind the steps.

        Returns:
            An array (N, *shape), or a dict of such arrays where the model has more outputs; the
            batch as in the model.

        Raises:
            InputError: missing or unknown input, wrong shape or dtype, NaN.
            VerificationError: the device's integers are not the cpu device's.
            DeviceError and its kinds: the device refused, ran out of memory or out of time, or
                the accelerator was closed.
        """
        self._check_open()
        if self._submissions:  # which have the device until they are through
            return self.submit(x).result()
        return self._shown([self._run(put(0), 0) for put in self._pieces(x)])

    def submit(self, x: Any) -> Future[Any]:
        """`run` in the background: the future has what it returns or raises.

        Batches run in the order in which they were submitted. The input of the next one is
        quantised, laid out and put into the device's memory while the device runs the one before.
        `x` must not change until its future is done.

        Raises:
            DeviceError: the accelerator was closed.
        """
        self._check_open()
        if self._submissions is None:
            self._engine.banks = BANKS
            self._submissions = Submissions(self._pieces, self._run, self._shown)
        return self._submissions.submit(x)

    def report(self) -> Report:
        """What all runs so far cost; prints itself."""
        self._charge(_Cost([]))
        if self._engine.plan:
            self._report.memory = str(MemoryUse.of_plan(self._program, self._engine.plan))
        return self._report

    def close(self, *, cancel: bool = False) -> None:
        """Wait for what was submitted, free the device's memory and let go of it. May be called
        again.

        Args:
            cancel: batches that were submitted and have not begun are cancelled instead.
        """
        self._closed = True
        try:
            if self._submissions:
                self._submissions.close(cancel=cancel)
        finally:
            self._cleanup.close()

    def __enter__(self) -> Accelerator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(cancel=error is not None)

    def _opened(
        self, session: Session | None, memory: Memory, *, every: bool
    ) -> EngineProgram | CpuProgram:
        """The program on the device of `session`, or else on the cpu device."""
        if session is None:
            assert self._cpu is not None
            return CpuProgram(self._cpu, self._report.seconds)
        session.check_program(self._program.build)
        engine = EngineProgram(self._program, session, memory, self._report.seconds, every=every)
        if self._cpu:
            self._verifier = Verifier(self._program, engine, self._cpu)
        return engine

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceError("this accelerator was closed; open another one")

    def _pieces(
        self, x: Any, drain: Callable[[], None] = lambda: None
    ) -> Iterator[Callable[[int], _Piece]]:
        """What puts each piece of a batch into a bank."""
        start = perf_counter()
        tensors, lengths = self._endpoints.quantised(x)
        self._report.seconds["quantise"] += perf_counter() - start
        samples = len(next(iter(tensors.values())))
        for first, end in self._engine.pieces(samples, lengths, drain):
            piece = _Piece(tensors, lengths, first)
            if end - first < samples:
                own = {name: values[first:end] for name, values in tensors.items()}
                piece = _Piece(own, None if lengths is None else lengths[first:end], first)

            def put(bank: int, piece: _Piece = piece) -> _Piece:
                self._engine.put(piece.tensors, piece.lengths, bank)
                return piece

            yield put

    def _run(self, piece: _Piece, bank: int) -> Tensors:
        """Runs a piece that is in a bank: the tensors that the outputs are made of, its inputs
        among them."""
        cycles = self._engine.execute(bank)
        if self._cpu and isinstance(self._engine, CpuProgram):
            for layer, seconds in zip(self._report.layers, self._cpu.seconds, strict=True):
                layer.seconds = float(seconds)
        given, wanted = piece.tensors, self._endpoints.tensors
        if self._verifier:
            wanted = self._verifier.tensors
        results = self._engine.get([name for name in wanted if name not in given], bank)
        runs = piece.samples if self._images else 1
        if cycles is not self._cost.cycles:
            self._charge(_Cost(cycles))
        self._cost.runs += runs
        if self._verifier:
            start = perf_counter()
            self._verifier.check(given, results, piece.first, piece.lengths)
            self._report.verified_columns += piece.samples
            self._report.seconds["verify"] += perf_counter() - start
        self._report.columns += piece.samples
        return {n: results[n] if n in results else given[n] for n in self._endpoints.tensors}

    def _charge(self, cost: _Cost) -> None:
        """Adds up what was spent before, and begins with another cost."""
        spent, self._cost = self._cost, cost
        for layer, cycles in zip(self._report.layers, spent.cycles, strict=False):
            _add(layer, cycles, spent.runs)

    def _shown(self, results: list[Tensors]) -> Any:
        start = perf_counter()
        outputs = self._endpoints.shown(results)
        self._report.runs += 1
        self._report.seconds["output"] += perf_counter() - start
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _new_report(program: Program, device: str, board: str, memory: Memory) -> Report:
    layers = [
        LayerReport(
            layer.name,
            layer.rows,
            layer.features,
            layer.bank_size,
            layer.keep,
            program.tensors[layer.output].size // program.tensors[layer.output].features,
            layer.model_weights,
        )
        for layer in program.layers
    ]
    return Report(
        program.name,
        f"{program.build.name} on {board}",
        device,
        memory.clock_hz / 1e6,
        memory.bytes_per_second / 1e9,
        layers,
    )


def _add(report: LayerReport, cycles: LayerCycles, runs: int) -> None:
    report.cycles += runs * cycles.total
    report.multiply_cycles += runs * cycles.multiply
    report.bytes += runs * cycles.bytes
