# SPDX-License-Identifier: Apache-2.0
"""A quantised ONNX graph as the integer operators that it describes (DESIGN.md section 3).

`DequantizeLinear -> MatMul or Conv (-> Add) (-> functions) -> QuantizeLinear` is one layer. So is
an average; a maximum is of the integers as they are. The sum or product of two tensors is part of
the layer that makes one of them, where nothing else reads that one, or else a layer of its own; a
table behind it is a layer more.

- Relu and Clip between the operator and its QuantizeLinear clamp in the output's scale, exactly.
- Sigmoid and tanh there have no scale for what they read. The definition: the sums are requantised
  to INT8 with zero point 0 and scale 8/127 (sigmoid) or 4/127 (tanh), beyond which both are flat
  to within half a step; a table leads from there to the output's scale.
- Functions between a DequantizeLinear and a QuantizeLinear are tables, exactly.
- Functions behind the last DequantizeLinear, or behind an operator whose result is not
  quantised, are applied to the model's output in float32, exactly. Softmax, and what follows it, is
  always among those.
- UINT8 tensors are INT8 tensors shifted by 128.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import ModelError
from .arithmetic import (
    Scale,
    multiplier,
    product_of,
    sum_of,
    sum_scale,
)
from .graph import (
    Concat,
    Float,
    Function,
    QuantInput,
    QuantLayer,
    QuantModel,
    QuantOutput,
    Slice,
    View,
    image_shape,
)
from .graph import Constant as Tensor
from .moving import concatenated, rescaled
from .onnx_numbers import (
    UNQUANTISED,
    Int8,
    Refusal,
    Steps,
    bias_of,
    finer,
    functions_of,
    host_functions,
    integer_weights,
    later_table,
    requantised,
    scale_of,
    split,
)
from .onnx_plan import Plan, unmoved
from .onnx_reader import Problem, Reading
from .onnx_values import (
    AtStep,
    Dequantise,
    Hidden,
    Join,
    Linear,
    ModelInput,
    Operator,
    Part,
    Pool,
    Product,
    Quantise,
    Sum,
    Value,
)
from .pooling import average_pool


def integer_model(reading: Reading) -> QuantModel:
    """The integer layers of a graph that was read without problems.

    Raises:
        UnsupportedModelError: layers whose input or weights are not quantised, weights beyond
            INT8, functions on integers that no layer makes; all listed at once.
    """
    return _Integers(reading).run()


class _Integers:
    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.plan = Plan(reading, split)
        self.layers: list[QuantLayer] = []
        self.constants: list[Tensor] = []
        self.views: list[View] = []
        self.sums: dict[Operator, Float] = {}  # scale of the sums of every layer

    def run(self) -> QuantModel:
        inputs = []
        for base in self.plan.inputs:
            for steps in self.plan.forms[base]:
                try:
                    inputs.append(self._input(base, steps))
                except Refusal as problem:
                    self._report("input", base.name, problem)
        for operator in self.plan.operators:
            for steps in self.plan.forms[operator]:
                layers = self._layers(operator, steps)
                if layers is None:
                    break
                self.layers += layers
        self.reading.refuse()
        outputs = [self._output(name, value) for name, value in self.reading.outputs.items()]
        return QuantModel(
            self.reading.name,
            inputs,
            self.layers,
            outputs,
            views=self.views,
            constants=self.constants,
        )

    def _report(self, kind: str, name: str, problem: Exception) -> None:
        self.reading.problems.append(Problem(kind, name, "", str(problem)))

    def _input(self, base: ModelInput, steps: Steps) -> QuantInput:
        plain = QuantInput(
            base.name, self.plan.tensor(base, steps), base.given, base.dtype, np.float32(1), 0,
            arrangement=base.arrangement, tensor_shape=base.shape, batch_axis=base.batch,
        )  # fmt: skip
        if base.dtype != "float32":
            if steps:
                raise Refusal("its integers are requantised before any layer reads them")
            scale, zero_point = self._scale_at_readers(base)
            return replace(plain, scale=scale, zero_point=zero_point)
        if not steps or any(not isinstance(s, Function) for s in steps[:-1]):
            what = "quantised more than once" if steps else "not quantised"
            raise Refusal(f"is {what} before a layer reads it; put one QuantizeLinear there")
        last = steps[-1]
        assert isinstance(last, Quantise)  # `split` cuts behind one
        return replace(
            plain, scale=last.scale, zero_point=last.zero_point, functions=functions_of(steps)
        )

    def _scale_at_readers(self, base: ModelInput) -> tuple[np.float32, int]:
        """What an integer input is worth; for information, layers have their own zero point."""
        for operator in self.plan.operators:
            for source in operator.sources:
                step = source.steps[0] if source.steps else None
                if source.base == base and isinstance(step, Dequantise):
                    return step.scale, step.zero_point
        return np.float32(1), 0

    def _layers(self, operator: Operator, steps: Steps) -> list[QuantLayer] | None:
        """The layers that give `operator` in this form, the last of them its tensor where it is no
        view; None, and a report, where they cannot."""
        try:
            if isinstance(operator, Linear):
                return [self._linear(operator, steps)]
            if isinstance(operator, Sum):
                return self._sum(operator, steps)
            if isinstance(operator, Join):
                return self._join(operator, steps)
            if isinstance(operator, Part):
                return self._part(operator, steps)
            if isinstance(operator, (Hidden, AtStep)):
                raise Refusal("LSTM and GRU are supported in float models, which bbs quantises")
            assert isinstance(operator, Pool)
            if operator.maximum:
                return [self._maximum(operator, steps)]
            return self._average(operator, steps)
        except (Refusal, ModelError) as problem:
            self._report("node", operator.node, problem)
            return None

    def _plain(
        self, operator: Operator, source: Value, steps: Steps, weights: Int8, zero_point: int
    ) -> QuantLayer:
        """A layer without its numbers."""
        return QuantLayer(
            name=self.plan.layer(operator),
            input=self._tensor(source),
            output=self.plan.tensor(operator, steps),
            weights=weights,
            bias=np.zeros(len(weights), np.int32),
            input_zero_point=zero_point,
            multiplier=None,
        )

    def _tensor(self, source: Value) -> str:
        return self.plan.tensor(source.base, split(source)[0])

    def _linear(self, linear: Linear, steps: Steps) -> QuantLayer:
        x = scale_of(linear.source)
        weights, w_scale = integer_weights(linear.weights)
        weights, w_scale = finer(weights, w_scale, linear.bias, x.scale)
        scale = self.sums[linear] = sum_scale(x.scale, w_scale)
        layer = self._plain(linear, linear.source, steps, weights, x.zero_point)
        layer.bias = bias_of(linear.bias, scale)
        layer.window, layer.groups = linear.window, linear.groups
        if -8 <= weights.min() and weights.max() < 8:  # as INT4 weights come
            layer.weight_bits = 4
        if steps:
            y, layer.table = requantised(steps)
            layer.multiplier, layer.zero_point = multiplier(x.scale, w_scale, y[0]), y[1]
        else:
            self._check_sums(linear)
        return layer

    def _average(self, pool: Pool, steps: Steps) -> list[QuantLayer]:
        x = scale_of(pool.source)
        if steps:
            y, table = requantised(steps)
            name, source = self.plan.tensor(pool, steps), self._tensor(pool.source)
            layers, constants = average_pool(
                name, source, pool.window, (x.scale, x.zero_point), y, counted=pool.counted
            )
            self.constants += constants
            return [*layers[:-1], replace(layers[-1], name=self.plan.layer(pool), table=table)]
        self._check_sums(pool)
        if len(pool.taps) > 1:
            raise Refusal(
                "its places divide by different numbers and its result is not quantised; put "
                "QuantizeLinear behind it"
            )
        ones = np.ones(pool.window.channels, np.float32)
        self.sums[pool] = sum_scale(x.scale, ones / np.float32(pool.taps[0]))
        return [self._pooling(pool, steps, x.zero_point)]

    def _maximum(self, pool: Pool, steps: Steps) -> QuantLayer:
        if pool.dtype not in ("int8", "uint8") or split(pool.source)[1]:
            raise Refusal(UNQUANTISED)
        layer = replace(self._pooling(pool, steps, 0), maximum=True)
        layer.multiplier = np.ones(pool.window.channels, np.float32)
        layer.table = later_table(steps)
        return layer

    def _pooling(self, pool: Pool, steps: Steps, zero_point: int) -> QuantLayer:
        window, channels = pool.window, pool.window.channels
        weights = np.ones((channels, 1, *window.kernel), np.int8)
        layer = self._plain(pool, pool.source, steps, weights, zero_point)
        return replace(layer, window=window, groups=channels)

    def _join(self, join: Join, steps: Steps) -> list[QuantLayer]:
        one: Scale = np.float32(1), 0
        if join.dtype == "float32":
            scales = [(x.scale, x.zero_point) for x in map(scale_of, join.sources)]
            if not steps:
                raise Refusal(
                    "its inputs have different scales and its result is not quantised; put "
                    "QuantizeLinear behind it"
                )
            y, table = requantised(steps)
        else:
            scales = [one] * len(join.sources)
            y, table = one, later_table(steps)
        output = self.plan.tensor(join, steps)
        parts = [
            (self._tensor(source), image_shape(source.base.shape), x)
            for source, x in zip(join.sources, scales, strict=True)
        ]
        if table is None:
            layers, view = concatenated(output, parts, y)
        else:
            layers = [
                replace(rescaled(f"{output}:{i}", *part, y), table=table)
                for i, part in enumerate(parts)
            ]
            view = Concat(tuple(layer.output for layer in layers), output)
        self.views.append(view)
        return layers

    def _part(self, part: Part, steps: Steps) -> list[QuantLayer]:
        if part.dtype == "float32":
            raise Refusal(UNQUANTISED)
        output, table = self.plan.tensor(part, steps), later_table(steps)
        view = output if table is None else f"{output}:0"
        shape = image_shape(part.shape)
        self.views.append(Slice(self._tensor(part.source), view, part.first, shape))
        if table is None:
            return []
        return [replace(rescaled(output, view, shape), table=table)]

    def _sum(self, base: Sum, steps: Steps) -> list[QuantLayer] | None:
        scales = [(x.scale, x.zero_point) for x in map(scale_of, base.sources)]
        first = next((i for i, s in enumerate(steps) if isinstance(s, Quantise)), None)
        if first is None:
            raise Refusal("its result is not quantised; put QuantizeLinear behind it")
        output, functions = self.plan.tensor(base, steps), functions_of(steps[:first])
        step = steps[first]
        assert isinstance(step, Quantise)
        y: Scale = step.scale, step.zero_point
        table = later_table(steps[first + 1 :])
        if not all(f.clamps for f in functions):
            (y, table), functions = requantised(steps), ()
        inner = output if table is None else f"{output}:0"
        own = self.plan.adds.get(base)
        if own is None:
            own, source = 0, base.sources[0]
            weights, window = unmoved(base)
            layer = self._plain(base, source, steps, weights.astype(np.int8), scales[0][1])
            layer.window, layer.zero_point = window, scales[0][1]
            layer.multiplier = np.ones(len(weights), np.float32)
            layers = [layer]
        else:
            source = base.sources[own]
            assert isinstance(source.base, (Linear, Pool))
            made = self._layers(source.base, split(source)[0])
            if made is None:
                return None
            layers = made
        other = self._tensor(base.sources[1 - own])
        combined = product_of if isinstance(base, Product) else sum_of
        both = combined(other, scales[own], scales[1 - own], y, functions)
        layers = [*layers[:-1], replace(layers[-1], output=inner, combination=both)]
        if table is None:
            return layers
        # A combination has the last word in its layer.
        return [*layers, replace(rescaled(output, inner, image_shape(base.shape)), table=table)]

    def _check_sums(self, operator: Operator) -> None:
        """No layer reads INT32 sums."""
        for other in self.plan.operators:
            for source in other.sources:
                if source.base is operator and not split(source)[0]:
                    raise Refusal(
                        "its INT32 sums are read by another layer; put QuantizeLinear and "
                        "DequantizeLinear between them"
                    )

    def _output(self, name: str, value: Value) -> QuantOutput:
        steps, reader = split(value)
        output = QuantOutput(
            name, self.plan.tensor(value.base, steps), value.shape, value.dtype,
            arrangement=value.arrangement, batch_axis=value.batch,
        )  # fmt: skip
        if not steps and value.base in self.sums:
            assert isinstance(value.base, (Linear, Pool))
            if value.dtype == "int32":
                return output
            scale = self.sums[value.base]
            return replace(output, scale=scale, functions=host_functions(reader))
        last = reader[0] if reader else steps[-1] if steps else Dequantise(np.float32(1), 0)
        assert isinstance(last, (Quantise, Dequantise))
        scale = np.array([last.scale], np.float32)
        return replace(
            output, scale=scale, zero_point=last.zero_point, functions=host_functions(reader[1:])
        )
