# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU before they are quantised: ONNX's definition in numpy, one direction at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Float


@dataclass(frozen=True, eq=False)
class RecurrentWeights:
    """ONNX's W (G H, X), R (G H, H) and B (2 G H,) of one direction, whose G gates are i, o, f, c
    of an `lstm`, z, r, h of a `gru`."""

    kind: str
    w: Float
    r: Float
    b: Float
    linear_before_reset: bool = False

    @property
    def inputs(self) -> int:
        return int(self.w.shape[1])

    @property
    def units(self) -> int:
        return int(self.r.shape[1])

    def step(self, x: Float, hidden: Float, state: Float) -> tuple[Float, Float]:
        """Hidden values and states (N, H) after one step with x (N, X); a GRU's are the same."""
        units = self.units
        of_w, of_r = self.b.reshape(2, -1)
        given = x @ self.w.T + of_w
        if self.kind == "lstm":
            gates = given + hidden @ self.r.T + of_r
            enter, leave, forget = np.split(_sigmoid(gates[:, : 3 * units]), 3, axis=1)
            state = forget * state + enter * np.tanh(gates[:, 3 * units :])
            return leave * np.tanh(state), state
        split = 2 * units
        recurrent = hidden @ self.r[:split].T + of_r[:split]
        update, reset = np.split(_sigmoid(given[:, :split] + recurrent), 2, axis=1)
        if self.linear_before_reset:
            gated = reset * (hidden @ self.r[split:].T + of_r[split:])
        else:
            gated = (reset * hidden) @ self.r[split:].T + of_r[split:]
        new = (1 - update) * np.tanh(given[:, split:] + gated) + update * hidden
        return new, new


class Direction:
    """The tensors of one direction of an LSTM or GRU; names that are empty are of none."""

    input: str
    output: str
    y_h: str
    y_state: str
    initial_h: str
    initial_state: str

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return tuple(n for n in (self.input, self.initial_h, self.initial_state) if n)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that it writes."""
        return tuple(n for n in (self.output, self.y_h, self.y_state) if n)


@dataclass
class FloatRecurrent(Direction):
    """One direction of an LSTM or GRU in float32; names as in `RecurrentLayer`."""

    name: str
    input: str
    output: str
    weights: RecurrentWeights
    reverse: bool = False
    y_h: str = ""
    y_state: str = ""
    initial_h: str = ""
    initial_state: str = ""

    def __call__(
        self, tensors: dict[str, Float], lengths: NDArray[Any] | None = None
    ) -> dict[str, Float]:
        """What it writes, (N, values of a sample), from all that it reads.

        Args:
            lengths: steps of each sample (N,); beyond its end a sample has Y = 0. None: all.
        """
        x = tensors[self.input]
        x = x.reshape(len(x), -1, self.weights.inputs)
        samples, steps = x.shape[:2]
        none = np.zeros((samples, self.weights.units), np.float32)
        hidden, state = (tensors[n] if n else none for n in (self.initial_h, self.initial_state))
        if self.weights.kind == "gru":
            state = hidden
        y = np.zeros((samples, steps, self.weights.units), np.float32)
        ends = np.full(samples, steps) if lengths is None else np.asarray(lengths)
        every = np.arange(samples)
        for t in range(steps):
            on = (t < ends)[:, None]
            at = np.where(self.reverse & on[:, 0], ends - 1 - t, t)
            after = self.weights.step(x[every, at], hidden, state)
            hidden, state = (np.where(on, new, old) for new, old in zip(after, (hidden, state),
                                                                        strict=True))  # fmt: skip
            y[every[on[:, 0]], at[on[:, 0]]] = hidden[on[:, 0]]
        written = ((self.output, y.reshape(samples, -1)), (self.y_h, hidden), (self.y_state, state))
        return {name: values for name, values in written if name}


def _sigmoid(x: Float) -> Float:
    with np.errstate(over="ignore"):
        result: Float = (1.0 / (1.0 + np.exp(-x))).astype(np.float32)
    return result
