# SPDX-License-Identifier: Apache-2.0
"""Random quantised convolutional networks as ONNX graphs, in QDQ form or of QLinear operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx_build import INT8, UINT8, model, node, onnx

#: Weights of seven bits: without VNNI onnxruntime adds pairs of products in 16 bits.
LARGEST_WEIGHT = 63


@dataclass(frozen=True)
class Tensor:
    """A quantised tensor of the graph; `scale` and `zero` name its constants."""

    name: str
    shape: tuple[int, ...]
    scale: str
    zero: str


@dataclass
class Network:
    """Every method adds an operator and returns what it gives."""

    rng: np.random.Generator
    qdq: bool = True
    unsigned: bool = False
    channels_last: bool = False
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)

    def input(self, *shape: int) -> Tensor:
        x = self._scaled("x", shape, 0.05)
        given = (*shape[1:], shape[0]) if self.channels_last else shape
        self.inputs["x"] = (UINT8 if self.unsigned else INT8, given)
        if self.channels_last:
            last = len(shape)
            self.nodes.append(node("Transpose", "x", "x_first", perm=[0, last, *range(1, last)]))
            x = Tensor("x_first", shape, x.scale, x.zero)
        return x

    def conv(
        self,
        x: Tensor,
        rows: int,
        kernel: tuple[int, ...] = (3, 3),
        function: str = "",
        **more: Any,
    ) -> Tensor:
        """A convolution with a scale a row and a bias."""
        group = more.get("group", 1)
        shape = (rows, x.shape[0] // group, *kernel)
        weights = self._weights(shape, rows)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, more.get("dilations", (1, 1)))]  # noqa: B905
        count = len(kernel)
        pads, strides = more.get("pads", [0] * 2 * count), more.get("strides", [1] * count)
        out = [
            (n + pads[i] + pads[i + count] - reach[i]) // strides[i] + 1
            for i, n in enumerate(x.shape[1:])
        ]
        spread = 0.05 * 0.01 * 36 * 60 * np.sqrt(np.prod(shape[1:]))
        return self._layer("Conv", x, (rows, *out), weights, spread, function, more)

    def dense(self, x: Tensor, rows: int) -> Tensor:
        weights = self._weights((x.shape[0], rows), rows)
        spread = 0.05 * 0.01 * 36 * 60 * np.sqrt(x.shape[0])
        return self._layer("MatMul", x, (rows,), weights, spread, "", {})

    def maximum(self, x: Tensor, kernel: Sequence[int], **more: Any) -> Tensor:
        """A MaxPool of integers, or between DequantizeLinear and QuantizeLinear."""
        attributes = {"kernel_shape": list(kernel), **more}
        name, shape = self._name(), pooled(x.shape, attributes)
        if not self.qdq or self.rng.random() < 0.3:
            self.nodes.append(node("MaxPool", x.name, name, **attributes))
            return Tensor(name, shape, x.scale, x.zero)
        self.nodes.append(node("MaxPool", self._dequantised(x), f"{name}_f", **attributes))
        y = Tensor(name, shape, x.scale, x.zero)
        return self._quantised(f"{name}_f", y)

    def average(self, x: Tensor, op: str, shape: tuple[int, ...], **attributes: Any) -> Tensor:
        """AveragePool, GlobalAveragePool or ReduceMean."""
        name = self._name()
        y = self._scaled(name, shape, 0.03)
        if self.qdq:
            self.nodes.append(node(op, self._dequantised(x), f"{name}_f", **attributes))
            return self._quantised(f"{name}_f", y)
        inputs = f"{x.name} {x.scale} {x.zero} {y.scale} {y.zero}"
        self.nodes.append(node(f"QLinear{op}", inputs, name, domain="com.microsoft", **attributes))
        return y

    def add(self, a: Tensor, b: Tensor, function: str = "", op: str = "Add") -> Tensor:
        """The sum of two tensors, or with `op` "Mul" their product."""
        name = self._name()
        y = self._scaled(name, a.shape, 0.01 if function == "Sigmoid" else 0.08)
        if not self.qdq:
            inputs = " ".join(f"{t.name} {t.scale} {t.zero}" for t in (a, b))
            inputs += f" {y.scale} {y.zero}"
            self.nodes.append(node(f"QLinear{op}", inputs, name, domain="com.microsoft"))
            return y
        inputs = f"{self._dequantised(a)} {self._dequantised(b)}"
        self.nodes.append(node(op, inputs, f"{name}_f"))
        return self._quantised(self._function(function, f"{name}_f"), y)

    def curve(self, x: Tensor, op: str, **attributes: Any) -> Tensor:
        """Sigmoid or LeakyRelu, in a scale of its own."""
        name = self._name()
        y = self._scaled(name, x.shape, 0.005 if op == "Sigmoid" else 0.04)
        if self.qdq:
            self.nodes.append(node(op, self._dequantised(x), f"{name}_f", **attributes))
            return self._quantised(f"{name}_f", y)
        inputs = f"{x.name} {x.scale} {x.zero} {y.scale} {y.zero}"
        self.nodes.append(node(f"QLinear{op}", inputs, name, domain="com.microsoft", **attributes))
        return y

    def concat(self, *parts: Tensor, function: str = "", same: bool = False) -> Tensor:
        """With a scale of its own, or the `same` that all parts have."""
        name = self._name()
        shape = (sum(t.shape[0] for t in parts), *parts[0].shape[1:])
        first = parts[0]
        y = Tensor(name, shape, first.scale, first.zero)
        if same and self.rng.random() < 0.5:
            self.nodes.append(node("Concat", " ".join(t.name for t in parts), name, axis=1))
            return y
        y = y if same else self._scaled(name, shape, 0.06)
        if not self.qdq:
            inputs = " ".join(f"{t.name} {t.scale} {t.zero}" for t in parts)
            inputs = f"{y.scale} {y.zero} {inputs}"
            self.nodes.append(node("QLinearConcat", inputs, name, domain="com.microsoft", axis=1))
            return y
        inputs = " ".join(self._dequantised(t) for t in parts)
        self.nodes.append(node("Concat", inputs, f"{name}_f", axis=1))
        return self._quantised(self._function(function, f"{name}_f"), y)

    def split(self, x: Tensor, *sizes: int) -> list[Tensor]:
        """Split, or a Slice each; of integers, or between numbers."""
        name, given, form = self._name(), x.name, "{}"
        if self.qdq and self.rng.random() < 0.5:
            given, form = self._dequantised(x), "{}_f"
        names = [f"{name}_{i}" for i in range(len(sizes))]
        if self.rng.random() < 0.5:
            self.constants[f"{name}_n"] = np.array(sizes, np.int64)
            outputs = " ".join(form.format(n) for n in names)
            self.nodes.append(node("Split", f"{given} {name}_n", outputs, axis=1))
        else:
            ends = np.cumsum(sizes)
            self.constants[f"{name}_axes"] = np.array([1], np.int64)
            for n, end, size in zip(names, ends, sizes, strict=True):
                self.constants |= {f"{n}_b": end[None] - size, f"{n}_e": end[None]}
                inputs = f"{given} {n}_b {n}_e {name}_axes"
                self.nodes.append(node("Slice", inputs, form.format(n)))
        parts = [
            Tensor(n, (size, *x.shape[1:]), x.scale, x.zero)
            for n, size in zip(names, sizes, strict=True)
        ]
        return parts if form == "{}" else [self._quantised(f"{t.name}_f", t) for t in parts]

    def padded(self, x: Tensor, pads: tuple[int, int, int, int]) -> Tensor:
        """Zeros around an image, as numbers or as integers."""
        name, (top, left, bottom, right) = self._name(), pads
        channels, height, width = x.shape
        shape = (channels, height + top + bottom, width + left + right)
        self.constants[f"{name}_pads"] = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
        if self.qdq and self.rng.random() < 0.5:
            self.nodes.append(node("Pad", f"{self._dequantised(x)} {name}_pads", f"{name}_f"))
            return self._quantised(f"{name}_f", Tensor(name, shape, x.scale, x.zero))
        self.nodes.append(node("Pad", f"{x.name} {name}_pads {x.zero}", name))
        return Tensor(name, shape, x.scale, x.zero)

    def flattened(self, x: Tensor) -> Tensor:
        name = self._name()
        self.nodes.append(node("Flatten", x.name, name))
        return Tensor(name, (int(np.prod(x.shape)),), x.scale, x.zero)

    def model(self, *shown: Tensor) -> Any:
        kind = UINT8 if self.unsigned else INT8
        outputs = {t.name: kind for t in shown}
        # Older sets have other shapes for ceil_mode than what runs them.
        proto = model(self.nodes, self.inputs, outputs, opset=22, **self.constants)
        proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        return proto

    def sample(self, count: int) -> Any:
        kind = np.uint8 if self.unsigned else np.int8
        shape = (count, *self.inputs["x"][1])
        return self.rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape).astype(kind)

    def _name(self) -> str:
        return f"t{len(self.nodes)}"

    def _scaled(self, name: str, shape: tuple[int, ...], scale: float) -> Tensor:
        zero = int(self.rng.integers(-60, 60))
        kind = np.uint8 if self.unsigned else np.int8
        self.constants[f"{name}_s"] = np.float32(scale * self.rng.uniform(0.7, 1.4))
        self.constants[f"{name}_z"] = kind(zero + 128 if self.unsigned else zero)
        return Tensor(name, shape, f"{name}_s", f"{name}_z")

    def _weights(self, shape: tuple[int, ...], rows: int) -> str:
        name = f"w{len(self.nodes)}"
        limit = LARGEST_WEIGHT
        self.constants |= {
            name: self.rng.integers(-limit, limit + 1, shape).astype(np.int8),
            f"{name}_s": (0.01 * self.rng.uniform(0.5, 2, rows)).astype(np.float32),
            f"{name}_z": np.zeros(rows, np.int8),
        }
        return name

    def _layer(
        self, op: str, x: Tensor, shape: tuple[int, ...], w: str, spread: float, function: str,
        more: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        name, rows = self._name(), shape[0]
        y = self._scaled(name, shape, spread / 100)
        self.constants[f"{w}_b"] = self.rng.integers(-3000, 3000, rows).astype(np.int32)
        if not self.qdq and op == "MatMul" and self.rng.random() < 0.5:
            inputs = f"{x.name} {x.scale} {x.zero} {w} {w}_s {w}_z {w}_b {y.scale} {y.zero}"
            if self.rng.random() < 0.5:
                self.constants[w] = np.ascontiguousarray(self.constants[w].T)
                more = {"transB": 1}
            self.nodes.append(node("QGemm", inputs, name, domain="com.microsoft", **more))
            return y
        if not self.qdq:
            bias = f" {w}_b" if op == "Conv" else ""
            inputs = f"{x.name} {x.scale} {x.zero} {w} {w}_s {w}_z {y.scale} {y.zero}{bias}"
            self.nodes.append(node(f"QLinear{op}", inputs, name, **more))
            return y
        axis = 0 if op == "Conv" else 1
        self.constants[f"{w}_bs"] = self.constants[x.scale] * self.constants[f"{w}_s"]
        self.nodes += [
            node("DequantizeLinear", f"{w} {w}_s {w}_z", f"{w}_d", axis=axis),
            node("DequantizeLinear", f"{w}_b {w}_bs", f"{w}_bd", axis=0),
        ]
        bias = f" {w}_bd" if op == "Conv" else ""
        self.nodes.append(node(op, f"{self._dequantised(x)} {w}_d{bias}", f"{name}_f", **more))
        if op == "MatMul":
            self.nodes.append(node("Add", f"{name}_f {w}_bd", f"{name}_b"))
        result = f"{name}_b" if op == "MatMul" else f"{name}_f"
        return self._quantised(self._function(function, result), y)

    def _function(self, function: str, name: str) -> str:
        if not function:
            return name
        limits = ""
        if function == "Clip":
            limits = " low high"
            self.constants |= {"low": np.float32(0), "high": np.float32(6)}
        self.nodes.append(node(function, name + limits, f"{name}_c"))
        return f"{name}_c"

    def _dequantised(self, x: Tensor) -> str:
        name = f"{x.name}_d{len(self.nodes)}"
        self.nodes.append(node("DequantizeLinear", f"{x.name} {x.scale} {x.zero}", name))
        return name

    def _quantised(self, name: str, y: Tensor) -> Tensor:
        self.nodes.append(node("QuantizeLinear", f"{name} {y.scale} {y.zero}", y.name))
        return y


def pooled(shape: tuple[int, ...], attributes: dict[str, Any]) -> tuple[int, ...]:
    """What a pool makes of an image (C, H, W)."""
    sizes = []
    for i, size in enumerate(shape[1:]):
        kernel = attributes["kernel_shape"][i]
        stride, pads = attributes.get("strides", (1, 1))[i], attributes.get("pads", [0] * 4)
        rest = size + pads[i] + pads[i + 2] - kernel
        places = rest // stride + 1
        if attributes.get("ceil_mode", 0) and rest % stride:
            places += places * stride < size + pads[i]
        sizes.append(places)
    return (shape[0], *sizes)


def random_pool(rng: np.random.Generator) -> dict[str, Any]:
    """Attributes of a pool with padding less than its kernel."""
    kernel = [int(n) for n in rng.integers(1, 4, 2)]
    return {
        "kernel_shape": kernel,
        "strides": [int(n) for n in rng.integers(1, 4, 2)],
        "pads": [int(rng.integers(k)) for k in (*kernel, *kernel)],
        "ceil_mode": int(rng.integers(2)),
    }


def random_network(seed: int, *, exact: bool = False, **form: bool) -> tuple[Network, list[Tensor]]:
    """A few layers at random, and the last tensor; `exact` leaves out what ONNX leaves open."""
    rng = np.random.default_rng(seed)
    net = Network(rng, **form)
    channels = int(rng.integers(1, 6))
    x = net.input(channels, int(rng.integers(6, 13)), int(rng.integers(6, 13)))
    kinds = ["conv", "strided", "depthwise", "grouped", "maximum", "padded"]
    kinds += ["dense block", "branches", "halves"]
    kinds += [] if exact else ["average", "residual", "inputs", "product", "curves"]
    for kind in rng.choice(kinds, int(rng.integers(2, 5))):
        x = _block(net, x, str(kind))
    if rng.random() < 0.5 and not exact:
        op = "GlobalAveragePool"
        x = net.flattened(net.average(x, op, (x.shape[0], 1, 1)))
    elif max(x.shape[1:]) <= 15:
        x = net.flattened(x)
    else:
        return net, [x]
    return net, [net.dense(x, int(rng.integers(1, 9)))]


def _block(net: Network, x: Tensor, kind: str) -> Tensor:
    rng, channels = net.rng, x.shape[0]
    if min(x.shape[1:]) < 3:
        kind = "depthwise"
    rows = int(rng.integers(1, 9))
    function = str(rng.choice(["", "Relu", "Clip"])) if net.qdq else ""
    if kind == "strided":
        return net.conv(x, rows, (3, 3), function, strides=[2, 2], pads=[0, 0, 1, 1])
    if kind == "depthwise":
        return net.conv(x, channels, (3, 3), function, group=channels, pads=[1, 1, 1, 1])
    if kind == "grouped":
        return net.conv(net.conv(x, 4, (1, 1)), 6, (3, 3), function, group=2, pads=[1, 1, 1, 1])
    if kind == "maximum":
        more = random_pool(rng)
        return net.maximum(x, more.pop("kernel_shape"), **more)
    if kind == "padded":
        return net.conv(net.padded(x, (1, 2, 0, 1)), rows, (3, 2), function)
    if kind == "average":
        more = random_pool(rng) | {"count_include_pad": int(rng.integers(2))}
        return net.average(x, "AveragePool", pooled(x.shape, more), **more)
    if kind == "residual":
        return net.add(x, net.conv(x, channels, (3, 3), pads=[1, 1, 1, 1]), function)
    if kind == "product":
        both = net.add(x, net.conv(x, channels, (3, 3), pads=[1, 1, 1, 1]), function, "Mul")
        other = net.conv(both, channels, (1, 1))
        # The first of both is read again, so no layer can make it just to multiply it.
        return net.add(net.conv(both, channels, (1, 1)), other, function and "Sigmoid", "Mul")
    if kind == "curves":
        bent = net.curve(net.conv(x, rows, (1, 1)), "LeakyRelu", alpha=0.25)
        return net.curve(net.add(bent, net.conv(x, rows, (1, 1))), "Sigmoid")
    if kind == "dense block":
        grown = net.concat(x, net.conv(x, rows, (3, 3), pads=[1, 1, 1, 1]), function=function)
        more = net.conv(grown, rows, (3, 3), function, pads=[1, 1, 1, 1])
        return net.concat(grown, more)
    if kind == "branches":
        deep = net.conv(x, rows, (1, 1), function)
        parts = [net.conv(x, rows, (3, 3), pads=[1, 1, 1, 1]), deep, net.maximum(x, (1, 1))]
        return net.conv(net.concat(*parts), rows, (1, 1), function)
    if kind == "halves":
        x = net.conv(x, 5, (1, 1))
        some = [int(n) for n in rng.multinomial(2, [1 / 3] * 3) + 1]
        left, middle, right = net.split(x, *some)
        right = net.concat(right, left, same=True)
        return net.concat(net.conv(middle, rows, (1, 1)), right, middle)
    if kind == "inputs":
        return net.add(net.maximum(x, (1, 1)), x, function)
    return net.conv(x, rows, (3, 3), function, pads=[1, 1, 1, 1], dilations=[1, 1])
