# SPDX-License-Identifier: Apache-2.0
"""ResNet-18 and MobileNetV2 as torchvision has them, for 224 x 224 images, with random weights.

    python benchmarks/imagenet.py [NAME ...] [--samples N]

Calibrates and compiles each, and prints how long that took and the most memory of this process.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.model.onnx_import import load_onnx
from pynq_bbs.pack.fits import least_use
from pynq_bbs.pack.program import Program
from pynq_bbs.report import table

SHAPE = (3, 224, 224)
CLASSES = 1000


class _Graph:
    """Every method adds a node and returns the name of what it gives."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self._nodes)}"
        self._nodes.append(onnx.helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def conv(
        self, x: str, channels: tuple[int, int], kernel: int = 1, stride: int = 1, group: int = 1
    ) -> str:
        """With the batch normalisation behind it folded in, as exporters do."""
        rows, pad = channels[1], kernel // 2
        weights = self._weights(rows, channels[0] // group, kernel, kernel)
        return self.node(
            "Conv", x, weights, self._constant(np.zeros(rows, np.float32)),
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group,
        )  # fmt: skip

    def head(self, x: str, features: int) -> onnx.ModelProto:
        x = self.node("Flatten", self.node("GlobalAveragePool", x))
        bias = self._constant(np.zeros(CLASSES, np.float32))
        y = self.node("Gemm", x, self._weights(CLASSES, features), bias, transB=1)
        info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            self._nodes,
            "imagenet",
            [info("x", kind, ["N", *SHAPE])],
            [info(y, kind, ["N", CLASSES])],
            self._constants,
        )
        opset = onnx.helper.make_opsetid("", 17)
        return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)

    def clip(self, x: str) -> str:
        low, high = (self._constant(np.float32(v)) for v in (0, 6))
        return self.node("Clip", x, low, high)

    def _weights(self, *shape: int) -> str:
        spread = np.sqrt(2 / np.prod(shape[1:]))
        weights = self._rng.standard_normal(shape, np.float32) * np.float32(spread)
        return self._constant(weights)

    def _constant(self, values: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name


def resnet18() -> onnx.ModelProto:
    g = _Graph()
    x = g.node("Relu", g.conv("x", (3, 64), 7, 2))
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    before = 64
    for channels in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if channels > 64 and not block else 1
            y = g.node("Relu", g.conv(x, (before, channels), 3, stride))
            y = g.conv(y, (channels, channels), 3)
            if before != channels:
                x = g.conv(x, (before, channels), 1, stride)
            x = g.node("Relu", g.node("Add", y, x))
            before = channels
    return g.head(x, before)


def mobilenet_v2() -> onnx.ModelProto:
    g = _Graph()
    x, before = g.clip(g.conv("x", (3, 32), 3, 2)), 32
    for expand, channels, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            hidden, y = before * expand, x
            if expand > 1:
                y = g.clip(g.conv(y, (before, hidden)))
            y = g.clip(g.conv(y, (hidden, hidden), 3, 1 if block else stride, hidden))
            y = g.conv(y, (hidden, channels))
            x = g.node("Add", x, y) if block else y
            before = channels
    return g.head(g.clip(g.conv(x, (before, 1280))), 1280)


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
}


def images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, *SHAPE), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--samples", type=int, default=32, help="of calibration (default: 32)")
    args = parser.parse_args()
    rows = [("network", "load s", "compile s", "M weights", "MB at most so far", "memory on board")]
    for name in args.networks:
        proto = NETWORKS[name]()
        start = perf_counter()
        model = load_onnx(proto)
        loaded = perf_counter()
        program = compile_model(model, calibration=images(args.samples))
        compiled = perf_counter()
        assert isinstance(program, Program)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        weights = sum(layer.model_weights for layer in program.layers) / 1e6
        rows.append(
            (
                name,
                f"{loaded - start:.1f}",
                f"{compiled - loaded:.1f}",
                f"{weights:.1f}",
                f"{most:.0f}",
                str(least_use(program).total),
            )
        )
    print(table(rows))


if __name__ == "__main__":
    main()
