# SPDX-License-Identifier: Apache-2.0
"""Between a batch as users hold it and a tensor as the engine holds it.

The engine's layout is `[column tile][feature][COLS]`: the columns of one tile lie side by side,
so one memory word holds a feature of every column. Columns are samples, or the pixels of one image
after the other. The last tile is padded with zeros.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", bound=np.generic)


def tile_count(columns: int, cols: int) -> int:
    """Column tiles that hold `columns` columns."""
    return -(-columns // cols)


def by_length(
    lengths: NDArray[np.integer[Any]], cols: int
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """The column of every sample (N,), and the length of each column tile: tiles have samples of
    one length, longest first."""
    columns = np.empty(len(lengths), np.int64)
    tiles: list[int] = []
    for length in sorted(set(lengths.tolist()), reverse=True):
        own = np.flatnonzero(lengths == length)
        columns[own] = len(tiles) * cols + np.arange(len(own))
        tiles += [length] * tile_count(len(own), cols)
    return columns, tuple(tiles)


def column_pairs(
    tiles: NDArray[Value], batch: NDArray[Value]
) -> list[tuple[NDArray[Value], NDArray[Value]]]:
    """What of `tiles` (steps, tiles, features, cols) is what of a batch (N, steps, features):
    views of both, of one shape. A batch that is contiguous is not copied."""
    samples, steps, features = batch.shape
    cols = tiles.shape[3]
    full, rest = divmod(samples, cols)
    pairs = []
    if full:
        whole = batch[: full * cols].reshape(full, cols, steps, features)
        pairs.append((tiles[:, :full], whole.transpose(2, 0, 3, 1)))
    if rest:
        pairs.append((tiles[:, full, :, :rest], batch[full * cols :].transpose(1, 2, 0)))
    return pairs


def image_pairs(
    tiles: NDArray[Value], batch: NDArray[Value]
) -> list[tuple[NDArray[Value], NDArray[Value]]]:
    """The same of `tiles` (N, tiles, features, cols) and a batch (N, features, pixels)."""
    samples, features, pixels = batch.shape
    cols = tiles.shape[3]
    full, rest = divmod(pixels, cols)
    pairs = []
    if full:
        whole = batch[:, :, : full * cols].reshape(samples, features, full, cols)
        pairs.append((tiles[:, :full], whole.transpose(0, 2, 1, 3)))
    if rest:
        pairs.append((tiles[:, full, :, :rest], batch[:, :, full * cols :]))
    return pairs


def images_to_tiles(batch: NDArray[Value], features: int, cols: int, stride: int) -> NDArray[Value]:
    """(N, features * pixels) to (N, tiles, stride, cols): every image begins with a tile."""
    samples = len(batch)
    pixels = batch.shape[1] // features
    tiles = tile_count(pixels, cols)
    padded = np.zeros((samples, stride, tiles * cols), batch.dtype)
    padded[:, :features, :pixels] = batch.reshape(samples, features, pixels)
    return np.ascontiguousarray(padded.reshape(samples, stride, tiles, cols).transpose(0, 2, 1, 3))


def images_from_tiles(tiles: NDArray[Value], features: int, pixels: int) -> NDArray[Value]:
    """(N, tiles, stride, cols) to (N, features * pixels), padding dropped, dtype kept."""
    samples, count, stride, cols = tiles.shape
    rows = tiles.transpose(0, 2, 1, 3).reshape(samples, stride, count * cols)
    return np.ascontiguousarray(rows[:, :features, :pixels]).reshape(samples, -1)
