# SPDX-License-Identifier: Apache-2.0
"""What a tensor of an ONNX graph is while the graph is being read.

A tensor that depends on an input is a `Value`: a base (a model input or a linear operator)
and the pointwise steps applied to it since, quantisation included. Only where a later linear
operator or a model output needs a value does it become a tensor of its own. Anything else is a
`Constant`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Float, Function


class UnsupportedNode(Exception):  # noqa: N818 - not an error of its own: it becomes a reason
    """Why the engine does not run a node; caught by the reader, which lists all of them."""


@dataclass(frozen=True)
class Quantise:
    """`saturate(round_half_even(x / scale) + zero_point)`; the zero point of the INT8 tensor.

    `dtype` is the file's: a uint8 tensor is an INT8 one shifted by 128.
    """

    scale: np.float32
    zero_point: int
    dtype: str


@dataclass(frozen=True)
class Dequantise:
    """`(x - zero_point) * scale`; the zero point of the INT8 tensor."""

    scale: np.float32
    zero_point: int


Step = Function | Quantise | Dequantise


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor known when the model is read.

    `array` holds the numbers, or the integers (zero point already subtracted) where `scale`, of
    the same shape, says what one of them is worth.
    """

    array: NDArray[Any]
    scale: Float | None = None

    @property
    def value(self) -> NDArray[Any]:
        if self.scale is None:
            return self.array
        return self.array.astype(np.float32) * self.scale

    def each(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> Constant:
        """The constant after something that only moves its elements, such as a transpose."""
        return Constant(move(self.array), None if self.scale is None else move(self.scale))

    def times(self, factor: NDArray[Any] | float) -> Constant:
        """Multiplied by something that broadcasts to its shape; integers stay as they are."""
        gain = np.asarray(factor, np.float32)
        if self.scale is None:
            return Constant(self.array.astype(np.float32) * gain)
        return Constant(self.array, self.scale * gain)


@dataclass(frozen=True, eq=False)
class ModelInput:
    """The base of what comes from an input of the model."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Linear:
    """`weights @ source + bias`; weights (M, K), bias (M,) or none."""

    node: str
    source: Value
    weights: Constant
    bias: Constant | None = None


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for the output of an unsupported node, so that what follows can be judged too."""


Base = ModelInput | Linear | Opaque


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that depends on an input; `shape` leaves the batch dimension out."""

    base: Base
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def features(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def reshaped(self, shape: tuple[int, ...]) -> Value:
        return replace(self, shape=shape)

    def then(self, step: Step) -> Value:
        """One pointwise step more."""
        if isinstance(step, Quantise):
            last = self.steps[-1] if self.steps else None
            # Quantising what was just dequantised with the same scale gives the same integers.
            if isinstance(last, Dequantise) and self._undone_by(last, step):
                return replace(self, steps=self.steps[:-1], dtype=step.dtype)
            return replace(self, steps=(*self.steps, step), dtype=step.dtype)
        return replace(self, steps=(*self.steps, step), dtype="float32")

    def _undone_by(self, last: Dequantise, step: Quantise) -> bool:
        made = self.steps[-2] if len(self.steps) > 1 else self.base
        same = (last.scale, last.zero_point) == (step.scale, step.zero_point)
        return same and getattr(made, "dtype", None) == step.dtype
