# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU on the host's processor, from the packed image: docs/recurrent.md once more.

Shares nothing with `model/recurrent.py` or the engine: quotients of powers of two are exact in
float64, where numpy rounds them as the definition does; tanh is a table of all that there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pack.program import PackedCell, PackedLayer, Program
from ..pack.recurrent import StepFeatures
from .linear import LinearOp, linear

Int8 = NDArray[np.int8]
Int16 = NDArray[np.int16]


@dataclass(frozen=True)
class CellOp:
    """A recurrent layer as it is read back from the image: its gates, and what comes before."""

    cell: PackedCell
    at: StepFeatures
    gates: LinearOp
    table: Int8
    reset: LinearOp | None

    def features(self, x: Int8, hidden: Int8) -> Int8:
        """What the gates of a step see, (N, features), from x (N, inputs) and h (N, units)."""
        features = np.zeros((len(x), self.at.total), np.int8)
        features[:, self.at.x : self.at.x + x.shape[1]] = x
        features[:, self.at.h : self.at.h + hidden.shape[1]] = hidden
        if self.reset is not None:
            level = _bytes(self.reset, features[:, self.at.x :])[:, : hidden.shape[1]] + 128.0
            features[:, : hidden.shape[1]] = _rounded(level * hidden / 256, 8)
        return features

    def step(self, x: Int8, hidden: Int8, state: Int16) -> tuple[Int8, Int16]:
        """Hidden values and states (N, units) after a step."""
        q = _bytes(self.gates, self.features(x, hidden))
        q = q.reshape(len(x), -1, 4)[:, : self.cell.units]
        level = self.table[q + 128] + 128.0
        level[level == 255] = 256
        old = state.astype(np.float64)
        if self.cell.kind == "lstm":
            enter, leave, forget, candidate = (level[..., g] for g in range(4))
            new = _rounded((forget * old + 16 * enter * (candidate - 128)) / 256, 16)
            return _rounded(leave * _tanh(new) / 65536, 8), new
        inner = (256.0 * q[..., 2] + level[..., 1] * q[..., 3]) / (1 << self.cell.shift)
        bent = _tanh(_rounded(inner, 16))
        fine = bent + np.rint(level[..., 0] * (old - bent) / 256)
        return _rounded(fine / 256, 8), fine.astype(np.int16)


def cell_op(
    layer: PackedLayer, program: Program, gates: LinearOp, reset: LinearOp | None
) -> CellOp:
    """The layer as the functions here take it: gates without the table, as not all have it."""
    assert layer.cell is not None and gates.table is not None
    at = StepFeatures.of(layer.cell, program.build)
    return CellOp(layer.cell, at, replace(gates, table=None), gates.table, reset)


def run_cell(
    op: CellOp, known: dict[str, NDArray[np.generic]], x: Int8, lengths: NDArray[np.int64] | None
) -> tuple[Int8, Int8, Int16]:
    """Y (N, T, units), y_h and the last states (N, units) for x (N, T, inputs), from the initial
    values that the layer names among the `known` tensors."""
    samples, steps, _ = x.shape
    hidden, state = _initial(op.cell, known, samples)
    ends = np.full(samples, steps) if lengths is None else lengths
    y = np.zeros((samples, steps, op.cell.units), np.int8)
    every = range(ends.max())
    for step in reversed(every) if op.cell.reverse else every:
        runs = np.flatnonzero(ends > step)
        hidden[runs], state[runs] = op.step(x[runs, step], hidden[runs], state[runs])
        y[runs, step] = hidden[runs]
    return y, hidden, state


def features_at(
    op: CellOp, known: dict[str, NDArray[np.generic]], x: Int8, y: Int8, step: int, length: int
) -> Int8:
    """What the gates see at one step (1, features), of one sample: x (T, inputs), y (T, units)."""
    before = step + 1 if op.cell.reverse else step - 1
    hidden = y[before] if 0 <= before < length else _initial(op.cell, known, 1)[0][0]
    return op.features(x[step][None], hidden[None])


def _initial(
    cell: PackedCell, known: dict[str, NDArray[np.generic]], samples: int
) -> tuple[Int8, Int16]:
    shape = (samples, cell.units)
    hidden, state = np.zeros(shape, np.int8), np.zeros(shape, np.int16)
    if cell.initial_h:
        hidden[:] = known[cell.initial_h].reshape(shape)
    if cell.initial_state:
        state[:] = known[cell.initial_state].reshape(shape)
    return hidden, state


def _bytes(op: LinearOp, features: Int8) -> NDArray[np.int32]:
    """Requantised outputs (N, rows), widened."""
    y, _ = linear(op, np.ascontiguousarray(features))
    assert y is not None  # gates have multipliers
    return y.astype(np.int32)


def _rounded(value: NDArray[np.float64], bits: int) -> NDArray[Any]:
    limits = np.iinfo(f"int{bits}")
    whole: NDArray[Any] = np.clip(np.rint(value), limits.min, limits.max).astype(limits.dtype)
    return whole


def _tanh(state: Int16) -> NDArray[np.float64]:
    bent: NDArray[np.float64] = _tanh_table()[state.astype(np.int32) + 32768]
    return bent


@cache
def _tanh_table() -> NDArray[np.float64]:
    """Every INT16, from -32768 on, in steps of 2**-11: its tanh in steps of 2**-15."""
    size = np.minimum(np.arange(32769), 16383)
    knots = np.minimum(32767, np.rint(32768 * np.tanh(np.arange(257) / 32)))
    left, rest = np.divmod(size, 64)
    line = knots[left] + np.floor(((knots[left + 1] - knots[left]) * rest + 32) / 64)
    return np.concatenate([-line[:0:-1], line[:-1]])
