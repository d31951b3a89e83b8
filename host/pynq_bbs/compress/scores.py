# SPDX-License-Identifier: Apache-2.0
"""How much each weight matters, from what a layer reads: one pass over calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.floats import window_taps
from ..model.graph import Float, Layer, Model
from .activations import activations, batches

Float64 = NDArray[np.float64]

#: How weights are chosen that go. Wanda: Sun et al., "A Simple and Effective Pruning Approach for
#: Large Language Models", ICLR 2024. SparseGPT: Frantar and Alistarh, ICML 2023.
PRUNING = ("magnitude", "wanda", "sparsegpt")

#: Samples whose windows are laid out at a time: every value is copied once for each tap.
_SAMPLES = 16


def input_moments(
    model: Model,
    calibration: Iterable[Any],
    pruning: Mapping[str, str],
    progress: Callable[[int], None] | None = None,
) -> dict[str, Float64]:
    """Second moments of the inputs of layers, in the float model, summed over all samples.

    Args:
        calibration: as for `quantize`.
        pruning: by layer name what they are for; layers without a window, or of one group.
        progress: called with the number of samples seen so far.

    Returns:
        By layer name, of K features or, tap after tap, taps x channels: for "wanda" the sums of
        squares (K,), for "sparsegpt" the sums of products of two (K, K).

    Raises:
        InputError: samples that do not fit the model, or none.
    """
    layers = [la for la in model.layers if isinstance(la, Layer) and la.name in pruning]
    moments: dict[str, Float64] = {}
    seen = 0
    for batch in batches(model, calibration):
        tensors = dict(activations(model, batch))
        for layer in layers:
            found = _moments(layer, tensors[layer.input], pruning[layer.name] == "sparsegpt")
            moments[layer.name] = moments.get(layer.name, 0.0) + found
        seen += len(next(iter(batch.values())))
        if progress:
            progress(seen)
    if not seen:
        raise InputError("calibration holds no samples; give at least one.")
    for name, found in moments.items():
        if not np.isfinite(found).all():
            raise InputError(
                f"layer {name!r} reads NaN or infinity. Give calibration samples, and a model, "
                "whose activations are all finite."
            )
    return moments


def wanda(weights: Float, squares: Float64) -> Float64:
    """|weight| x norm of its input, (M, K), from weights (M, K) and sums of squares (K,)."""
    scores: Float64 = np.abs(weights) * np.sqrt(squares)
    return scores


def taylor(weights: Float, gradients: Float) -> Float:
    """|weight x gradient of the loss|, what the loss changes by to first order where the weight
    goes (Molchanov et al., ICLR 2017). Both of a layer's shape; hand it to `compile` as `scores`.

    Raises:
        InputError: two shapes.
    """
    if weights.shape != gradients.shape:
        raise InputError(
            f"weights have shape {weights.shape}, gradients {gradients.shape}: give one gradient "
            "a weight"
        )
    scores: Float = np.abs(weights * gradients)
    return scores


def by_taps(weights: NDArray[Any]) -> NDArray[Any]:
    """A layer's weights (M, K), or (M, C, kernel height, width), as (M, features) in the order of
    `input_moments`."""
    if weights.ndim == 2:
        return weights
    return np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).reshape(len(weights), -1)


def from_taps(rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """What `by_taps` makes (M, features) of, of weights of that shape."""
    if len(shape) == 2:
        return rows
    back = rows.reshape(shape[0], *shape[2:], shape[1]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(back)


def _moments(layer: Layer, x: Float, products: bool) -> Float64:
    columns = 0 if layer.window else layer.weights.shape[1]
    total: Float64 = np.zeros(())
    step = _SAMPLES if layer.window else max(1, len(x))
    for start in range(0, len(x), step):
        piece = x[start : start + step]
        seen = piece.reshape(-1, columns).T if columns else _windows(layer, piece)
        exact = seen.astype(np.float64)
        total = total + (exact @ exact.T if products else np.sum(exact**2, axis=1))
    return total


def _windows(layer: Layer, x: Float) -> Float:
    """What each place of the window sees, (taps x channels, places of all samples)."""
    window = layer.window
    assert window is not None
    tap = window_taps(window, x, 0.0)
    taps = [tap(ky, kx) for ky in range(window.kernel[0]) for kx in range(window.kernel[1])]
    laid = np.stack(taps).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(laid).reshape(len(taps) * window.channels, -1)
