# SPDX-License-Identifier: Apache-2.0
"""What operators make of their inputs: checked, or refused with a reason.

A reason completes "node 'x' (Op): ...".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrangement import AS_IT_IS
from .graph import Function, image_shape
from .onnx_file import FileNode
from .onnx_values import (
    Base,
    Constant,
    Lengths,
    ModelInput,
    Opaque,
    Padded,
    PerBatch,
    UnsupportedNode,
    Value,
    steps_of,
)

#: Values of a tensor at most, for one sample: no board has the memory for more.
MOST_VALUES = 1 << 25

#: What a node reads: a computed value, a constant, steps of samples, or nothing (an optional input
#: left out).
Operand = Value | Constant | PerBatch | Lengths | None


@dataclass(frozen=True)
class Context:
    """What operators need to know of the whole model."""

    batch: int | None  # where the file fixes it
    opset: int
    sequences: bool = False  # whether there are recurrent layers, so that steps are no pixels


Reader = Callable[
    [Context, FileNode, "list[Operand]"], Value | Lengths | Sequence[Value | Constant | PerBatch]
]


def shown(value: Value) -> str:
    """Its shape as messages have it."""
    return f"({', '.join('batch' if n is None else str(n) for n in value.axes)})"


def computed(operand: Operand, what: str) -> Value:
    """An operand that depends on the model's input."""
    if not isinstance(operand, Value):
        raise UnsupportedNode(f"its {what} must be computed from the model's input")
    return operand


def floats(operand: Operand, what: str) -> Value:
    """A computed operand of float32."""
    value = computed(operand, what)
    if value.dtype != "float32":
        raise UnsupportedNode(f"works on {value.dtype} here; put DequantizeLinear before it")
    return value


def source(value: Value) -> Value:
    """What an operator of the engine reads."""
    if isinstance(value.base, Padded):
        raise UnsupportedNode(
            f"reads the output of Pad {value.base.node!r}, which is supported right before Conv "
            "only"
        )
    if any(isinstance(step, Function) and step.on_host for step in value.steps):
        raise UnsupportedNode("reads the output of Softmax, which is supported at outputs only")
    return value


def constant(operand: Operand, what: str) -> Constant:
    """An operand that is known when the model is read."""
    if isinstance(operand, Value):
        raise UnsupportedNode(f"its {what} is computed from the model's input, must be constant")
    if isinstance(operand, (PerBatch, Lengths)):
        raise UnsupportedNode(f"its {what} depends on the batch, must be constant")
    if operand is None:
        raise UnsupportedNode(f"its {what} is missing")
    return operand


def optional(inputs: list[Operand], index: int) -> Operand:
    """An input that may be left out."""
    return inputs[index] if index < len(inputs) else None


def one_number(array: NDArray[Any], what: str) -> Any:
    """The value of an array that has just one."""
    if array.size != 1:
        raise UnsupportedNode(f"its {what} has {array.size} values; one per tensor is supported")
    return array.reshape(-1)[0]


def axes_of(
    node: FileNode, inputs: list[Operand], index: int, rank: int, *, grows: bool = False
) -> list[int] | None:
    """`axes`, an attribute in older operator sets and an input since, counted from the front.

    Of a tensor of `rank` dimensions, or of one that has them besides where it `grows`.
    """
    given = optional(inputs, index)
    axes = node.attributes.get("axes")
    if given is not None:
        axes = constant(given, "axes").value.reshape(-1)
    if axes is None:
        return None
    whole = rank + len(axes) if grows else rank
    every = [checked_axis(int(axis), whole) for axis in axes]
    if len(set(every)) < len(every):
        raise UnsupportedNode(f"its axes {every} are not all different")
    return every


def checked_axis(axis: int, rank: int) -> int:
    """An axis of a tensor of `rank` dimensions, counted from the front."""
    if not -rank <= axis < rank:
        raise UnsupportedNode(f"axis {axis} is beyond the {rank} dimensions of its input")
    return axis % rank


def numbers_of(node: FileNode, name: str, count: int, default: int | None) -> tuple[int, ...]:
    """An attribute of `count` integers; without a `default` it must be there."""
    given = node.attributes.get(name)
    if not given and default is not None:
        return (default,) * count
    if not isinstance(given, list) or len(given) != count:
        raise UnsupportedNode(f"its {name} is {given}, must be {count} integers")
    return tuple(int(number) for number in given)


def per_row(value: Value, given: Constant, what: str) -> Constant:
    """A constant that broadcasts to `value`, the result of a layer, as one number a row (M,)."""
    shape, array = value.shape, given.array
    steps = steps_of(value.base)
    rows = value.base.shape[1 if steps > 1 else 0]

    def lying(a: NDArray[Any]) -> NDArray[Any]:
        """As the value lies, a row for each row."""
        if a.ndim <= len(shape):
            a = a.reshape(*[1] * (len(shape) + 1 - a.ndim), *a.shape)
        if a.ndim == len(shape) + 1 and a.shape[value.batch] == 1:
            a = a.take(0, axis=value.batch)  # the batch dimension goes
        flat = value.arrangement.undo(np.broadcast_to(a, shape).reshape(1, -1))
        return flat.reshape(rows, -1) if steps == 1 else flat.reshape(steps, rows).T

    try:
        full = given.each(lying)
    except ValueError:
        raise UnsupportedNode(
            f"{what} a constant of shape {array.shape}, where its input is "
            f"{shown(value)}; it must be the same for every sample and not enlarge "
            "the result"
        ) from None
    if not np.array_equal(full.value, np.repeat(full.value[:, :1], full.array.shape[1], 1), True):
        raise UnsupportedNode(f"{what} a constant of shape {array.shape} that differs within a "
                              "channel; one number a channel is supported")  # fmt: skip
    return full.each(lambda a: np.ascontiguousarray(a[:, 0]))


def result(base: Base, shape: tuple[int, ...] | None = None, dtype: str = "float32") -> Value:
    """What an operator gives."""
    shape = base.shape if shape is None else shape
    check_size(shape)
    return Value(base, (), shape, dtype)


def check_size(shape: tuple[int, ...]) -> None:
    """Refuses what no board could hold, before anything of that size is made."""
    if math.prod(shape) > MOST_VALUES:
        raise UnsupportedNode(
            f"has {math.prod(shape)} values a sample, of shape {shape}; {MOST_VALUES} are the most"
        )


def as_image(value: Value) -> Value:
    """`value` (..., K) as the image (K, H, W) that it lies as: columns are pixels."""
    *columns, features = value.shape
    last = len(columns)
    image = value.transposed((last, *range(last)))
    lies = image_shape(image.base.shape)
    if isinstance(image.base, (ModelInput, Opaque)):
        size = tuple(columns) if last == 2 else (int(np.prod(columns, dtype=np.int64)), 1)
        return image.reshaped((features, *size))
    if image.arrangement != AS_IT_IS or lies[0] != features:
        raise UnsupportedNode(
            f"its input {shown(value)} does not lie as {features} channels of every column, "
            "because of what reshapes or transposes it within the model"
        )
    return image.reshaped(lies)


def as_columns(image: Value, like: Value) -> Value:
    """An image (K, H, W) with the columns and the batch of `like`, (..., K)."""
    columns = like.shape[:-1]
    seen = image.reshaped((image.shape[0], *columns))
    return seen.transposed((*range(1, len(columns) + 1), 0)).placed(like.batch)
