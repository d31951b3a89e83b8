# SPDX-License-Identifier: Apache-2.0
"""Weights that make up for others' errors: SparseGPT within banks, and GPTQ's rounding.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
ICML 2023, with banks of any size and keep in place of its N:M pattern. Frantar, Ashkboos, Hoefler
and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2022.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.graph import Float
from .prune import bank_mask

#: How weights become integers.
ROUNDING = ("nearest", "gptq")

#: Of the mean of the diagonal, added to it: the paper's. Features that move together, or
#: fewer samples than features, would leave nothing to invert.
DAMPING = 0.01

#: Columns after which those behind are corrected, all at once.
_COLUMNS = 128


def sparsegpt(
    weights: Float, products: NDArray[np.float64], channels: int, bank_size: int, keep: int
) -> Float:
    """Prune a matrix so that its outputs on the calibration samples change little.

    Args:
        weights: (M, K), K a multiple of `channels`. Not changed.
        products: (K, K), sums over samples of the products of two features.
        channels: features that are cut into banks, again for every tap.
        bank_size, keep: as for `bank_prune`.

    Returns:
        (M, K) float32: as `bank_mask` of a score keeps, with the others corrected.

    Raises:
        InputError: shapes that do not fit, or a bank that `bank_prune` does not take.
    """
    features = weights.shape[1]
    if products.shape != (features, features) or features % channels:
        raise InputError(
            f"weights {weights.shape} need products ({features}, {features}) and channels that "
            f"divide {features}; given {products.shape} and {channels}."
        )
    upper = _inverse_root(products)
    banks = [
        (tap + start, tap + min(start + bank_size, channels))
        for tap in range(0, features, channels)
        for start in range(0, channels, bank_size)
    ]
    w = weights.astype(np.float64)
    errors = np.zeros_like(w)
    for first, end in banks:
        scores = (w[:, first:end] / np.diag(upper)[first:end]) ** 2
        mask = bank_mask(scores, bank_size, keep)
        for i in range(first, end):
            gone = ~mask[:, i - first]
            errors[:, i] = np.where(gone, w[:, i] / upper[i, i], 0.0)
            w[gone, i] = 0.0
            w[:, i + 1 : end] -= errors[:, i, None] * upper[i, i + 1 : end]
        # Columns behind the bank are corrected once for all of it, before the next mask.
        w[:, end:] -= errors[:, first:end] @ upper[first:end, end:]
    return w.astype(np.float32)


def gptq(
    weights: Float, scale: Float, limit: int, products: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Round a matrix so that its outputs on the calibration samples change little.

    Args:
        weights: (M, K). Not changed; those that are 0 stay so.
        scale: (M,), above 0: what an integer of each row is worth.
        limit: integers are -limit to limit, at most 127.
        products: (K, K), sums over samples of the products of two features.

    Returns:
        (M, K) int8.
    """
    upper = _inverse_root(products)
    w = weights / scale[:, None].astype(np.float64)
    kept, integers = weights != 0, np.zeros(w.shape, np.int8)
    errors = np.zeros_like(w)
    for first in range(0, w.shape[1], _COLUMNS):
        end = first + _COLUMNS
        for i in range(first, min(end, w.shape[1])):
            integers[:, i] = np.where(kept[:, i], np.clip(np.rint(w[:, i]), -limit, limit), 0)
            errors[:, i] = (w[:, i] - integers[:, i]) / upper[i, i]
            w[:, i + 1 : end] -= errors[:, i, None] * upper[i, i + 1 : end]
        w[:, end:] -= errors[:, first:end] @ upper[first:end, end:]
    return integers


def _inverse_root(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper U with U.T @ U the inverse of the damped products: row i of it says how the columns
    behind i make up for a change of column i, those before it being fixed."""
    damped = products.copy()
    dead = np.diag(damped) <= 0.0
    damped[dead, dead] = 1.0
    damped[np.diag_indices_from(damped)] += DAMPING * np.mean(np.diag(damped))
    inverse = np.linalg.inv(damped)
    root: NDArray[np.float64] = np.linalg.cholesky((inverse + inverse.T) / 2.0).T
    return root
