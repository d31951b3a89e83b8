# SPDX-License-Identifier: Apache-2.0
"""A layer's weights without those that are to go, none trained again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .prune import bank_mask, bank_prune
from .scores import Float64, by_taps, from_taps, wanda
from .second_order import sparsegpt


def prune_weights(
    weights: NDArray[Any],
    bank_size: int,
    keep: int,
    pruning: str = "magnitude",
    moments: Float64 | None = None,
    scores: Float64 | None = None,
) -> NDArray[Any]:
    """Keep `keep` weights of every bank, which lie along the features, or channels of a tap.

    Args:
        weights: (M, K), or (M, C, kernel height, width). Not changed.
        pruning: of `PRUNING`; without moments it is by magnitude.
        moments: `input_moments` of the layer; "wanda" takes those for "sparsegpt" too.
        scores: not negative, of the weights' shape; the largest stay, whatever `pruning` says.

    Returns:
        Of the same shape and dtype.
    """
    rows, channels = by_taps(weights), weights.shape[1]
    taps = rows.reshape(-1, channels)
    importance = None if scores is None else by_taps(scores)
    if importance is None and pruning == "wanda" and moments is not None:
        importance = wanda(rows, moments if moments.ndim == 1 else np.diag(moments))
    if importance is not None:
        mask = bank_mask(importance.reshape(taps.shape), bank_size, keep)
        kept = np.where(mask, taps, taps.dtype.type(0))
    elif pruning == "sparsegpt" and moments is not None:
        kept = sparsegpt(rows, moments, channels, bank_size, keep)
    else:
        kept = bank_prune(taps, bank_size, keep)
    return from_taps(kept.reshape(rows.shape), weights.shape)


def checked_scores(
    shapes: Mapping[str, tuple[int, ...]], scores: Mapping[str, Any]
) -> dict[str, Float64]:
    """The user's scores, of layers whose weights have these shapes.

    Raises:
        InputError: of no layer with weights, of another shape, negative or not finite.
    """
    checked: dict[str, Float64] = {}
    for name, given in scores.items():
        if name not in shapes:
            raise InputError(
                f"scores are given for {name!r}, which is no layer with a matrix; there are "
                f"{', '.join(shapes)}"
            )
        array = np.asarray(given)
        if array.shape != shapes[name] or array.dtype.kind not in "iuf":
            raise InputError(
                f"scores of layer {name!r} are {array.dtype} {array.shape}, must be numbers of its "
                f"weights' shape {shapes[name]}"
            )
        checked[name] = array.astype(np.float64)
        if not (np.isfinite(checked[name]).all() and (checked[name] >= 0).all()):
            raise InputError(f"scores of layer {name!r} must be finite and not negative")
    return checked
