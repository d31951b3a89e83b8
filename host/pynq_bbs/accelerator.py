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
from .device.session import DEFAULT_BOARD, MEMORY_BYTES, open_device
from .errors import InputError
from .pack.cycles import LayerCycles, Memory
from .pack.program import Program
from .report import LayerReport, Report
from .verify import compare_layer


class Accelerator:
    """A program on a device. A context manager; not for use by several threads at once."""

    def __init__(
        self,
        program: Program | str | Path,
        device: str = "auto",
        *,
        verify: bool = False,
        board: str = DEFAULT_BOARD,
        bitfile: str | Path | None = None,
        threads: int = 0,
        memory_bytes: int = MEMORY_BYTES,
        strict: bool | None = None,
    ) -> None:
        """
        Args:
            program: a compiled program, or the path of a program file.
            device: "auto" (a board if there is one, else emulated), "board", "emulated",
                "emulated-pynq", "standin" or "cpu".
            verify: compare every layer's output with the cpu device's, bit for bit.
            board: whose clock and memory rate the modelled figures are for.
            bitfile: the overlay's `.bit`, for a board.
            threads: most threads of the cpu device, 0 for all processors.
            memory_bytes, strict: of an emulated board, see `open_device`.

        Raises:
            ProgramError: the program file is missing or damaged.
            InputError: an option that does not fit.
            BuildError: the device's engine is not the program's build, or unknown board.
            DeviceError, ToolchainError: the device cannot be opened.
        """
        self._program = program if isinstance(program, Program) else Program.load(program)
        if verify and device == "cpu":
            raise InputError(
                "verify compares a device with the cpu device; with device='cpu' there is "
                "nothing to compare. Leave verify out, or use device='emulated'"
            )
        chosen = load_board(board)
        self._memory = Memory(chosen.clock_mhz * 1e6, chosen.usable_ddr_gb_per_s * 1e9)
        self._cpu: CpuDevice | None = None
        if verify or device == "cpu":
            self._cpu = CpuDevice(self._program, threads)
        self._engine: EngineProgram | None = None
        self._cleanup = ExitStack()
        name = "cpu"
        if device != "cpu":
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
            name = session.name
        self._report = _new_report(self._program, name, chosen.name, self._memory)
        if device != "cpu":
            self._engine = EngineProgram(
                self._program, session, self._memory, self._report.seconds, every=verify
            )
            self._cleanup.callback(self._engine.close)

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape without the batch, dtype) of every input."""
        return {i.name: (i.shape, i.dtype) for i in self._program.inputs}

    @property
    def outputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape without the batch, dtype) of every output."""
        return {o.name: (o.shape, o.dtype) for o in self._program.outputs}

    def run(self, x: Any) -> Any:
        """Run a batch of any size.

        Args:
            x: an array (N, *shape), or a dict of such arrays by input name where there are more.

        Returns:
            An array (N, *shape), or a dict of such arrays where the model has more outputs.

        Raises:
            InputError: missing or unknown input, wrong shape or dtype, NaN.
            VerificationError: the device's integers are not the cpu device's.
            DeviceError and its kinds: the device refused, ran out of memory or out of time.
        """
        tensors = self._quantised(x)
        columns = len(next(iter(tensors.values())))
        wanted = {output.tensor for output in self._program.outputs}
        parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in wanted}
        if self._engine is None:
            assert self._cpu is not None
            start = time.perf_counter()
            results = self._cpu.run(tensors)
            self._report.seconds["device"] += time.perf_counter() - start
            for name in wanted:
                parts[name].append(results[name])
        else:
            for start_column, end in self._engine.chunks(columns):
                piece = {name: values[start_column:end] for name, values in tensors.items()}
                for name, values in self._run_engine(piece, wanted, start_column).items():
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

    def _quantised(self, x: Any) -> dict[str, NDArray[np.int8]]:
        start = time.perf_counter()
        names = list(dict.fromkeys(i.name for i in self._program.inputs))
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
        lengths = {len(values) for values in tensors.values()}
        if len(lengths) != 1:
            raise InputError(f"the inputs have different batch sizes: {sorted(lengths)}")
        self._report.seconds["quantise"] += time.perf_counter() - start
        return tensors

    def _run_engine(
        self, tensors: dict[str, NDArray[np.int8]], wanted: set[str], first_column: int
    ) -> dict[str, NDArray[np.generic]]:
        assert self._engine is not None
        written = {layer.output for layer in self._program.layers} if self._cpu else set()
        results, cycles = self._engine.run(tensors, (written | wanted) - set(tensors))
        runs = len(next(iter(tensors.values()))) if self._program.has_pixels else 1
        for layer_report, layer_cycles in zip(self._report.layers, cycles, strict=True):
            _add(layer_report, layer_cycles, runs)
        if self._cpu:
            start = time.perf_counter()
            self._verify(tensors, results, first_column)
            self._report.verified_columns += len(next(iter(tensors.values())))
            self._report.seconds["verify"] += time.perf_counter() - start
        return {name: results[name] if name in results else tensors[name] for name in wanted}

    def _verify(
        self,
        tensors: dict[str, NDArray[np.int8]],
        results: dict[str, NDArray[np.generic]],
        first_column: int,
    ) -> None:
        assert self._cpu is not None
        reference = self._cpu.run(tensors)
        for index, layer in enumerate(self._program.layers):
            target = self._program.tensors[layer.output]
            shape = (-1, target.features, target.pixels)
            rows = slice(layer.first_row, layer.first_row + layer.rows)
            compare_layer(
                layer.name,
                results[layer.output].reshape(shape)[:, rows],
                reference[layer.output].reshape(shape)[:, rows],
                first_column,
                # Layers before this one agree, so both devices read the same input.
                partial(self._sums, index, reference),
            )

    def _sums(
        self, index: int, reference: dict[str, NDArray[np.generic]], sample: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The device's and the cpu device's INT32 sums (M, pixels) of layer `index`."""
        assert self._cpu is not None and self._engine is not None
        layer = self._program.layers[index]
        x = reference[layer.input].astype(np.int8, copy=False)
        weights = None
        if layer.weight_tensor:
            # A product takes all samples at once: one tensor's are the other's weights.
            weights = reference[layer.weight_tensor].astype(np.int8, copy=False)
        else:
            x, sample = x[sample : sample + 1], 0
        shape = (-1, self._program.tensors[layer.output].pixels)
        return (
            self._engine.sums(index, x, weights)[sample].reshape(shape),
            self._cpu.sums(index, x)[sample].reshape(shape),
        )


def _new_report(program: Program, device: str, board: str, memory: Memory) -> Report:
    layers = [
        LayerReport(
            layer.name,
            layer.rows,
            layer.features,
            layer.bank_size,
            layer.keep,
            program.tensors[layer.output].pixels,
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
