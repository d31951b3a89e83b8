# SPDX-License-Identifier: Apache-2.0
"""What a tensor of an ONNX graph is while the graph is being read.

A tensor that depends on an input is a `Value`: a base (a model input, or an operator that the
engine has layers for), the pointwise steps applied to it since, quantisation included, and the
order in which its values are seen. Only where a later operator or a model output needs a value does
it become a tensor of its own. Anything else is a `Constant`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrangement import AS_IT_IS, Arrangement
from .graph import Float, Function, Window, window_shape
from .moving import Pads
from .pooling import kinds_of_taps


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

#: Of a value; each one has a tuple of all before it.
_MOST_STEPS = 256


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
        """Multiplied by something that broadcasts to its shape; integers stay as they are, but for
        the sign, since scales are positive."""
        gain = np.asarray(factor, np.float32)
        if self.scale is None:
            return Constant(self.array.astype(np.float32) * gain)
        if (gain > 0).all():
            return Constant(self.array, self.scale * gain)
        signed = self.array * np.where(gain < 0, -1, gain != 0)
        return Constant(signed, self.scale * np.where(gain == 0, np.float32(1), np.abs(gain)))


@dataclass(frozen=True)
class ModelInput:
    """The base of what comes from an input of the model: its values in the order of `arrangement`,
    as a tensor of `shape`; `given` is the input's own shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    given: tuple[int, ...]
    arrangement: Arrangement = AS_IT_IS

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it is computed from."""
        return ()


@dataclass(frozen=True, eq=False)
class Linear:
    """`weights @ source + bias`; weights (M, K), bias (M,) or none.

    With a `window` a convolution in `groups`; weights (M, C / groups, kernel height, width).
    """

    node: str
    source: Value
    weights: Constant
    bias: Constant | None = None
    window: Window | None = None
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return window_shape(len(self.weights.array), self.window)

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it is computed from."""
        return (self.source,)


@dataclass(frozen=True, eq=False)
class Pool:
    """The largest value or the average of every place of a window, channel by channel."""

    node: str
    source: Value
    window: Window
    maximum: bool
    dtype: str = "float32"  # a maximum is of what its source is
    counted: Pads = (0, 0, 0, 0)  # padding that an average counts as pixels

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return window_shape(self.window.channels, self.window)

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it is computed from."""
        return (self.source,)

    @property
    def taps(self) -> list[int]:
        """What an average divides by, all the numbers that its places have."""
        return [int(n) for n in kinds_of_taps(self.window, self.counted)]


@dataclass(frozen=True, eq=False)
class Sum:
    """Two tensors of one shape and order, added.

    Shapes that depend on others are kept: of long chains they would be asked for down to the first.
    """

    node: str
    sources: tuple[Value, Value]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return self.sources[0].base.shape


@dataclass(frozen=True, eq=False)
class Product(Sum):
    """Two tensors of one shape and order, multiplied."""


@dataclass(frozen=True, eq=False)
class Join:
    """Tensors of the same pixels, the channels of one behind those of the other."""

    node: str
    sources: tuple[Value, ...]
    dtype: str

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        shapes = [source.base.shape for source in self.sources]
        pixels = max((shape[1:] for shape in shapes), key=len)
        return (sum(shape[0] for shape in shapes), *pixels)


@dataclass(frozen=True, eq=False)
class Part:
    """Channels `first` and on, as many as `channels`, of a tensor."""

    node: str
    source: Value
    first: int
    channels: int
    dtype: str

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return (self.channels, *self.source.base.shape[1:])

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it is computed from."""
        return (self.source,)


@dataclass(frozen=True, eq=False)
class Padded:
    """`source` with `pads` pixels of `number` around it; a convolution takes the pads over."""

    node: str
    source: Value
    pads: Pads
    number: float
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[Value, ...] = ()


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for the output of an unsupported node, so that what follows can be judged too."""

    shape: tuple[int, ...]
    sources: tuple[Value, ...] = ()


#: What becomes layers, or views of what they give.
Operator = Linear | Pool | Sum | Join | Part
Base = ModelInput | Operator | Padded | Opaque


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that depends on an input; `shape` leaves the batch dimension out.

    It holds the values of the base in the order of `arrangement`.
    """

    base: Base
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    dtype: str
    arrangement: Arrangement = AS_IT_IS

    @property
    def features(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def reshaped(self, shape: tuple[int, ...]) -> Value:
        """Seen in another shape, in the same order."""
        base = self.base
        if isinstance(base, ModelInput):
            base = replace(base, shape=shape)
        return replace(self, base=base, shape=shape)

    def transposed(self, axes: tuple[int, ...]) -> Value:
        """Its axes, the batch left out, in another order."""
        before = self.arrangement
        if isinstance(self.base, ModelInput):
            before = self.base.arrangement
        after = before.transposed(self.shape, axes)
        if after is None:
            raise UnsupportedNode("transposes what was transposed and reshaped before")
        shape = tuple(self.shape[axis] for axis in axes)
        if isinstance(self.base, ModelInput):
            base = replace(self.base, shape=shape, arrangement=after)
            return replace(self, base=base, shape=shape)
        return replace(self, shape=shape, arrangement=after)

    def then(self, step: Step) -> Value:
        """One pointwise step more."""
        if len(self.steps) >= _MOST_STEPS:
            raise UnsupportedNode(
                f"is the {len(self.steps)}th function in a row; {_MOST_STEPS} are supported"
            )
        if isinstance(step, Quantise):
            last = self.steps[-1] if self.steps else None
            # Quantising what was just dequantised with the same scale gives the same integers.
            if isinstance(last, Dequantise) and self._undone_by(last, step):
                return replace(self, steps=self.steps[:-1], dtype=step.dtype)
            return replace(self, steps=(*self.steps, step), dtype=step.dtype)
        return replace(self, steps=(*self.steps, step), dtype="float32")

    def before_last(self) -> Value:
        """What it was before its last step, a DequantizeLinear."""
        made = self.steps[-2] if len(self.steps) > 1 else self.base
        return replace(self, steps=self.steps[:-1], dtype=getattr(made, "dtype", "int8"))

    def _undone_by(self, last: Dequantise, step: Quantise) -> bool:
        same = (last.scale, last.zero_point) == (step.scale, step.zero_point)
        return same and self.before_last().dtype == step.dtype
