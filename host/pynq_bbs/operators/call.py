# SPDX-License-Identifier: Apache-2.0
"""What an operator is given besides its inputs, and how operators read their axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: An array of any type and shape. Not said to mypy: its stubs lose the type at each operation.
Array = Any

#: Elements of a tensor that an operator makes of a shape alone: more is a damaged model.
MOST_ELEMENTS = 1 << 28


@dataclass(frozen=True)
class Call:
    """One node's attributes, the operator set it is written for, and how many outputs it has."""

    opset: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


#: Takes the call and the node's inputs, None where an optional one is left out; gives its output,
#: or a tuple of them. Raises ValueError where the inputs do not fit together.
Function = Callable[..., Any]


def axes_of(call: Call, given: Array | None, rank: int) -> tuple[int, ...] | None:
    """Axes that are an input since some operator set and an attribute before, from the front."""
    axes = call.get("axes") if given is None else given.reshape(-1).tolist()
    return None if axes is None else tuple(checked_axis(int(axis), rank) for axis in axes)


def checked_axis(axis: int, rank: int) -> int:
    """An axis of a tensor of `rank` dimensions, counted from the front."""
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is beyond {rank} dimensions")
    return axis % rank


def numbers(given: Array) -> list[int]:
    """The integers of a shape, of pads, of sizes."""
    return [int(n) for n in np.asarray(given).reshape(-1)]


def checked_shape(shape: list[int] | tuple[int, ...]) -> tuple[int, ...]:
    """A shape that a tensor is made of without there being values for it."""
    if any(n < 0 for n in shape) or int(np.prod(shape, dtype=np.float64)) > MOST_ELEMENTS:
        raise ValueError(f"makes a tensor of shape {list(shape)}")
    return tuple(shape)
