# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU in the integers of docs/recurrent.md: the definition, and floats to integers.

A step is a matrix whose rows 4 j to 4 j + 3 are the gates of unit j, requantised as those of any
layer, and a cell that makes of them the new state (INT16) and the hidden value (INT8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .arithmetic import Int8, integer_bias, round_shifted
from .graph import Float
from .recurrent_floats import Direction, RecurrentWeights

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]

#: Rows of the matrix for each unit.
GATES = 4
#: A hidden value q stands for q / 128.
HIDDEN_SCALE = np.float32(1 / 128)
#: Scale of what goes into the sigmoid table; rows of tanh gates are twice as fine.
GATE_SCALE = np.float32(6 / 127)
#: A cell state q of an LSTM stands for q / 2**11, and so does what goes into tanh.
CELL_BITS = 11
#: A state q of a GRU, the hidden value in fine, stands for q / 2**15, and so does tanh.
UNIT_BITS = 15
#: Segments of the tanh table, each of 2**SEGMENT_BITS steps: together from 0 to 8.
SEGMENTS = 256
SEGMENT_BITS = 6
#: What a GRU's candidate is made of has steps of 1 / 2**5: from -4 to 4.
CANDIDATE_BITS = 5

_INT32_MAX = np.iinfo(np.int32).max


def tanh_knots() -> Int32:
    """tanh at the ends of the segments, `min(32767, round(2**15 tanh(i / 32)))`, (257,)."""
    x = np.arange(SEGMENTS + 1) / (1 << (CELL_BITS - SEGMENT_BITS))
    knots: Int32 = np.minimum(np.rint(np.tanh(x) * (1 << UNIT_BITS)), 32767).astype(np.int32)
    return knots


def fixed_tanh(x: NDArray[Any]) -> Int32:
    """tanh of INT16 in steps of 2**-11, in steps of 2**-15: straight lines between the knots."""
    knots = tanh_knots()
    size = np.minimum(np.abs(x.astype(np.int32)), (SEGMENTS << SEGMENT_BITS) - 1)
    segment, rest = size >> SEGMENT_BITS, size & ((1 << SEGMENT_BITS) - 1)
    slope = knots[segment + 1] - knots[segment]
    half = 1 << (SEGMENT_BITS - 1)
    line: Int32 = knots[segment] + ((slope * rest + half) >> SEGMENT_BITS)
    return np.where(x < 0, -line, line).astype(np.int32)


def gate_table(scale: np.float32 = GATE_SCALE) -> Int8:
    """Sigmoid of an INT8 in steps of `scale`, as `gate_level` reads it, (256,).

    The nearest of the levels that there are, 0 to 254 and 256 out of 256; ties take the lower.
    """
    x = np.arange(-128, 128) * float(scale)
    level = 256 / (1 + np.exp(-x))
    byte = np.where(level > 255, 255, np.minimum(np.rint(level), 254))
    return (byte - 128).astype(np.int8)


def gate_level(q: NDArray[Any]) -> Int32:
    """The gate that byte q stands for, in steps of 1 / 256; the largest is 1 and not 255 / 256.

    A forget gate that could not be 1 would lose a third of a state in a hundred steps.
    """
    level: Int32 = q.astype(np.int32) + 128
    return np.where(level == 255, 256, level).astype(np.int32)


def _saturated(value: NDArray[Any], kind: Any) -> NDArray[Any]:
    limits = np.iinfo(kind)
    return np.clip(value, limits.min, limits.max).astype(kind)


def lstm_cell(gates: Int8, state: Int16) -> tuple[Int8, Int16]:
    """Hidden value and state of units with gates (..., 4) in the order i, o, f, c."""
    enter, leave, forget = (gate_level(gates[..., g]) for g in range(3))
    candidate = gate_level(gates[..., 3]) - 128
    acc = forget * state.astype(np.int32) + ((enter * candidate) << (CELL_BITS - 7))
    after: Int16 = _saturated(round_shifted(acc, 8), np.int16)
    hidden: Int8 = _saturated(round_shifted(leave * fixed_tanh(after), 16), np.int8)
    return hidden, after


def gru_cell(gates: Int8, state: Int16, shift: int) -> tuple[Int8, Int16]:
    """Hidden value and state of units with gates (..., 4): z, r, and the candidate's two parts.

    The parts are no gates but plain INT8 in steps of 1 / 2**(shift + 3).
    """
    update, reset = (gate_level(gates[..., g]) for g in range(2))
    plain, gated = (gates[..., g].astype(np.int32) for g in (2, 3))
    inner: Int16 = _saturated(round_shifted((plain << 8) + reset * gated, shift), np.int16)
    candidate = fixed_tanh(inner)
    fine = candidate + round_shifted(update * (state.astype(np.int32) - candidate), 8)
    hidden: Int8 = _saturated(round_shifted(fine, 8), np.int8)
    return hidden, fine.astype(np.int16)


@dataclass(frozen=True)
class QuantMatrix:
    """Rows over the features of a step; `zero_points` holds that of every feature."""

    weights: Int8
    bias: Int32
    multiplier: Float
    zero_points: NDArray[np.int32]

    @property
    def folded_bias(self) -> Int32:
        """The bias with the zero points in it, as the engine wants it."""
        products = self.weights.astype(np.int64) @ self.zero_points.astype(np.int64)
        return (self.bias.astype(np.int64) - products).astype(np.int32)

    def __call__(self, features: Int8) -> Int8:
        """Requantised bytes (N, M) of features (N, K)."""
        acc = features.astype(np.int64) @ self.weights.T.astype(np.int64) + self.folded_bias
        scaled = acc.astype(np.int32).astype(np.float32) * self.multiplier
        q: Int8 = np.clip(np.rint(scaled), -128, 127).astype(np.int8)
        return q


@dataclass(frozen=True)
class QuantRecurrent:
    """One direction of an LSTM or GRU.

    Features are [x, h], and [r h, x, h] where the GRU's reset gate comes before its matrix:
    then `reset` makes the r out of [x, h]. `shift` is that of `gru_cell`.
    """

    kind: str
    matrix: QuantMatrix
    table: Int8
    input_size: int
    hidden_size: int
    shift: int = 0
    reset: QuantMatrix | None = None

    @property
    def state_bits(self) -> int:
        """A state q stands for q / 2**state_bits."""
        return CELL_BITS if self.kind == "lstm" else UNIT_BITS

    def step(self, x: Int8, hidden: Int8, state: Int16) -> tuple[Int8, Int16]:
        """Hidden value and state (N, H) after one step with input x (N, X)."""
        features = np.concatenate([x, hidden], axis=1)
        if self.reset is not None:
            level = self.table[self.reset(features).astype(np.int32) + 128].astype(np.int32) + 128
            gated = round_shifted(level * hidden.astype(np.int32), 8)
            features = np.concatenate([gated.astype(np.int8), features], axis=1)
        gates = self.matrix(features).reshape(len(x), self.hidden_size, GATES)
        looked_up = self.table[gates.astype(np.int32) + 128]
        if self.kind == "lstm":
            return lstm_cell(looked_up, state)
        return gru_cell(np.concatenate([looked_up[..., :2], gates[..., 2:]], axis=-1), state,
                        self.shift)  # fmt: skip


@dataclass(frozen=True)
class RecurrentLayer(Direction):
    """One direction of an LSTM or GRU over all steps of the tensor `input`, the last one first with
    `reverse`. Both directions of a bidirectional one are two layers and `join`.

    `output` is Y, the hidden values of every step. The others are empty where nothing wants them:
    `y_h` the last hidden values, `y_state` the last states (INT16), and as names of what it starts
    from, instead of zeros, `initial_h` and `initial_state`, alike.
    """

    name: str
    input: str
    output: str
    quantised: QuantRecurrent
    reverse: bool = False
    y_h: str = ""
    y_state: str = ""
    initial_h: str = ""
    initial_state: str = ""
    weight_bits: int = 8


def quantise_hidden(h: NDArray[Any]) -> Int8:
    """Initial hidden values as INT8."""
    steps = np.rint(np.asarray(h, np.float64) / float(HIDDEN_SCALE))
    q: Int8 = np.clip(steps, -128, 127).astype(np.int8)
    return q


def quantise_state(state: NDArray[Any], bits: int) -> Int16:
    """Initial states as INT16 in steps of 2**-bits: an LSTM's cells, a GRU's hidden values."""
    steps = np.rint(np.asarray(state, np.float64) * (1 << bits))
    q: Int16 = np.clip(steps, -32768, 32767).astype(np.int16)
    return q


def run_recurrent(
    layer: QuantRecurrent,
    x: Int8,
    hidden: Int8 | None = None,
    state: Int16 | None = None,
    lengths: NDArray[Any] | None = None,
    reverse: bool = False,
) -> tuple[Int8, Int8, Int16]:
    """Y (T, N, H), Y_h (N, H) and the last state (N, H) for x (T, N, X).

    Sequences end after `lengths` steps; reversed, they begin with their own last one. Beyond its
    end a sequence has Y = 0 and keeps Y_h and its state.
    """
    steps, columns, _ = x.shape
    shape = (columns, layer.hidden_size)
    hidden = np.zeros(shape, np.int8) if hidden is None else hidden
    state = np.zeros(shape, np.int16) if state is None else state
    ends = np.full(columns, steps) if lengths is None else np.asarray(lengths)
    y = np.zeros((steps, *shape), np.int8)
    every = np.arange(columns)
    for t in range(steps):
        running = t < ends
        at = np.where(reverse & running, ends - 1 - t, t)
        new_hidden, new_state = layer.step(x[at, every], hidden, state)
        hidden = np.where(running[:, None], new_hidden, hidden)
        state = np.where(running[:, None], new_state, state)
        y[at[running], every[running]] = hidden[running]
    return y, hidden, state


@dataclass(frozen=True)
class _Part:
    """Neighbouring features with one scale, and what the rows weigh them with."""

    weights: Float
    scale: np.float32
    zero_point: int = 0


def _quantise_rows(
    parts: list[_Part], bias: Float, y_scale: NDArray[np.float32], weight_bits: int
) -> QuantMatrix:
    """Weights such that every part of a row has the same scale of its products.

    That scale is the least that lets all weights of the row fit into `weight_bits`.
    """
    limit = 2 ** (weight_bits - 1) - 1
    largest = [float(p.scale) * np.abs(p.weights).max(axis=1, initial=0) / limit for p in parts]
    # Rows of zeros are for their bias alone.
    product = np.maximum.reduce(largest)
    product = np.where(product > 0, product, 2.0**-16).astype(np.float32)
    columns = []
    for part in parts:
        steps = np.rint(part.weights.astype(np.float64) * float(part.scale) / product[:, None])
        columns.append(np.clip(steps, -limit, limit).astype(np.int8))
    weights = np.concatenate(columns, axis=1)
    zero_points = [np.full(p.weights.shape[1], p.zero_point, np.int32) for p in parts]
    with np.errstate(all="ignore"):
        factor = product / y_scale
    if not (np.isfinite(factor).all() and (factor > 0).all()):
        raise ModelError("weights and scales give multipliers that float32 cannot hold.")
    matrix = QuantMatrix(weights, integer_bias(bias, product), factor, np.concatenate(zero_points))
    reach = 255 * np.abs(weights.astype(np.int64)).sum(axis=1) + np.abs(matrix.bias.astype(float))
    if reach.max(initial=0) > _INT32_MAX:
        raise ModelError(
            f"row {int(reach.argmax())} of the recurrent matrix may reach {int(reach.max())}, "
            "which INT32 cannot hold. Use smaller biases or fewer features."
        )
    return matrix


def _check(name: str, w: Float, r: Float, b: Float | None, gates: int) -> tuple[int, int, Float]:
    """Input size, hidden size, and the biases as (2, gates, H)."""
    hidden = r.shape[-1]
    biases = np.zeros(2 * gates * hidden, np.float32) if b is None else np.asarray(b, np.float32)
    rows = gates * hidden
    wanted: tuple[tuple[str, Float, tuple[int, ...]], ...] = (
        ("W", w, (rows, w.shape[-1])),
        ("R", r, (rows, hidden)),
        ("B", biases, (2 * rows,)),
    )
    for key, array, shape in wanted:
        if array.shape != shape:
            raise ModelError(
                f"{key} of the {name} has shape {array.shape}, must be {shape}: one "
                "direction, gates in the order of ONNX."
            )
    return w.shape[1], hidden, biases.reshape(2, gates, hidden)


def _interleaved(gates: list[Float]) -> Float:
    """Arrays (H, ...) of each gate as rows 4 j + gate."""
    stacked: Float = np.stack(gates, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def quantise_lstm(
    w: Float,
    r: Float,
    b: Float | None,
    x_scale: np.float32,
    x_zero_point: int = 0,
    gate_scale: np.float32 = GATE_SCALE,
    weight_bits: int = 8,
) -> QuantRecurrent:
    """One direction of an ONNX LSTM: W (4H, X), R (4H, H), B (8H,), gates i, o, f, c.

    Raises:
        ModelError: shapes that contradict each other, or sums beyond INT32.
    """
    inputs, hidden, biases = _check("LSTM", w, r, b, GATES)
    by_gate = [array.reshape(GATES, hidden, -1) for array in (w, r)]
    weights = [_interleaved(list(array)) for array in by_gate]
    bias = _interleaved(list(biases.sum(axis=0, dtype=np.float32)))
    # tanh(v) = 2 sigmoid(2 v) - 1: the same table at twice the value.
    scales = np.tile(np.float32(gate_scale) / np.array([1, 1, 1, 2], np.float32), hidden)
    parts = [_Part(weights[0], np.float32(x_scale), x_zero_point), _Part(weights[1], HIDDEN_SCALE)]
    matrix = _quantise_rows(parts, bias, scales, weight_bits)
    return QuantRecurrent("lstm", matrix, gate_table(gate_scale), inputs, hidden)


def quantise_gru(
    w: Float,
    r: Float,
    b: Float | None,
    x_scale: np.float32,
    x_zero_point: int = 0,
    linear_before_reset: bool = False,
    gate_scale: np.float32 = GATE_SCALE,
    candidate_bits: int = CANDIDATE_BITS,
    weight_bits: int = 8,
) -> QuantRecurrent:
    """One direction of an ONNX GRU: W (3H, X), R (3H, H), B (6H,), gates z, r, h.

    Raises:
        ModelError: shapes that contradict each other, or sums beyond INT32.
    """
    inputs, hidden, biases = _check("GRU", w, r, b, 3)
    if not 3 <= candidate_bits <= 11:
        raise ModelError(f"candidate_bits is {candidate_bits}, must be 3 to 11.")
    of_x, of_h = w.reshape(3, hidden, inputs), r.reshape(3, hidden, hidden)
    no_x, no_h, none = np.zeros_like(of_x[0]), np.zeros_like(of_h[0]), np.zeros_like(biases[0, 0])
    both = biases.sum(axis=0, dtype=np.float32)
    fine = np.float32(2.0**-candidate_bits)
    scales = np.tile(np.array([gate_scale, gate_scale, fine, fine], np.float32), hidden)
    x_part = (np.float32(x_scale), x_zero_point)
    reset = None
    if linear_before_reset:
        parts = [
            _Part(_interleaved([of_x[0], of_x[1], of_x[2], no_x]), *x_part),
            _Part(_interleaved([of_h[0], of_h[1], no_h, of_h[2]]), HIDDEN_SCALE),
        ]
        bias = _interleaved([both[0], both[1], biases[0, 2], biases[1, 2]])
    else:
        parts = [
            _Part(_interleaved([no_h, no_h, of_h[2], no_h]), HIDDEN_SCALE),
            _Part(_interleaved([of_x[0], no_x, of_x[2], no_x]), *x_part),
            _Part(_interleaved([of_h[0], no_h, no_h, no_h]), HIDDEN_SCALE),
        ]
        bias = _interleaved([both[0], none, both[2], none])
        of_reset = [_Part(of_x[1], *x_part), _Part(of_h[1], HIDDEN_SCALE)]
        gates = np.full(hidden, gate_scale, np.float32)
        reset = _quantise_rows(of_reset, both[1], gates, weight_bits)
    matrix = _quantise_rows(parts, bias, scales, weight_bits)
    return QuantRecurrent("gru", matrix, gate_table(gate_scale), inputs, hidden,
                          candidate_bits - 3, reset)  # fmt: skip


def quantise_weights(
    weights: RecurrentWeights, x_scale: np.float32, x_zero_point: int, *, weight_bits: int = 8
) -> QuantRecurrent:
    """One direction of an LSTM or GRU over inputs of that scale and zero point.

    Raises:
        ModelError: sums beyond INT32.
    """
    given = (weights.w, weights.r, weights.b, x_scale, x_zero_point)
    if weights.kind == "lstm":
        return quantise_lstm(*given, weight_bits=weight_bits)
    return quantise_gru(*given, weights.linear_before_reset, weight_bits=weight_bits)
