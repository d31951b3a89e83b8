# SPDX-License-Identifier: Apache-2.0
"""What the integers must be: DESIGN.md section 3 in plain numpy, and onnxruntime.

Shares no arithmetic with the package. onnxruntime's integer kernels count as an oracle only on
CPUs with VNNI: without it they saturate sums of unsigned times signed bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from images import labelled_images
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_file(*parts: str) -> Path:
    """A file of the shared data; skips the test where that is not there."""
    path = SHARED.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"{'/'.join(parts)} is not beside this checkout (../shared)")
    return path


def cifar_images(count: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Test images of CIFAR-10 (count, 32, 32, 3) and their labels; skips the test where they, or
    what decodes them, are not there."""
    pytest.importorskip("PIL.Image")
    return labelled_images(shared_file("data", "cifar10-test-jpeg.npz"), count)


def oracle_layer(
    layer: QuantLayer, x: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int8] | None]:
    """Sums (N, M) and INT8 output (N, M) of a layer for x (N, K); no output without multiplier."""
    shifted = x.astype(np.int64) - layer.input_zero_point
    acc = shifted @ layer.weights.astype(np.int64).T + layer.bias
    return acc, oracle_outputs(layer, acc)


def oracle_outputs(layer: QuantLayer, acc: NDArray[np.int64]) -> NDArray[np.int8] | None:
    """INT8 outputs (..., M) of sums (..., M); None without multiplier."""
    assert np.abs(acc).max(initial=0) < 2**31, "sums beyond INT32: not a layer the engine takes"
    if layer.multiplier is None:
        return None
    with np.errstate(over="ignore"):
        rounded = np.rint(acc.astype(np.float32) * layer.multiplier)
    # A float32 beyond 2**24 plus a zero point may be inexact, but is far beyond saturation.
    q = np.clip(np.clip(rounded, -1e6, 1e6).astype(np.int64) + layer.zero_point, -128, 127)
    if layer.table is not None:
        q = layer.table[q + 128]
    return q.astype(np.int8)


def oracle_window(layer: QuantLayer, x: NDArray[np.int8]) -> NDArray[np.generic]:
    """A convolution or maximum written the obvious way: images (N, C, H, W) to (N, M, H, W)."""
    window = layer.window
    assert window is not None
    top, left, bottom, right = window.pads
    pad = -128 if layer.maximum else layer.input_zero_point
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=pad)
    rows, per_group = layer.weights.shape[:2]
    (kh, kw), (sy, sx), (dy, dx) = window.kernel, window.strides, window.dilations
    out = np.empty((len(x), rows, window.out_height, window.out_width), np.int64)
    for y in range(window.out_height):
        for xx in range(window.out_width):
            taps = padded[
                :,
                :,
                y * sy : y * sy + (kh - 1) * dy + 1 : dy,
                xx * sx : xx * sx + (kw - 1) * dx + 1 : dx,
            ].astype(np.int64)
            for row in range(rows):
                first = row // (rows // layer.groups) * per_group
                part = taps[:, first : first + per_group].reshape(len(x), -1)
                if layer.maximum:
                    out[:, row, y, xx] = part.max(axis=1)
                else:
                    w = layer.weights[row].reshape(-1).astype(np.int64)
                    out[:, row, y, xx] = (part - layer.input_zero_point) @ w + layer.bias[row]
    y = oracle_outputs(layer, np.moveaxis(out, 1, -1))
    return out.astype(np.int32) if y is None else np.moveaxis(y, -1, 1)


def oracle_input(spec: QuantInput, x: NDArray[Any]) -> NDArray[np.int8]:
    """A model input as INT8 (N, features); inputs with functions are not covered."""
    flat = np.asarray(x).reshape(len(x), -1)
    if spec.dtype == "int8":
        return flat
    if spec.dtype == "uint8":
        return (flat.astype(np.int64) - 128).astype(np.int8)
    assert not spec.functions
    steps = np.rint(flat.astype(np.float32) / np.float32(spec.scale)).astype(np.float64)
    return np.clip(steps + spec.zero_point, -128, 127).astype(np.int8)


def oracle_model(model: QuantModel, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Every tensor of an integer model by name, (N, features): INT8, or INT32 for sums."""
    tensors: dict[str, NDArray[Any]] = {
        spec.tensor: oracle_input(spec, inputs[spec.name]) for spec in model.inputs
    }
    for layer in model.layers:
        acc, q = oracle_layer(layer, tensors[layer.input])
        tensors[layer.output] = acc.astype(np.int32) if q is None else q
    return tensors


def onnxruntime_is_exact() -> bool:
    """Whether this CPU's onnxruntime computes integer products without saturation."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def run_onnxruntime(model: Any, feeds: Mapping[str, Any], *, optimise: bool = True) -> list[Any]:
    """Every output of an `onnx.ModelProto` or file; skips the test without onnxruntime."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def onnxruntime_layer(layer: QuantLayer, x: NDArray[np.int8]) -> NDArray[np.int8]:
    """The layer as a QLinearConv of 1 x 1, which unlike QLinearMatMul takes an INT32 bias."""
    from onnx import TensorProto, helper, numpy_helper

    assert layer.multiplier is not None
    rows, features = layer.weights.shape
    constants = {
        "one": np.float32(1),
        "x_zero": np.int8(layer.input_zero_point),
        "w": layer.weights.reshape(rows, features, 1, 1),
        "m": layer.multiplier,
        "w_zero": np.zeros(rows, np.int8),
        "y_zero": np.int8(layer.zero_point),
        "bias": layer.bias,
    }
    node = helper.make_node(
        "QLinearConv", ["x", "one", "x_zero", "w", "m", "w_zero", "one", "y_zero", "bias"], ["y"]
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "layer",
        [info("x", TensorProto.INT8, ["N", features, 1, 1])],
        [info("y", TensorProto.INT8, ["N", rows, 1, 1])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (y,) = run_onnxruntime(model, {"x": x.reshape(len(x), features, 1, 1)})
    y = y.reshape(len(x), rows)
    return y if layer.table is None else layer.table[y.astype(np.int64) + 128]
