# SPDX-License-Identifier: Apache-2.0
"""Bank-balanced pruning: which weights of every bank stay, and how large a bank a layer gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .patterns import Banks, row_blocks

#: Bank sizes that the engine works on.
MIN_BANK, MAX_BANK = 1, 256

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
    banks = Banks(bank_size, keep)
    for block in row_blocks(weights):
        rows = np.ascontiguousarray(weights[block])
        mask = banks.mask(rows)
        np.multiply(rows.view(unsigned), mask, out=pruned[block].view(unsigned))
    return pruned


def bank_mask(weights: NDArray[Any], bank_size: int, keep: int) -> NDArray[np.bool_]:
    """Which weights `bank_prune` keeps, (M, K).

    Exactly `keep` in every bank, also when a bank is all zeros: the engine reads that many
    without counting. In a last bank of fewer than `keep` weights, all of them.
    """
    _check(weights, bank_size, keep)
    return Banks(bank_size, keep).mask(weights)


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
