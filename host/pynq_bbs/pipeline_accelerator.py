# SPDX-License-Identifier: Apache-2.0
"""A pipeline on a device: all its programs in one device's memory, the host's nodes in between."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from .accelerator import Accelerator
from .boards import DEFAULT_BOARD, load_board
from .device.session import Session, open_device
from .device.submissions import BANKS
from .endpoints import Described
from .errors import InputError
from .pack.cycles import Memory
from .pack.pipeline import Pipeline, Segment, Tensors, checked_inputs, run_folded, run_stages
from .pack.program import Program
from .report import PARTS, Report


class PipelineAccelerator(Accelerator):
    """What `Accelerator` makes of a pipeline; used in the same way.

    The programs share one open device and stay in its memory: switching between them is another
    start address.
    """

    #: The host holds what stands between programs for all samples of a run.
    step = 64

    def __init__(
        self,
        program: Program | Pipeline | str | Path,
        device: str = "auto",
        *,
        verify: bool = False,
        board: str = DEFAULT_BOARD,
        threads: int = 0,
        session: Session | None = None,
        **opening: Any,
    ) -> None:
        """As of `Accelerator`; `verify` holds for every program, `opening` is for `open_device`."""
        assert not isinstance(program, Program)
        self._pipeline = program if isinstance(program, Pipeline) else Pipeline.load(program)
        batch = self._pipeline.batch or 1
        self.step = -(-self.step // batch) * batch
        self._board = load_board(board)
        self._memory = Memory.of(self._board)
        self._verified = verify
        self._samples = self._batches = 0
        self._host_seconds = 0.0
        self._background: ThreadPoolExecutor | None = None
        self._last: Future[Any] | None = None  # that was submitted
        self._lock = Lock()  # of what two batches that are under way share
        self._closed = False
        with ExitStack() as cleanup:
            if device != "cpu" and session is None and self._pipeline.programs:
                build = self._pipeline.build
                session = cleanup.enter_context(open_device(device, build, board=board, **opening))
            self._device = session.name if session else "cpu"
            self._stages = {
                index: (
                    stage,
                    cleanup.enter_context(
                        Accelerator(
                            stage.program,
                            device,
                            verify=verify,
                            board=board,
                            threads=threads,
                            session=session,
                        )
                    ),
                )
                for index, stage in enumerate(self._pipeline.stages)
                if isinstance(stage, Segment)
            }
            self._cleanup = cleanup.pop_all()

    @property
    def inputs(self) -> Described:
        """Name -> (shape without the batch, dtype) of every input."""
        return {border.name: (border.shape, border.dtype) for border in self._pipeline.inputs}

    @property
    def outputs(self) -> Described:
        """Name -> (shape without the batch, dtype) of every output; -1 is not known before."""
        return {border.name: (border.shape, border.dtype) for border in self._pipeline.outputs}

    def run(self, x: Any) -> Any:
        """As `Accelerator.run`; where the model's file fixes the batch, N is a multiple of it."""
        self._check_open()
        if self._background:  # which has the device until it is through
            return self.submit(x).result()
        return self._batch(x)

    def submit(self, x: Any) -> Future[Any]:
        """`run` in the background: the future has what it returns or raises.

        Two batches are under way at a time: while the device runs a program for one, the host does
        its nodes and transfers for the next. Futures are done in the order of their batches. `x`
        must not change until its future is done.

        Raises:
            DeviceError: the accelerator was closed.
        """
        self._check_open()
        if self._background is None:
            self._background = ThreadPoolExecutor(BANKS, "pipeline")
        self._last = self._background.submit(self._batch_after, self._last, x)
        return self._last

    def _batch_after(self, before: Future[Any] | None, x: Any) -> Any:
        """`_batch`, done when the batch before is; that one was begun or cancelled earlier."""
        try:
            return self._batch(x)
        finally:
            if before is not None:
                wait([before])

    def _batch(self, x: Any) -> Any:
        given = checked_inputs(self._pipeline.inputs, x)
        samples = len(next(iter(given.values())))
        step = self._pipeline.batch or samples
        if samples % step:
            raise InputError(
                f"{samples} samples given; the model's file fixes a batch of {step}, so it takes "
                "multiples of that. Export it with an open batch dimension"
            )
        pieces = [
            self._piece({name: values[start : start + step] for name, values in given.items()})
            for start in range(0, samples, step)
        ]
        with self._lock:
            self._samples += samples
            self._batches += 1
        outputs = pieces[0]  # of all shapes, those without a batch included
        if len(pieces) > 1:
            outputs = {n: np.concatenate([piece[n] for piece in pieces]) for n in self.outputs}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def report(self) -> Report:
        """What all runs so far cost, over all programs; prints itself."""
        layers = [
            replace(layer, pixels=layer.pixels * segment.places)
            for segment, runner in self._stages.values()
            for layer in runner.report().layers
        ]
        reports = [runner.report() for _, runner in self._stages.values()]
        seconds = {part: sum(report.seconds[part] for report in reports) for part in PARTS}
        seconds["host"] += self._host_seconds
        return Report(
            self._pipeline.name,
            f"{self._pipeline.build.name} on {self._board.name}",
            self._device,
            self._memory.clock_hz / 1e6,
            self._memory.bytes_per_second / 1e9,
            layers,
            columns=self._samples,
            runs=self._batches,
            verified_columns=self._samples if self._verified else 0,
            seconds=seconds,
        )

    def close(self, *, cancel: bool = False) -> None:
        """Wait for what was submitted, free the device's memory and let go of it. May be called
        again.

        Args:
            cancel: batches that were submitted and have not begun are cancelled instead.
        """
        self._closed = True
        if self._background is not None:
            self._background.shutdown(cancel_futures=cancel)
        self._cleanup.close()

    def _piece(self, given: Tensors) -> Tensors:
        start = time.perf_counter()
        on_programs = 0.0

        def run_program(index: int, tensors: Tensors) -> Tensors:
            nonlocal on_programs
            began = time.perf_counter()
            segment, runner = self._stages[index]
            run = partial(self._run_named, runner)
            results = run_folded(segment.folded, tensors, run)
            on_programs += time.perf_counter() - began
            return results

        tensors = {**self._pipeline.constants, **given}
        results = run_stages(self._pipeline.stages, tensors, list(self.outputs), run_program)
        with self._lock:
            self._host_seconds += time.perf_counter() - start - on_programs
        return results

    def _run_named(self, runner: Accelerator, x: Tensors) -> Tensors:
        """`run_named`; in the background, where two batches may come to one program."""
        if not self._background:
            return run_named(runner, x)
        with self._lock:
            future = runner.submit(x)
        return named(runner, future.result())


def run_named(accelerator: Accelerator, x: Any) -> Tensors:
    """As `Accelerator.run`; a dict of arrays by output name also of one output."""
    return named(accelerator, accelerator.run(x))


def named(accelerator: Accelerator, results: Any) -> Tensors:
    """What `Accelerator.run` gave, by output name also of one output."""
    if len(accelerator.outputs) > 1:
        return dict(results)
    return dict.fromkeys(accelerator.outputs, results)
