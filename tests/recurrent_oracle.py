# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU twice over: docs/recurrent.md in exact fractions, and ONNX in float64.

Shares no arithmetic with the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def nearest(value: Fraction) -> int:
    """The nearest integer, ties to even, as Python rounds fractions."""
    return round(value)


def clamped(value: int, bits: int) -> int:
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, value))


def tanh_of(state: int) -> int:
    """tanh(state / 2048) * 32768 by straight lines between 257 knots."""
    size = min(abs(state), 16383)
    left, right = (
        min(32767, nearest(Fraction(math.tanh(k / 32)) * 32768))
        for k in (size // 64, size // 64 + 1)
    )
    line = left + math.floor(Fraction((right - left) * (size % 64), 64) + Fraction(1, 2))
    return line if state >= 0 else -line


def level(byte: int) -> int:
    return 256 if byte == 127 else byte + 128


def lstm_unit(gates: Sequence[int], state: int) -> tuple[int, int]:
    """Hidden value and state of one unit."""
    enter, leave, forget = (Fraction(level(int(g)), 256) for g in gates[:3])
    candidate = Fraction(level(int(gates[3])) - 128, 128)
    after = clamped(nearest(forget * int(state) + enter * candidate * 2048), 16)
    return clamped(nearest(leave * tanh_of(after) / 256), 8), after


def gru_unit(gates: Sequence[int], state: int, shift: int) -> tuple[int, int]:
    """Hidden value and state of one unit."""
    update, reset = (Fraction(level(int(g)), 256) for g in gates[:2])
    inner = (int(gates[2]) + reset * int(gates[3])) * Fraction(256, 1 << shift)
    candidate = tanh_of(clamped(nearest(inner), 16))
    after = candidate + nearest(update * (int(state) - candidate))
    return clamped(nearest(Fraction(after, 256)), 8), after


def sigmoid(x: Double) -> Double:
    result: Double = 1 / (1 + np.exp(-x))
    return result


def float_lstm(
    x: Double, w: Double, r: Double, b: Double, h: Double, c: Double
) -> tuple[Double, Double, Double]:
    """Y (T, N, H), Y_h and Y_c of one direction over whole sequences."""
    y = []
    for step in x:
        gates = step @ w.T + h @ r.T + b.reshape(2, -1).sum(axis=0)
        i, o, f, g = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        y.append(h)
    return np.stack(y), h, c


def float_gru(
    x: Double, w: Double, r: Double, b: Double, h: Double, linear_before_reset: bool
) -> tuple[Double, Double]:
    """Y (T, N, H) and Y_h of one direction over whole sequences."""
    (wz, wr, wh), (rz, rr, rh) = np.split(w, 3), np.split(r, 3)
    bz, br, bh, cz, cr, ch = np.split(b, 6)
    y = []
    for step in x:
        z = sigmoid(step @ wz.T + h @ rz.T + bz + cz)
        gate = sigmoid(step @ wr.T + h @ rr.T + br + cr)
        recurrent = gate * (h @ rh.T + ch) if linear_before_reset else (gate * h) @ rh.T + ch
        h = (1 - z) * np.tanh(step @ wh.T + bh + recurrent) + z * h
        y.append(h)
    return np.stack(y), h


def over_lengths(run: Any, x: Double, lengths: Sequence[int], reverse: bool) -> list[Double]:
    """Y and the last values of `run(x, column)`, which sees one sequence, whole, at a time."""
    y: list[Double] = []
    last: list[list[Double]] = []
    for column, end in enumerate(lengths):
        part = x[:end, column : column + 1]
        out, *rest = run(part[::-1] if reverse else part, column)
        padded = np.zeros((len(x), 1, out.shape[2]))
        padded[:end] = out[::-1] if reverse else out
        y.append(padded)
        last.append(rest)
    return [np.concatenate(y, axis=1), *(np.concatenate(v) for v in zip(*last, strict=True))]
