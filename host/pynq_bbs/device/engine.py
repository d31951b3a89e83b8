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
from ..interface import Command
from ..model.graph import QuantInput
from ..pack.cycles import LayerCycles, Memory, regions_of, run_cycles
from ..pack.layout import by_length, from_tiles, images_from_tiles, images_to_tiles, to_tiles
from ..pack.plan import Plan, make_plan, program_bases
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
        self._most = MOST_IMAGES if self._images else MOST_COLUMNS
        self._stays = program_bases(program) is not None
        self._resident = False  # in the block buffer, as far as the plan in memory goes
        self._plan: Plan | None = None
        self._cycles: list[LayerCycles] = []
        self._block: Any = None

    def chunks(
        self, columns: int, lengths: NDArray[np.int64] | None = None
    ) -> Iterable[tuple[int, int]]:
        """(first sample, end) of pieces that fit the device's memory.

        Args:
            lengths: steps of each sample (N,), where the program takes them.

        Raises:
            DeviceMemoryError: not even one column tile, or image, fits.
        """
        least = 1 if self._images else self._program.build.cols
        start = 0
        while start < columns:
            end = min(columns, start + self._most)
            try:
                self._prepare(end - start, None if lengths is None else lengths[start:end])
            except DeviceMemoryError:
                if end - start <= least:
                    raise
                self._most = max(least, (end - start) // 2 // least * least)
            else:
                yield start, end
                start = end

    def run(
        self,
        inputs: dict[str, NDArray[np.generic]],
        wanted: Iterable[str],
        lengths: NDArray[np.int64] | None = None,
    ) -> tuple[dict[str, NDArray[np.generic]], list[LayerCycles]]:
        """The `wanted` tensors (N, values of a sample) and every layer's modelled cycles.

        Args:
            lengths: steps of each sample (N,), where the program takes them.

        Raises:
            DeviceError and its kinds: the engine refused a command or did not finish.
        """
        plan, columns = self._prepare(len(next(iter(inputs.values()))), lengths)
        self._session.owner = None  # until the block buffer holds all weights
        layers = self._program.layers
        for tensor, values in inputs.items():
            with self._timed("layout"):
                tiles = self._tiled(plan, tensor, values, columns)
            with self._timed("to device"):
                self._stored(plan, tensor)[:] = tiles
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
                layer_name=lambda index: (
                    layers[plan.commands[index % len(plan.commands)].layer].name
                ),
            )
        if self._stays:
            self._session.owner = self
        with self._timed("from device"):
            self._block.invalidate()
        with self._timed("layout"):
            outputs = {tensor: self._tensor(plan, tensor, columns) for tensor in wanted}
        return outputs, self._cycles

    def sums(
        self, index: int, x: NDArray[np.int8], weights: NDArray[np.int8] | None = None
    ) -> NDArray[np.int32]:
        """The INT32 sums that the device computes for layer `index`, of one sample after the
        other (N, M * pixels), from its input `x` (N, values of a sample) and, if its weights are
        a tensor, that one. Of a recurrent layer those of its gates, from the features of a step."""
        original = self._program.layers[index]
        layer = replace(as_sums(original), input="x", output="sums", first_row=0)
        known = {name: tensor.alone for name, tensor in self._program.tensors.items()}
        source, target = known[original.input], known[original.output]
        rows = original.rows if original.first_row else target.features
        if original.cell:
            rows, source, target = original.rows, Tensor(original.features), Tensor(original.rows)
        sums = replace(target, features=rows, bits=32)
        tensors = {"x": source, "sums": sums}
        given: dict[str, NDArray[np.generic]] = {"x": x}
        if weights is not None:
            layer = replace(layer, weight_tensor="weights")
            tensors["weights"] = known[original.weight_tensor]
            given["weights"] = weights
        inputs = [
            QuantInput(name, name, (tensors[name].size,), "int8", np.float32(1), 0)
            for name in given
        ]
        alone = replace(
            self._program, tensors=tensors, layers=[layer], inputs=inputs, outputs=[], lengths=""
        )
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

    def _prepare(
        self, samples: int, lengths: NDArray[np.int64] | None = None
    ) -> tuple[Plan, NDArray[np.int64] | None]:
        """The plan for so many samples, its image and commands in device memory, and the column of
        each sample where they are not in order."""
        columns: NDArray[np.int64] | None = None
        tiles: tuple[int, ...] = ()
        if lengths is not None:
            cols = self._program.build.cols
            columns, tiles = by_length(lengths, cols)
            samples = len(tiles) * cols
        resident = self._stays and self._session.owner is self
        plan = self._plan
        known = plan is not None and (plan.samples, plan.lengths) == (samples, tiles)
        if plan is None or not known or resident != self._resident:
            plan = make_plan(
                self._program, samples, self._memory,
                every=self._every, resident=resident, lengths=tiles,
            )  # fmt: skip
            self._plan = None  # until all of the new one lies in memory
            self._load(plan)
            self._cycles = self._layer_cycles(plan.commands)
            self._plan, self._resident = plan, resident
        return plan, columns

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

    def _load(self, plan: Plan) -> None:
        image = self._program.image
        if self._block is None or len(self._block) < plan.memory_words:
            self.close()
            self._block = self._session.allocate(plan.memory_words)
            np.asarray(self._block)[: len(image)] = image
        for offset, words in plan.zeros:
            np.asarray(self._block)[offset : offset + words] = 0
        commands = plan.words()
        first = plan.first_command
        np.asarray(self._block)[first : first + len(commands)] = commands

    def _stored(self, plan: Plan, tensor: str) -> NDArray[np.generic]:
        """The tensor in device memory, (runs, tiles, features, cols). Of a constant all runs are
        the same memory."""
        place, cols = plan.places[tensor], self._program.build.cols
        shape = self._program.tensors[tensor]
        item = shape.dtype.itemsize
        run = plan.sample_words if place.offset >= plan.first_sample else 0
        stored: NDArray[np.generic] = np.lib.stride_tricks.as_strided(
            np.asarray(self._block)[place.offset :].view(shape.dtype),
            (plan.runs, place.tiles, shape.features, cols),
            (run * PORT_BYTES, place.stride * cols * item, cols * item, item),
        )
        return stored

    def _tiled(
        self,
        plan: Plan,
        tensor: str,
        values: NDArray[np.generic],
        columns: NDArray[np.int64] | None,
    ) -> NDArray[np.generic]:
        """Values (N, of a sample) as `_stored` has them."""
        cols, shape = self._program.build.cols, self._program.tensors[tensor]
        if self._images:
            return images_to_tiles(values, shape.features, cols, shape.features)
        if columns is not None:
            spread = np.zeros((plan.samples, values.shape[1]), values.dtype)
            spread[columns] = values
            values = spread
        steps = values.reshape(plan.samples, shape.steps, shape.features)
        tiles = [to_tiles(steps[:, t], cols) for t in range(shape.steps)]
        return np.concatenate(tiles)[None]

    def _tensor(
        self, plan: Plan, tensor: str, columns: NDArray[np.int64] | None
    ) -> NDArray[np.generic]:
        """What is stored, as (N, values of a sample)."""
        shape, tiles = self._program.tensors[tensor], self._stored(plan, tensor)
        if self._images:
            return images_from_tiles(tiles, shape.features, shape.pixels)
        steps = tiles.reshape(shape.steps, -1, *tiles.shape[2:])
        every = [from_tiles(step, plan.samples, shape.features) for step in steps]
        values: NDArray[np.generic] = np.concatenate(every, axis=1)
        return values if columns is None else values[columns]

    def _timed(self, part: str) -> _Timer:
        return _Timer(self._seconds, part)


class _Timer:
    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self._seconds, self._part = seconds, part

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._part] += time.perf_counter() - self._start
