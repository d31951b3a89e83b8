# SPDX-License-Identifier: Apache-2.0
"""What a model is to this package, before and after quantisation.

`Model` holds float32 layers as a file describes them; `QuantModel` holds the integers that the
engine works with. Tensors are named; a layer reads one tensor and writes one. Several layers may
read the same tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .arrangement import AS_IT_IS, Arrangement
from .functions import Float as Float
from .functions import Function as Function
from .functions import apply_functions as apply_functions

if TYPE_CHECKING:
    from .recurrent import RecurrentLayer
    from .recurrent_floats import FloatRecurrent


@dataclass(frozen=True)
class GraphInput:
    """One input of a model; `shape` leaves the batch dimension out.

    The layers read `functions(input)` under the name `tensor` (empty: the input's own name). An
    input that is read in several forms stands in several entries of the same `name`. The layers
    see it in the order of `arrangement`, from its value `first` on, as an image of `tensor_shape`
    (C, H, W) where it is one, or with `steps` as (T, features) (empty: `shape`). In what the user
    hands in the batch is axis `batch_axis`. With `state_bits` it is the states of recurrent layers,
    which are quantised in steps of 2**-state_bits.
    """

    name: str
    shape: tuple[int, ...]
    functions: tuple[Function, ...] = ()
    tensor: str = ""
    arrangement: Arrangement = AS_IT_IS
    tensor_shape: tuple[int, ...] = ()
    batch_axis: int = 0
    steps: int = 1
    first: int = 0
    state_bits: int = 0

    def __post_init__(self) -> None:
        if not self.tensor:
            object.__setattr__(self, "tensor", self.name)

    @property
    def features(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GraphOutput:
    """One output of a model: which tensor it shows, in which order and shape (batch left out), and
    what the host applies to it. The batch is axis `batch_axis` of what the user gets. Several
    entries of one `name` are parts of it, one after the other along its first other axis."""

    name: str
    tensor: str
    shape: tuple[int, ...]
    functions: tuple[Function, ...] = ()
    arrangement: Arrangement = AS_IT_IS
    batch_axis: int = 0


@dataclass
class Layer:
    """`output = functions(weights @ input + bias + other)` in float32; with `product`
    `functions((weights @ input + bias) * other)`.

    With a `window` the same for each of its places: a convolution in `groups`, padded with zeros;
    with `maximum` the largest of the window's inputs instead of their product. `other` is a tensor
    of the output's shape, or none. An input of several steps gives an output of as many.
    """

    name: str
    input: str
    output: str
    weights: Float  # (M, K); with a window (M, C / groups, kernel height, width)
    bias: Float  # (M,)
    functions: tuple[Function, ...] = ()
    window: Window | None = None
    groups: int = 1
    maximum: bool = False
    other: str = ""
    product: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return tuple(name for name in (self.input, self.other) if name)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensor that it writes."""
        return (self.output,)


@dataclass(frozen=True)
class QuantInput:
    """How a model input becomes an INT8 tensor; several entries may show the same input.

    `dtype` is what the user hands in. float32: `functions`, then
    `saturate(round_half_even(x / scale) + zero_point)`. uint8: minus 128. int8: as it is.
    `zero_point` is that of the INT8 tensor. Of `shape` the first dimension may be `steps` of a
    sequence. With `bits` 16 it is the states of a recurrent layer, INT16. The tensor has the
    input's values in the order of `arrangement`, from the `first` one on, as an image of
    `tensor_shape` (C, H, W) where the model has windows (empty: `shape`). In what the user hands in
    the batch is axis `batch_axis`.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]
    dtype: str
    scale: np.float32
    zero_point: int
    functions: tuple[Function, ...] = ()
    steps: int = 1
    bits: int = 8
    arrangement: Arrangement = AS_IT_IS
    tensor_shape: tuple[int, ...] = ()
    batch_axis: int = 0
    first: int = 0

    @property
    def features(self) -> int:
        """Of the tensor."""
        return math.prod(self.tensor_shape or self.shape)


#: What a window's kernel, stride, dilation or padding can be at most: fields of 4 bits.
MOST_FIELD = 15


@dataclass(frozen=True)
class Window:
    """How a window goes over an image; pairs are (along y, along x).

    `pads` are rows or pixels beside the image: top, left, bottom, right.
    """

    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def out_height(self) -> int:
        return self._out(0, self.height)

    @property
    def out_width(self) -> int:
        return self._out(1, self.width)

    @property
    def is_pixel(self) -> bool:
        """True where every output pixel sees just the pixel at its own place."""
        return (self.kernel, self.strides, self.pads) == ((1, 1), (1, 1), (0, 0, 0, 0))

    def _out(self, axis: int, size: int) -> int:
        reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        room = size + self.pads[axis] + self.pads[axis + 2] - reach
        return room // self.strides[axis] + 1 if room >= 0 else 0


def window_shape(rows: int, window: Window | None) -> tuple[int, ...]:
    """Of what a layer of so many rows gives."""
    return (rows, window.out_height, window.out_width) if window else (rows,)


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of a tensor as it lies: what is no image has a single pixel."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return math.prod(shape), 1, 1


@dataclass(frozen=True)
class Combination:
    """Two INT8 tensors to one, in fixed point (docs/arithmetic.md).

    `y = clamp(round_half_even(acc / 2**shift) + zero_point, low, high)` with
    `acc = a_scale * (a - a_zero) + b_scale * (b - b_zero)`, or, for a `product`,
    `acc = a_scale * (a - a_zero) * (b - b_zero)`. `tensor` is b.
    """

    tensor: str
    a_scale: int
    a_zero: int
    b_scale: int
    b_zero: int
    shift: int
    zero_point: int
    low: int = -128
    high: int = 127
    product: bool = False


@dataclass
class QuantLayer:
    """One layer in integers (DESIGN.md section 3).

    `acc = weights @ (input - input_zero_point) + bias`, INT32. With a `multiplier`:
    `q = saturate(round_half_even(float32(acc) * multiplier) + zero_point)`,
    `output = table[q + 128]` where there is a table, else `q`. Without one (None) the output
    tensor is `acc` itself and only a model output may read it. With `weight_bits` 4 the weights
    lie in -8 to 7 and take half a byte each in memory; the arithmetic is the same.

    With a `window` the same for each of its places: a convolution in `groups`; what lies beside
    the image is `input_zero_point`. With `maximum` `acc` is the largest of the window's inputs
    (no less than -128) and the weights are all 1. With a `combination` it has the last word.

    With a `weight_tensor` that tensor is the weights, a row for each of its features and a weight
    for each of its columns: the product of two activations. `weights` then only has the shape.

    An input of several steps gives an output of as many: the same for each of them.
    """

    name: str
    input: str
    output: str
    weights: NDArray[np.int8]  # (M, K); with a window (M, C / groups, kernel height, width)
    bias: NDArray[np.int32]  # (M,)
    input_zero_point: int
    multiplier: NDArray[np.float32] | None  # (M,)
    zero_point: int = 0
    table: NDArray[np.int8] | None = None  # (256,)
    weight_bits: int = 8
    window: Window | None = None
    groups: int = 1
    maximum: bool = False
    combination: Combination | None = None
    weight_tensor: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        other = self.combination.tensor if self.combination else ""
        return tuple(name for name in (self.input, other, self.weight_tensor) if name)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensor that it writes."""
        return (self.output,)


@dataclass(frozen=True)
class QuantOutput:
    """How a tensor becomes a model output.

    `dtype` is what the user gets. float32: `functions((tensor - zero_point) * scale)`, with one
    scale, or one for each row. uint8: plus 128. int8, int16 and int32: as it is. `zero_point` is
    that of the INT8 tensor. Of `shape` the first dimension may be `steps` of a sequence. The output
    has the tensor's values in the order of `arrangement`. With functions, int8 and uint8 are what
    the last of them, `quantise`, gives. `batch_axis` and several entries of one name are as in
    `GraphOutput`.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]
    dtype: str
    scale: NDArray[np.float32] = field(default_factory=lambda: np.ones(1, np.float32))
    zero_point: int = 0
    functions: tuple[Function, ...] = ()
    steps: int = 1
    arrangement: Arrangement = AS_IT_IS
    batch_axis: int = 0


@dataclass(frozen=True)
class Slice:
    """Tensor `output` is features `first` and on of tensor `input`, at the same pixels.

    `shape` is that of `output`, (features,) or (C, H, W). It may arrange the pixels otherwise, as
    long as they stay in their order: a reshape that moves nothing.
    """

    input: str
    output: str
    first: int
    shape: tuple[int, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensor that it is a part of."""
        return (self.input,)


@dataclass(frozen=True)
class AtStep:
    """Tensor `output` is one `step` of tensor `input`, which has several."""

    input: str
    output: str
    step: int

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensor that it is a part of."""
        return (self.input,)


@dataclass(frozen=True)
class Concat:
    """Tensor `output` is the features of all `inputs` one after the other, as they are.

    So they all have one scale and zero point, and the same pixels.
    """

    inputs: tuple[str, ...]
    output: str

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that are parts of it."""
        return self.inputs


View = Slice | AtStep | Concat


@dataclass
class Model:
    """Float layers in an order in which they can run, and views of tensors and `lengths`, as in
    `QuantModel`; a view stands behind those that it reads."""

    name: str
    inputs: list[GraphInput]
    layers: Sequence[Layer | FloatRecurrent]
    outputs: list[GraphOutput]
    views: list[View] = field(default_factory=list)
    lengths: str = ""


@dataclass(frozen=True)
class Constant:
    """A tensor that is the same for every sample: (C, H, W).

    In a model without pixels too it lets samples run one after the other, not as columns.
    """

    name: str
    values: NDArray[np.int8]


@dataclass
class QuantModel:
    """Integer layers in an order in which they can run.

    With `lengths` the model has an input of that name besides: how many steps each sample has,
    integers (N,) from 1 to the steps of its recurrent layers.

    Layers read and write what `views` name as any other tensor; each lies where its tensors do,
    and packing copies only where it cannot.
    """

    name: str
    inputs: list[QuantInput]
    layers: Sequence[QuantLayer | RecurrentLayer]
    outputs: list[QuantOutput]
    lengths: str = ""
    views: list[View] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
