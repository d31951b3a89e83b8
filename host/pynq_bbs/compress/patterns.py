# SPDX-License-Identifier: Apache-2.0
"""Sparsity patterns: which weights of a matrix may stay, behind one interface.

A pattern takes scores (M, K), of which the larger magnitudes stay, and gives a mask. Exactly the
number asked for is kept, ties to the lower index. `mask_of` brings the weights of convolutions into
the order in which packing cuts them into banks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .largest import largest, magnitudes

Mask = NDArray[np.bool_]

#: What `parse_pattern` takes.
FORMS = "unstructured, N:M, banks:SIZE, banks:row/COUNT, block:RxC, block:RxC:max, row, channel"

#: Weights worked on at a time, so that the steps below stay in the processor's cache.
_BLOCK = 1 << 16

#: How far the number that a sparsity keeps of a bank may lie from an integer.
_TOLERANCE = 1e-4


class Pattern(Protocol):
    """Which weights may stay."""

    def mask(self, scores: NDArray[Any]) -> Mask:
        """True where a weight stays, (M, K); `scores` are finite, float or int8."""
        ...


@dataclass(frozen=True)
class Banks:
    """The `keep` largest of every bank of `size` weights along a row; N:M is `Banks(M, N)`.

    A last bank cut short by the end of the row keeps `keep` too, or all that it has.
    """

    size: int
    keep: int

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.keep <= self.size:
            raise InputError(f"banks of {self.size} weights cannot keep {self.keep}.")

    def mask(self, scores: NDArray[Any]) -> Mask:
        _check(scores)
        mask = np.empty(scores.shape, np.bool_)
        whole = scores.shape[1] - scores.shape[1] % self.size
        for block in row_blocks(scores):
            keys = magnitudes(scores[block])
            banks = keys[:, :whole].reshape(-1, self.size)
            mask[block, :whole] = largest(banks, self.keep).reshape(len(keys), whole)
            tail = keys[:, whole:]
            mask[block, whole:] = largest(tail, min(self.keep, tail.shape[1]))
        return mask


@dataclass(frozen=True)
class RowBanks:
    """Every row cut into `count` banks, of K / count weights rounded up."""

    count: int
    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)
        if self.count < 1:
            raise InputError(f"a row cannot have {self.count} banks; take at least 1.")

    def mask(self, scores: NDArray[Any]) -> Mask:
        _check(scores)
        return banks_of(max(1, -(-scores.shape[1] // self.count)), self.sparsity).mask(scores)


@dataclass(frozen=True)
class Unstructured:
    """The largest of the whole matrix."""

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def mask(self, scores: NDArray[Any]) -> Mask:
        _check(scores)
        return _kept(magnitudes(scores).reshape(1, -1), self.sparsity).reshape(scores.shape)


@dataclass(frozen=True)
class Blocks:
    """Whole blocks of `rows` x `columns`, by their mean magnitude, or by their largest.

    Blocks cut short by the end of the matrix count as blocks, over the weights that they have.
    """

    rows: int
    columns: int
    sparsity: float
    by_largest: bool = False

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)
        if self.rows < 1 or self.columns < 1:
            raise InputError(f"a block of {self.rows}x{self.columns} has no weights.")

    def mask(self, scores: NDArray[Any]) -> Mask:
        _check(scores)
        if not scores.size:
            return np.ones(scores.shape, np.bool_)
        m, k = scores.shape
        tops, lefts = np.arange(0, m, self.rows), np.arange(0, k, self.columns)
        values = np.abs(scores.astype(np.float64))
        reduce = np.maximum if self.by_largest else np.add
        values = reduce.reduceat(reduce.reduceat(values, tops, axis=0), lefts, axis=1)
        if not self.by_largest:
            values /= np.outer(np.diff(tops, append=m), np.diff(lefts, append=k))
        kept = _kept(magnitudes(values.reshape(1, -1)), self.sparsity).reshape(values.shape)
        whole: Mask = kept.repeat(self.rows, axis=0).repeat(self.columns, axis=1)[:m, :k]
        return whole


@dataclass(frozen=True)
class Rows:
    """Whole rows (outputs), by their mean magnitude."""

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def mask(self, scores: NDArray[Any]) -> Mask:
        return Blocks(1, max(1, np.shape(scores)[-1]), self.sparsity).mask(scores)


@dataclass(frozen=True)
class Channels:
    """Whole columns (input features), by their mean magnitude."""

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def mask(self, scores: NDArray[Any]) -> Mask:
        return Blocks(max(1, len(scores)), 1, self.sparsity).mask(scores)


def parse_pattern(text: str, sparsity: float) -> Pattern:
    """The pattern of its text form (see `FORMS`) with a share of weights removed.

    Raises:
        InputError: no such form, or it cannot have that sparsity.
    """
    kind, _, rest = text.partition(":")
    simple: dict[str, Callable[[float], Pattern]]
    simple = {"unstructured": Unstructured, "row": Rows, "channel": Channels}
    try:
        if text in simple:
            return simple[text](sparsity)
        if kind == "banks" and rest.startswith("row/"):
            return RowBanks(int(rest[4:]), sparsity)
        if kind == "banks":
            return banks_of(int(rest), sparsity)
        if kind == "block":
            shape, _, by = rest.partition(":")
            rows, columns = (int(size) for size in shape.split("x"))
            if by in ("", "mean", "max"):
                return Blocks(rows, columns, sparsity, by == "max")
        keep, size = int(kind), int(rest)
    except ValueError:
        raise InputError(f"pattern is {text!r}; take one of: {FORMS}.") from None
    banks = Banks(size, keep)
    if abs(1.0 - keep / size - sparsity) > _TOLERANCE:
        raise InputError(f"pattern {text} has sparsity {1.0 - keep / size:.6g}, not {sparsity}.")
    return banks


def banks_of(size: int, sparsity: float) -> Banks:
    """Banks of that size and sparsity; InputError unless `size * (1 - sparsity)` is an integer."""
    _check_sparsity(sparsity)
    keep = round(size * (1.0 - sparsity))
    if keep < 1 or abs(size * (1.0 - sparsity) - keep) > _TOLERANCE:
        raise InputError(
            f"banks of {size} weights cannot have sparsity {sparsity}: "
            "size * (1 - sparsity) must be an integer of at least 1."
        )
    return Banks(size, keep)


def mask_of(pattern: Pattern, scores: NDArray[Any]) -> Mask:
    """The mask of a layer's weights, (M, K), or (M, C, *kernel) of a convolution.

    Packing cuts the C channels of every tap into banks of their own, so a pattern's rows are those
    of one tap of one output, (M * taps, C); rows and blocks are of whole outputs, (M, taps * C).
    """
    if scores.ndim == 2:
        return pattern.mask(scores)
    if scores.ndim < 2:
        raise InputError(f"weights have shape {scores.shape}, must be (M, K) or (M, C, *kernel).")
    taps_first = np.moveaxis(scores, 1, -1)
    rows = len(scores) if isinstance(pattern, Rows | Blocks) else scores[:, 0].size
    mask = pattern.mask(np.ascontiguousarray(taps_first).reshape(rows, -1))
    moved: Mask = np.ascontiguousarray(np.moveaxis(mask.reshape(taps_first.shape), -1, 1))
    return moved


def row_blocks(weights: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows, each few enough to stay in the processor's cache."""
    rows, features = weights.shape
    step = max(1, _BLOCK // max(1, features))
    return (slice(start, start + step) for start in range(0, rows, step))


def _kept(keys: NDArray[Any], sparsity: float) -> Mask:
    keep = round(keys.size * (1.0 - sparsity))
    return largest(keys, keep) if keep else np.zeros(keys.shape, np.bool_)


def _check(scores: NDArray[Any]) -> None:
    if scores.ndim != 2:
        raise InputError(f"scores have shape {scores.shape}, must be two-dimensional (M, K).")
    if scores.dtype.kind != "f" and scores.dtype != np.int8:
        raise InputError(f"scores are {scores.dtype}, must be float or int8.")


def _check_sparsity(sparsity: float) -> None:
    if not 0.0 <= sparsity < 1.0:
        raise InputError(f"sparsity is {sparsity}, must be at least 0 and less than 1.")
