# SPDX-License-Identifier: Apache-2.0
"""The interface most users need: open a program on a device, run batches, read the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boards import load_board
from .compress.quantize import dequantize_output, quantize_input
from .cpu.device import CpuDevice
from .device.engine import EngineProgram
from .device.session import DEFAULT_BOARD, MEMORY_BYTES, Session, open_device
from .errors import InputError
from .model.recurrent import GATES
from .pack import archive
from .pack.cycles import LayerCycles, Memory
from .pack.pipeline import Pipeline
from .pack.program import Program
from .report import LayerReport, Report
from .verify import compare_layer


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
        threads: int = 0,
        memory_bytes: int = MEMORY_BYTES,
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
            threads: most threads of the cpu device, 0 for all processors.
            memory_bytes, strict: of an emulated board, see `open_device`.
            session: an open device to share, which stays open; `device` then says nothing.

        Raises:
            ProgramError: the program file is missing or damaged.
            InputError: an option that does not fit.
            BuildError: the device's engine is not the program's build, or unknown board.
            DeviceError, ToolchainError: the device cannot be opened.
        """
        assert not isinstance(program, Pipeline)  # is another class's
        self._program = program if isinstance(program, Program) else Program.load(program)
        if verify and device == "cpu":
            raise InputError(
                "verify compares a device with the cpu device; with device='cpu' there is "
                "nothing to compare. Leave verify out, or use device='emulated'"
            )
        chosen = load_board(board)
        self._memory = Memory.of(chosen)
        self._cpu: CpuDevice | None = None
        if verify or device == "cpu":
            self._cpu = CpuDevice(self._program, threads)
        self._engine: EngineProgram | None = None
        self._cleanup = ExitStack()
        name = "cpu"
        if device != "cpu" and session is None:
            session = self._cleanup.enter_context(
                open_device(
                    device,
                    self._program.build,
                    board=board,
                    memory_bytes=memory_bytes,
                    strict=strict,
                    bitfile=bitfile,
                )
            )
        if session is not None:
            name = session.name
        self._report = _new_report(self._program, name, chosen.name, self._memory)
        if session is not None:
            self._engine = EngineProgram(
                self._program, session, self._memory, self._report.seconds, every=verify
            )
            self._cleanup.callback(self._engine.close)

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape without the batch, dtype) of every input."""
        inputs = {i.name: (i.shape, i.dtype) for i in self._program.inputs}
        return inputs | ({self._program.lengths: ((), "int64")} if self._program.lengths else {})

    @property
    def outputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape without the batch, dtype) of every output."""
        return {o.name: (o.shape, o.dtype) for o in self._program.outputs}

    def run(self, x: Any) -> Any:
        """Run a batch of any size.

        Args:
            x: an array (N, *shape), or a dict of such arrays by input name where there are more;
                among them (N,) integers where the samples of a model have lengths.

        Returns:
            An array (N, *shape), or a dict of such arrays where the model has more outputs.

        Raises:
            InputError: missing or unknown input, wrong shape or dtype, NaN.
            VerificationError: the device's integers are not the cpu device's.
            DeviceError and its kinds: the device refused, ran out of memory or out of time.
        """
        tensors, lengths = self._quantised(x)
        columns = len(next(iter(tensors.values())))
        wanted = {output.tensor for output in self._program.outputs}
        parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in wanted}
        if self._engine is None:
            assert self._cpu is not None
            start = time.perf_counter()
            results = self._cpu.run(tensors, lengths)
            self._report.seconds["device"] += time.perf_counter() - start
            for name in wanted:
                parts[name].append(results[name])
        else:
            for start_column, end in self._engine.chunks(columns, lengths):
                piece = {name: values[start_column:end] for name, values in tensors.items()}
                own = None if lengths is None else lengths[start_column:end]
                for name, values in self._run_engine(piece, wanted, start_column, own).items():
                    parts[name].append(values)
        self._report.columns += columns
        self._report.runs += 1
        start = time.perf_counter()
        outputs = {
            output.name: dequantize_output(output, np.concatenate(parts[output.tensor]))
            for output in self._program.outputs
        }
        self._report.seconds["output"] += time.perf_counter() - start
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def report(self) -> Report:
        """What all runs so far cost; prints itself."""
        return self._report

    def close(self) -> None:
        """Free the device's memory and let go of it. May be called again."""
        self._cleanup.close()
        self._engine = None

    def __enter__(self) -> Accelerator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _quantised(self, x: Any) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.int64] | None]:
        """The input tensors, and the steps of each sample where the program takes them."""
        start = time.perf_counter()
        names = list(dict.fromkeys(i.name for i in self._program.inputs))
        names += [self._program.lengths] if self._program.lengths else []
        if not isinstance(x, Mapping):
            if len(names) != 1:
                raise InputError(
                    f"the model has {len(names)} inputs ({', '.join(names)}): give a dict of "
                    "arrays by name"
                )
            x = {names[0]: x}
        if set(x) != set(names):
            raise InputError(
                f"given inputs: {', '.join(sorted(map(str, x))) or 'none'}; "
                f"the model takes exactly: {', '.join(names)}"
            )
        tensors = {i.tensor: quantize_input(i, x[i.name]) for i in self._program.inputs}
        sizes = {len(values) for values in tensors.values()}
        if len(sizes) != 1:
            raise InputError(f"the inputs have different batch sizes: {sorted(sizes)}")
        lengths = None
        if self._program.lengths:
            lengths = self._checked_lengths(x[self._program.lengths], *sizes)
        self._report.seconds["quantise"] += time.perf_counter() - start
        return tensors, lengths

    def _checked_lengths(self, given: Any, samples: int) -> NDArray[np.int64]:
        name, lengths = self._program.lengths, np.asarray(given)
        steps = next(
            self._program.tensors[la.input].steps for la in self._program.layers if la.cell
        )
        if lengths.shape != (samples,) or lengths.dtype.kind not in "iu":
            raise InputError(
                f"input {name!r} is {lengths.dtype} {lengths.shape}, must be integers "
                f"({samples},): the steps of each sample"
            )
        if lengths.min() < 1 or lengths.max() > steps:
            raise InputError(
                f"input {name!r} goes from {lengths.min()} to {lengths.max()}, a sample has 1 to "
                f"{steps} steps"
            )
        return lengths.astype(np.int64)

    def _run_engine(
        self,
        tensors: dict[str, NDArray[np.generic]],
        wanted: set[str],
        first_column: int,
        lengths: NDArray[np.int64] | None,
    ) -> dict[str, NDArray[np.generic]]:
        assert self._engine is not None
        written = {name for layer in self._program.layers for name in layer.outputs}
        every = wanted | written if self._cpu else wanted
        results, cycles = self._engine.run(tensors, every - set(tensors), lengths)
        runs = len(next(iter(tensors.values()))) if self._program.has_pixels else 1
        for layer_report, layer_cycles in zip(self._report.layers, cycles, strict=True):
            _add(layer_report, layer_cycles, runs)
        if self._cpu:
            start = time.perf_counter()
            self._verify(tensors, results, first_column, lengths)
            self._report.verified_columns += len(next(iter(tensors.values())))
            self._report.seconds["verify"] += time.perf_counter() - start
        return {name: results[name] if name in results else tensors[name] for name in wanted}

    def _verify(
        self,
        tensors: dict[str, NDArray[np.generic]],
        results: dict[str, NDArray[np.generic]],
        first_column: int,
        lengths: NDArray[np.int64] | None,
    ) -> None:
        assert self._cpu is not None
        reference = self._cpu.run(tensors, lengths)
        for index, layer in enumerate(self._program.layers):
            backwards = layer.cell is not None and layer.cell.reverse
            for name in layer.outputs:
                target = self._program.tensors[name]
                # What is worked on one after the other stands last.
                shape = (-1, target.steps, target.features, target.pixels)
                device, cpu = (
                    values[name].reshape(shape).transpose(0, 2, 1, 3)[:, :, :: 1 - 2 * backwards]
                    for values in (results, reference)
                )
                rows = slice(layer.first_row, layer.first_row + layer.rows)
                every = range(target.steps)
                compare_layer(
                    layer.name,
                    device[:, rows].reshape(len(device), -1, target.steps * target.pixels),
                    cpu[:, rows].reshape(len(cpu), -1, target.steps * target.pixels),
                    first_column,
                    # Layers before this one agree, so both devices read the same input.
                    partial(self._sums, index, name, reference, lengths),
                    (every[::-1] if backwards else every) if target.steps > 1 else (),
                )

    def _sums(
        self,
        index: int,
        name: str,
        reference: dict[str, NDArray[np.generic]],
        lengths: NDArray[np.int64] | None,
        sample: int,
        row: int,
        place: int,
    ) -> tuple[str, str]:
        """The device's and the cpu device's INT32 sum behind a value of tensor `name`, which layer
        `index` wrote; of a recurrent layer the sums of the unit's gates in that step."""
        assert self._cpu is not None and self._engine is not None
        layer = self._program.layers[index]
        target = self._program.tensors[name]
        if layer.cell:
            step = target.steps - 1 - place if layer.cell.reverse else place
            length = self._program.tensors[layer.input].steps
            length = length if lengths is None else int(lengths[sample])
            if name != layer.output:
                step = 0 if layer.cell.reverse else length - 1
            own = {tensor: values[sample : sample + 1] for tensor, values in reference.items()}
            features = self._cpu.step_features(index, own, step, length)
            gates = slice(GATES * row, GATES * (row + 1))
            device, cpu = (
                of.sums(index, features)[0, gates].tolist() for of in (self._engine, self._cpu)
            )
            return str(device), str(cpu)
        x, weights = reference[layer.input].astype(np.int8, copy=False), None
        if layer.weight_tensor:
            # A product takes all samples at once: one tensor's are the other's weights.
            weights = reference[layer.weight_tensor].astype(np.int8, copy=False)
        else:
            x, sample = x[sample : sample + 1], 0
        step, pixel = divmod(place, target.pixels)
        at = (sample, step, row, pixel)
        device, cpu = self._engine.sums(index, x, weights), self._cpu.sums(index, x)
        shape = (len(x), target.steps, -1, target.pixels)
        return str(device.reshape(shape)[at]), str(cpu.reshape(shape)[at])


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
