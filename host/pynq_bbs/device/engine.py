# SPDX-License-Identifier: Apache-2.0
"""A program on an open device: one memory block, commands for any batch, tensors in and out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builds import PORT_BYTES
from ..errors import DeviceMemoryError
from ..model.graph import QuantInput
from ..pack.cycles import LayerCycles, Memory, layer_cycles
from ..pack.layout import from_tiles, to_tiles
from ..pack.program import Program
from ..pack.schedule import Plan, make_plan
from .session import Session

#: Columns worked on at once. More gain nothing: by then each weight block meets as many column
#: tiles as it ever does.
MOST_COLUMNS = 512
#: A run may take this long for nothing, and this many times what the cycle model says: the
#: emulator is slower than a board, a loaded host slower still.
_PATIENCE_S = 10.0
_PATIENCE_FACTOR = 200.0


class EngineProgram:
    """Loads a program into a device's memory once and runs it for batch after batch."""

    def __init__(
        self, program: Program, session: Session, memory: Memory, seconds: dict[str, float]
    ) -> None:
        """`seconds` is where the time of each part of a run is added up (`report.PARTS`)."""
        self._program = program
        self._session = session
        self._memory = memory
        self._seconds = seconds
        self._most_columns = MOST_COLUMNS
        self._plan: Plan | None = None
        self._cycles: list[LayerCycles] = []
        self._block: Any = None

    def chunks(self, columns: int) -> Iterable[tuple[int, int]]:
        """(first column, end) of pieces that fit the device's memory.

        Raises:
            DeviceMemoryError: not even one column tile fits.
        """
        cols = self._program.build.cols
        start = 0
        while start < columns:
            end = min(columns, start + self._most_columns)
            try:
                self._prepare(end - start)
            except DeviceMemoryError:
                if end - start <= cols:
                    raise
                self._most_columns = max(cols, (end - start) // 2 // cols * cols)
            else:
                yield start, end
                start = end

    def run(
        self, inputs: dict[str, NDArray[np.int8]], wanted: Iterable[str]
    ) -> tuple[dict[str, NDArray[np.generic]], list[LayerCycles]]:
        """The `wanted` tensors (N, features) and every layer's modelled cycles.

        Raises:
            DeviceError and its kinds: the engine refused a command or did not finish.
        """
        plan = self._prepare(len(next(iter(inputs.values()))))
        build, layers = self._program.build, self._program.layers
        words = np.asarray(self._block)
        for tensor, values in inputs.items():
            with self._timed("layout"):
                tiles = to_tiles(values, build.cols).reshape(-1).view(np.uint64)
            with self._timed("to device"):
                words[plan.tensors[tensor] : plan.tensors[tensor] + tiles.size] = tiles
        with self._timed("to device"):
            self._block.flush()
        with self._timed("device"):
            modelled = sum(c.total for c in self._cycles) / self._memory.clock_hz
            self._session.driver.run(
                self._block.device_address,
                plan.memory_words,
                plan.first_command,
                len(plan.commands),
                timeout=_PATIENCE_S + _PATIENCE_FACTOR * modelled,
                layer_name=lambda index: layers[index].name,
            )
        with self._timed("from device"):
            self._block.invalidate()
        with self._timed("layout"):
            outputs = {tensor: self._tensor(plan, tensor) for tensor in wanted}
        return outputs, self._cycles

    def sums(self, index: int, x: NDArray[np.int8]) -> NDArray[np.int32]:
        """The INT32 sums (N, M) that the device computes for layer `index` from `x` (N, K)."""
        layer = replace(self._program.layers[index], input="x", output="sums", sums_out=True)
        layer = replace(layer, table=-1)
        x_input = QuantInput("x", "x", (layer.features,), "int8", np.float32(1), 0)
        alone = replace(self._program, layers=[layer], inputs=[x_input], outputs=[])
        other = EngineProgram(alone, self._session, self._memory, dict(self._seconds))
        try:
            return other.run({"x": x}, ["sums"])[0]["sums"].astype(np.int32, copy=False)
        finally:
            other.close()

    def close(self) -> None:
        """Give the memory back. May be called again."""
        block, self._block, self._plan = self._block, None, None
        if block is not None:
            self._session.free(block)

    def _prepare(self, columns: int) -> Plan:
        """The plan for `columns`, its image and commands in device memory."""
        if self._plan is None or self._plan.columns != columns:
            plan = make_plan(self._program, columns, self._memory)
            self._plan = None  # until all of the new one lies in memory
            self._load(plan)
            self._cycles = [
                layer_cycles(c, self._program.build, self._memory) for c in plan.commands
            ]
            self._plan = plan
        return self._plan

    def _load(self, plan: Plan) -> None:
        image = self._program.image
        if self._block is None or len(self._block) < plan.memory_words:
            self.close()
            self._block = self._session.allocate(plan.memory_words)
            np.asarray(self._block)[: len(image)] = image
        commands = plan.words()
        first = plan.first_command
        np.asarray(self._block)[first : first + len(commands)] = commands

    def _tensor(self, plan: Plan, tensor: str) -> NDArray[np.generic]:
        features = self._program.features()[tensor]
        is_sums = any(la.output == tensor and la.sums_out for la in self._program.layers)
        dtype = np.dtype(np.int32 if is_sums else np.int8)
        cols, first = self._program.build.cols, plan.tensors[tensor]
        count = plan.tiles * features * cols * dtype.itemsize // PORT_BYTES
        stored = np.asarray(self._block)[first : first + count].view(dtype)
        return from_tiles(stored.reshape(plan.tiles, features, cols), plan.columns)

    def _timed(self, part: str) -> _Timer:
        return _Timer(self._seconds, part)


class _Timer:
    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self._seconds, self._part = seconds, part

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._part] += time.perf_counter() - self._start
