# SPDX-License-Identifier: Apache-2.0
"""A quantised ONNX graph as the integer operators that it describes (DESIGN.md section 3).

`DequantizeLinear -> MatMul (-> Add) (-> functions) -> QuantizeLinear` is one layer.

- Relu and Clip between the operator and its QuantizeLinear clamp in the output's scale, exactly.
- Sigmoid and tanh there have no scale for what they read. The definition: the sums are requantised
  to INT8 with zero point 0 and scale 8/127 (sigmoid) or 4/127 (tanh), beyond which both are flat
  to within half a step; a table leads from there to the output's scale.
- Functions between a DequantizeLinear and a QuantizeLinear are tables, exactly.
- Functions behind the last DequantizeLinear, or behind an operator whose result is not
  quantised, are applied to the model's output in float32, exactly.
- UINT8 tensors are INT8 tensors shifted by 128.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .arithmetic import (
    clamp_table,
    function_table,
    integer_bias,
    multiplier,
    sum_scale,
    then,
)
from .graph import Float, Function, QuantInput, QuantLayer, QuantModel, QuantOutput
from .onnx_plan import Plan
from .onnx_reader import Problem, Reading
from .onnx_values import Constant, Dequantise, Linear, ModelInput, Quantise, Step, Value

Steps = tuple[Step, ...]
Int8 = NDArray[np.int8]

#: What sigmoid and tanh read where the file gives no scale: -range to range.
FUNCTION_RANGES = {"sigmoid": 8.0, "tanh": 4.0}

#: A stored bias scale this close to x_scale * w_scale differs from it by rounding only.
_SAME_SCALE = 1e-5


def integer_model(reading: Reading) -> QuantModel:
    """The integer layers of a graph that was read without problems.

    Raises:
        UnsupportedModelError: layers whose input or weights are not quantised, weights beyond
            INT8, functions on integers that no layer makes; all listed at once.
    """
    return _Integers(reading).run()


def split(value: Value) -> tuple[Steps, Steps]:
    """Up to the last QuantizeLinear a tensor's steps are the producer's, then its reader's."""
    cut = max((i + 1 for i, s in enumerate(value.steps) if isinstance(s, Quantise)), default=0)
    return value.steps[:cut], value.steps[cut:]


class _Refusal(Exception):  # noqa: N818 - becomes a line of UnsupportedModelError
    pass


class _Integers:
    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.plan = Plan(reading, split)
        self.layers: list[QuantLayer] = []
        self.sums: dict[Linear, Float] = {}  # scale of the sums of every layer

    def run(self) -> QuantModel:
        inputs = []
        for base in self.plan.inputs:
            for steps in self.plan.forms[base]:
                try:
                    inputs.append(self._input(base, steps))
                except _Refusal as problem:
                    self._report("input", base.name, problem)
        for linear in self.plan.linears:
            try:
                self._linear(linear)
            except (_Refusal, ModelError) as problem:
                self._report("node", linear.node, problem)
        self.reading.refuse()
        outputs = [self._output(name, value) for name, value in self.reading.outputs.items()]
        return QuantModel(self.reading.name, inputs, self.layers, outputs)

    def _report(self, kind: str, name: str, problem: Exception) -> None:
        self.reading.problems.append(Problem(kind, name, "", str(problem)))

    def _input(self, base: ModelInput, steps: Steps) -> QuantInput:
        tensor = self.plan.tensor(base, steps)
        if base.dtype != "float32":
            if steps:
                raise _Refusal("its integers are requantised before any layer reads them")
            scale, zero_point = self._scale_at_readers(base)
            return QuantInput(base.name, tensor, base.shape, base.dtype, scale, zero_point)
        if not steps or any(not isinstance(s, Function) for s in steps[:-1]):
            what = "quantised more than once" if steps else "not quantised"
            raise _Refusal(f"is {what} before a layer reads it; put one QuantizeLinear there")
        last = steps[-1]
        assert isinstance(last, Quantise)  # `split` cuts behind one
        return QuantInput(
            base.name, tensor, base.shape, "float32", last.scale, last.zero_point,
            _functions(steps),
        )  # fmt: skip

    def _scale_at_readers(self, base: ModelInput) -> tuple[np.float32, int]:
        """What an integer input is worth; for information, layers have their own zero point."""
        for linear in self.plan.linears:
            step = linear.source.steps[0] if linear.source.steps else None
            if linear.source.base is base and isinstance(step, Dequantise):
                return step.scale, step.zero_point
        return np.float32(1), 0

    def _linear(self, linear: Linear) -> None:
        source_steps, reader = split(linear.source)
        if len(reader) != 1 or not isinstance(reader[0], Dequantise):
            raise _Refusal(
                "its input is not quantised; put QuantizeLinear and DequantizeLinear right before "
                "it, behind any function"
            )
        x = reader[0]
        weights, w_scale = _integer_weights(linear.weights)
        scale = sum_scale(x.scale, w_scale)
        bias = _integer_bias(linear.bias, scale)
        self.sums[linear] = scale
        source = self.plan.tensor(linear.source.base, source_steps)
        for steps in self.plan.forms[linear]:
            layer = QuantLayer(
                self.plan.layer(linear),
                source,
                self.plan.tensor(linear, steps),
                weights,
                bias,
                x.zero_point,
                None,
            )
            if steps:
                self._requantise(layer, x.scale, w_scale, steps)
            elif self._is_read_by_layer(linear):
                raise _Refusal(
                    "its INT32 sums are read by another layer; put QuantizeLinear and "
                    "DequantizeLinear between them"
                )
            self.layers.append(layer)

    def _is_read_by_layer(self, linear: Linear) -> bool:
        return any(
            other.source.base is linear and not split(other.source)[0]
            for other in self.plan.linears
        )

    def _requantise(
        self, layer: QuantLayer, x_scale: np.float32, w_scale: Float, steps: Steps
    ) -> None:
        """Fill in multiplier, zero point and table; `steps` end with a Quantise."""
        first = next(i for i, s in enumerate(steps) if isinstance(s, Quantise))
        y = steps[first]
        assert isinstance(y, Quantise)
        functions = _functions(steps[:first])
        curved = [f for f in functions if not f.clamps]
        if curved:
            y_scale = np.float32(FUNCTION_RANGES[curved[0].name] / 127.0)
            layer.zero_point = 0
            layer.table = function_table(functions, y_scale, 0, y.scale, y.zero_point)
        else:
            y_scale = y.scale
            layer.zero_point = y.zero_point
            layer.table = clamp_table(functions, y.scale, y.zero_point)
        layer.multiplier = multiplier(x_scale, w_scale, y_scale)
        layer.table = then(layer.table, _later_table(steps[first + 1 :]))

    def _output(self, name: str, value: Value) -> QuantOutput:
        steps, reader = split(value)
        tensor = self.plan.tensor(value.base, steps)
        functions = _functions(reader)
        if not steps:
            assert isinstance(value.base, Linear)  # the reader refuses other outputs
            if value.dtype == "int32":
                return QuantOutput(name, tensor, value.shape, "int32")
            scale = self.sums[value.base]
            return QuantOutput(name, tensor, value.shape, "float32", scale, 0, functions)
        last = reader[0] if reader else steps[-1]
        assert isinstance(last, (Quantise, Dequantise))
        scale = np.array([last.scale], np.float32)
        return QuantOutput(
            name, tensor, value.shape, value.dtype, scale, last.zero_point, functions
        )


def _functions(steps: Steps) -> tuple[Function, ...]:
    return tuple(step for step in steps if isinstance(step, Function))


def _later_table(steps: Steps) -> Int8 | None:
    """Everything behind the first QuantizeLinear: (Dequantise, functions, Quantise) again and
    again."""
    table: Int8 | None = None
    start = 0
    for i, step in enumerate(steps):
        if isinstance(step, Quantise):
            x = steps[start]
            assert isinstance(x, Dequantise)  # integers take no function
            between = _functions(steps[start:i])
            table = then(
                table,
                function_table(between, x.scale, x.zero_point, step.scale, step.zero_point),
            )
            start = i + 1
    return table


def _integer_weights(weights: Constant) -> tuple[Int8, Float]:
    if weights.scale is None:
        raise _Refusal(
            "its weights are float32 while its input is INT8; quantise them "
            "(DequantizeLinear of an INT8 constant)"
        )
    scale = weights.scale[:, 0]
    if not (weights.scale == scale[:, None]).all():
        raise _Refusal("its weights have a scale per input feature; one per row is supported")
    low, high = int(weights.array.min()), int(weights.array.max())
    if low < -128 or high > 127:
        raise _Refusal(
            f"its weights less their zero point reach from {low} to {high}, beyond INT8; "
            "quantise them symmetrically, with zero point 0 (UINT8: 128)"
        )
    return np.ascontiguousarray(weights.array, np.int8), np.ascontiguousarray(scale, np.float32)


def _integer_bias(bias: Constant | None, scale: Float) -> NDArray[np.int32]:
    """INT32 in the scale of the sums; stored integers as they are where their scale is that."""
    if bias is None:
        return np.zeros(len(scale), np.int32)
    rounded = integer_bias(bias.value, scale)
    if bias.scale is None:
        return rounded
    same = np.abs(bias.scale - scale) <= _SAME_SCALE * scale
    return np.where(same, bias.array, rounded).astype(np.int32)
