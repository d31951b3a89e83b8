# SPDX-License-Identifier: Apache-2.0
"""QONNX: its Quant nodes become QuantizeLinear, Clip and DequantizeLinear, by the qonnx package."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError

#: Domains of QONNX's operators, as the package and as Brevitas write them.
DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas")

#: To the nearest integer, ties to even.
_ROUNDING = ("ROUND", "HALF_EVEN")


def converted(model: Any) -> Any:
    """The model in ONNX's own operators, but for what those cannot say; one without Quant as it
    is.

    Raises:
        ModelError: the qonnx package is not installed, or cannot read the model; a Quant that it
            would make another function of.
    """
    nodes = [n for n in model.graph.node if n.domain in DOMAINS and n.op_type == "Quant"]
    if not nodes:
        return model
    for node in nodes:
        _check(node)
    try:
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ
    except ImportError:
        raise ModelError(
            "the model has QONNX's Quant nodes, which takes the qonnx package: "
            "pip install 'pynq-bbs[qonnx]'."
        ) from None
    try:
        return ModelWrapper(model).transform(QuantToQCDQ()).model
    except Exception as error:
        raise ModelError(f"qonnx cannot convert the model: {error}") from None


def _check(node: Any) -> None:
    """The package looks at neither of these."""
    attributes = {a.name: a for a in node.attribute}
    name = node.name or next(iter(node.output), "")
    mode = attributes["rounding_mode"].s.decode() if "rounding_mode" in attributes else "ROUND"
    if mode.upper() not in _ROUNDING:
        raise ModelError(f"node {name!r} (Quant) rounds by {mode}; {_ROUNDING[0]} is supported.")
    signed = "signed" not in attributes or attributes["signed"].i
    if not signed and "narrow" in attributes and attributes["narrow"].i:
        raise ModelError(
            f"node {name!r} (Quant) is unsigned and narrow; narrow is supported of signed ones."
        )
