# SPDX-License-Identifier: Apache-2.0
"""Pools of images of any rank: the largest or the mean of what a window sees."""

from __future__ import annotations

import numpy as np

from .call import Array, Call, Function
from .windows import Windows


def _max_pool(call: Call, x: Array) -> Array:
    windows = Windows.of(call, x.shape[2:], tuple(call.get("kernel_shape")))
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return windows.see(x, least).max(axis=windows.taps)


def _average_pool(call: Call, x: Array) -> Array:
    """Divided by the places of the window that lie on the image, or, if padding counts, on it."""
    windows = Windows.of(call, x.shape[2:], tuple(call.get("kernel_shape")))
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if call.get("count_include_pad", 0):
        ones = np.pad(ones, [(0, 0), (0, 0), *windows.pads], constant_values=1)
        counts = windows.padded().see(ones, 0).sum(axis=windows.taps)
    else:
        counts = windows.see(ones, 0).sum(axis=windows.taps)
    return windows.see(x, 0).sum(axis=windows.taps, dtype=x.dtype) / counts


def _over_all(reduction: Function) -> Function:
    return lambda call, x: reduction(x, axis=tuple(range(2, x.ndim)), keepdims=True)


OPERATORS: dict[str, Function] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _over_all(np.mean),
    "GlobalMaxPool": _over_all(np.max),
    "MaxPool": _max_pool,
}
