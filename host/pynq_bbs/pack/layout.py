# SPDX-License-Identifier: Apache-2.0
"""Between a batch as users hold it and a tensor as the engine holds it.

The engine's layout is `[column tile][feature][COLS]`: the columns of one tile lie side by side,
so one memory word holds a feature of every column. The last tile is padded with zeros.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", bound=np.generic)


def tile_count(columns: int, cols: int) -> int:
    """Column tiles that hold `columns` columns."""
    return -(-columns // cols)


def to_tiles(batch: NDArray[Value], cols: int) -> NDArray[Value]:
    """(N, K) to (tiles, K, cols), dtype kept."""
    columns, features = batch.shape
    tiles = tile_count(columns, cols)
    if tiles * cols != columns:
        padded = np.zeros((tiles * cols, features), batch.dtype)
        padded[:columns] = batch
        batch = padded
    return np.ascontiguousarray(batch.reshape(tiles, cols, features).transpose(0, 2, 1))


def from_tiles(tiles: NDArray[Value], columns: int) -> NDArray[Value]:
    """(tiles, K, cols) to (N, K), padding dropped, dtype kept."""
    count, features, cols = tiles.shape
    return np.ascontiguousarray(tiles.transpose(0, 2, 1).reshape(count * cols, features)[:columns])
