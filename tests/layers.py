# SPDX-License-Identifier: Apache-2.0
"""Random integer layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput


def pruned(weights: NDArray[np.int8], bank_size: int, keep: int) -> NDArray[np.int8]:
    """Bank pruning written the obvious way: sort every bank, ties to the lower index."""
    out = np.zeros_like(weights)
    for row in range(weights.shape[0]):
        for start in range(0, weights.shape[1], bank_size):
            bank = weights[row, start : start + bank_size].astype(int)
            order = sorted(range(len(bank)), key=lambda i: (-abs(bank[i]), i))[:keep]
            for i in order:
                out[row, start + i] = bank[i]
    return out


def random_layer(
    rng: np.random.Generator,
    rows: int,
    features: int,
    bank_size: int,
    keep: int,
    *,
    kind: str = "plain",
    weight_bits: int = 8,
) -> QuantLayer:
    """A layer whose outputs use the whole INT8 range; `kind` is plain, table or sums."""
    limit = 1 << (weight_bits - 1)
    weights = rng.integers(-limit, limit, (rows, features)).astype(np.int8)
    weights = pruned(weights, bank_size, keep)
    spread = 60 * 75 * limit / 128 * np.sqrt(max(features * keep / bank_size, 1))
    multiplier = ((0.2 + rng.random(rows)) * 64 / spread).astype(np.float32)
    return QuantLayer(
        name="layer",
        input="x",
        output="y",
        weights=weights,
        bias=rng.integers(-5000, 5000, rows).astype(np.int32),
        input_zero_point=int(rng.integers(-128, 128)),
        multiplier=None if kind == "sums" else multiplier,
        zero_point=0 if kind == "sums" else int(rng.integers(-128, 128)),
        table=rng.integers(-128, 128, 256).astype(np.int8) if kind == "table" else None,
        weight_bits=weight_bits,
    )


def alone(layer: QuantLayer) -> QuantModel:
    """A model of this one layer, integers in and out."""
    rows, features = layer.weights.shape
    return QuantModel(
        "alone",
        [QuantInput("x", "x", (features,), "int8", np.float32(1), layer.input_zero_point)],
        [layer],
        [QuantOutput("y", "y", (rows,), "int32" if layer.multiplier is None else "int8")],
    )
