# SPDX-License-Identifier: Apache-2.0
"""Integer models with the shapes of known networks and random weights, for modelling speed.

The four MLPerf Tiny networks: shapes as in its reference models. What a cycle costs does not depend
on the numbers, so nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pynq_bbs.model.arithmetic import sum_of
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput, Window
from pynq_bbs.model.recurrent import HIDDEN_SCALE, RecurrentLayer, quantise_lstm


class Network:
    """Layers one after the other; every method adds one and returns its output's name."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._name = name
        self._rng = np.random.default_rng(0)
        self._shapes: dict[str, tuple[int, ...]] = {"x": shape}
        self._layers: list[QuantLayer] = []

    def conv(
        self,
        source: str,
        rows: int,
        kernel: tuple[int, int] = (3, 3),
        stride: int = 1,
        *,
        depthwise: bool = False,
        add: str = "",
    ) -> str:
        """A convolution with SAME padding; `add` names a tensor that is added to its output."""
        channels, height, width = self._shapes[source]
        pads = [_same(size, k, stride) for size, k in zip((height, width), kernel, strict=True)]
        window = Window(
            channels,
            height,
            width,
            kernel,
            (stride, stride),
            pads=(pads[0][0], pads[1][0], pads[0][1], pads[1][1]),
        )
        groups = channels if depthwise else 1
        shape = (rows, channels // groups, *kernel)
        weights = self._rng.integers(-127, 128, shape).astype(np.int8)
        layer = self._layer("conv", source, weights, window, groups)
        one = (np.float32(0.1), 0)
        if add:
            layer.combination = sum_of(add, one, one, one)
        return self._add(layer, (rows, window.out_height, window.out_width))

    def average(self, source: str) -> str:
        """A global average."""
        channels, height, width = self._shapes[source]
        window = Window(channels, height, width, (height, width))
        weights = np.ones((channels, 1, height, width), np.int8)
        layer = self._layer("average", source, weights, window, channels)
        return self._add(layer, (channels,))

    def dense(self, source: str, rows: int) -> str:
        """A fully connected layer."""
        features = self._shapes[source][0]
        weights = self._rng.integers(-127, 128, (rows, features)).astype(np.int8)
        return self._add(self._layer("dense", source, weights, None, 1), (rows,))

    def model(self) -> QuantModel:
        """The model so far; its output is the last layer's."""
        last = self._layers[-1].output
        x = QuantInput("x", "x", self._shapes["x"], "int8", np.float32(1), 0)
        return QuantModel(
            self._name, [x], self._layers, [QuantOutput(last, last, self._shapes[last], "int8")]
        )

    def _layer(
        self, kind: str, source: str, weights: NDArray[np.int8], window: Window | None, groups: int
    ) -> QuantLayer:
        name, rows = f"{kind}{len(self._layers)}", len(weights)
        spread = 75 * 75 * np.sqrt(weights[0].size)
        return QuantLayer(
            name=name,
            input=source,
            output=f"{name}.y",
            weights=weights,
            bias=self._rng.integers(-5000, 5000, rows).astype(np.int32),
            input_zero_point=0,
            multiplier=np.full(rows, 60 / spread, np.float32),
            window=window,
            groups=groups,
        )

    def _add(self, layer: QuantLayer, shape: tuple[int, ...]) -> str:
        self._layers.append(layer)
        self._shapes[layer.output] = shape
        return layer.output


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after that gives ceil(size / stride) places."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def resnet8() -> QuantModel:
    """Image classification, 32 x 32 x 3."""
    net = Network("ResNet-8", (3, 32, 32))
    x = net.conv("x", 16)
    x = net.conv(net.conv(x, 16), 16, add=x)
    for rows in (32, 64):
        first = net.conv(x, rows, stride=2)
        short = net.conv(x, rows, (1, 1), stride=2)
        x = net.conv(first, rows, add=short)
    net.dense(net.average(x), 10)
    return net.model()


def ds_cnn() -> QuantModel:
    """Keyword spotting, 49 x 10 features."""
    net = Network("DS-CNN", (1, 49, 10))
    x = net.conv("x", 64, (10, 4), stride=2)
    for _ in range(4):
        x = net.conv(net.conv(x, 64, depthwise=True), 64, (1, 1))
    net.dense(net.average(x), 12)
    return net.model()


def mobilenet() -> QuantModel:
    """Visual wake words, MobileNetV1 x 0.25, 96 x 96 x 3."""
    net = Network("MobileNet 0.25", (3, 96, 96))
    x = net.conv("x", 8, stride=2)
    rows = 8
    for rows_out, stride in [
        (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)
    ]:  # fmt: skip
        x = net.conv(net.conv(x, rows, stride=stride, depthwise=True), rows_out, (1, 1))
        rows = rows_out
    net.dense(net.average(x), 2)
    return net.model()


def autoencoder() -> QuantModel:
    """Anomaly detection, fully connected."""
    net = Network("autoencoder", (640,))
    x = "x"
    for rows in (128, 128, 128, 128, 8, 128, 128, 128, 128, 640):
        x = net.dense(x, rows)
    return net.model()


def lstm(units: int, steps: int) -> QuantModel:
    """A layer with as many inputs as units."""
    rng, reach = np.random.default_rng(0), 1 / np.sqrt(units)
    w, r = (rng.uniform(-reach, reach, (4 * units, units)).astype(np.float32) for _ in range(2))
    layer = RecurrentLayer("lstm", "x", "y", quantise_lstm(w, r, None, HIDDEN_SCALE))
    x = QuantInput("x", "x", (steps, units), "int8", HIDDEN_SCALE, 0, steps=steps)
    y = QuantOutput("y", "y", (steps, units), "int8", steps=steps)
    return QuantModel(f"LSTM-{units}", [x], [layer], [y])


#: Those for builds that have images.
NETWORKS: dict[str, Callable[[], QuantModel]] = {
    "resnet8": resnet8,
    "ds_cnn": ds_cnn,
    "mobilenet": mobilenet,
    "autoencoder": autoencoder,
}
#: Those for builds that have cells.
RECURRENT: dict[str, Callable[[], QuantModel]] = {"lstm512": lambda: lstm(512, 1)}
