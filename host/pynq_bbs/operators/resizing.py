# SPDX-License-Identifier: Apache-2.0
"""Resize: nearest, linear and cubic, one axis after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .call import Array, Call, Function, axes_of, checked_shape, numbers


def _resize(
    call: Call,
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
) -> Array:
    attributes = dict(call.attributes)
    if call.opset < 11:  # the second input are the scales, and pixels are points
        roi, scales = None, roi
        attributes.setdefault("coordinate_transformation_mode", "asymmetric")
        attributes.setdefault("nearest_mode", "floor")
    axes = axes_of(call, None, x.ndim) or tuple(range(x.ndim))
    before = [x.shape[axis] for axis in axes]
    if scales is not None and scales.size:
        factors = [float(s) for s in scales]
        after = [int(n * s) for n, s in zip(before, factors, strict=True)]
    else:
        assert sizes is not None
        after = numbers(sizes)
        factors = [m / n for n, m in zip(before, after, strict=True)]
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [(min if policy == "not_larger" else max)(factors)] * len(axes)
            after = [int(n * s + 0.5) for n, s in zip(before, factors, strict=True)]
    checked_shape(after)
    regions = np.tile([[0.0], [1.0]], len(axes)) if roi is None else roi.reshape(2, -1)
    cropped = attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    result = x
    for axis, size, factor, region in zip(axes, after, factors, regions.T, strict=True):
        if size != x.shape[axis] or factor != 1 or cropped:
            result = _along(attributes, result, axis, size, factor, region)
    if x.dtype.kind in "iu":
        info = np.iinfo(x.dtype)
        result = np.clip(np.rint(result), info.min, info.max)
    return result.astype(x.dtype)


def _along(
    attributes: dict[str, Any], x: Array, axis: int, size: int, factor: float, region: Array
) -> Array:
    """`x` with `size` places along one axis."""
    length = x.shape[axis]
    places = _places(attributes, length, size, factor, region)
    if attributes.get("mode", "nearest") == "nearest":
        rounding = _ROUNDINGS[attributes.get("nearest_mode", "round_prefer_floor")]
        result = np.take(x, np.clip(rounding(places).astype(np.int64), 0, length - 1), axis)
    else:
        matrix = _weights(attributes, places, length, factor)
        result = np.moveaxis(np.moveaxis(x, axis, -1) @ matrix.T, -1, axis)
    if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        outside = np.moveaxis(result, axis, 0)
        beyond = (places < 0) | (places > length - 1)
        outside[beyond] = attributes.get("extrapolation_value", 0.0)
    return result


_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _places(
    attributes: dict[str, Any], length: int, size: int, factor: float, region: Array
) -> Array:
    """Where each place of the result lies in the input."""
    mode, exact = attributes.get("coordinate_transformation_mode", "half_pixel"), factor * length
    y = np.arange(size, dtype=np.float64)
    if mode == "align_corners":
        return y * 0 if exact == 1 else y * (length - 1) / (exact - 1)
    if mode == "asymmetric":
        return y / factor
    if mode == "tf_crop_and_resize":
        start, end = (float(edge) for edge in region)
        span = (end - start) * (length - 1)
        inside = y * 0 + span / 2 if exact == 1 else y * span / (exact - 1)
        return inside + start * (length - 1)
    if mode == "pytorch_half_pixel" and exact == 1:
        return y * 0 - 0.5
    # Of what `factor` gives beside whole places, as much lies at either end.
    shift = length / 2 * (1 - size / exact) if mode == "half_pixel_symmetric" else 0.0
    return shift + (y + 0.5) / factor - 0.5


def _weights(attributes: dict[str, Any], places: Array, length: int, factor: float) -> Array:
    """(places, length): what each input counts at each place; beyond the ends the ends are seen."""
    cubic = attributes.get("mode") == "cubic"
    # Where it gets smaller, a kernel as wide as what a place stands for.
    spread = min(factor, 1.0) if attributes.get("antialias", 0) else 1.0
    reach = int(np.ceil((2 if cubic else 1) / spread))
    taps = np.floor(places)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(taps - places[:, None]) * spread
    if cubic:
        weights = _cubic(distance, attributes.get("cubic_coeff_a", -0.75))
    else:
        weights = np.maximum(1 - distance, 0)
    if attributes.get("exclude_outside", 0):
        weights = np.where((taps >= 0) & (taps < length), weights, 0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(places), length))
    rows = np.arange(len(places))[:, None]
    np.add.at(matrix, (rows, np.clip(taps, 0, length - 1).astype(np.int64)), weights)
    return matrix


def _cubic(t: Array, a: float) -> Array:
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


OPERATORS: dict[str, Function] = {"Resize": _resize, "Upsample": _resize}
