# SPDX-License-Identifier: Apache-2.0
"""Quantised ONNX graphs, node by node, in the integers of DESIGN.md section 3.

Knows nothing of the package: it reads the graph as it stands. A DequantizeLinear is only noted
down; what it feeds is computed in integers when a QuantizeLinear says to what scale. Additions are
those of docs/arithmetic.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


@dataclass
class Scaled:
    """Integers less their zero point, and what one of them is worth (broadcasts)."""

    integers: Array
    scale: Array


@dataclass
class Sums:
    """Integer sums before requantisation; one is worth x_scale * w_scale, or x_scale / taps."""

    integers: Array  # (N, M, ...)
    x_scale: np.float32
    w_scale: Array  # broadcasts to the integers
    taps: Array | None = None  # (N, M, ...)
    clamps: tuple[tuple[float, float], ...] = ()


@dataclass
class Added:
    """Two tensors to be added in fixed point, or multiplied."""

    left: Scaled
    right: Scaled
    product: bool = False
    clamps: tuple[tuple[float, float], ...] = ()


@dataclass
class Parts:
    """Tensors one behind the other along channels."""

    parts: list[Scaled]
    clamps: tuple[tuple[float, float], ...] = ()


def run_graph(model: Any, feeds: Mapping[str, Array]) -> dict[str, Any]:
    """Every tensor of the graph; those that are integers or floats there, as they are."""
    values: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    values |= {name: np.asarray(x) for name, x in feeds.items()}
    for node in model.graph.node:
        given = [values[name] if name else None for name in node.input]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Split":
            values |= zip(node.output, split(given, attributes), strict=True)
        else:
            values[node.output[0]] = _OPERATORS[node.op_type](given, attributes)
    return values


def _shaped(numbers: Array, rank: int, axis: int) -> Array:
    if numbers.size == 1:
        return numbers.reshape(())
    return numbers.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def dequantise(given: list[Any], attributes: dict[str, Any]) -> Scaled:
    q, scale, zero = (*given, None)[:3]
    axis = attributes.get("axis", 1)
    integers = q.astype(np.int64)
    if zero is not None:
        integers = integers - _shaped(zero.astype(np.int64), q.ndim, axis)
    return Scaled(integers, _shaped(scale, q.ndim, axis))


def quantise(given: list[Any], attributes: dict[str, Any]) -> Array:
    x, y_scale, zero = given
    y_scale = np.float32(y_scale.reshape(()))
    zero_point, kind = int(zero.reshape(())), np.iinfo(zero.dtype)

    def saturated(steps: Array) -> Array:
        whole = np.clip(np.asarray(steps, np.float64), -1e6, 1e6).astype(np.int64)
        return np.clip(whole + zero_point, kind.min, kind.max)

    def clamped(q: Array, clamps: tuple[tuple[float, float], ...]) -> Array:
        for low, high in clamps:
            ends = [saturated(np.rint(np.float32(e) / y_scale)) for e in (low, high)]
            q = np.minimum(np.maximum(q, ends[0]), ends[1])
        return q.astype(zero.dtype)

    if isinstance(x, Sums):
        if x.taps is not None:
            m = x.x_scale / (x.taps.astype(np.float32) * y_scale)
        else:
            m = (x.x_scale * x.w_scale) / y_scale
        rounded = np.rint(x.integers.astype(np.float32) * np.float32(m))
        return clamped(saturated(rounded), x.clamps)
    if isinstance(x, Added):
        sides = (x.left, x.right)
        if x.product:
            ratios = [float(x.left.scale) * float(x.right.scale) / float(y_scale)]
            sides = (replace(x.left, integers=x.left.integers * x.right.integers),)
        else:
            ratios = [float(np.float32(side.scale) / y_scale) for side in sides]
        shift = max(s for s in range(48) if max(ratios) * 2.0**s < 2**22)
        acc = sum(
            int(np.rint(ratio * 2.0**shift)) * side.integers
            for ratio, side in zip(ratios, sides, strict=True)
        )
        return clamped(saturated(np.rint(acc / 2.0**shift)), x.clamps)
    if isinstance(x, Parts):
        one = np.ones(1, np.float32)
        sums = [Sums(p.integers, np.float32(p.scale), one, clamps=x.clamps) for p in x.parts]
        return np.concatenate([quantise([s, y_scale, zero], {}) for s in sums], axis=1)
    if isinstance(x, Scaled):
        x = x.integers.astype(np.float32) * x.scale
    return saturated(np.rint(np.asarray(x, np.float32) / y_scale)).astype(zero.dtype)


def clamp(given: list[Any], low: float, high: float) -> Any:
    (x, *_) = given
    if isinstance(x, Sums | Added | Parts):
        return replace(x, clamps=(*x.clamps, (low, high)))
    return np.clip(_floats(x), np.float32(low), np.float32(high))


def clip(given: list[Any], attributes: dict[str, Any]) -> Any:
    low, high = (float(v) if v is not None else None for v in (*given[1:], None, None)[:2])
    return clamp(given, -np.inf if low is None else low, np.inf if high is None else high)


def _floats(x: Any) -> Array:
    return x.integers.astype(np.float32) * x.scale if isinstance(x, Scaled) else x


def _geometry(attributes: dict[str, Any], kernel: list[int], sizes: tuple[int, ...]) -> Any:
    count = len(kernel)
    strides = attributes.get("strides", [1] * count)
    dilations = attributes.get("dilations", [1] * count)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(attributes.get("pads", [0] * (2 * count)))
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode.startswith(b"SAME"):
        for i, size in enumerate(sizes):
            both = max(0, (-(-size // strides[i]) - 1) * strides[i] + reach[i] - size)
            pads[i] = both // 2 if mode == b"SAME_UPPER" else -(-both // 2)
            pads[i + count] = both - pads[i]
    if attributes.get("ceil_mode", 0):
        for i, size in enumerate(sizes):
            out = -(-(size + pads[i] + pads[i + count] - reach[i]) // strides[i]) + 1
            while (out - 1) * strides[i] >= size + pads[i]:
                out -= 1
            pads[i + count] = max(0, (out - 1) * strides[i] + reach[i] - size - pads[i])
    return strides, dilations, reach, pads


def places(x: Array, kernel: list[int], attributes: dict[str, Any], pad: int) -> Any:
    """What each place of the output sees: its index, and (N, C, taps); and the output's shape."""
    strides, dilations, reach, pads = _geometry(attributes, kernel, x.shape[2:])
    count = len(kernel)
    around = [(0, 0), (0, 0), *zip(pads[:count], pads[count:], strict=True)]
    padded = np.pad(x, around, constant_values=pad)
    out = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
    cut = []
    for place in np.ndindex(*out):
        begin = [p * s for p, s in zip(place, strides, strict=True)]
        taps = tuple(slice(b, b + r, d) for b, r, d in zip(begin, reach, dilations, strict=True))
        cut.append((place, padded[(slice(None), slice(None), *taps)].reshape(*x.shape[:2], -1)))
    return cut, out


def convolve(x: Scaled, weights: Scaled, bias: Any, attributes: dict[str, Any]) -> Sums:
    w = weights.integers
    cut, out = places(x.integers, list(w.shape[2:]), attributes, 0)
    groups, rows = attributes.get("group", 1), len(w)
    sums = np.zeros((len(x.integers), rows, *out), np.int64)
    flat = w.reshape(groups, rows // groups, -1)
    for place, taps in cut:
        parts = taps.reshape(len(taps), groups, -1)
        sums[(slice(None), slice(None), *place)] = np.einsum("ngk,gmk->ngm", parts, flat).reshape(
            len(taps), rows
        )
    result = Sums(sums, np.float32(x.scale), _shaped(weights.scale.reshape(-1), sums.ndim, 1))
    return with_bias(result, bias)


def with_bias(sums: Sums, bias: Any) -> Sums:
    if bias is None:
        return sums
    integers = bias.integers if isinstance(bias, Scaled) else bias.astype(np.int64)
    each = _shaped(integers.reshape(-1), sums.integers.ndim, 1)
    return replace(sums, integers=sums.integers + each)


def conv(given: list[Any], attributes: dict[str, Any]) -> Sums:
    return convolve(given[0], given[1], (*given, None)[2], attributes)


def qlinear_conv(given: list[Any], attributes: dict[str, Any]) -> Array:
    x = dequantise(given[:3], {})
    weights = dequantise(given[3:6], {"axis": 0})
    sums = convolve(x, weights, (*given, None)[8], attributes)
    return quantise([sums, given[6], given[7]], {})


def product(x: Scaled, weights: Scaled) -> Sums:
    return Sums(x.integers @ weights.integers, np.float32(x.scale), weights.scale.reshape(-1))


def qlinear_matmul(given: list[Any], attributes: dict[str, Any]) -> Array:
    weights = dequantise(given[3:6], {"axis": 1})
    return quantise([product(dequantise(given[:3], {}), weights), given[6], given[7]], {})


def gemm(given: list[Any], attributes: dict[str, Any]) -> Sums:
    x, weights, bias = (*given, None)[:3]
    if attributes.get("transB", 0):
        weights = Scaled(weights.integers.T, weights.scale)
    return with_bias(product(x, weights), bias)


def qgemm(given: list[Any], attributes: dict[str, Any]) -> Array:
    weights = dequantise(given[3:6], {"axis": 0 if attributes.get("transB", 0) else 1})
    sums = gemm([dequantise(given[:3], {}), weights, given[6]], attributes)
    return quantise([sums, *given[7:]], {})


def add(given: list[Any], attributes: dict[str, Any]) -> Any:
    if isinstance(given[0], Sums):
        return with_bias(given[0], given[1])
    return Added(*given)


def qlinear_add(given: list[Any], attributes: dict[str, Any], product: bool = False) -> Array:
    sides = [dequantise(given[i : i + 3], {}) for i in (0, 3)]
    return quantise([Added(*sides, product), *given[6:]], {})


def max_pool(given: list[Any], attributes: dict[str, Any]) -> Any:
    (x,) = given
    integers = x.integers if isinstance(x, Scaled) else x.astype(np.int64)
    cut, out = places(integers, attributes["kernel_shape"], attributes, -(10**9))
    result = np.zeros((*integers.shape[:2], *out), np.int64)
    for place, taps in cut:
        result[(slice(None), slice(None), *place)] = taps.max(axis=2)
    return Scaled(result, x.scale) if isinstance(x, Scaled) else result.astype(x.dtype)


def average_pool(given: list[Any], attributes: dict[str, Any], beyond: bool = False) -> Sums:
    """An average; what ceil_mode adds to padding that counts does so too if it is `beyond`."""
    (x,) = given
    kernel = attributes.get("kernel_shape", list(x.integers.shape[2:]))

    def total(integers: Array, **more: Any) -> Array:
        cut, out = places(integers, kernel, attributes | more, 0)
        sums = np.zeros((*integers.shape[:2], *out), np.int64)
        for place, taps in cut:
            sums[(slice(None), slice(None), *place)] = taps.sum(axis=2)
        return sums

    counts = np.ones_like(x.integers)
    more: dict[str, Any] = {}
    if attributes.get("count_include_pad", 0):
        mode = attributes if beyond else attributes | {"ceil_mode": 0}
        pads = _geometry(mode, kernel, counts.shape[2:])[3]
        sides = np.reshape(pads, (2, -1)).T
        counts = np.pad(counts, [(0, 0), (0, 0), *sides], constant_values=1)
        more = {"pads": [0] * len(pads), "auto_pad": b"NOTSET"}
    sums, taps = total(x.integers), total(counts, **more)
    if taps.shape != sums.shape:  # without the place that starts behind the image
        taps = taps[tuple(slice(n) for n in sums.shape)]
    return Sums(sums, np.float32(x.scale), np.ones(1, np.float32), taps)


def concat(given: list[Any], attributes: dict[str, Any]) -> Any:
    if isinstance(given[0], Scaled):
        return Parts(given)
    return np.concatenate(given, axis=attributes["axis"])


def qlinear_concat(given: list[Any], attributes: dict[str, Any]) -> Array:
    parts = [dequantise(given[i : i + 3], {}) for i in range(2, len(given), 3)]
    return quantise([Parts(parts), *given[:2]], {})


def split(given: list[Any], attributes: dict[str, Any]) -> list[Any]:
    ends = [0, *np.cumsum(given[1]).tolist()]
    sides = [slice(*pair) for pair in pairwise(ends)]
    cut = [moved(lambda x, given, attributes, s=s: x[:, s]) for s in sides]
    return [operator(given, attributes) for operator in cut]


def cropped(x: Array, given: list[Any], attributes: dict[str, Any]) -> Array:
    for start, end, axis in zip(*(g.tolist() for g in given[1:4]), strict=True):
        x = x[(*[slice(None)] * (axis % x.ndim), slice(start, end))]
    return x


def qlinear(operator: Any, **more: Any) -> Any:
    """An operator of one tensor between its DequantizeLinear and its QuantizeLinear."""
    return lambda given, attributes: quantise(
        [operator([dequantise(given[:3], {})], attributes, **more), *given[3:]], {}
    )


def reduce_mean(given: list[Any], attributes: dict[str, Any]) -> Sums:
    x = given[0].integers
    axes = attributes.get("axes") if len(given) == 1 else given[1].tolist()
    axes = tuple(int(a) % x.ndim for a in axes)
    sums = x.sum(axis=axes, keepdims=bool(attributes.get("keepdims", 1)))
    taps = np.full(sums.shape, np.prod([x.shape[a] for a in axes]))
    return Sums(sums, np.float32(given[0].scale), np.ones(1, np.float32), taps)


def moved(change: Any) -> Any:
    """An operator that moves values, whatever they are."""

    def operator(given: list[Any], attributes: dict[str, Any]) -> Any:
        x = given[0]
        if isinstance(x, np.ndarray):
            return change(x, given, attributes)
        if isinstance(x, Sums):
            full = np.broadcast_to(x.w_scale, x.integers.shape)
            x = replace(x, w_scale=change(full, given, attributes))
            if x.taps is not None:
                x = replace(x, taps=change(x.taps, given, attributes))
        return replace(x, integers=change(x.integers, given, attributes))

    return operator


def pad(x: Array, given: list[Any], attributes: dict[str, Any]) -> Array:
    sides = np.reshape(given[1], (2, -1)).T
    number = 0 if len(given) < 3 or isinstance(given[0], Scaled) else given[2]
    return np.pad(x, sides, constant_values=number)


def sigmoid(x: Any) -> Any:
    """Of floats; of what has no scale yet, that of docs/arithmetic.md first."""
    if isinstance(x, Sums | Added):
        scale = np.float32(8 / 127)
        return sigmoid(quantise([x, scale, np.int8(0)], {}).astype(np.float32) * scale)
    return (1 / (1 + np.exp(-_floats(x).astype(np.float64)))).astype(np.float32)


def leaky_relu(x: Array, slope: float) -> Array:
    return np.where(x < 0, x * np.float32(slope), x)


def softmax(given: list[Any], attributes: dict[str, Any]) -> Array:
    x = _floats(given[0]).astype(np.float64)
    power = np.exp(x - x.max(axis=-1, keepdims=True))
    return (power / power.sum(axis=-1, keepdims=True)).astype(np.float32)


def reshape(x: Array, given: list[Any], attributes: dict[str, Any]) -> Array:
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(given[1].tolist())])


_OPERATORS: dict[str, Any] = {
    "DequantizeLinear": dequantise,
    "QuantizeLinear": quantise,
    "Relu": lambda given, attributes: clamp(given, 0.0, np.inf),
    "Clip": clip,
    "Conv": conv,
    "QLinearConv": qlinear_conv,
    "MatMul": lambda given, attributes: product(*given),
    "Gemm": gemm,
    "QLinearMatMul": qlinear_matmul,
    "QGemm": qgemm,
    "Add": add,
    "Mul": lambda given, attributes: Added(*given, True),
    "QLinearAdd": qlinear_add,
    "QLinearMul": lambda given, attributes: qlinear_add(given, attributes, True),
    "QLinearSigmoid": qlinear(lambda given, attributes: sigmoid(_floats(given[0]))),
    "QLinearLeakyRelu": qlinear(
        lambda given, attributes: leaky_relu(_floats(given[0]), attributes["alpha"])
    ),
    "Sigmoid": lambda given, attributes: sigmoid(given[0]),
    "LeakyRelu": lambda given, attributes: leaky_relu(_floats(given[0]), attributes["alpha"]),
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": average_pool,
    "QLinearAveragePool": qlinear(average_pool, beyond=True),
    "QLinearGlobalAveragePool": qlinear(average_pool),
    "ReduceMean": reduce_mean,
    "Concat": concat,
    "QLinearConcat": qlinear_concat,
    "Slice": moved(cropped),
    "Pad": moved(pad),
    "Reshape": moved(reshape),
    "Flatten": moved(lambda x, given, attributes: x.reshape(len(x), -1)),
    "Transpose": moved(lambda x, given, attributes: x.transpose(attributes["perm"])),
    "Softmax": softmax,
}
