# SPDX-License-Identifier: Apache-2.0
"""The order of a tensor's values: how one array is seen through transposes and reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Arrangement:
    """A transpose between reshapes: `values.reshape(N, *factors).transpose(0, *axes + 1)`.

    In its shortest form, so that equal ones are the same order; without factors, as it is.
    """

    factors: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values` (N, features) in this order."""
        if not self.factors:
            return values
        axes = (0, *(axis + 1 for axis in self.axes))
        cut = values.reshape(len(values), *self.factors).transpose(axes)
        return np.ascontiguousarray(cut).reshape(values.shape)

    def undo(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values` (N, features) in this order, as they were before."""
        if not self.factors:
            return values
        seen = tuple(self.factors[axis] for axis in self.axes)
        return Arrangement(seen, tuple(int(a) for a in np.argsort(self.axes))).apply(values)

    def transposed(self, shape: Sequence[int], axes: Sequence[int]) -> Arrangement | None:
        """This order, seen in `shape` and transposed; None where reshapes cut axes apart at places
        that have no common factors."""
        factors = self.factors or (int(np.prod(shape, dtype=np.int64)),)
        order = self.axes or (0,)
        pieces = _pieces([factors[axis] for axis in order], shape)
        if pieces is None:
            return None
        of_factor, of_axis = pieces
        counts = dict(zip(order, map(len, of_factor), strict=True))
        starts = [0, *accumulate(counts[axis] for axis in range(len(factors)))]
        seen = [starts[axis] + i for axis in order for i in range(counts[axis])]
        sizes = dict(zip(seen, (size for part in of_factor for size in part), strict=True))
        groups, at = [], 0
        for part in of_axis:
            groups.append(seen[at : at + len(part)])
            at += len(part)
        return _shortest([sizes[i] for i in range(len(seen))], [i for a in axes for i in groups[a]])


#: The order that changes nothing.
AS_IT_IS = Arrangement()


def _pieces(
    first: Sequence[int], second: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]] | None:
    """Factors of both lists, which have one product, such that both have the same ones in a row."""
    parts: tuple[list[list[int]], list[list[int]]] = ([], [])
    rests, queues = [1, 1], [list(first), list(second)]
    while any(queues) or rests != [1, 1]:
        for side in range(2):
            if rests[side] == 1 and queues[side]:
                rests[side] = queues[side].pop(0)
                parts[side].append([])
        if 1 in rests:
            if rests == [1, 1]:
                continue
            if not queues[rests.index(1)]:
                return None
            continue
        size = min(rests)
        if max(rests) % size:
            return None
        for side in range(2):
            parts[side][-1].append(size)
            rests[side] //= size
    return parts


def _shortest(sizes: Sequence[int], order: Sequence[int]) -> Arrangement:
    """Pieces that stay neighbours become one factor."""
    runs: list[list[int]] = []
    for piece in order:
        if runs and piece == runs[-1][-1] + 1:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    if len(runs) <= 1:
        return AS_IT_IS
    by_place = sorted(range(len(runs)), key=lambda i: runs[i][0])
    factors = tuple(int(np.prod([sizes[p] for p in runs[i]], dtype=np.int64)) for i in by_place)
    return Arrangement(factors, tuple(by_place.index(i) for i in range(len(runs))))
