# SPDX-License-Identifier: Apache-2.0
"""The bank of a layer that is not pruned: dense, or one that its zeros leave room for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from .csb import CsbShape


def dense_bank(features: int, build: Build) -> tuple[int, int]:
    """The bank of a dense layer: 1 idles the fewest lanes, but where words hold several features
    it fills the vector buffer with less."""
    groups = -(-features // build.lanes)
    size = 1 if groups * build.pack <= build.vector_words else build.pack
    return size, size


def moves(weights: NDArray[Any]) -> bool:
    """Whether a layer's weights (M, ...) only move features: of each row one is 1 at most, and the
    others are 0. Such a layer has no matrix in the model."""
    rows = weights.reshape(len(weights), -1)
    # Nearly all layers are told by the cheap half.
    return bool(np.count_nonzero(rows, axis=1).max() <= 1 and np.isin(rows, (0, 1)).all())


def bank_of(weights: NDArray[np.int8], build: Build, weight_bits: int = 8) -> tuple[int, int]:
    """Bank size and keep that lose no weight: the ones with the fewest multiplications, of those
    with the fewest bytes. Banks other than a dense layer's must save some of both.

    Args:
        weights: (M, K), or (M, taps, C) of a window, whose banks lie along the channels of a tap.
        weight_bits: of a weight in memory; its index takes 4 to 8 more.
    """
    features = weights.shape[-1]
    taps = weights[0].size // features
    dense = dense_bank(features, build) if weights.ndim == 2 else (1, 1)

    def cost(bank: tuple[int, int]) -> tuple[int, int]:
        """Multiplications of a row, and bits that it takes."""
        size, keep = bank
        shape = CsbShape(1, features, size, keep, build.lanes, 1, weight_bits)
        words = -(-taps * -(-features // size) // build.lanes) * keep
        return words, words * build.lanes * (weight_bits + shape.index_bits)

    dense_words, dense_bits = cost(dense)
    nonzero = weights.reshape(len(weights), -1) != 0
    # No bank keeps less of a row than the row has, and no index is shorter than 4 bits.
    if np.count_nonzero(nonzero, axis=1).max(initial=0) * (weight_bits + 4) >= dense_bits:
        return dense
    before = np.zeros((nonzero.size // features, features + 1), np.uint32)
    np.cumsum(nonzero.reshape(-1, features), axis=1, out=before[:, 1:])
    best, best_cost = dense, (dense_words, dense_bits)
    for size in range(1, min(build.largest_bank, build.vector_words, build.padded(features)) + 1):
        if not build.takes_bank(size) or size < build.pack:
            continue
        ends = before[:, [*range(0, features, size), features]]
        bank = size, max(1, int((ends[:, 1:] - ends[:, :-1]).max(initial=0)))
        found = cost(bank)
        if found < best_cost and found[1] < dense_bits:
            best, best_cost = bank, found
    return best
