# SPDX-License-Identifier: Apache-2.0
"""Observers: the range of a tensor from a stream of batches, in constant memory.

An observer sees every batch once and keeps a histogram or two numbers, never the batches. It ends
in an asymmetric INT8 quantisation in which real zero is an integer, as padding and Relu need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

#: Smallest scale handed out: the product of two of them is still a normal float32. Values so
#: small all become zero, which is what they are beside any bias.
MIN_SCALE = 1e-18

#: Bins on either side of zero. A multiple of the 256 levels, so that a range shrunk to a
#: sixteenth still has several bins per level.
_BINS = 2048

#: Share of the values that "percentile" leaves outside, half of it at either end.
_OUTSIDE = 1e-4

_LEVELS = 256


class Observer(Protocol):
    """What `make_observer` returns."""

    def update(self, values: NDArray[Any]) -> None:
        """Take in one batch of any shape; InputError for NaN or infinity."""

    def quantisation(self) -> tuple[np.float32, int]:
        """Scale and zero point (-128 to 127); InputError before the first value."""


def make_observer(method: str) -> Observer:
    """An observer that picks its range by `method`.

    - `minmax`: everything seen lies inside.
    - `percentile`: 99.99 % of the values do, 0.005 % lie beyond either end.
    - `entropy`: the range in which INT8 keeps most of the histogram's information (least
      Kullback-Leibler divergence).
    - `mse`: the range with the least mean squared error.

    Raises:
        InputError: unknown method.
    """
    if method == "minmax":
        return _MinMax()
    if method not in _RANGES:
        known = ", ".join(METHODS)
        raise InputError(f"unknown calibration method {method!r}; known methods: {known}.")
    return _Histogram(_RANGES[method])


def range_quantisation(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point of the INT8 values -128 to 127 spread over [low, high] and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return np.float32(1.0), 0
    scale = np.float32(max((high - low) / 255.0, MIN_SCALE))
    zero_point = int(np.clip(np.rint(-128.0 - low / float(scale)), -128, 127))
    return scale, zero_point


def _checked(values: NDArray[Any]) -> NDArray[Any]:
    flat = np.asarray(values).reshape(-1)
    if not np.isfinite(flat).all():
        raise InputError(
            "calibration met NaN or infinity. Give calibration samples, and a model, "
            "whose activations are all finite."
        )
    return flat


def _nothing_seen() -> InputError:
    return InputError("calibration got no values; give at least one sample.")


class _MinMax:
    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def update(self, values: NDArray[Any]) -> None:
        flat = _checked(values)
        if flat.size:
            self._low = min(self._low, float(flat.min()))
            self._high = max(self._high, float(flat.max()))

    def quantisation(self) -> tuple[np.float32, int]:
        if self._low > self._high:
            raise _nothing_seen()
        return range_quantisation(self._low, self._high)


class _Histogram:
    """Counts over [-limit, limit]; a value beyond doubles the limit by merging pairs of bins."""

    def __init__(self, choose: _Choose) -> None:
        self._choose = choose
        self._counts = np.zeros(2 * _BINS, np.int64)
        self._limit = 0.0
        self._zeros = 0  # counted apart: they fit every limit, and the limit may still be 0

    def update(self, values: NDArray[Any]) -> None:
        flat = _checked(values)
        nonzero = flat[flat != 0].astype(np.float64)
        self._zeros += flat.size - nonzero.size
        if not nonzero.size:
            return
        largest = float(np.abs(nonzero).max())
        if self._limit == 0.0:
            self._limit = largest
        while self._limit < largest:
            self._double()
        position = (nonzero / self._limit + 1.0) * _BINS
        index = np.minimum(position.astype(np.int64), 2 * _BINS - 1)
        self._counts += np.bincount(index, minlength=2 * _BINS)

    def _double(self) -> None:
        merged = self._counts.reshape(_BINS, 2).sum(axis=1)
        self._counts = np.pad(merged, _BINS // 2)
        self._limit *= 2.0

    def quantisation(self) -> tuple[np.float32, int]:
        if self._limit == 0.0:
            if not self._zeros:
                raise _nothing_seen()
            return range_quantisation(0.0, 0.0)
        # In units of a bin: bin i holds values from i to i + 1, zero lies between two bins.
        counts = self._counts.astype(np.float64)
        low, high = self._choose(counts, float(self._zeros))
        width = self._limit / _BINS
        return range_quantisation(low * width, high * width)


#: counts of the bins from -_BINS to _BINS, count of exact zeros -> range in bins
_Choose = Callable[[NDArray[np.float64], float], tuple[float, float]]


def _seen(counts: NDArray[np.float64]) -> tuple[float, float]:
    """Everything seen, and zero, in bins."""
    filled = np.flatnonzero(counts)
    return min(0.0, float(filled[0] - _BINS)), max(0.0, float(filled[-1] + 1 - _BINS))


def _percentile(counts: NDArray[np.float64], zeros: float) -> tuple[float, float]:
    beyond = (counts.sum() + zeros) * _OUTSIDE / 2.0
    low, high = _seen(counts)
    below = np.searchsorted(np.cumsum(counts), beyond, side="right") - _BINS
    above = _BINS - np.searchsorted(np.cumsum(counts[::-1]), beyond, side="right")
    return max(low, min(0.0, float(below))), min(high, max(0.0, float(above)))


def _search(cost: Callable[[float, float], float], low: float, high: float) -> tuple[float, float]:
    """The cheapest range inside [low, high], one end at a time, each in 64 steps, two rounds."""
    ends = [low, high]
    for which in (1, 0, 1, 0):
        limit = (low, high)[which]
        if limit == 0.0:
            continue
        candidates = [(ends[0], limit * i / 64.0) for i in range(64, 0, -1)]
        if which == 0:
            candidates = [(limit * i / 64.0, ends[1]) for i in range(64, 0, -1)]
        # With fewer bins than levels the histogram says nothing about rounding.
        allowed = [c for c in candidates if c[1] - c[0] >= _LEVELS] or candidates[:1]
        ends = list(min(allowed, key=lambda c: cost(*c)))
    return ends[0], ends[1]


def _levels(low: float, high: float) -> tuple[float, float, NDArray[np.float64]]:
    """Scale, lowest value, and level 0 to 255 of every bin's centre."""
    scale = (high - low) / (_LEVELS - 1)
    centres = np.arange(-_BINS, _BINS) + 0.5
    first = np.rint(low / scale)
    return scale, first, np.clip(np.rint(centres / scale) - first, 0, _LEVELS - 1)


def _mse(counts: NDArray[np.float64], zeros: float) -> tuple[float, float]:
    centres = np.arange(-_BINS, _BINS) + 0.5

    def cost(low: float, high: float) -> float:
        scale, first, levels = _levels(low, high)
        return float(counts @ ((levels + first) * scale - centres) ** 2)

    return _search(cost, *_seen(counts))


def _entropy(counts: NDArray[np.float64], zeros: float) -> tuple[float, float]:
    # Exact zeros come back exactly in every range: a spike of them, as Relu makes, would only
    # hide what happens to the other values.
    total = counts.sum()

    def cost(low: float, high: float) -> float:
        _, _, levels = _levels(low, high)
        level = levels.astype(np.int64)
        centres = np.arange(-_BINS, _BINS) + 0.5
        inside = (centres > low) & (centres < high)
        # What clipping does to the values, against what 256 levels can tell of those inside.
        edges = np.clip(
            np.arange(2 * _BINS), inside.argmax(), 2 * _BINS - 1 - inside[::-1].argmax()
        )
        clipped = np.bincount(edges, weights=counts, minlength=2 * _BINS)
        filled = clipped > 0
        mass = np.bincount(level, weights=counts * inside, minlength=_LEVELS)
        bins = np.bincount(level, weights=filled, minlength=_LEVELS)
        p = clipped[filled] / total
        q = (mass / np.maximum(bins, 1.0))[level[filled]] / max(mass.sum(), 1.0)
        return float(np.sum(p * np.log(p / np.maximum(q, 1e-9))))

    return _search(cost, *_seen(counts))


_RANGES: dict[str, _Choose] = {"percentile": _percentile, "entropy": _entropy, "mse": _mse}

#: What `make_observer` accepts.
METHODS = ("minmax", *_RANGES)
