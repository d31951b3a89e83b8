# SPDX-License-Identifier: Apache-2.0
"""QONNX models, against what the qonnx package itself makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_build import FLOAT, node, onnx, refused, sample
from pynq_bbs import Accelerator
from pynq_bbs import compile as compile_model
from pynq_bbs.errors import ModelError
from pynq_bbs.model.graph import QuantLayer, QuantModel
from pynq_bbs.model.onnx_import import load_onnx

DOMAIN = "qonnx.custom_op.general"


def quant(x: str, scale: str, bits: str, y: str, **attributes: Any) -> Any:
    chosen = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"} | attributes
    return node("Quant", f"{x} {scale} zero {bits}", y, domain=DOMAIN, **chosen)


def model(nodes: list[Any], shape: tuple[int, ...], **constants: Any) -> Any:
    """From x to y; constants `zero`, `four` and `eight` are there."""
    given = {"zero": 0, "four": 4, "eight": 8} | constants
    graph = onnx.helper.make_graph(
        nodes, "qonnx",
        [onnx.helper.make_tensor_value_info("x", FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in given.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(DOMAIN, 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def network() -> Any:
    """A convolution of INT4 weights with a scale a channel, one of INT8, a matrix."""
    weights = {"w1": sample(6, 3, 3, 3), "w2": sample(5, 6, 1, 1), "w3": sample(4, 5 * 16)}
    scales = {
        "s1": np.abs(weights["w1"]).max((1, 2, 3), keepdims=True) / 7,
        "s2": 2.0**-5, "s3": np.abs(weights["w3"]).max() / 127,
        "sx": 0.03, "sa": 0.05, "sb": 0.11, "sy": 0.3,
    }  # fmt: skip
    nodes = [
        quant("x", "sx", "eight", "xq"),
        quant("w1", "s1", "four", "w1q", narrow=1),
        quant("w2", "s2", "eight", "w2q"),
        quant("w3", "s3", "eight", "w3q", narrow=1),
        node("Conv", "xq w1q", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "ar"),
        quant("ar", "sa", "four", "aq", signed=0),
        node("Conv", "aq w2q", "b"),
        quant("b", "sb", "eight", "bq"),
        node("Flatten", "bq", "f"),
        node("Gemm", "f w3q bias", "c", transB=1),
        quant("c", "sy", "eight", "y"),
    ]
    return model(nodes, (7, 3, 4, 4), **weights, **scales, bias=sample(4))


def test_as_qonnx_runs_it() -> None:
    pytest.importorskip("qonnx", reason="the qonnx package is not installed")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    proto, x = network(), sample(7, 3, 4, 4, seed=5)
    wanted = execute_onnx(ModelWrapper(proto).transform(InferShapes()), {"x": x})["y"]
    loaded = load_onnx(proto)
    assert isinstance(loaded, QuantModel)
    layers = [layer for layer in loaded.layers if isinstance(layer, QuantLayer)]
    assert [layer.weight_bits for layer in layers] == [4, 8, 8]
    with Accelerator(compile_model(loaded), "standin", verify=True) as accelerator:
        made = accelerator.run(x)
    off = np.abs(made - wanted) / 0.3
    assert off.max() < 1.01 and np.mean(off > 0.5) < 0.1  # float sums fall otherwise at ties
    assert len(np.unique(made)) > 10


def test_what_is_not_supported() -> None:
    pytest.importorskip("qonnx", reason="the qonnx package is not installed")
    good = [quant("x", "s", "eight", "q"), quant("w", "s", "four", "wq")]
    product = node("MatMul", "q wq", "m")
    constants = {"s": 0.1, "w": sample(4, 3)}
    for attributes, says in (
        ({"rounding_mode": "FLOOR"}, "rounds by FLOOR"),
        ({"signed": 0, "narrow": 1}, "unsigned and narrow"),
    ):
        proto = model(
            [*good, product, quant("m", "s", "eight", "y", **attributes)], (2, 4), **constants
        )
        with pytest.raises(ModelError, match=f"'n_y' .*{says}"):
            load_onnx(proto)
    wide = [*good, product, quant("m", "s", "sixteen", "y")]
    assert "2 to 8 bits" in refused(model(wide, (2, 4), sixteen=16, **constants))["n_y"]
    bipolar = node("BipolarQuant", "m s", "y", domain=DOMAIN)
    reasons = refused(model([*good, product, bipolar], (2, 4), **constants))
    assert "BipolarQuant is not supported" in reasons["n_y"]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "qonnx.core.modelwrapper", None)
    with pytest.raises(ModelError, match=r"pynq-bbs\[qonnx\]"):
        load_onnx(network())
