# SPDX-License-Identifier: Apache-2.0
"""A program on an open device: one memory block, commands for any batch, tensors in and out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceMemoryError
from ..model.graph import QuantInput
from ..pack.cycles import LayerCycles, Memory, layer_cycles
from ..pack.layout import from_tiles, images_from_tiles, images_to_tiles, to_tiles
from ..pack.plan import Plan, block_bases, make_plan, tensor_words
from ..pack.program import Program, Tensor, as_sums
from .session import Session

#: Samples worked on at once. As columns more gain nothing: by then each weight block meets as many
#: column tiles as it ever does. As images they would only take memory.
MOST_COLUMNS = 512
MOST_IMAGES = 64
#: A run may take this long for nothing, and this many times what the cycle model says: the
#: emulator is slower than a board, a loaded host slower still.
_PATIENCE_S = 10.0
_PATIENCE_FACTOR = 200.0


class EngineProgram:
    """Loads a program into a device's memory once and runs it for batch after batch."""

    def __init__(
        self,
        program: Program,
        session: Session,
        memory: Memory,
        seconds: dict[str, float],
        *,
        every: bool = True,
    ) -> None:
        """
        Args:
            seconds: where the time of each part of a run is added up (`report.PARTS`).
            every: store every tensor, so that `run` can be asked for it; else only outputs.
        """
        self._program = program
        self._session = session
        self._memory = memory
        self._seconds = seconds
        self._every = every
        self._images = program.has_pixels
        self._sums = program.sums
        self._most = MOST_IMAGES if self._images else MOST_COLUMNS
        self._stays = block_bases(program) is not None
        self._resident = False  # in the block buffer, as far as the plan in memory goes
        self._plan: Plan | None = None
        self._cycles: list[LayerCycles] = []
        self._block: Any = None

    def chunks(self, columns: int) -> Iterable[tuple[int, int]]:
        """(first sample, end) of pieces that fit the device's memory.

        Raises:
            DeviceMemoryError: not even one column tile, or image, fits.
        """
        least = 1 if self._images else self._program.build.cols
        start = 0
        while start < columns:
            end = min(columns, start + self._most)
            try:
                self._prepare(end - start)
            except DeviceMemoryError:
                if end - start <= least:
                    raise
                self._most = max(least, (end - start) // 2 // least * least)
            else:
                yield start, end
                start = end

    def run(
        self, inputs: dict[str, NDArray[np.int8]], wanted: Iterable[str]
    ) -> tuple[dict[str, NDArray[np.generic]], list[LayerCycles]]:
        """The `wanted` tensors (N, values of a sample) and every layer's modelled cycles.

        Raises:
            DeviceError and its kinds: the engine refused a command or did not finish.
        """
        plan = self._prepare(len(next(iter(inputs.values()))))
        self._session.owner = None  # until the block buffer holds all weights
        layers = self._program.layers
        for tensor, values in inputs.items():
            with self._timed("layout"):
                tiles = self._tiled(tensor, values)
            with self._timed("to device"):
                place = self._stored(plan, tensor)
                place[:] = tiles.reshape(*place.shape[:2], -1).view(np.uint64)
        with self._timed("to device"):
            self._block.flush()
        with self._timed("device"):
            cycles = sum(c.total for c in self._cycles)
            modelled = plan.runs * cycles / self._memory.clock_hz
            self._session.driver.run(
                self._block.device_address,
                plan.memory_words,
                plan.first_command,
                len(plan.commands) * plan.runs,
                timeout=_PATIENCE_S + _PATIENCE_FACTOR * modelled,
                layer_name=lambda index: layers[index % len(layers)].name,
            )
        if self._stays:
            self._session.owner = self
        with self._timed("from device"):
            self._block.invalidate()
        with self._timed("layout"):
            outputs = {tensor: self._tensor(plan, tensor) for tensor in wanted}
        return outputs, self._cycles

    def sums(
        self, index: int, x: NDArray[np.int8], weights: NDArray[np.int8] | None = None
    ) -> NDArray[np.int32]:
        """The INT32 sums that the device computes for layer `index`, of one sample after the
        other (N, M * pixels), from its input `x` (N, values of a sample) and, if its weights are
        a tensor, that one."""
        original = self._program.layers[index]
        layer = replace(as_sums(original), input="x", output="sums", first_row=0)
        known = {name: Tensor(*t.shape) for name, t in self._program.tensors.items()}
        target = known[original.output]
        rows = original.rows if original.first_row else target.features
        tensors = {"x": known[original.input], "sums": Tensor(rows, target.height, target.width)}
        given = {"x": x}
        if weights is not None:
            layer = replace(layer, weight_tensor="weights")
            tensors["weights"] = known[original.weight_tensor]
            given["weights"] = weights
        inputs = [
            QuantInput(name, name, (tensors[name].size,), "int8", np.float32(1), 0)
            for name in given
        ]
        alone = replace(self._program, tensors=tensors, layers=[layer], inputs=inputs, outputs=[])
        other = EngineProgram(alone, self._session, self._memory, dict(self._seconds))
        try:
            return other.run(given, ["sums"])[0]["sums"].astype(np.int32, copy=False)
        finally:
            other.close()

    def close(self) -> None:
        """Give the memory back. May be called again."""
        block, self._block, self._plan = self._block, None, None
        if block is not None:
            self._session.free(block)

    def _prepare(self, columns: int) -> Plan:
        """The plan for `columns`, its image and commands in device memory."""
        resident = self._stays and self._session.owner is self
        plan = self._plan
        if plan is None or plan.samples != columns or resident != self._resident:
            plan = make_plan(
                self._program, columns, self._memory, every=self._every, resident=resident
            )
            self._plan = None  # until all of the new one lies in memory
            self._load(plan)
            self._cycles = [
                layer_cycles(c, self._program.build, self._memory) for c in plan.commands
            ]
            self._plan, self._resident = plan, resident
        return plan

    def _load(self, plan: Plan) -> None:
        image = self._program.image
        if self._block is None or len(self._block) < plan.memory_words:
            self.close()
            self._block = self._session.allocate(plan.memory_words)
            np.asarray(self._block)[: len(image)] = image
        commands = plan.words()
        first = plan.first_command
        np.asarray(self._block)[first : first + len(commands)] = commands

    def _stored(self, plan: Plan, tensor: str) -> NDArray[np.uint64]:
        """The tensor's words in device memory, (runs, tiles, words of a tile)."""
        build, size, base = self._program.build, plan.sample_words, plan.first_sample
        whole, first, _ = self._program.region(tensor)
        place, memory = plan.places[whole], np.asarray(self._block)
        words = tensor_words(place, build, tensor in self._sums)
        samples = memory[base : base + plan.runs * size].reshape(plan.runs, size)
        at = place.offset - base
        if at < 0:  # a constant: one for all samples
            samples, at = memory[None], place.offset
        tiles = samples[:, at : at + words].reshape(len(samples), place.tiles, -1)
        word = tiles.shape[2] / place.stride  # of a feature
        return tiles[:, :, int(first * word) : int((first + self._width(tensor)) * word)]

    def _width(self, tensor: str) -> int:
        """Features of a tensor that lie in its words."""
        pack = self._program.build.pack
        return -(-self._program.tensors[tensor].features // pack) * pack

    def _tiled(self, tensor: str, values: NDArray[np.int8]) -> NDArray[np.int8]:
        cols, width = self._program.build.cols, self._width(tensor)
        if self._images:
            features = self._program.tensors[tensor].features
            return images_to_tiles(values, features, cols, width)
        return to_tiles(values, cols, width)

    def _tensor(self, plan: Plan, tensor: str) -> NDArray[np.generic]:
        shape = self._program.tensors[tensor]
        dtype = np.dtype(np.int32 if tensor in self._sums else np.int8)
        cols = self._program.build.cols
        stored = np.ascontiguousarray(self._stored(plan, tensor)).view(dtype)
        tiles = stored.reshape(*stored.shape[:2], self._width(tensor), cols)
        if self._images:
            values = images_from_tiles(tiles, shape.features, shape.pixels)
            return np.repeat(values, plan.samples // len(values), axis=0)
        return from_tiles(tiles[0], plan.samples, shape.features)

    def _timed(self, part: str) -> _Timer:
        return _Timer(self._seconds, part)


class _Timer:
    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self._seconds, self._part = seconds, part

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._part] += time.perf_counter() - self._start
