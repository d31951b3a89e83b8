# SPDX-License-Identifier: Apache-2.0
"""The k largest magnitudes of every row, ties to the lower index.

Magnitudes are compared as unsigned integers: the bits of a float without its sign are ordered
like its magnitude, and -128 has a magnitude of 128.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Up to this many in a row, comparing all pairs is faster than selecting the k-th largest.
_PAIRWISE = 8

#: Up to this many in a row, an index fits the low byte of a key.
_BYTE = 256


def magnitudes(weights: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers in the order of the magnitudes."""
    if weights.dtype == np.int8:
        return np.abs(weights.astype(np.int16)).astype(np.uint16)
    contiguous = np.ascontiguousarray(weights)
    unsigned = np.dtype(f"u{contiguous.itemsize}")
    bits = contiguous.view(unsigned)
    result: NDArray[Any] = bits & unsigned.type((1 << (8 * contiguous.itemsize - 1)) - 1)
    return result


def largest(keys: NDArray[Any], keep: int) -> NDArray[np.bool_]:
    """Mask of the `keep` largest of every row of (rows, size); ties keep the lower index."""
    size = keys.shape[1]
    if keep == size or not keys.size:
        return np.ones(keys.shape, np.bool_)
    if size <= _PAIRWISE:
        return _largest_by_rank(keys, keep)
    if keys.dtype == np.uint16 and size <= _BYTE and int(keys.max()) < 1 << 8:
        # INT8 has few values and so many ties: the reversed index in the low byte breaks them.
        keys = (keys << np.uint16(8)) | np.arange(size - 1, -1, -1, dtype=np.uint16)
    threshold = np.partition(keys, size - keep, axis=1)[:, size - keep, None]
    mask: NDArray[np.bool_] = keys >= threshold
    # Every bank has at least `keep`, so the total tells whether any bank has more.
    if np.count_nonzero(mask) != keep * keys.shape[0]:
        _break_ties(keys, threshold, keep, mask)
    return mask


def _largest_by_rank(keys: NDArray[Any], keep: int) -> NDArray[np.bool_]:
    """The same for small banks: a weight's rank is the number of weights that go before it."""
    columns = np.ascontiguousarray(keys.T)
    ranks = np.zeros(columns.shape, np.uint8)
    for i in range(len(columns)):
        for j in range(i + 1, len(columns)):
            later_wins = columns[j] > columns[i]
            ranks[i] += later_wins
            ranks[j] += ~later_wins
    return (ranks < keep).T


def _break_ties(
    keys: NDArray[Any], threshold: NDArray[Any], keep: int, mask: NDArray[np.bool_]
) -> None:
    """Drop, in banks that kept too many, the later ones of those equal to the threshold."""
    tied = np.flatnonzero(np.count_nonzero(mask, axis=1) > keep)
    above = keys[tied] > threshold[tied]
    equal = keys[tied] == threshold[tied]
    wanted = keep - np.count_nonzero(above, axis=1)
    mask[tied] = above | (equal & (np.cumsum(equal, axis=1) <= wanted[:, None]))
