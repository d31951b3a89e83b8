# SPDX-License-Identifier: Apache-2.0
"""Random integer layers, and models of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pynq_bbs.model.arithmetic import sum_of
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput, Window


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
    return replace(_around(rng, weights, spread, kind), weight_bits=weight_bits)


def random_window_layer(
    rng: np.random.Generator, window: Window, rows: int, groups: int, kind: str
) -> QuantLayer:
    """A convolution of such outputs."""
    per_group = window.channels // groups
    weights = rng.integers(-128, 128, (rows, per_group, *window.kernel)).astype(np.int8)
    spread = 75 * 75 * np.sqrt(weights[0].size)
    return replace(_around(rng, weights, spread, kind), window=window, groups=groups)


def _around(
    rng: np.random.Generator, weights: NDArray[np.int8], spread: float, kind: str
) -> QuantLayer:
    """All that comes with `weights` whose sums deviate by `spread`."""
    rows = len(weights)
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
    )


def images(rng: np.random.Generator, window: Window, count: int) -> NDArray[np.int8]:
    shape = (count, window.channels, window.height, window.width)
    return rng.integers(-128, 128, shape).astype(np.int8)


def pool(window: Window, *, maximum: bool, zero_point: int = 0) -> QuantLayer:
    count = window.kernel[0] * window.kernel[1]
    channels = window.channels
    return QuantLayer(
        name="pool",
        input="x",
        output="y",
        weights=np.ones((channels, 1, *window.kernel), np.int8),
        bias=np.zeros(channels, np.int32),
        input_zero_point=zero_point,
        multiplier=np.full(channels, 1 if maximum else 1 / count, np.float32),
        zero_point=0 if maximum else zero_point,
        window=window,
        groups=channels,
        maximum=maximum,
    )


def model_of(layers: list[QuantLayer], shape: tuple[int, ...]) -> QuantModel:
    """Integers in and out; the input is called x."""
    zero_point = layers[0].input_zero_point
    outputs = [
        QuantOutput(la.output, la.output, (), "int32" if la.multiplier is None else "int8")
        for la in layers
    ]
    x = QuantInput("x", "x", shape, "int8", np.float32(1), zero_point)
    return QuantModel("windows", [x], layers, outputs)


def alone(layer: QuantLayer) -> QuantModel:
    """A model of this one layer over plain features."""
    return model_of([layer], layer.weights.shape[1:])


def a_network() -> QuantModel:
    """Pruned convolution, depthwise in parts, residual, maximum, average, linear layer."""
    rng = np.random.default_rng(6)
    window = Window(4, 9, 7, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2))
    first = random_window_layer(rng, window, 300, 1, "table")
    flat = pruned(first.weights.transpose(0, 2, 3, 1).reshape(-1, 4), 4, 1)
    first.weights = np.ascontiguousarray(flat.reshape(300, 3, 3, 4).transpose(0, 3, 1, 2))
    window = Window(300, 9, 7, (3, 3), pads=(1, 1, 1, 1))
    second = random_window_layer(rng, window, 300, 300, "plain")
    scaled = (np.float32(0.5), 3)
    second.combination = sum_of("first", scaled, scaled, (np.float32(1), -2))
    third = pool(Window(300, 9, 7, (2, 2), (2, 2)), maximum=True)
    fourth = pool(Window(300, 4, 3, (4, 3)), maximum=False)
    fifth = random_layer(rng, 10, 300, 1, 1, kind="sums")
    layers = [first, second, third, fourth, fifth]
    names = ["first", "second", "third", "fourth", "fifth"]
    for layer, name, source in zip(layers, names, ["x", *names], strict=False):
        layer.name = layer.output = name
        layer.input = source
    return model_of(layers, (4, 9, 7))
