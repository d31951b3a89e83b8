# SPDX-License-Identifier: Apache-2.0
"""ONNX models: what the engine runs becomes a `Model` or `QuantModel`, any can be checked."""

from __future__ import annotations

from contextlib import suppress
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UnsupportedModelError
from . import graph
from .graph import (
    Concat,
    Function,
    GraphInput,
    GraphOutput,
    Layer,
    Model,
    QuantModel,
    Slice,
    View,
    image_shape,
)
from .onnx_file import read_graph
from .onnx_integers import integer_model
from .onnx_linear import with_factors
from .onnx_plan import Plan, unmoved
from .onnx_reader import NodeCheck, Problem, Reading, read_values
from .onnx_values import (
    AtStep,
    Cells,
    Hidden,
    Join,
    Linear,
    Operator,
    Part,
    Pool,
    Product,
    Step,
    Sum,
    Value,
    shown_parts,
)
from .recurrent_floats import FloatRecurrent

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
    return lower(reading)


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
            lower(reading)
    late = {p.name: p.reason for p in reading.problems[judged:] if p.kind == "node"}
    checks = [
        NodeCheck(c.name, c.op, "unsupported", late[c.name]) if c.name in late else c
        for c in reading.checks
    ]
    others = [p for p in reading.problems if p.kind != "node"]
    return checks + [NodeCheck(f"{p.kind} {p.name!r}", "", "unsupported", p.reason) for p in others]


def lower(reading: Reading) -> Model | QuantModel:
    """The layers of what was read without problems.

    Raises:
        UnsupportedModelError: nodes that cannot run as they stand there; all are listed.
    """
    return integer_model(reading) if reading.quantised else _float_model(reading)


def _float_model(reading: Reading) -> Model:
    """Layers with the functions behind them, in as many forms as are needed."""
    plan = Plan(reading, _split)
    for operator in plan.operators:
        if isinstance(operator, Pool) and not operator.maximum and len(operator.taps) > 1:
            reason = (
                "its places divide by different numbers, as padding does not count or ceil_mode "
                "adds places, which is supported in quantised models; quantise the model, or set "
                "count_include_pad=1 and ceil_mode=0"
            )
            reading.problems.append(Problem("node", operator.node, "AveragePool", reason))
    reading.refuse()
    inputs = [
        GraphInput(
            base.name, base.given, _functions(steps), plan.tensor(base, steps), base.arrangement,
            base.shape, base.batch, base.steps, base.first, base.state_bits,
        )
        for base in plan.inputs
        for steps in plan.forms[base]
    ]  # fmt: skip
    layers: list[Layer | FloatRecurrent] = []
    views: list[View] = []
    for operator in plan.operators:
        if isinstance(operator, Hidden) and operator.kind == "y":
            layers.append(_recurrent(plan, operator.cells))
        for steps in plan.forms[operator]:
            if isinstance(operator, Hidden):
                if steps:
                    inner = plan.tensor(operator, ())
                    output = plan.tensor(operator, steps)
                    layers.append(_unchanged(plan, operator, inner, output, _functions(steps)))
            elif isinstance(operator, (Join, Part, AtStep)):
                view, behind = _float_view(plan, operator, steps)
                views.append(view)
                layers += behind
            else:
                layers += _float_layers(plan, operator, steps)
    outputs = [
        _float_output(plan, name, part)
        for name, value in reading.outputs.items()
        for part in shown_parts(value)
    ]
    return Model(reading.name, inputs, layers, outputs, views, reading.lengths)


def _float_output(plan: Plan, name: str, value: Value) -> GraphOutput:
    steps, rest = _split(value)
    return GraphOutput(
        name, plan.tensor(value.base, steps), value.shape, _functions(rest), value.arrangement,
        value.batch,
    )  # fmt: skip


def _recurrent(plan: Plan, cells: Cells) -> FloatRecurrent:
    """One layer for all that `cells` give."""
    source = cells.source
    starts = [
        plan.tensor(start.base, start.steps) if start else ""
        for start in (cells.initial_h, cells.initial_state)
    ]
    y, *last = (Hidden(cells, kind) for kind in ("y", "y_h", "y_state"))
    return FloatRecurrent(
        plan.layer(y),
        plan.tensor(source.base, source.steps),
        plan.tensor(y, ()),
        cells.weights,
        cells.reverse,
        *(plan.tensor(each, ()) if each in plan.forms else "" for each in last),
        *starts,
    )


def _split(value: Value) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """From the first function on that only the host can do, steps are its."""
    steps = value.steps
    cut = next((i for i, s in enumerate(steps) if isinstance(s, Function) and s.on_host), None)
    return steps[:cut], () if cut is None else steps[cut:]


def _functions(steps: tuple[Step, ...]) -> tuple[Function, ...]:
    return tuple(step for step in steps if isinstance(step, Function))


def _float_view(
    plan: Plan, operator: Join | Part | AtStep, steps: tuple[Step, ...]
) -> tuple[View, list[Layer]]:
    """The view that gives `operator`, and a layer for functions behind it."""
    output, functions = plan.tensor(operator, steps), _functions(steps)
    inner = plan.unnamed(operator) if functions else output
    parts = tuple(plan.tensor(source.base, source.steps) for source in operator.sources)
    view: View = Concat(parts, inner)
    if isinstance(operator, Part):
        view = Slice(parts[0], inner, operator.first, image_shape(operator.shape))
    elif isinstance(operator, AtStep):
        view = graph.AtStep(parts[0], inner, operator.step)
    return view, [_unchanged(plan, operator, inner, output, functions)] if functions else []


def _float_layers(
    plan: Plan, operator: Linear | Pool | Sum, steps: tuple[Step, ...]
) -> list[Layer]:
    """What gives `operator` in this form. A sum through a curve takes a layer more: sums end with a
    clamp."""
    output, functions = plan.tensor(operator, steps), _functions(steps)
    if not isinstance(operator, Sum):
        whole = with_factors(Value(operator, steps, operator.shape, "float32"))
        assert isinstance(whole.base, (Linear, Pool))
        return [_float_layer(plan, whole.base, output, _functions(whole.steps))]
    own = plan.adds.get(operator, 0)
    source = operator.sources[own]
    if operator in plan.adds:
        assert isinstance(source.base, (Linear, Pool))
        layer = _float_layer(plan, source.base, output, functions)
    else:
        tensor = plan.tensor(source.base, source.steps)
        layer = _unchanged(plan, operator, tensor, output, functions)
    other = operator.sources[1 - own]
    layer.other = plan.tensor(other.base, other.steps)
    layer.product = isinstance(operator, Product)
    if all(f.clamps for f in functions):
        return [layer]
    layer.output, layer.functions = plan.unnamed(operator), ()
    return [layer, _unchanged(plan, operator, layer.output, output, functions)]


def _float_layer(
    plan: Plan, operator: Linear | Pool, output: str, functions: tuple[Function, ...]
) -> Layer:
    source = plan.tensor(operator.source.base, operator.source.steps)
    name = plan.layer(operator)
    if isinstance(operator, Pool):
        channels, window = operator.window.channels, operator.window
        number = 1.0 if operator.maximum else 1.0 / operator.taps[0]
        weights = np.full((channels, 1, *window.kernel), number, np.float32)
        bias = np.zeros(channels, np.float32)
        return Layer(
            name, source, output, weights, bias, functions, window, channels, operator.maximum
        )
    weights = np.ascontiguousarray(operator.weights.value, np.float32)
    bias = np.zeros(len(weights), np.float32)
    if operator.bias is not None:
        bias = np.ascontiguousarray(operator.bias.value, np.float32)
    return Layer(name, source, output, weights, bias, functions, operator.window, operator.groups)


def _unchanged(
    plan: Plan, operator: Operator, source: str, output: str, functions: tuple[Function, ...]
) -> Layer:
    """A layer that gives what it reads."""
    weights, window = unmoved(operator)
    bias = np.zeros(len(weights), np.float32)
    name = plan.layer(operator)
    return Layer(name, source, output, weights.astype(np.float32), bias, functions, window)
