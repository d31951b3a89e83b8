# SPDX-License-Identifier: Apache-2.0
"""Bank-balanced pruning: which weights of every bank stay, and how large a bank a layer gets.

Magnitudes are compared as unsigned integers: the bits of a float without its sign are ordered
like its magnitude, and -128 has a magnitude of 128.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

#: Bank sizes that the engine works on.
MIN_BANK, MAX_BANK = 1, 256

#: Up to this bank size, comparing all pairs is faster than selecting the k-th largest.
_PAIRWISE_BANK = 8

#: Weights worked on at a time, so that the steps below stay in the processor's cache.
_BLOCK = 1 << 16

#: How far `bank_size * (1 - sparsity)` may lie from an integer.
_TOLERANCE = 1e-4


def bank_prune(weights: NDArray[Any], bank_size: int, keep: int) -> NDArray[Any]:
    """Keep the `keep` largest magnitudes of every bank; ties keep the lower index.

    Args:
        weights: (M, K), float or int8, finite. Not changed.
        bank_size: weights in a bank, 1 to 256. A last bank cut short by the end of the row
            counts as filled up with zeros that are never kept.
        keep: weights kept in a bank, 1 to `bank_size`.

    Returns:
        A pruned copy of the same dtype.

    Raises:
        InputError: an argument outside what is stated above.
    """
    _check(weights, bank_size, keep)
    pruned = np.empty(weights.shape, weights.dtype)
    # Bits times 0 or 1: no branch for every weight, as np.where has, and no negative zeros.
    unsigned = np.dtype(f"u{weights.itemsize}")
    for block in _row_blocks(weights):
        rows = np.ascontiguousarray(weights[block])
        mask = _block_mask(rows, bank_size, keep)
        np.multiply(rows.view(unsigned), mask, out=pruned[block].view(unsigned))
    return pruned


def bank_mask(weights: NDArray[Any], bank_size: int, keep: int) -> NDArray[np.bool_]:
    """Which weights `bank_prune` keeps, (M, K).

    Exactly `keep` in every bank, also when a bank is all zeros: the engine reads that many
    without counting. In a last bank of fewer than `keep` weights, all of them.
    """
    _check(weights, bank_size, keep)
    mask = np.empty(weights.shape, np.bool_)
    for block in _row_blocks(weights):
        mask[block] = _block_mask(weights[block], bank_size, keep)
    return mask


def choose_bank(
    features: int,
    sparsity: float,
    bank_size: int,
    lanes: int,
    takes: Callable[[int], bool] = lambda size: True,
    taps: int = 1,
) -> tuple[int, int]:
    """Bank size S and keep k of a layer, so that as few lanes as possible idle.

    Args:
        features: K of the layer.
        sparsity: share of weights removed, 0 to less than 1; `S * (1 - sparsity)` must be an
            integer for some S.
        bank_size: the largest S to take, 1 to 256. Larger banks prune more freely.
        lanes: banks that the engine works on in a cycle.
        takes: which bank sizes the engine can work with.
        taps: of a window; each has `features` channels, cut into banks of their own.

    Returns:
        (S, k). The S with the least padding of K to a multiple of `lanes * S`, of those the
        largest; dense layers (sparsity 0) have k = S and take the smallest, which is the same
        work with the fewest padded features.

    Raises:
        InputError: no S up to `bank_size` gives that sparsity; the message names the nearest.
    """
    if features < 1 or lanes < 1:
        raise InputError(f"features ({features}) and lanes ({lanes}) must be at least 1.")
    if not MIN_BANK <= bank_size <= MAX_BANK:
        raise InputError(f"bank_size is {bank_size}, must be {MIN_BANK} to {MAX_BANK}.")
    if not 0.0 <= sparsity < 1.0:
        raise InputError(f"sparsity is {sparsity}, must be at least 0 and less than 1.")
    sizes = [size for size in range(MIN_BANK, bank_size + 1) if takes(size)]
    choices = [(size, round(size * (1.0 - sparsity))) for size in sizes]
    choices = [
        (size, keep)
        for size, keep in choices
        if keep >= 1 and abs(size * (1.0 - sparsity) - keep) <= _TOLERANCE
    ]
    if not choices:
        nearest = _nearest_sparsity(sparsity, sizes)
        raise InputError(
            f"sparsity {sparsity} cannot be met with banks of at most {bank_size} weights: "
            f"bank_size * (1 - sparsity) must be an integer of at least 1. Nearest: {nearest}. "
            f"Take that, or a larger bank_size (at most {MAX_BANK})."
        )
    preferred = 1 if sparsity == 0.0 else -1

    def cost(choice: tuple[int, int]) -> tuple[int, int]:
        size = choice[0]
        groups = -(-taps * -(-features // size) // lanes)
        return groups * lanes * size, preferred * size

    return min(choices, key=cost)


def _nearest_sparsity(sparsity: float, sizes: list[int]) -> str:
    """The closest sparsity that a bank of one of the `sizes` can have, as text."""
    candidates = [
        (abs(1.0 - keep / size - sparsity), size, keep)
        for size in sizes
        for keep in {max(1, int(size * (1.0 - sparsity))), int(size * (1.0 - sparsity)) + 1}
        if keep <= size
    ]
    _, size, keep = min(candidates)
    return f"{1.0 - keep / size:.6g} (keep {keep} of {size})"


def _check(weights: NDArray[Any], bank_size: int, keep: int) -> None:
    if weights.ndim != 2:
        raise InputError(f"weights have shape {weights.shape}, must be two-dimensional (M, K).")
    if weights.dtype.kind != "f" and weights.dtype != np.int8:
        raise InputError(f"weights are {weights.dtype}, must be float or int8.")
    if not MIN_BANK <= bank_size <= MAX_BANK:
        raise InputError(f"bank_size is {bank_size}, must be {MIN_BANK} to {MAX_BANK}.")
    if not 1 <= keep <= bank_size:
        raise InputError(f"keep is {keep}, must be 1 to bank_size ({bank_size}).")


def _row_blocks(weights: NDArray[Any]) -> Iterator[slice]:
    rows, features = weights.shape
    step = max(1, _BLOCK // max(1, features))
    return (slice(start, start + step) for start in range(0, rows, step))


def _block_mask(weights: NDArray[Any], bank_size: int, keep: int) -> NDArray[np.bool_]:
    keys = _magnitudes(weights)
    features = weights.shape[1]
    whole = features - features % bank_size
    banks = keys[:, :whole].reshape(-1, bank_size)
    mask = _largest(banks, keep).reshape(len(keys), whole)
    if whole == features:
        return mask
    tail = keys[:, whole:]
    return np.concatenate([mask, _largest(tail, min(keep, tail.shape[1]))], axis=1)


def _magnitudes(weights: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers in the order of the magnitudes."""
    if weights.dtype == np.int8:
        return np.abs(weights.astype(np.int16)).astype(np.uint16)
    contiguous = np.ascontiguousarray(weights)
    unsigned = np.dtype(f"u{contiguous.itemsize}")
    bits = contiguous.view(unsigned)
    result: NDArray[Any] = bits & unsigned.type((1 << (8 * contiguous.itemsize - 1)) - 1)
    return result


def _largest(keys: NDArray[Any], keep: int) -> NDArray[np.bool_]:
    """Mask of the `keep` largest of every row of (banks, size); ties keep the lower index."""
    size = keys.shape[1]
    if keep == size or not keys.size:
        return np.ones(keys.shape, np.bool_)
    if size <= _PAIRWISE_BANK:
        return _largest_by_rank(keys, keep)
    if keys.dtype == np.uint16 and size <= MAX_BANK and int(keys.max()) < 1 << 8:
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
