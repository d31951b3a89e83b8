# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU on the emulated engine, step after step in one run, against the integers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pynq_bbs import interface
from pynq_bbs.builds import Build, load_build
from pynq_bbs.codegen import build_header
from pynq_bbs.device.emulator import Engine, load_engine
from pynq_bbs.interface import Command
from pynq_bbs.model.recurrent import (
    GATES,
    QuantMatrix,
    QuantRecurrent,
    run_recurrent,
)
from pynq_bbs.pack.quotients import with_quotients
from pynq_bbs.toolchain import shared_library
from recurrent_cases import random_recurrent
from shallow import shallow_copy


@cache
def build_of(lanes: int, rows: int, cols: int) -> Build:
    """A small build of any shape; images need eight columns, and none are here."""
    return replace(
        load_build("8x32"),
        name=f"cell-{lanes}x{rows}x{cols}",
        lanes=lanes,
        rows=rows,
        cols=cols,
        requant_units=min(8, rows * cols),
        taps=max(3, 8 // cols),
        vector_words=256,
        block_words=256,
        queue_words=16,
        block_rows=64,
        sum_words=64,
        image_words=0,
        chain_words=0,
        cell_words=4096,
    )


BUILDS = [(8, 1, 32), (8, 4, 1), (4, 2, 4), (8, 1, 8), (4, 2, 2)]


def up(value: int, step: int) -> int:
    return -(-value // step) * step


class Memory:
    """A memory block that grows; offsets and sizes in 64-bit words."""

    def __init__(self) -> None:
        self.words: list[int] = []

    def put(self, array: NDArray[Any]) -> int:
        offset = len(self.words)
        data = array.tobytes()
        self.words += np.frombuffer(data + bytes(-len(data) % 8), np.uint64).tolist()
        return offset


class Packed:
    """One matrix in memory: padded rows and features, `keep` nonzeros in every bank."""

    def __init__(
        self,
        memory: Memory,
        build: Build,
        rng: np.random.Generator,
        rows: int,
        places: NDArray[np.int64],
        features: int,
        matrix: QuantMatrix,
        row_places: NDArray[np.int64],
    ) -> None:
        """`places` of the matrix's features among `features`, `row_places` of its rows."""
        pack = max(1, 8 // build.cols)
        self.bank = int(rng.choice([b for b in (8, 16, 24) if b % pack == 0]))
        self.keep = self.bank if rng.random() < 0.4 else int(rng.integers(1, self.bank))
        self.rows, self.features = rows, features
        self.groups = -(-features // (self.bank * build.lanes))
        banks = self.groups * build.lanes
        full = np.zeros((rows, banks * self.bank), np.int8)
        full[np.ix_(row_places, places)] = matrix.weights
        kept = np.sort(
            np.argsort(rng.random((rows, banks, self.bank)), axis=2)[..., : self.keep], axis=2
        )
        values = np.take_along_axis(full.reshape(rows, banks, self.bank), kept, axis=2)
        pruned = np.zeros((rows, banks, self.bank), np.int8)
        np.put_along_axis(pruned, kept, values, axis=2)
        weights = pruned.reshape(rows, -1)[np.ix_(row_places, places)]
        self.matrix = replace(matrix, weights=weights)
        self.zero_bias = np.zeros(rows, np.int32)
        self.zero_bias[row_places] = self.matrix.folded_bias
        multiplier = np.ones(rows, np.float32)
        multiplier[row_places] = matrix.multiplier
        self.passes = 1 if rng.random() < 0.6 else int(rng.integers(1, self.groups + 1))
        self.per_pass = -(-self.groups // self.passes)
        self.weights = memory.put(self._plane(build, values))
        self.indices = memory.put(self._plane(build, kept.astype(np.int8)))
        both = np.stack([self.zero_bias.view(np.uint32), multiplier.view(np.uint32)], axis=1)
        self.parameters = memory.put(both)

    def _plane(self, build: Build, values: NDArray[np.int8]) -> NDArray[np.int8]:
        """[pass][row group][group][keep][ROWS][LANES] of values [row][bank][keep]."""
        shape = (self.rows // build.rows, build.rows, self.groups, build.lanes, self.keep)
        ordered = values.reshape(shape).transpose(2, 0, 4, 1, 3)
        passes = range(0, self.groups, self.per_pass)
        parts = [ordered[p : p + self.per_pass].swapaxes(0, 1) for p in passes]
        return np.concatenate([np.ascontiguousarray(p).reshape(-1) for p in parts])

    def command(self, build: Build, rng: np.random.Generator, tiles: int) -> Command:
        """Everything but flags, tensors and what a cell needs."""
        step = up(GATES * max(1, 8 // build.cols), build.rows)
        dense = self.keep == self.bank
        most_tiles = max(1, min(4, build.vector_words // (self.per_pass * self.bank)))
        per_block = int(rng.integers(1, min(most_tiles, tiles) + 1))
        limit = build.block_words // (self.per_pass * self.keep)
        if limit * build.rows < step:  # only a lone tile's block may be longer than the buffer
            per_block = 1
        limit = min(limit, build.block_rows, build.sum_words // per_block) * build.rows
        fits = max(step, limit // step * step)
        command = Command(
            op=interface.OP_MATRIX,
            flags=interface.FLAG_TO_MEMORY | (interface.FLAG_DENSE if dense else 0),
            weights=self.weights,
            indices=self.indices,
            parameters=self.parameters,
            features=self.features,
            rows=self.rows,
            parts=1,
            part_rows=self.rows,
            tiles=tiles,
            tiles_per_block=per_block,
            bank_size=self.bank,
            keep=self.keep,
            index_bits=0 if dense else 8,
            groups=self.groups,
            groups_per_pass=self.per_pass,
            rows_per_block=int(rng.integers(1, min(fits, up(self.rows, step)) // step + 1)) * step,
            pace=int(rng.integers(1, 4)),
            last_columns=build.cols,
        )
        return with_quotients(command)


class Layout:
    """Where things lie among the features of a step: [r h, x, h], all padded."""

    def __init__(self, build: Build, layer: QuantRecurrent) -> None:
        step = up(max(1, 8 // build.cols), build.rows)
        self.units = up(layer.hidden_size, step)
        self.inputs = up(layer.input_size, max(1, 8 // build.cols))
        self.x = self.units if layer.reset is not None else 0
        self.h = self.x + self.inputs
        self.features = self.h + self.units
        units, inputs = np.arange(layer.hidden_size), np.arange(layer.input_size)
        self.xh = np.concatenate([self.x + inputs, self.h + units])
        self.all = self.xh if layer.reset is None else np.concatenate([units, self.xh])


def tiled(values: NDArray[Any], cols: int, features: int) -> NDArray[Any]:
    """(N, F) as [column tile][feature][COLS]."""
    columns, given = values.shape
    padded = np.zeros((up(columns, cols), features), values.dtype)
    padded[:columns, :given] = values
    return padded.reshape(-1, cols, features).swapaxes(1, 2)


class Run:
    """A layer over sequences: packed, run on the engine, and what must come out."""

    def __init__(self, build: Build, kind: str, seed: int) -> None:
        rng = np.random.default_rng([seed, len(kind), build.cols])
        self.build, self.rng, self.memory = build, rng, Memory()
        self.columns = int(rng.integers(1, 3 * build.cols + 1))
        self.steps = int(rng.choice([1, 2, 5]))
        layer = random_recurrent(rng, kind, int(rng.integers(1, 40)), int(rng.integers(1, 40)))
        self.lengths = np.sort(rng.integers(1, self.steps + 1, self.columns))[::-1]
        self.lengths[0] = self.steps
        self.at = Layout(build, layer)
        self.tiles = -(-self.columns // build.cols)
        self.table = self.memory.put(layer.table)
        units = np.arange(layer.hidden_size)
        gate_rows = (units[:, None] * GATES + np.arange(GATES)).reshape(-1)
        self.main = self._packed(GATES * self.at.units, self.at.all, self.at.features,
                                 layer.matrix, gate_rows)  # fmt: skip
        self.reset = None
        if layer.reset is not None:
            self.reset = self._packed(self.at.units, self.at.xh - self.at.x,
                                      self.at.features - self.at.x, layer.reset, units)  # fmt: skip
        self.layer = replace(
            layer,
            matrix=self.main.matrix,
            reset=None if self.reset is None else self.reset.matrix,
        )
        shape = (self.columns, layer.hidden_size)
        self.x = rng.integers(-128, 128, (self.steps, self.columns, layer.input_size), np.int8)
        self.h = rng.integers(-128, 128, shape, np.int8)
        zero = rng.random() < 0.3
        self.state = np.zeros(shape, np.int16) if zero else rng.integers(
            -32768, 32768, shape, np.int16
        )  # fmt: skip
        self.zero = zero

    def _packed(
        self, rows: int, places: Any, features: int, matrix: Any, row_places: Any
    ) -> Packed:
        return Packed(self.memory, self.build, self.rng, rows, places, features, matrix, row_places)

    def tensor(self, features: int) -> int:
        return features * self.build.cols // 8

    def place_inputs(self) -> None:
        """The features of every step; beyond the last step, room for its h."""
        at = self.at
        features = np.zeros((self.steps + 1, self.tiles, at.features, self.build.cols), np.int8)
        for t in range(self.steps):
            features[t, :, at.x : at.x + self.layer.input_size] = tiled(
                self.x[t], self.build.cols, self.layer.input_size
            )
        features[0, :, at.h :] = tiled(self.h, self.build.cols, at.units)
        self.features = self.memory.put(features)
        states = tiled(self.state, self.build.cols, at.units)
        self.state_words = states.size // 4
        self.initial = self.memory.put(states)
        self.final = self.memory.put(np.full_like(states, -1))

    def step_commands(self, t: int) -> list[Command]:
        """Columns that still run come first: tiles and last columns say how many."""
        at, build = self.at, self.build
        running = int((self.lengths > t).sum())
        tiles = -(-running // build.cols)
        here = self.features + t * self.tiles * self.tensor(at.features)
        common = {
            "table": self.table,
            "input_stride": at.features,
            "output_stride": at.features,
            "last_columns": running - (tiles - 1) * build.cols,
        }
        commands = []
        if self.reset is not None:
            command = replace(
                self.reset.command(build, self.rng, tiles), **common,
                input=here + self.tensor(at.x), output=here, residual=here + self.tensor(at.h),
                a_zero=-128, a_scale=1, shift=8, low=-128, high=127,
            )  # fmt: skip
            command.flags |= interface.FLAG_TABLE | interface.FLAG_RESIDUAL | interface.FLAG_PRODUCT
            commands.append(command)
        there = here + self.tiles * self.tensor(at.features)
        command = replace(
            self.main.command(build, self.rng, tiles), **common,
            input=here, output=there + self.tensor(at.h), shift=self.layer.shift,
            residual=self.initial, state=self.final, state_words=self.state_words, cell_base=7,
        )  # fmt: skip
        lstm = self.layer.kind == "lstm"
        command.flags |= interface.FLAG_TABLE
        command.flags |= interface.FLAG_LSTM if lstm else interface.FLAG_GRU
        if t == 0:
            command.flags |= interface.FLAG_STATE_ZERO if self.zero else interface.FLAG_STATE_IN
        if t == self.steps - 1:
            command.flags |= interface.FLAG_STATE_OUT
        return [*commands, command]

    def run(self, engine: Engine | None = None) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
        """h of every step (T, N, H) and the last states (N, H), as the engine leaves them."""
        self.place_inputs()
        commands = [c for t in range(self.steps) for c in self.step_commands(t)]
        first = self.memory.put(np.array([c.encode() for c in commands], np.uint64))
        block = np.array(self.memory.words, np.uint64)
        engine = engine or load_engine(self.build)
        result = engine.run(block.ctypes.data, len(block), first, len(commands))
        status = interface.STATUS[result["status"]][0]
        assert status == "ok", f"{status}: {commands[result['completed']]}"
        return self.outputs(block)

    def outputs(self, block: NDArray[np.uint64]) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
        """What `run` gives, out of the memory block."""
        at, cols = self.at, self.build.cols
        size = (self.steps + 1) * self.tiles * at.features * cols
        features = block[self.features :].view(np.int8)[:size]
        features = features.reshape(self.steps + 1, self.tiles, at.features, cols)
        h = features[1:, :, at.h : at.h + self.layer.hidden_size].swapaxes(2, 3)
        states = block[self.final :].view(np.int16)[: 4 * self.state_words]
        states = states.reshape(self.tiles, at.units, cols).swapaxes(1, 2)
        return (
            h.reshape(self.steps, -1, self.layer.hidden_size)[:, : self.columns],
            states.reshape(-1, at.units)[: self.columns, : self.layer.hidden_size],
        )


def bounded_engine(build: Build, folder: Path) -> Engine:
    """A thread for every process, and one place in nearly every stream."""
    folder.mkdir()
    shallow_copy(folder)
    library = shared_library(
        "bbs_engine_bounded",
        [folder / "engine.cpp"],
        headers={"build.hpp": build_header(build)},
        include_dirs=[folder],
        depends=sorted(folder.glob("*.hpp")),
        flags=["-std=c++14", "-DBBS_THREADED", "-pthread"],
    )
    return Engine(str(library))


def expect_integers(run: Run, engine: Engine | None, name: str) -> None:
    h, state = run.run(engine)
    y, _, after = run_recurrent(run.layer, run.x, run.h, run.state, run.lengths)
    assert np.array_equal(h, y), f"hidden values of {name}"
    assert np.array_equal(state, after), f"states of {name}"


@pytest.mark.parametrize("kind", ["lstm", "gru_after", "gru_before"])
@pytest.mark.parametrize("shape", BUILDS, ids=lambda s: "x".join(map(str, s)))
def test_engine_gives_the_integers(shape: tuple[int, int, int], kind: str) -> None:
    for seed in range(25):
        expect_integers(Run(build_of(*shape), kind, seed), None, f"seed {seed}")


@pytest.mark.slow
@pytest.mark.parametrize("shape", BUILDS[:2], ids=lambda s: "x".join(map(str, s)))
def test_no_stream_needs_its_depth(shape: tuple[int, int, int], tmp_path: Path) -> None:
    """A process that would wait for ever gives up, and its values are missing."""
    build = build_of(*shape)
    engine = bounded_engine(build, tmp_path / "hls")
    for kind in ("lstm", "gru_after", "gru_before"):
        expect_integers(Run(build, kind, 1), engine, kind)


def test_states_stay_between_runs() -> None:
    """Every step a run of its own: it goes on from what the one before left."""
    build = build_of(8, 1, 32)
    run = next(r for r in (Run(build, "lstm", seed) for seed in range(9)) if r.steps > 1)
    run.place_inputs()
    commands = [c for t in range(run.steps) for c in run.step_commands(t)]
    first = run.memory.put(np.array([c.encode() for c in commands], np.uint64))
    block = np.array(run.memory.words, np.uint64)
    engine = load_engine(build)
    for i in range(len(commands)):
        offset = first + i * interface.COMMAND_WORDS
        assert engine.run(block.ctypes.data, len(block), offset, 1)["status"] == 0
    h, state = run.outputs(block)
    y, _, after = run_recurrent(run.layer, run.x, run.h, run.state, run.lengths)
    assert np.array_equal(h, y) and np.array_equal(state, after)
