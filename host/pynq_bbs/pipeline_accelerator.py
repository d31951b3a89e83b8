# SPDX-License-Identifier: Apache-2.0
"""A pipeline on a device: all its programs in one device's memory, the host's nodes in between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .accelerator import Accelerator
from .device.session import DEFAULT_BOARD, MEMORY_BYTES, Session, open_device
from .errors import InputError
from .pack.pipeline import Border, Pipeline, Segment, Tensors
from .pack.program import Program
from .report import PARTS, Report


class PipelineAccelerator(Accelerator):
    """What `Accelerator` makes of a pipeline; used in the same way.

    The programs share one open device and stay in its memory: switching between them is another
    start address.
    """

    def __init__(
        self,
        program: Program | Pipeline | str | Path,
        device: str = "auto",
        *,
        verify: bool = False,
        board: str = DEFAULT_BOARD,
        bitfile: str | Path | None = None,
        threads: int = 0,
        memory_bytes: int = MEMORY_BYTES,
        strict: bool | None = None,
        session: Session | None = None,
    ) -> None:
        """As of `Accelerator`; `verify` holds for every program."""
        assert not isinstance(program, Program)
        self._pipeline = program if isinstance(program, Pipeline) else Pipeline.load(program)
        self._last_uses = self._pipeline.last_uses()
        self._verify_all = verify
        self._samples = self._batches = 0
        self._host_seconds = 0.0
        with ExitStack() as cleanup:
            if device != "cpu" and session is None:
                session = cleanup.enter_context(
                    open_device(
                        device,
                        self._pipeline.build,
                        board=board,
                        memory_bytes=memory_bytes,
                        strict=strict,
                        bitfile=bitfile,
                    )
                )
            self._runners = [
                cleanup.enter_context(
                    Accelerator(
                        program, device, verify=verify, board=board, threads=threads,
                        session=session,
                    )
                )
                for program in self._pipeline.programs
            ]  # fmt: skip
            self._cleanup = cleanup.pop_all()

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape without the batch, dtype) of every input."""
        return {border.name: (border.shape, border.dtype) for border in self._pipeline.inputs}

    @property
    def outputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape without the batch, dtype) of every output; -1 is not known before."""
        return {border.name: (border.shape, border.dtype) for border in self._pipeline.outputs}

    def run(self, x: Any) -> Any:
        """As `Accelerator.run`; of a model whose file fixes the batch, N is a multiple of it."""
        given = self._checked(x)
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
        self._samples += samples
        self._batches += 1
        names = [border.name for border in self._pipeline.outputs]
        if len(pieces) == 1:
            joined = pieces[0]
        else:
            joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
        return joined[names[0]] if len(names) == 1 else joined

    def report(self) -> Report:
        """What all runs so far cost, over all programs; prints itself."""
        reports = [runner.report() for runner in self._runners]
        segments = [stage for stage in self._pipeline.stages if isinstance(stage, Segment)]
        layers = [
            replace(layer, pixels=layer.pixels * prod(segment.folded))
            for report, segment in zip(reports, segments, strict=True)
            for layer in report.layers
        ]
        seconds = {part: sum(report.seconds[part] for report in reports) for part in PARTS}
        seconds["host"] += self._host_seconds
        verified = self._samples if self._verify_all else 0
        return replace(
            reports[0], program=self._pipeline.name, layers=layers, seconds=seconds,
            columns=self._samples, runs=self._batches, verified_columns=verified,
        )  # fmt: skip

    def close(self) -> None:
        """Free the device's memory and let go of it. May be called again."""
        self._cleanup.close()

    def _checked(self, x: Any) -> Tensors:
        borders = {border.name: border for border in self._pipeline.inputs}
        if not isinstance(x, Mapping):
            if len(borders) != 1:
                raise InputError(
                    f"the model has {len(borders)} inputs ({', '.join(borders)}): give a dict of "
                    "arrays by name"
                )
            x = {next(iter(borders)): x}
        if set(x) != set(borders):
            raise InputError(
                f"given inputs: {', '.join(sorted(map(str, x))) or 'none'}; "
                f"the model takes exactly: {', '.join(borders)}"
            )
        tensors = {name: _checked_input(border, x[name]) for name, border in borders.items()}
        sizes = {len(values) for values in tensors.values()}
        if len(sizes) != 1:
            raise InputError(f"the inputs have different batch sizes: {sorted(sizes)}")
        return tensors

    def _piece(self, given: Tensors) -> Tensors:
        tensors: Tensors = {**self._pipeline.constants, **given}
        runners = iter(self._runners)
        for stage, done in zip(self._pipeline.stages, self._last_uses, strict=True):
            if isinstance(stage, Segment):
                tensors.update(_run_segment(stage, next(runners), tensors))
            else:
                start = time.perf_counter()
                tensors.update(stage.run(tensors))
                self._host_seconds += time.perf_counter() - start
            for name in done:
                tensors.pop(name, None)
        return {border.name: tensors[border.name] for border in self._pipeline.outputs}


def _run_segment(segment: Segment, runner: Accelerator, tensors: Tensors) -> Tensors:
    given = {name: segment.fold(tensors[name]) for name in segment.inputs}
    results = runner.run(given)
    if len(segment.outputs) == 1:
        results = {segment.outputs[0]: results}
    return {name: segment.unfold(y) for name, y in results.items()}


def _checked_input(border: Border, x: Any) -> NDArray[Any]:
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"input {border.name!r} is not an array: {error}") from None
    wanted = "(N, " + ", ".join(map(str, border.shape)) + ")"
    if array.ndim != len(border.shape) + 1 or array.shape[1:] != border.shape or not len(array):
        raise InputError(
            f"input {border.name!r} has shape {array.shape}, must be {wanted} with at least one "
            "sample"
        )
    if border.dtype == "float32" and array.dtype.kind in "fiu":
        return array.astype(np.float32)
    if array.dtype != np.dtype(border.dtype):
        raise InputError(f"input {border.name!r} is {array.dtype}, must be {border.dtype}")
    return array
