# SPDX-License-Identifier: Apache-2.0
"""onnxruntime's forms: the model's file as it is, and our integers in each of its INT8 operators.

Tensors between layers have scale 1, so that an operator's `x_scale * w_scale / y_scale` is exactly
our multiplier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .chain import Chain, FloatLayer, IntegerLayer
from .peers import FLOAT, OWN, SAME, Batch, Form, rows_of

_OPSET = 17


def onnxruntime_forms(
    chain: Chain | None, why_none: str, model: str | None, threads: int
) -> list[Form]:
    """As `library_forms`."""
    forms = []
    if model is not None:
        forms.append(_as_it_is(model, threads))
    if chain is not None:
        for name, (make, signed, arithmetic) in _MAKERS.items():
            graph = make(_Graph(signed), chain)
            if graph is not None:
                run = _runner(_session(graph, threads), chain)
                exact = partial(_exact_dynamic, chain) if make is _dynamic else None
                forms.append(Form("onnxruntime INT8", name, arithmetic, run, exact))
    if not forms:
        raise InputError(f"there is no ONNX file, and {why_none}")
    return forms


def _session(model: Any, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _as_it_is(model: str, threads: int) -> Form:
    session = _session(model, threads)
    inputs, outputs = session.get_inputs(), [o.name for o in session.get_outputs()]
    # Where the second is open, it is that of the samples: they stand behind the steps.
    one_by_one = any(
        isinstance(i.shape[0], int) and not any(isinstance(n, str) for n in i.shape[1:2])
        for i in inputs
        if i.shape
    )

    def run_all(feeds: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(outputs, session.run(None, dict(feeds)), strict=True))

    def run(x: Batch) -> Any:
        feeds = x if isinstance(x, Mapping) else {inputs[0].name: x}
        if one_by_one:
            count = len(next(iter(feeds.values())))
            every = [run_all({n: v[i : i + 1] for n, v in feeds.items()}) for i in range(count)]
            results = {name: np.concatenate([y[name] for y in every]) for name in outputs}
        else:
            results = run_all(feeds)
        return results[outputs[0]] if len(outputs) == 1 else results

    floats = all(i.type == "tensor(float)" for i in inputs)
    name = "model as it is" + (", one sample at a time" if one_by_one else "")
    return Form("onnxruntime", name, FLOAT if floats else OWN, run)


def _runner(session: Any, chain: Chain) -> Callable[[Batch], Any]:
    wanted = "uint8" if session.get_inputs()[0].type == "tensor(uint8)" else "int8"

    def run(x: Batch) -> Any:
        array = next(iter(x.values())) if isinstance(x, Mapping) else x
        flat = _bytes_as(array.reshape(len(array), -1), wanted)
        (y,) = session.run(None, {"x": flat})
        return chain.finished(_bytes_as(y, chain.output.dtype))

    return run


def _bytes_as(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """INT8 as UINT8, which is 128 more, or the other way round; other types as they are."""
    if values.dtype.itemsize > 1 or values.dtype == dtype:
        return values
    return (values.view(np.uint8) ^ np.uint8(128)).view(dtype)


class _Graph:
    """Nodes and constants, named as they come. Activations are INT8, or 128 more in UINT8, which
    the kernels of many processors prefer."""

    def __init__(self, signed: bool) -> None:
        self.signed = signed
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Its output's name, or names; inputs are names, or arrays that become constants."""
        from onnx import helper

        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        made = [f"t{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def byte(self, value: int) -> NDArray[Any]:
        """An INT8 activation as this graph has it."""
        return np.array(value, np.int8) if self.signed else np.array(value + 128, np.uint8)

    def model(self, chain: Chain, y: str, dtype: Any) -> Any:
        from onnx import TensorProto, helper

        x_type = TensorProto.INT8 if self.signed else TensorProto.UINT8
        if chain.input.dtype == "float32":
            x_type = TensorProto.FLOAT
        features, rows = chain.layers[0].weights.shape[1], chain.layers[-1].weights.shape[0]
        self._nodes.append(helper.make_node("Identity", [y], ["y"]))
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "chain",
            [info("x", x_type, ["N", features])],
            [info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["N", rows])],
            self._constants,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8
        )

    def quantised_input(self, chain: Chain) -> str:
        if chain.input.dtype != "float32":
            return "x"
        scale, zero = np.float32(chain.input.scale), self.byte(chain.input.zero_point)
        return str(self.node("QuantizeLinear", "x", scale, zero))

    def finish(self, chain: Chain, y: str) -> Any:
        """The model whose last layer gives `y`, INT8, or INT32 sums."""
        output, sums = chain.output, chain.layers[-1].multiplier is None
        if output.dtype != "float32":
            return self.model(chain, y, np.int32 if sums else self.byte(0).dtype)
        if not sums:
            scale = np.float32(np.ravel(output.scale)[0])
            zero = self.byte(output.zero_point)
            return self.model(chain, self.node("DequantizeLinear", y, scale, zero), np.float32)
        floats = self.node("Cast", y, to=1)
        if output.zero_point:
            floats = self.node("Sub", floats, np.float32(output.zero_point))
        y = self.node("Mul", floats, np.asarray(output.scale, np.float32))
        return self.model(chain, y, np.float32)


_ONE = np.float32(1)


def _qdq(graph: _Graph, chain: Chain) -> Any:
    """Every layer a Gemm between DequantizeLinear and QuantizeLinear, which onnxruntime fuses."""
    h = graph.quantised_input(chain)
    for layer in chain.layers:
        step = layer.multiplier
        if step is None:
            if chain.output.dtype != "float32" or chain.output.zero_point:
                return None  # there is no INT32 output in this form
            step = np.broadcast_to(chain.output.scale, layer.bias.shape).astype(np.float32)
        x = graph.node("DequantizeLinear", h, _ONE, graph.byte(0))
        zeros = np.zeros(len(step), np.int8)
        w = graph.node("DequantizeLinear", layer.weights, step, zeros, axis=0)
        b = graph.node("DequantizeLinear", layer.bias, step, zeros.astype(np.int32), axis=0)
        h = graph.node("Gemm", x, w, b, transB=1)
        if layer.multiplier is None:
            return graph.model(chain, h, np.float32)
        h = graph.node("QuantizeLinear", h, _ONE, graph.byte(layer.zero_point))
        h = _clipped(graph, h, layer)
    return graph.finish(chain, h)


def _matmul_integer(graph: _Graph, chain: Chain) -> Any:
    """Sums by MatMulInteger, requantised by float operators."""
    h = graph.quantised_input(chain)
    for layer in chain.layers:
        sums = graph.node("MatMulInteger", h, layer.weights.T, graph.byte(0))
        h = graph.node("Add", sums, layer.bias)
        if layer.multiplier is None:
            break
        h = graph.node("Mul", graph.node("Cast", h, to=1), layer.multiplier)
        limits = (
            graph.byte(v).astype(np.float32) for v in (layer.zero_point, layer.low, layer.high)
        )
        zero, low, high = limits
        h = graph.node("Add", graph.node("Round", h), zero)
        h = graph.node("Cast", graph.node("Clip", h, low, high), to=3 if graph.signed else 2)
    return graph.finish(chain, h)


def _qlinear_matmul(graph: _Graph, chain: Chain) -> Any:
    """QLinearMatMul knows no bias, so it takes layers whose bias is all the input's zero point."""
    h = graph.quantised_input(chain)
    for layer in chain.layers:
        zero = _explains(layer)
        if zero is None or layer.multiplier is None:
            return None
        h = graph.node(
            "QLinearMatMul", h, _ONE, graph.byte(zero), layer.weights.T, layer.multiplier,
            np.zeros(len(layer.bias), np.int8), _ONE, graph.byte(layer.zero_point),
        )  # fmt: skip
        h = _clipped(graph, h, layer)
    return graph.finish(chain, h)


def _dynamic(graph: _Graph, chain: Chain) -> Any:
    """Activations quantised anew for every run, as onnxruntime's dynamic quantisation does."""
    h: Any = "x" if chain.input.dtype == "float32" else graph.node("Cast", "x", to=1)
    for exact, layer in zip(chain.layers, chain.float_layers(), strict=True):
        q, scale, zero = graph.node("DynamicQuantizeLinear", h, outputs=3)
        sums = graph.node("MatMulInteger", q, exact.weights.T, zero)
        steps = graph.node("Mul", scale, _weight_scale(exact, layer))
        h = graph.node("Mul", graph.node("Cast", sums, to=1), steps)
        h = graph.node("Add", h, layer.bias)
        if np.isfinite(layer.low):
            h = graph.node("Clip", h, np.float32(layer.low), np.float32(layer.high))
    return graph.model(chain, h, np.float32)


def _exact_dynamic(chain: Chain, x: Batch) -> Any:
    """What `_dynamic` gives where sums of products do not saturate."""
    h = rows_of(x)
    for exact, layer in zip(chain.layers, chain.float_layers(), strict=True):
        low, high = min(float(h.min()), 0.0), max(float(h.max()), 0.0)
        scale = np.float32((high - low) / 255 or 1.0)
        zero = np.clip(np.rint(-low / scale), 0, 255)
        q = np.clip(np.rint(h / scale) + zero, 0, 255) - zero
        sums = q.astype(np.float64) @ exact.weights.T.astype(np.float64)  # exact integers
        h = (sums * (scale * _weight_scale(exact, layer))).astype(np.float32) + layer.bias
        h = np.clip(h, layer.low, layer.high)
    return chain.finished(h)


#: Form -> what makes its model, or gives None where it cannot hold this one; whether activations
#: are signed; its arithmetic.
_MAKERS: dict[str, tuple[Callable[[_Graph, Chain], Any], bool, str]] = {
    "QDQ": (_qdq, True, SAME),
    "QDQ uint8": (_qdq, False, SAME),
    "MatMulInteger": (_matmul_integer, True, SAME),
    "MatMulInteger uint8": (_matmul_integer, False, SAME),
    "QLinearMatMul": (_qlinear_matmul, True, SAME),
    "QLinearMatMul uint8": (_qlinear_matmul, False, SAME),
    "DynamicQuantizeLinear": (_dynamic, True, OWN),
}


def _clipped(graph: _Graph, h: str, layer: IntegerLayer) -> str:
    if (layer.low, layer.high) == (-128, 127):
        return h
    return str(graph.node("Clip", h, graph.byte(layer.low), graph.byte(layer.high)))


def _explains(layer: IntegerLayer) -> int | None:
    """The zero point of the input that all of the bias comes from, None if none does."""
    sums = layer.weights.sum(axis=1, dtype=np.int64)
    largest = int(np.argmax(np.abs(sums)))
    zero = -int(layer.bias[largest]) // int(sums[largest]) if sums[largest] else 0
    fits = -128 <= zero <= 127 and np.array_equal(-zero * sums, layer.bias)
    return zero if fits else None


def _weight_scale(exact: IntegerLayer, layer: FloatLayer) -> NDArray[np.float32]:
    """What one step of each row's integer weights is worth, (M,)."""
    steps = np.abs(exact.weights.astype(np.int64)).max(axis=1)
    scale: NDArray[np.float32] = np.abs(layer.weights).max(axis=1) / np.maximum(steps, 1)
    return scale.astype(np.float32)
