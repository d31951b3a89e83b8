# SPDX-License-Identifier: Apache-2.0
"""ONNX models: fully connected ones become a `Model` or `QuantModel`, any can be checked."""

from __future__ import annotations

from contextlib import suppress
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UnsupportedModelError
from .graph import Float, Function, GraphInput, GraphOutput, Layer, Model, QuantModel
from .onnx_file import read_graph
from .onnx_integers import integer_model
from .onnx_plan import Plan
from .onnx_reader import NodeCheck, Reading, read_values
from .onnx_values import Linear, Step

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["NodeCheck", "check_onnx", "load_onnx"]


def load_onnx(source: str | PathLike[str] | bytes | ModelProto) -> Model | QuantModel:
    """The model in an ONNX file, in bytes of one, or in an `onnx.ModelProto`.

    Activations in float32 make a `Model`, which `quantize` turns into integers. A model with
    QuantizeLinear/DequantizeLinear, QLinearMatMul or MatMulInteger is read as the integer
    operators it describes and makes a `QuantModel`.

    Raises:
        ModelError: missing, damaged or invalid file.
        UnsupportedModelError: valid, but with nodes that cannot run; all are listed at once, in
            the message and in the error's `nodes`.
    """
    reading = read_values(read_graph(source))
    reading.refuse()
    return _lower(reading)


def check_onnx(source: str | PathLike[str] | bytes | ModelProto) -> list[NodeCheck]:
    """Where every node of an ONNX model runs, in an order in which they can run.

    Inputs and outputs that stand in the way are listed too, with an empty `op`.

    Raises:
        ModelError: missing, damaged or invalid file.
    """
    reading = read_values(read_graph(source))
    judged = len(reading.problems)
    if not judged:
        with suppress(UnsupportedModelError):  # what it would list is in `problems`
            _lower(reading)
    late = {p.name: p.reason for p in reading.problems[judged:] if p.kind == "node"}
    checks = [
        NodeCheck(c.name, c.op, "unsupported", late[c.name]) if c.name in late else c
        for c in reading.checks
    ]
    others = [p for p in reading.problems if p.kind != "node"]
    return checks + [NodeCheck(f"{p.kind} {p.name!r}", "", "unsupported", p.reason) for p in others]


def _lower(reading: Reading) -> Model | QuantModel:
    return integer_model(reading) if reading.quantised else _float_model(reading)


def _float_model(reading: Reading) -> Model:
    """Layers with the functions behind them, in as many forms as are needed."""
    plan = Plan(reading, lambda value: (value.steps, ()))
    inputs = [
        GraphInput(base.name, base.shape, _functions(steps), plan.tensor(base, steps))
        for base in plan.inputs
        for steps in plan.forms[base]
    ]
    layers = []
    for linear in plan.linears:
        weights, bias = _float_numbers(linear)
        source = plan.tensor(linear.source.base, linear.source.steps)
        for steps in plan.forms[linear]:
            layers.append(
                Layer(
                    plan.layer(linear),
                    source,
                    plan.tensor(linear, steps),
                    weights,
                    bias,
                    _functions(steps),
                )
            )
    outputs = [
        GraphOutput(name, plan.tensor(value.base, value.steps), value.shape)
        for name, value in reading.outputs.items()
    ]
    return Model(reading.name, inputs, layers, outputs)


def _functions(steps: tuple[Step, ...]) -> tuple[Function, ...]:
    return tuple(step for step in steps if isinstance(step, Function))


def _float_numbers(linear: Linear) -> tuple[Float, Float]:
    weights = np.ascontiguousarray(linear.weights.value, np.float32)
    if linear.bias is None:
        return weights, np.zeros(len(weights), np.float32)
    return weights, np.ascontiguousarray(linear.bias.value, np.float32)
