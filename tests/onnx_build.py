# SPDX-License-Identifier: Apache-2.0
"""Small ONNX models for the tests, in a line or two each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynq_bbs.errors import UnsupportedModelError
from pynq_bbs.model.onnx_import import check_onnx, load_onnx

onnx = pytest.importorskip("onnx")

FLOAT, INT8, UINT8, INT32 = (
    getattr(onnx.TensorProto, name) for name in ("FLOAT", "INT8", "UINT8", "INT32")
)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """`node("Gemm", "x w", "y")`, named after its first output; `-` is an input left out."""
    names = ["" if n == "-" else n for n in inputs.split()]
    first = outputs.split()[0]
    return onnx.helper.make_node(op, names, outputs.split(), f"n_{first}", **attributes)


def model(
    nodes: list[Any],
    inputs: dict[str, Any],
    outputs: dict[str, int],
    opset: int = 17,
    batch: Any = "N",
    **constants: Any,
) -> Any:
    """A model; `inputs` gives shapes without the batch, float32 or as (type, shape)."""
    info = onnx.helper.make_tensor_value_info
    described = []
    for name, spec in inputs.items():
        typed = len(spec) == 2 and isinstance(spec[1], tuple)
        kind, shape = spec if typed else (FLOAT, spec)
        described.append(info(name, kind, [batch, *shape]))
    graph = onnx.helper.make_graph(
        nodes,
        "test",
        described,
        [info(name, kind, None) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def sample(*shape: int, seed: int = 0) -> Any:
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def refused(proto: Any) -> dict[str, str]:
    """Reasons by node name; the check lists the same nodes."""
    with pytest.raises(UnsupportedModelError) as caught:
        load_onnx(proto)
    reasons = dict(caught.value.nodes)
    for name, reason in reasons.items():
        assert name in str(caught.value) and reason in str(caught.value)
    listed = " ".join(c.name for c in check_onnx(proto) if c.runs == "unsupported")
    assert all(name in listed for name in reasons)
    return reasons
