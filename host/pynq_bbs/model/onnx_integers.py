# SPDX-License-Identifier: Apache-2.0
"""A quantised ONNX graph as the integer operators that it describes (DESIGN.md section 3).

`DequantizeLinear -> MatMul or Conv (-> Add) (-> functions) -> QuantizeLinear` is one layer. So is
an average; a maximum is of the integers as they are. The sum of two tensors is part of the layer
that makes one of them, where nothing else reads that one, or else a layer of its own.

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
from numpy.typing import NDArray

from ..errors import ModelError
from .arithmetic import (
    Scale,
    clamp_table,
    function_table,
    integer_bias,
    multiplier,
    sum_of,
    sum_scale,
    then,
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
from .onnx_plan import Plan, unmoved
from .onnx_reader import Problem, Reading
from .onnx_values import (
    AtStep,
    Constant,
    Dequantise,
    Hidden,
    Join,
    Linear,
    ModelInput,
    Operator,
    Part,
    Pool,
    Quantise,
    Step,
    Sum,
    Value,
)
from .pooling import average_pool

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
    """Up to the last QuantizeLinear a tensor's steps are the producer's, then its reader's; what
    the host does is always the reader's."""
    steps = value.steps
    end = next(
        (i for i, s in enumerate(steps) if isinstance(s, Function) and s.on_host), len(steps)
    )
    cut = max((i + 1 for i, s in enumerate(steps[:end]) if isinstance(s, Quantise)), default=0)
    return steps[:cut], steps[cut:]


class _Refusal(Exception):  # noqa: N818 - becomes a line of UnsupportedModelError
    pass


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
                except _Refusal as problem:
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
                raise _Refusal("its integers are requantised before any layer reads them")
            scale, zero_point = self._scale_at_readers(base)
            return replace(plain, scale=scale, zero_point=zero_point)
        if not steps or any(not isinstance(s, Function) for s in steps[:-1]):
            what = "quantised more than once" if steps else "not quantised"
            raise _Refusal(f"is {what} before a layer reads it; put one QuantizeLinear there")
        last = steps[-1]
        assert isinstance(last, Quantise)  # `split` cuts behind one
        return replace(
            plain, scale=last.scale, zero_point=last.zero_point, functions=_functions(steps)
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
                raise _Refusal("LSTM and GRU are supported in float models, which bbs quantises")
            assert isinstance(operator, Pool)
            if operator.maximum:
                return [self._maximum(operator, steps)]
            return self._average(operator, steps)
        except (_Refusal, ModelError) as problem:
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
        x = _scale(linear.source)
        weights, w_scale = _integer_weights(linear.weights)
        scale = self.sums[linear] = sum_scale(x.scale, w_scale)
        layer = self._plain(linear, linear.source, steps, weights, x.zero_point)
        layer.bias = _integer_bias(linear.bias, scale)
        layer.window, layer.groups = linear.window, linear.groups
        if steps:
            y, layer.table = _requantised(steps)
            layer.multiplier, layer.zero_point = multiplier(x.scale, w_scale, y[0]), y[1]
        else:
            self._check_sums(linear)
        return layer

    def _average(self, pool: Pool, steps: Steps) -> list[QuantLayer]:
        x = _scale(pool.source)
        if steps:
            y, table = _requantised(steps)
            name, source = self.plan.tensor(pool, steps), self._tensor(pool.source)
            layers, constants = average_pool(
                name, source, pool.window, (x.scale, x.zero_point), y, counted=pool.counted
            )
            self.constants += constants
            return [*layers[:-1], replace(layers[-1], name=self.plan.layer(pool), table=table)]
        self._check_sums(pool)
        if len(pool.taps) > 1:
            raise _Refusal(
                "its places divide by different numbers and its result is not quantised; put "
                "QuantizeLinear behind it"
            )
        ones = np.ones(pool.window.channels, np.float32)
        self.sums[pool] = sum_scale(x.scale, ones / np.float32(pool.taps[0]))
        return [self._pooling(pool, steps, x.zero_point)]

    def _maximum(self, pool: Pool, steps: Steps) -> QuantLayer:
        if pool.dtype not in ("int8", "uint8") or split(pool.source)[1]:
            raise _Refusal(_UNQUANTISED)
        layer = replace(self._pooling(pool, steps, 0), maximum=True)
        layer.multiplier = np.ones(pool.window.channels, np.float32)
        layer.table = _later_table(steps)
        return layer

    def _pooling(self, pool: Pool, steps: Steps, zero_point: int) -> QuantLayer:
        window, channels = pool.window, pool.window.channels
        weights = np.ones((channels, 1, *window.kernel), np.int8)
        layer = self._plain(pool, pool.source, steps, weights, zero_point)
        return replace(layer, window=window, groups=channels)

    def _join(self, join: Join, steps: Steps) -> list[QuantLayer]:
        one: Scale = np.float32(1), 0
        if join.dtype == "float32":
            scales = [(x.scale, x.zero_point) for x in map(_scale, join.sources)]
            if not steps:
                raise _Refusal(
                    "its inputs have different scales and its result is not quantised; put "
                    "QuantizeLinear behind it"
                )
            y, table = _requantised(steps)
        else:
            scales = [one] * len(join.sources)
            y, table = one, _later_table(steps)
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
            raise _Refusal(_UNQUANTISED)
        output, table = self.plan.tensor(part, steps), _later_table(steps)
        view = output if table is None else f"{output}:0"
        shape = image_shape(part.shape)
        self.views.append(Slice(self._tensor(part.source), view, part.first, shape))
        if table is None:
            return []
        return [replace(rescaled(output, view, shape), table=table)]

    def _sum(self, base: Sum, steps: Steps) -> list[QuantLayer] | None:
        scales = [(x.scale, x.zero_point) for x in map(_scale, base.sources)]
        first = next((i for i, s in enumerate(steps) if isinstance(s, Quantise)), None)
        if first is None:
            raise _Refusal("its result is not quantised; put QuantizeLinear behind it")
        y, functions = steps[first], _functions(steps[:first])
        assert isinstance(y, Quantise)
        if steps[first + 1 :] or not all(f.clamps for f in functions):
            raise _Refusal(
                "a function other than Relu and Clip stands behind an addition; it is supported "
                "behind linear layers only"
            )
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
        y_scale = y.scale, y.zero_point
        both = sum_of(other, scales[own], scales[1 - own], y_scale, functions)
        last = replace(layers[-1], output=self.plan.tensor(base, steps), combination=both)
        return [*layers[:-1], last]

    def _check_sums(self, operator: Operator) -> None:
        """No layer reads INT32 sums."""
        for other in self.plan.operators:
            for source in other.sources:
                if source.base is operator and not split(source)[0]:
                    raise _Refusal(
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
            return replace(output, scale=scale, functions=_on_host(reader))
        last = reader[0] if reader else steps[-1] if steps else Dequantise(np.float32(1), 0)
        assert isinstance(last, (Quantise, Dequantise))
        scale = np.array([last.scale], np.float32)
        return replace(
            output, scale=scale, zero_point=last.zero_point, functions=_on_host(reader[1:])
        )


#: What a layer's input lacks.
_UNQUANTISED = (
    "its input is not quantised; put QuantizeLinear and DequantizeLinear right before it, behind "
    "any function"
)


def _scale(source: Value) -> Dequantise:
    """Scale and zero point of what a layer reads."""
    _, reader = split(source)
    if len(reader) != 1 or not isinstance(reader[0], Dequantise):
        raise _Refusal(_UNQUANTISED)
    return reader[0]


def _requantised(steps: Steps) -> tuple[Scale, Int8 | None]:
    """Scale and zero point of a layer's sums, and the table behind; `steps` hold a Quantise, and
    end with one."""
    first = next(i for i, s in enumerate(steps) if isinstance(s, Quantise))
    y = steps[first]
    assert isinstance(y, Quantise)
    functions = _functions(steps[:first])
    curved = [f for f in functions if not f.clamps]
    if curved:
        if curved[0].name not in FUNCTION_RANGES:
            raise _Refusal(
                f"{curved[0].name} stands behind sums that have no scale; put QuantizeLinear and "
                "DequantizeLinear before it"
            )
        to: Scale = np.float32(FUNCTION_RANGES[curved[0].name] / 127.0), 0
        table: Int8 | None = function_table(functions, *to, y.scale, y.zero_point)
    else:
        to = y.scale, y.zero_point
        table = clamp_table(functions, *to)
    return to, then(table, _later_table(steps[first + 1 :]))


def _functions(steps: Steps) -> tuple[Function, ...]:
    return tuple(step for step in steps if isinstance(step, Function))


def _on_host(steps: Steps) -> tuple[Function, ...]:
    """All that the host does behind the first DequantizeLinear of an output, or behind sums."""
    functions = []
    for step in steps:
        if isinstance(step, Function):
            functions.append(step)
        else:
            name = "quantise" if isinstance(step, Quantise) else "dequantise"
            functions.append(Function(name, (float(step.scale), float(step.zero_point))))
    return tuple(functions)


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
    scales = weights.scale.reshape(len(weights.scale), -1)
    scale = scales[:, 0]
    if not (scales == scale[:, None]).all():
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
