# SPDX-License-Identifier: Apache-2.0
"""What a tensor of an ONNX graph is while the graph is being read.

A tensor that depends on an input is a `Value`: a base (a model input, or an operator that the
engine has layers for), the pointwise steps applied to it since, quantisation included, and the
order in which its values are seen. Only where a later operator or a model output needs a value does
it become a tensor of its own. Anything else is a `Constant`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrangement import AS_IT_IS, Arrangement
from .graph import Float, Function, Window, window_shape
from .moving import Pads
from .pooling import kinds_of_taps
from .recurrent_floats import RecurrentWeights


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
#: Batches that a constant is computed for where it depends on the batch.
TRIAL_BATCHES = (2, 3)


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


@dataclass(frozen=True, eq=False)
class PerBatch:
    """A tensor that is known once the batch is: what it is for each of `TRIAL_BATCHES`."""

    each: tuple[Constant, ...]

    def dimensions(self) -> tuple[int | None, ...] | None:
        """Its numbers as a shape, in which None stands for the batch; None if something else in it
        depends on the batch."""
        made: list[int | None] = []
        for numbers in zip(*(c.array.reshape(-1).tolist() for c in self.each), strict=False):
            if numbers == TRIAL_BATCHES:
                made.append(None)
            elif len(set(numbers)) > 1:
                return None
            else:
                made.append(int(numbers[0]))
        return tuple(made)


@dataclass(frozen=True)
class Lengths:
    """The input of the model that says how many steps each sample has."""

    name: str


@dataclass(frozen=True)
class ModelInput:
    """The base of what comes from an input of the model: its values in the order of `arrangement`,
    from the `first` one on as a tensor of `shape`. `given` is the input's own shape, `batch` where
    in it the batch is. With `steps` the first dimension of `shape` are steps of a sequence. With
    `state_bits` it is the states of recurrent layers, in steps of 2**-state_bits."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    given: tuple[int, ...]
    arrangement: Arrangement = AS_IT_IS
    batch: int = 0
    steps: int = 1
    first: int = 0
    state_bits: int = 0

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it is computed from."""
        return ()


@dataclass(frozen=True, eq=False)
class Linear:
    """`weights @ source + bias`; weights (M, K), bias (M,) or none.

    With a `window` a convolution in `groups`; weights (M, C / groups, kernel height, width). The
    same for each of so many `steps`.
    """

    node: str
    source: Value
    weights: Constant
    bias: Constant | None = None
    window: Window | None = None
    groups: int = 1
    steps: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        shape = window_shape(len(self.weights.array), self.window)
        return (self.steps, *shape) if self.steps > 1 else shape

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
    steps: int = 1

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return self.sources[0].base.shape


@dataclass(frozen=True, eq=False)
class Product(Sum):
    """Two tensors of one shape and order, multiplied."""


@dataclass(frozen=True, eq=False)
class Join:
    """Tensors of the same pixels or `steps`, the channels of one behind those of the other."""

    node: str
    sources: tuple[Value, ...]
    dtype: str
    steps: int = 1

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        shapes = [source.base.shape for source in self.sources]
        if self.steps > 1:
            return (self.steps, sum(shape[-1] for shape in shapes))
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
    """Stands for the output of an unsupported node, so that what follows can be judged too: it lies
    as that wants it."""

    shape: tuple[int, ...]
    sources: tuple[Value, ...] = ()


@dataclass(frozen=True, eq=False)
class Cells:
    """One direction of an LSTM or GRU over all steps of `source` (T, X)."""

    node: str
    source: Value
    weights: RecurrentWeights
    reverse: bool
    initial_h: Value | None = None
    initial_state: Value | None = None
    has_lengths: bool = False

    @property
    def steps(self) -> int:
        return self.source.base.steps if isinstance(self.source.base, Stepped) else 1


@dataclass(frozen=True)
class Hidden:
    """What `cells` give: hidden values of every step (`y`), the last ones (`y_h`) or the last
    states (`y_state`)."""

    cells: Cells
    kind: str

    @property
    def node(self) -> str:
        return self.cells.node

    @property
    def steps(self) -> int:
        return self.cells.steps if self.kind == "y" else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        units = self.cells.weights.units
        return (self.steps, units) if self.steps > 1 else (units,)

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it is computed from, and the hidden values of every step that it is one of."""
        cells = self.cells
        if self.kind != "y":
            return (Value(Hidden(cells, "y"), (), (), "float32"),)
        return tuple(v for v in (cells.source, cells.initial_h, cells.initial_state) if v)


@dataclass(frozen=True)
class AtStep:
    """Step `step` of a tensor of several."""

    source: Base
    step: int
    node: str = field(compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return self.source.shape[1:]

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it is part of."""
        return (Value(self.source, (), self.source.shape, "float32"),)


#: What becomes layers, or views of what they give.
Operator = Linear | Pool | Sum | Join | Part | Hidden | AtStep
Base = ModelInput | Operator | Padded | Opaque
#: Bases that may have several steps: (T, features) as they lie.
Stepped = ModelInput | Linear | Sum | Join | Hidden


def steps_of(base: Base) -> int:
    """Steps of a sequence that a tensor has."""
    return base.steps if isinstance(base, Stepped) else 1


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that depends on an input; `shape` leaves the batch dimension out, which is the one
    number `batch`.

    It holds the values of the base in the order of `arrangement`.
    """

    base: Base
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    dtype: str
    arrangement: Arrangement = AS_IT_IS
    batch: int = 0

    @property
    def features(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def axes(self) -> tuple[int | None, ...]:
        """All dimensions, None where the batch is."""
        return (*self.shape[: self.batch], None, *self.shape[self.batch :])

    def reshaped(self, shape: tuple[int, ...], batch: int | None = None) -> Value:
        """Seen in another shape, in the same order; `batch` says where the batch is then."""
        base = self.base
        if isinstance(base, (ModelInput, Opaque)):
            base = replace(base, shape=shape)
        batch = self.batch if batch is None else batch
        return replace(self, base=base, shape=shape, batch=batch)

    def placed(self, batch: int) -> Value:
        """The same with the batch at axis `batch`."""
        return replace(self, batch=batch)

    def transposed(self, axes: tuple[int, ...]) -> Value:
        """Its axes, the batch left out, in another order."""
        if list(axes) == sorted(axes):
            return self
        if isinstance(self.base, Opaque):
            return self.reshaped(tuple(self.shape[axis] for axis in axes))
        before = self.arrangement
        if isinstance(self.base, ModelInput):
            before = self.base.arrangement
            if self.features != np.prod(self.base.given, dtype=np.int64):
                raise UnsupportedNode("transposes a part of an input")
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


def shown_parts(value: Value) -> list[Value]:
    """A value as it is shown: in parts along its first axis, where it is last values or states of
    several recurrent layers one after the other."""
    base = value.base
    if not isinstance(base, Join) or value.arrangement != AS_IT_IS or value.batch > 1:
        return [value]
    whole = all(isinstance(part.base, Hidden) and part.base.kind != "y" for part in base.sources)
    if not whole or value.shape[0] != len(base.sources):
        return [value]
    return [
        replace(
            value, base=part.base, steps=(*part.steps, *value.steps), shape=(1, *value.shape[1:])
        )
        for part in base.sources
    ]
