# SPDX-License-Identifier: Apache-2.0
"""Layers that compute nothing: they bring the values of a tensor to other places.

Features of a tensor in other ones' places; pixels cut off an image or put around it; the same
values at another scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .arithmetic import Scale, multiplier
from .graph import MOST_FIELD, Combination, Concat, QuantLayer, QuantModel, Window
from .recurrent import RecurrentLayer

Shape = tuple[int, int, int]
Pads = tuple[int, int, int, int]
_ONE: Scale = (np.float32(1), 0)
#: What a window can reach beyond its first tap along one axis: 14 taps, 15 apart.
_MOST_TAPS, _MOST_STEP = 14, 15
#: Channels that one matrix moves at most: as a matrix of bytes, 64 MiB.
_MOST_MOVED = 1 << 13


def moved(name: str, source: str, matrix: NDArray[np.int8], shape: Shape) -> QuantLayer:
    """A layer and tensor `name` of features of `source` (C, H, W) as they are.

    `matrix` (features, C) is 1 where a feature takes the value of another, else 0; a row without
    any gives 0.
    """
    pixels = shape[1:] != (1, 1)
    return QuantLayer(
        name=name,
        input=source,
        output=name,
        weights=matrix[:, :, None, None] if pixels else matrix,
        bias=np.zeros(len(matrix), np.int32),
        input_zero_point=0,
        multiplier=np.ones(len(matrix), np.float32),
        window=Window(*shape, (1, 1)) if pixels else None,
    )


def check_channels(channels: int) -> None:
    """Refuses what would take a matrix of too many channels by as many to move."""
    if channels > _MOST_MOVED:
        raise ModelError(
            f"a layer would have to move {channels} channels one by one; {_MOST_MOVED} are the most"
        )


def copied(name: str, source: str, shape: Shape) -> QuantLayer:
    """A layer and tensor `name`: all of `source` (C, H, W) as it is."""
    check_channels(shape[0])
    return moved(name, source, np.eye(shape[0], dtype=np.int8), shape)


def merged(layer: QuantLayer, other: str) -> QuantLayer:
    """`layer` plus tensor `other`, as they are: where one of both is 0, no value changes."""
    return replace(layer, combination=Combination(other, 1, 0, 1, 0, 0, 0))


def joined(names: Sequence[str], parts: Sequence[str], shapes: Sequence[Shape]) -> list[QuantLayer]:
    """Layers that copy `parts`, each of its shape (C, H, W), one behind the other to the last of
    the tensors `names`: each of these has another part where it belongs, and those before it."""
    total, first, layers = sum(shape[0] for shape in shapes), 0, list[QuantLayer]()
    for name, part, shape in zip(names, parts, shapes, strict=True):
        layer = moved(name, part, np.eye(total, shape[0], -first, dtype=np.int8), shape)
        layers.append(merged(layer, layers[-1].output) if layers else layer)
        first += shape[0]
    return layers


def join(name: str, parts: Sequence[tuple[str, int]]) -> list[QuantLayer]:
    """Layers that copy tensors, given with their features, to one behind the other: to `name`.

    For tensors that lie among the features of recurrent layers, and for those of several steps,
    which `Concat` does not take.
    """
    names = [*(f"{name}:{number}" for number in range(len(parts) - 1)), name]
    shapes = [(features, 1, 1) for _, features in parts]
    return joined(names, [part for part, _ in parts], shapes)


def rescaled(name: str, source: str, shape: Shape, x: Scale = _ONE, y: Scale = _ONE) -> QuantLayer:
    """A layer and tensor `name`: `source` (C, H, W), of scale and zero point `x`, with `y`."""
    if shape[1:] == (1, 1):
        layer = copied(name, source, shape)
    else:
        layer = _around(name, source, Window(*shape, (1, 1)), np.ones((1, 1), np.int8), 0)
    scale = multiplier(x[0], np.ones(shape[0], np.float32), y[0])
    return replace(layer, input_zero_point=x[1], multiplier=scale, zero_point=y[1])


def concatenated(
    output: str,
    parts: Sequence[tuple[str, Shape, Scale]],
    y: Scale,
) -> tuple[list[QuantLayer], Concat]:
    """Tensor `output` of scale and zero point `y`: the features of `parts` (tensor, shape, scale
    and zero point) one after the other. A part of another scale takes a layer."""
    layers = [
        rescaled(f"{output}:{i}", name, shape, x, y)
        for i, (name, shape, x) in enumerate(parts)
        if x != y
    ]
    names = [name if x == y else f"{output}:{i}" for i, (name, _, x) in enumerate(parts)]
    return layers, Concat(tuple(names), output)


def padded(name: str, source: str, shape: Shape, pads: Pads, value: int) -> list[QuantLayer]:
    """Tensor `name`: images of `source` (C, H, W) with `pads` (top, left, bottom, right) pixels of
    INT8 `value` around them. A layer puts 15 to each side at most; packing leaves out those that
    the windows behind can do themselves (`without_pads`)."""
    layers: list[QuantLayer] = []
    left = pads
    while any(left) or not layers:
        now = cast(Pads, tuple(min(p, MOST_FIELD) for p in left))
        left = cast(Pads, tuple(p - n for p, n in zip(left, now, strict=True)))
        window = Window(*shape, (1, 1), pads=now)
        to = f"{name}:{len(layers)}" if any(left) else name
        layers.append(_around(to, source, window, np.ones((1, 1), np.int8), value))
        source, shape = to, (shape[0], window.out_height, window.out_width)
    return layers


def without_pads(model: QuantModel) -> QuantModel:
    """The model without layers that only put pixels around images, wherever all that read such an
    image are windows with room for that padding."""
    layers = list(model.layers)
    shown = {output.tensor for output in model.outputs}
    shown |= {name for view in model.views for name in view.reads}
    for pad in reversed(model.layers):
        if isinstance(pad, RecurrentLayer):
            continue
        readers = [i for i, layer in enumerate(layers) if pad.output in layer.reads]
        inner = {i: _with_pads_of(pad, layers[i]) for i in readers}
        if pad.output in shown or not readers or None in inner.values():
            continue
        layers = [inner.get(i) or layer for i, layer in enumerate(layers) if layer is not pad]
    return replace(model, layers=layers)


def _with_pads_of(pad: QuantLayer, layer: QuantLayer | RecurrentLayer) -> QuantLayer | None:
    """`layer` over the image that `pad` reads; None where one of both does anything else."""
    if isinstance(layer, RecurrentLayer) or layer.reads.count(pad.output) > 1:
        return None
    outer, window = pad.window, layer.window
    if outer is None or window is None:
        return None
    value = -128 if layer.maximum else layer.input_zero_point
    pads = cast(Pads, tuple(a + b for a, b in zip(window.pads, outer.pads, strict=True)))
    fits = max(*pads, *window.kernel) <= MOST_FIELD
    if layer.input != pad.output or not fits or not _only_pads(pad, outer, value):
        return None
    inner = replace(window, height=outer.height, width=outer.width, pads=pads)
    return replace(layer, input=pad.input, window=inner)


def _only_pads(layer: QuantLayer, window: Window, value: int) -> bool:
    """Whether a layer does nothing but put pixels of `value` around its images."""
    moves = window.kernel == window.strides == (1, 1) and layer.groups == window.channels
    bare = layer.table is None and layer.combination is None and not layer.maximum
    if not (moves and bare) or len(layer.weights) != layer.groups or layer.multiplier is None:
        return False
    as_is = np.all(layer.weights == 1) and np.all(layer.multiplier == 1) and not layer.bias.any()
    return bool(as_is) and layer.input_zero_point == layer.zero_point == value


def cropped(
    name: str,
    source: str,
    shape: Shape,
    begin: tuple[int, int],
    size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
) -> list[QuantLayer]:
    """Tensor `name`: of every image of `source` (C, H, W) `size` pixels each way from pixel `begin`
    on, every one of `strides`. What lies before and behind is cut off by windows with a single tap
    that counts, at their end or at their beginning, as much as a window reaches in each layer.
    """
    layers: list[QuantLayer] = []
    before = list(begin)
    while True:
        sizes = shape[1:]
        behind = [sizes[i] - before[i] - (size[i] - 1) * strides[i] - 1 for i in range(2)]
        # A rest shorter than a stride is not reached anyway.
        behind = [n if n >= strides[i] else 0 for i, n in enumerate(behind)]
        steps = [_step(before[i] or behind[i]) for i in range(2)]
        last = all(_reach(*steps[i]) == before[i] + behind[i] for i in range(2))
        taps = np.zeros((steps[0][0], steps[1][0]), np.int8)
        taps[-1 if before[0] else 0, -1 if before[1] else 0] = 1
        kernel, apart = zip(*steps, strict=True)
        window = Window(*shape, kernel, strides if last else (1, 1), apart)
        to = name if last else f"{name}:{len(layers)}"
        layers.append(_around(to, source, window, taps, 0))
        if last:
            return layers
        before = [b - _reach(*s) if b else 0 for b, s in zip(before, steps, strict=True)]
        source, shape = to, (shape[0], window.out_height, window.out_width)


def _step(pixels: int) -> tuple[int, int]:
    """Taps and their distance of a window that reaches as many pixels as it can of `pixels`."""
    apart = min(pixels, _MOST_STEP)
    return (min(pixels // apart, _MOST_TAPS) + 1, apart) if pixels else (1, 1)


def _reach(taps: int, apart: int) -> int:
    return (taps - 1) * apart


def _around(
    name: str, source: str, window: Window, taps: NDArray[np.int8], zero_point: int
) -> QuantLayer:
    """Every channel by itself through the same `taps`, with scale and zero point as they are."""
    channels = window.channels
    return QuantLayer(
        name=name,
        input=source,
        output=name,
        weights=np.broadcast_to(taps, (channels, 1, *taps.shape)).copy(),
        bias=np.zeros(channels, np.int32),
        input_zero_point=zero_point,
        multiplier=np.ones(channels, np.float32),
        zero_point=zero_point,
        window=window,
        groups=channels,
    )
