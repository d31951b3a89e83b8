# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import onnxruntime_is_exact, onnxruntime_layer, oracle_layer, oracle_model
from pynq_bbs.compress.activations import run_float
from pynq_bbs.compress.borders import dequantize_output, quantize_input
from pynq_bbs.compress.calibrate import METHODS
from pynq_bbs.compress.quantize import quantize
from pynq_bbs.errors import InputError, ModelError
from pynq_bbs.model.graph import (
    Function,
    GraphInput,
    GraphOutput,
    Layer,
    Model,
    QuantInput,
    QuantLayer,
    QuantOutput,
)

RELU, SIGMOID, TANH = Function("relu"), Function("sigmoid"), Function("tanh")
CLIP = Function("clip", (-0.5, 0.75))
CHAINS = [(), (RELU,), (CLIP,), (SIGMOID,), (TANH,), (CLIP, TANH, RELU), (TANH, SIGMOID)]


def network(rng, sizes, chains, shown=None):
    """A chain of layers t0 -> t1 -> ...; `shown` tensors are outputs."""
    layers = []
    for i, (k, m) in enumerate(pairwise(sizes)):
        w = (rng.standard_normal((m, k)) / np.sqrt(k)).astype(np.float32)
        b = (rng.standard_normal(m) * 0.1).astype(np.float32)
        layers.append(Layer(f"fc{i}", f"t{i}", f"t{i + 1}", w, b, chains[i]))
    shown = shown or [f"t{len(layers)}"]
    outputs = [GraphOutput(f"out_{t}", t, (sizes[int(t[1:])],)) for t in shown]
    return Model("chain", [GraphInput("t0", (sizes[0],))], layers, outputs)


def integer_outputs(model, x):
    tensors = oracle_model(model, {"t0": x})
    return {o.name: dequantize_output(o, tensors[o.tensor]) for o in model.outputs}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: "-".join(f.name for f in c) or "none")
def test_close_to_float(method, chain):
    rng = np.random.default_rng(7)
    model = network(rng, [32, 48, 24, 10], [chain, (RELU,), chain])
    x = rng.standard_normal((300, 32)).astype(np.float32)
    wanted = run_float(model, x)["t3"]
    got = integer_outputs(quantize(model, x, method=method), x)["out_t3"]
    assert got.dtype == np.float32 and got.shape == wanted.shape
    # Entropy gives up the ends of a range for the bulk, most of all with few samples.
    allowed = 0.06 if method == "entropy" else 0.03
    assert np.sqrt(np.mean((got - wanted) ** 2)) < allowed * max(wanted.std(), 0.1)


def test_four_bits_are_coarser_but_close():
    rng = np.random.default_rng(7)
    model = network(rng, [32, 48, 24, 10], [(RELU,), (RELU,), ()])
    x = rng.standard_normal((300, 32)).astype(np.float32)
    wanted = run_float(model, x)["t3"]
    errors = []
    for bits, limit in ((8, 127), (4, 7)):
        quantised = quantize(model, x, weight_bits=bits)
        for layer in quantised.layers:
            assert layer.weight_bits == bits
            assert np.abs(layer.weights.astype(int)).max(axis=1).tolist() == [limit] * len(
                layer.bias
            )
        got = integer_outputs(quantised, x)["out_t3"]
        errors.append(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())
    assert errors[0] < errors[1] < 0.25


def test_other_bits_are_refused():
    with pytest.raises(InputError, match="weight_bits is 5"):
        quantize(network(np.random.default_rng(0), [8, 4], [()]), np.zeros((3, 8)), weight_bits=5)


def test_structure_of_a_chain():
    rng = np.random.default_rng(0)
    model = network(rng, [8, 6, 5, 4], [(RELU,), (SIGMOID,), ()])
    model.layers[0].weights[2] = 0.0
    model.layers[0].weights[:, 3] = 0.0
    x = rng.standard_normal((50, 8)).astype(np.float32)
    first, second, last = quantize(model, x).layers
    assert first.table is None and first.zero_point == -128  # saturation is Relu
    assert np.abs(first.weights.astype(int)).max(axis=1).tolist() == [127, 127, 0, 127, 127, 127]
    assert not first.weights[:, 3].any()
    assert second.table is not None and last.input_zero_point == -128
    np.testing.assert_array_equal(second.table, np.sort(second.table))
    assert last.multiplier is None and last.table is None
    for layer in (first, second):
        assert layer.multiplier.dtype == np.float32 and (layer.multiplier > 0).all()


def test_clip_above_zero_needs_a_table_that_is_exact():
    rng = np.random.default_rng(0)
    clip = Function("clip", (0.3, 0.5))
    model = network(rng, [8, 6, 4], [(clip,), ()])
    x = rng.standard_normal((50, 8)).astype(np.float32)
    q = quantize(model, x)
    assert q.layers[0].table is not None
    h = oracle_model(q, {"t0": x})["t1"].astype(int) - q.layers[0].zero_point
    scale = 0.5 / 255
    assert h.min() == np.rint(0.3 / scale) and h.max() == 255


def test_tensor_both_shown_and_read_comes_in_both_forms():
    rng = np.random.default_rng(1)
    model = network(rng, [8, 6, 4], [(), (RELU,)], ["t1", "t2", "t1"])
    model.outputs[2] = GraphOutput("again", "t1", (2, 3))
    x = rng.standard_normal((64, 8)).astype(np.float32)
    q = quantize(model, x)
    assert [(layer.input, layer.multiplier is None) for layer in q.layers] == [
        ("t0", False),
        ("t0", True),
        ("t1", False),
    ]
    assert len({layer.name for layer in q.layers}) == len({o.output for o in q.layers}) == 3
    got = integer_outputs(q, x)
    wanted = run_float(model, x)
    np.testing.assert_allclose(got["out_t1"], wanted["t1"], atol=0.05)
    np.testing.assert_allclose(got["out_t2"], wanted["t2"], atol=0.05)
    assert got["again"].shape == (64, 2, 3)


def test_input_with_functions_in_two_forms():
    model = network(np.random.default_rng(1), [8, 6], [()])
    model.inputs.append(GraphInput("t0", (8,), (RELU,), "positive"))
    model.layers.append(Layer("fc1", "positive", "t2", *_same_numbers(model.layers[0])))
    model.outputs.append(GraphOutput("out", "t2", (6,)))
    x = np.random.default_rng(2).standard_normal((20, 8)).astype(np.float32)
    q = quantize(model, x)
    assert [(i.name, i.tensor) for i in q.inputs] == [("t0", "t0"), ("t0", "positive")]
    tensors = {i.tensor: quantize_input(i, x) for i in q.inputs}
    assert q.inputs[1].zero_point == -128
    for layer, name in zip(q.layers, ["t1", "t2"], strict=True):
        acc, _ = oracle_layer(layer, tensors[layer.input])
        output = next(o for o in q.outputs if o.tensor == layer.output)
        got = dequantize_output(output, acc.astype(np.int32))
        np.testing.assert_allclose(got, run_float(model, x)[name], atol=0.05)


def _same_numbers(layer):
    return layer.weights, layer.bias


def test_calibration_in_every_form_is_the_same():
    rng = np.random.default_rng(0)
    model = network(rng, [8, 6, 4], [(TANH,), ()])
    x = rng.standard_normal((700, 8)).astype(np.float32)
    seen = []
    wanted = quantize(model, x, progress=seen.append)
    assert seen == [256, 512, 700]
    for given_as in ({"t0": x}, [x[:300], {"t0": x[300:]}], iter(np.split(x, 7)), [x.tolist()]):
        got = quantize(model, given_as)
        assert got.inputs == wanted.inputs
        np.testing.assert_array_equal(got.layers[0].multiplier, wanted.layers[0].multiplier)


def test_as_many_samples_at_a_time_as_tensors_fit(monkeypatch):
    """So networks of large images are calibrated in little memory, and to the same scales."""
    rng = np.random.default_rng(7)
    model = network(rng, [32, 48, 24, 10], [(RELU,), (RELU,), ()])
    x = rng.standard_normal((10, 32)).astype(np.float32)
    seen, values = [], 32 + 48 + 24 + 10
    wanted = quantize(model, x)
    monkeypatch.setattr("pynq_bbs.compress.activations._CALIBRATION_VALUES", 3 * values + 1)
    got = quantize(model, x, progress=seen.append)
    assert seen == [3, 6, 9, 10]
    for layer, other in zip(got.layers, wanted.layers, strict=True):
        assert layer.zero_point == other.zero_point
        if layer.multiplier is not None:
            np.testing.assert_allclose(layer.multiplier, other.multiplier, rtol=1e-5)


@pytest.mark.parametrize(
    ("calibration", "word"),
    [
        ([], "no samples"),
        (np.zeros((0, 8), np.float32), "at least one sample"),
        (np.zeros(8, np.float32), r"without a batch dimension: give x\[None\]"),
        (np.zeros((3, 9), np.float32), r"'t0' has shape \(3, 9\), must be \(N, 8\)"),
        (np.full((3, 8), np.nan), "'t0' holds NaN"),
        (np.full((3, 8), 1e300), "beyond float32"),
        (np.zeros((3, 8), bool), "'t0' is bool"),
        (np.array([["a"] * 8]), "'t0' is <U1"),
        ([[[1.0], [2.0, 3.0]]], "'t0'"),
        ({"other": np.zeros((3, 8))}, "inputs given: other; the model has: t0"),
    ],
)
def test_wrong_calibration(calibration, word):
    model = network(np.random.default_rng(0), [8, 4], [()])
    with pytest.raises(InputError, match=word):
        quantize(model, calibration)


def test_unusable_weights():
    model = network(np.random.default_rng(0), [8, 6, 4], [(RELU,), ()])
    x = np.ones((4, 8), np.float32)
    model.layers[0].weights[0, 0] = np.inf
    model.layers[0].weights[1, 0] = 1.0
    with pytest.raises((ModelError, InputError), match="NaN or infinity"):
        quantize(model, x)
    model.layers[0].weights[:] = 1e-38
    quantize(model, x)  # so small that all become zero
    model.layers[0].weights[:] = 1e37
    with pytest.raises((ModelError, InputError)):
        quantize(model, x * np.float32(1e37))


def test_bias_far_beyond_its_weights():
    """Rows that are all but dead still have their bias, and sums that fit INT32."""
    rng = np.random.default_rng(0)
    model = network(rng, [8, 6, 4], [(RELU,), ()])
    model.layers[0].weights[:3] *= np.array([[1e-9], [1e-12], [0]], np.float32)
    model.layers[0].bias[:3] = 0.3, 2.0, 0.7
    x = rng.standard_normal((50, 8)).astype(np.float32)
    quantised = quantize(model, x)
    assert np.abs(quantised.layers[0].bias.astype(np.int64)).max() < 2**30 * 1.001
    got = oracle_model(quantised, {"t0": x})["t1"][:, :3].astype(int)
    wanted = run_float(model, x)["t1"][:, :3]
    ratio = wanted / (got - quantised.layers[0].zero_point)
    assert np.ptp(ratio) < 0.02 * ratio.mean()


def test_several_inputs_must_agree():
    w = np.ones((2, 3), np.float32)
    layers = [Layer(n, n, f"y{n}", w, np.zeros(2, np.float32)) for n in "ab"]
    model = Model(
        "two",
        [GraphInput("a", (3,)), GraphInput("b", (3,))],
        layers,
        [GraphOutput("ya", "ya", (2,)), GraphOutput("yb", "yb", (2,))],
    )
    x = np.ones((4, 3), np.float32)
    assert set(run_float(model, {"a": x, "b": x})) == {"a", "b", "ya", "yb"}
    with pytest.raises(InputError, match="differ in their number of samples"):
        run_float(model, {"a": x, "b": x[:2]})
    with pytest.raises(InputError, match="give a dict"):
        run_float(model, x)


# -- the border: inputs and outputs ------------------------------------------------------------

scales = st.floats(2.0**-40, 2.0**40, width=32).map(np.float32)


@given(scales, st.integers(-128, 127), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_quantize_input_is_onnx_quantizelinear(scale, zero_point, seed):
    from onnx_build import FLOAT, INT8, node
    from onnx_build import model as build
    from oracle import run_onnxruntime

    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((9, 40)) * 100 * scale).astype(np.float32)
    x[0] = (np.arange(40) - 20.5).astype(np.float32) * scale  # ties
    x[1, 0], x[1, 1] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    spec = QuantInput("x", "x", (40,), "float32", scale, zero_point)
    got = quantize_input(spec, x)
    proto = build(
        [node("QuantizeLinear", "x s z", "y")],
        {"x": (FLOAT, (40,))},
        {"y": INT8},
        s=scale,
        z=np.int8(zero_point),
    )
    (wanted,) = run_onnxruntime(proto, {"x": x})
    np.testing.assert_array_equal(got, wanted)


def test_integer_inputs():
    every = np.arange(256)
    u = QuantInput("x", "x", (4, 64), "uint8", np.float32(1), 0)
    got = quantize_input(u, every.astype(np.uint8).reshape(1, 4, 64))
    np.testing.assert_array_equal(got, (every - 128).reshape(1, 256))
    assert got.dtype == np.int8
    i = QuantInput("x", "x", (256,), "int8", np.float32(1), 0)
    x = (every - 128).astype(np.int8)[None]
    np.testing.assert_array_equal(quantize_input(i, x), x)
    with pytest.raises(InputError, match="'x' is float64, must be int8"):
        quantize_input(i, x.astype(float))
    with pytest.raises(InputError, match=r"shape \(256,\), must be \(N, 256\).*without a batch"):
        quantize_input(i, x[0])
    with pytest.raises(InputError, match="at least one sample"):
        quantize_input(i, x[:0])


def test_input_functions_run_in_float():
    spec = QuantInput("x", "x", (2,), "float32", np.float32(0.5), -3, (RELU,))
    np.testing.assert_array_equal(quantize_input(spec, [[-4.0, 0.75]]), [[-3, -1]])


def test_dequantize_output():
    q = np.array([[-128, 0, 127, 5, 6, 7]], np.int8)
    u = dequantize_output(QuantOutput("y", "y", (2, 3), "uint8"), q)
    assert u.dtype == np.uint8 and u.reshape(-1).tolist() == [0, 128, 255, 133, 134, 135]
    assert dequantize_output(QuantOutput("y", "y", (6,), "int8"), q) is not None
    one = QuantOutput("y", "y", (6,), "float32", np.array([0.5], np.float32), 7)
    np.testing.assert_array_equal(dequantize_output(one, q)[0], (q[0].astype(float) - 7) / 2)
    rows = np.arange(1, 7, dtype=np.float32)
    sums = QuantOutput("y", "y", (6,), "float32", rows, 0, (RELU,))
    acc = np.array([[-5, 5, 2**31 - 1, -(2**31), 0, 1]], np.int32)
    wanted = np.maximum(acc.astype(np.float32) * rows, 0)
    np.testing.assert_array_equal(dequantize_output(sums, acc), wanted)
    whole = dequantize_output(QuantOutput("y", "y", (6,), "int32"), acc)
    np.testing.assert_array_equal(whole, acc)


# -- the oracle itself against onnxruntime -----------------------------------------------------


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=60, deadline=None)
def test_formula_is_onnxruntime(seed, ties):
    if not onnxruntime_is_exact():
        pytest.skip("onnxruntime saturates sums on this CPU (no VNNI)")
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 40, 3)
    span = 4 if ties else 128
    multiplier = np.exp(rng.uniform(-9, 1, m)).astype(np.float32)
    if ties:
        multiplier[:] = 2.0 ** -rng.integers(1, 6)
    layer = QuantLayer(
        "fc", "x", "y",
        rng.integers(-span, span, (m, k)).astype(np.int8),
        rng.integers(-3000, 3000, m).astype(np.int32),
        int(rng.integers(-128, 128)),
        multiplier,
        int(rng.integers(-128, 128)),
        rng.permutation(np.arange(-128, 128)).astype(np.int8) if seed % 2 else None,
    )  # fmt: skip
    x = rng.integers(-128, 128, (n, k)).astype(np.int8)
    np.testing.assert_array_equal(onnxruntime_layer(layer, x), oracle_layer(layer, x)[1])
