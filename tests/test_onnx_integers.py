# SPDX-License-Identifier: Apache-2.0
"""Quantised ONNX models are read as the integer operators that they describe."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, INT8, INT32, UINT8, model, node, onnx, refused, sample
from oracle import onnxruntime_is_exact, oracle_model, run_onnxruntime, shared_file
from pynq_bbs.compress.borders import dequantize_output, quantize_input
from pynq_bbs.model.graph import QuantModel
from pynq_bbs.model.onnx_import import check_onnx, load_onnx

W = sample(4, 3)
B = np.array([0.5, -0.25, 1.0], np.float32)


def integers(loaded, feeds):
    """What the integer model gives, by output name."""
    assert isinstance(loaded, QuantModel)
    plain = {i.name: feeds[i.name] for i in loaded.inputs}
    if any(i.functions for i in loaded.inputs):
        (spec,) = loaded.inputs
        plain = {spec.name: dequantised(spec, quantize_input(spec, feeds[spec.name]))}
    tensors = oracle_model(loaded, plain)
    return [dequantize_output(o, tensors[o.tensor]) for o in loaded.outputs]


def dequantised(spec, q):
    return ((q.astype(np.float32) - spec.zero_point) * spec.scale).reshape(-1, *spec.shape)


def assert_integers_equal(proto, feeds):
    if not onnxruntime_is_exact():
        pytest.skip("onnxruntime saturates sums on this CPU (no VNNI)")
    loaded = load_onnx(proto)
    wanted = run_onnxruntime(proto, feeds)
    for got, want in zip(integers(loaded, feeds), wanted, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    return loaded


def random_bytes(rng, shape, unsigned):
    kind = np.uint8 if unsigned else np.int8
    return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape).astype(kind)


@given(
    seed=st.integers(0, 2**32),
    unsigned=st.booleans(),
    per_row=st.booleans(),
    unsigned_out=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_qlinear_matmul(seed, unsigned, per_row, unsigned_out):
    rng = np.random.default_rng(seed)
    n, k, m = rng.integers(1, 30, 3)
    a = random_bytes(rng, (n, k), unsigned)
    rows = m if per_row else 1
    proto = model(
        [node("QLinearMatMul", "x xs xz w ws wz ys yz", "y")],
        {"x": (UINT8 if unsigned else INT8, (int(k),))},
        {"y": UINT8 if unsigned_out else INT8},
        xs=np.float32(rng.uniform(0.001, 0.1)),
        xz=random_bytes(rng, (), unsigned),
        w=rng.integers(-127, 128, (k, m)).astype(np.int8),
        ws=rng.uniform(0.001, 0.1, rows).astype(np.float32),
        wz=np.zeros(rows, np.int8),
        ys=np.float32(rng.uniform(0.01, 0.5)),
        yz=random_bytes(rng, (), unsigned_out),
    )
    # Signedness of input and output must agree in onnxruntime; ours need not.
    if unsigned != unsigned_out:
        assert isinstance(load_onnx(proto), QuantModel)
        return
    assert_integers_equal(proto, {"x": a})


@given(seed=st.integers(0, 2**32), unsigned=st.booleans(), bias=st.booleans())
@settings(max_examples=40, deadline=None)
def test_matmul_integer(seed, unsigned, bias):
    rng = np.random.default_rng(seed)
    n, k, m = (int(v) for v in rng.integers(1, 30, 3))
    a = random_bytes(rng, (n, k), unsigned)
    nodes = [node("MatMulInteger", "x w xz", "t" if bias else "y")]
    constants = {
        "w": rng.integers(-128, 128, (k, m)).astype(np.int8),
        "xz": random_bytes(rng, (), unsigned),
    }
    if bias:
        nodes.append(node("Add", "t b", "y"))
        constants["b"] = rng.integers(-(10**8), 10**8, m).astype(np.int32)
    kind = UINT8 if unsigned else INT8
    proto = model(nodes, {"x": (kind, (k,))}, {"y": INT32}, **constants)
    assert_integers_equal(proto, {"x": a})


def test_matmul_integer_scaled_to_float():
    rng = np.random.default_rng(0)
    nodes = [
        node("MatMulInteger", "x w xz wz", "t"),
        node("Cast", "t", "f", to=FLOAT),
        node("Mul", "f s", "m"),
        node("Add", "m b", "r"),
        node("Relu", "r", "y"),
    ]
    proto = model(
        nodes, {"x": (UINT8, (5,))}, {"y": FLOAT},
        w=rng.integers(100, 156, (5, 3)).astype(np.uint8), xz=np.uint8(7), wz=np.uint8(128),
        s=np.array([0.01, 0.02, 0.03], np.float32), b=B,
    )  # fmt: skip
    x = rng.integers(0, 256, (9, 5)).astype(np.uint8)
    (got,) = integers(load_onnx(proto), {"x": x})
    (wanted,) = run_onnxruntime(proto, {"x": x})
    np.testing.assert_allclose(got, wanted, atol=0.02)  # the bias is rounded to the sums' scale
    assert {c.runs for c in check_onnx(proto) if c.op == "Relu"} == {"host"}


def qdq(name, scale, zero="z"):
    """QuantizeLinear and DequantizeLinear of `name`, which give `name_q` and `name_d`."""
    return [
        node("QuantizeLinear", f"{name} {scale} {zero}", f"{name}_q"),
        node("DequantizeLinear", f"{name}_q {scale} {zero}", f"{name}_d"),
    ]


def qdq_model(functions, *, bias_scale=None, quantised_output=True, seed=0, **attributes):
    """float x -> Q/DQ -> MatMul -> Add -> functions -> Q/DQ -> float y."""
    rng = np.random.default_rng(seed)
    ws = np.array([0.01, 0.02, 0.015], np.float32)
    nodes = [*qdq("x", "xs"), node("DequantizeLinear", "wq ws wz", "w", axis=1)]
    nodes += [node("DequantizeLinear", "bq bs", "b", axis=0), node("MatMul", "x_d w", "t")]
    name = "sum"
    nodes.append(node("Add", "t b", name))
    for i, op in enumerate(functions):
        nodes.append(node(op, name + (" low high" if op == "Clip" else ""), f"f{i}"))
        name = f"f{i}"
    if quantised_output:
        nodes += qdq(name, "ys", "yz")
        name += "_d"
    nodes.append(node("Identity", name, "y"))
    constants = {
        "xs": np.float32(0.05),
        "z": np.int8(3),
        "wq": rng.integers(-127, 128, (8, 3)).astype(np.int8),
        "ws": ws,
        "wz": np.zeros(3, np.int8),
        "bq": np.array([100, -300, 2000], np.int32),
        "bs": np.float32(0.05) * ws if bias_scale is None else bias_scale,
        "ys": np.float32(0.02),
        "yz": np.int8(-5),
        "low": np.float32(-0.333),
        "high": np.float32(0.777),
    } | attributes
    used = {i for n in nodes for i in n.input}
    kept = {k: v for k, v in constants.items() if k in used}
    return model(nodes, {"x": (8,)}, {"y": FLOAT}, **kept)


def reference_sums(x, proto):
    """INT32 sums of `qdq_model` and their scale, straight from its constants."""
    c = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    q = np.clip(np.rint(x / c["xs"]) + c["z"], -128, 127).astype(np.int64) - int(c["z"])
    scale = c["xs"] * c["ws"]
    bias = np.rint(c["bq"] * (np.broadcast_to(c["bs"], 3) / scale).astype(np.float64))
    return q @ c["wq"].astype(np.int64) + bias.astype(np.int64), scale, c


@pytest.mark.parametrize("functions", [[], ["Relu"], ["Clip"], ["Relu", "Clip"]])
@pytest.mark.parametrize("bias_scale", [None, np.float32(0.001)])
def test_qdq_layer_is_the_integer_operator(functions, bias_scale):
    proto = qdq_model(functions, bias_scale=bias_scale)
    x = sample(500, 8) * 3
    (got,) = integers(load_onnx(proto), {"x": x})
    acc, scale, c = reference_sums(x, proto)
    y = np.rint(acc.astype(np.float32) * (scale / c["ys"])) + c["yz"]
    y = np.clip(y, -128, 127)
    if "Relu" in functions:
        y = np.maximum(y, c["yz"])
    if "Clip" in functions:
        low, high = (np.rint(c[n] / c["ys"]) + c["yz"] for n in ("low", "high"))
        y = np.clip(y, low, high)
    np.testing.assert_array_equal(got, ((y - c["yz"]) * c["ys"]).astype(np.float32))
    # As it stands, onnxruntime computes the graph in float: its ties may fall differently. (Fused,
    # it takes the bias as integers in the sums' scale, whatever scale the graph gives.)
    (close,) = run_onnxruntime(proto, {"x": x}, optimise=False)
    steps = np.abs(got - close) / c["ys"]
    assert steps.max() <= 1.01 and np.mean(steps > 0.5) < 0.01


@pytest.mark.parametrize(("op", "span"), [("Sigmoid", 8.0), ("Tanh", 4.0)])
def test_functions_without_a_scale_before_them(op, span):
    proto = qdq_model([op])
    x = sample(300, 8) * 3
    loaded = load_onnx(proto)
    (got,) = integers(loaded, {"x": x})
    acc, scale, c = reference_sums(x, proto)
    before = np.float32(span / 127)
    q = np.clip(np.rint(acc.astype(np.float32) * (scale / before)), -128, 127)
    v = q * float(before)
    v = np.tanh(v) if op == "Tanh" else 1 / (1 + np.exp(-v))
    y = np.clip(np.rint(v.astype(np.float32) / c["ys"]) + c["yz"], -128, 127)
    np.testing.assert_array_equal(got, ((y - c["yz"]) * c["ys"]).astype(np.float32))
    (close,) = run_onnxruntime(proto, {"x": x}, optimise=False)
    assert np.abs(got - close).max() < 0.06


def test_function_between_quantised_tensors_is_exact():
    """Q -> DQ -> function -> Q, twice over, becomes one table on the layer."""
    nodes = [
        node("QLinearMatMul", "x one xz w one wz s1 z1", "q1"),
        node("DequantizeLinear", "q1 s1 z1", "d1"),
        node("Tanh", "d1", "t1"),
        node("QuantizeLinear", "t1 s2 z2", "q2"),
        node("DequantizeLinear", "q2 s2 z2", "d2"),
        node("Sigmoid", "d2", "t2"),
        node("QuantizeLinear", "t2 s3 z3", "y"),
        node("DequantizeLinear", "q2 s2 z2", "y2"),
    ]
    rng = np.random.default_rng(5)
    proto = model(
        nodes, {"x": (INT8, (6,))}, {"y": INT8, "y2": FLOAT},
        one=np.float32(1), xz=np.int8(9), w=rng.integers(-128, 128, (6, 4)).astype(np.int8),
        wz=np.int8(0), s1=np.float32(200), z1=np.int8(4), s2=np.float32(1 / 120), z2=np.int8(-7),
        s3=np.float32(1 / 250), z3=np.int8(-128),
    )  # fmt: skip
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.02), "small"))
    proto.graph.node[1].input[1] = "small"
    loaded = assert_integers_equal(proto, {"x": rng.integers(-128, 128, (64, 6)).astype(np.int8)})
    assert len(loaded.layers) == 2 and loaded.layers[0].weights is loaded.layers[1].weights


def test_repeated_quantisation_with_one_scale_is_dropped():
    proto = qdq_model(["Relu"])
    names = [n.name for n in proto.graph.node]
    at = names.index("n_f0_d")
    for n in reversed(qdq("f0_d", "ys", "yz")):
        proto.graph.node.insert(at + 1, n)
    proto.graph.node[-1].input[0] = "f0_d_d"
    assert load_onnx(proto).outputs[0].tensor == "f0_q"


def test_sums_and_functions_at_the_output():
    x = sample(50, 8) * 3
    for functions in ([], ["Sigmoid"]):
        proto = qdq_model(functions, quantised_output=False)
        loaded = load_onnx(proto)
        assert loaded.layers[0].multiplier is None
        (got,) = integers(loaded, {"x": x})
        acc, scale, _ = reference_sums(x, proto)
        wanted = acc.astype(np.float32) * scale
        if functions:
            wanted = 1 / (1 + np.exp(-wanted))
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
        (close,) = run_onnxruntime(proto, {"x": x}, optimise=False)
        np.testing.assert_allclose(got, close, atol=1e-4)


def test_float_bias_and_gemm_in_a_quantised_graph():
    proto = qdq_model([])
    nodes = [n for n in proto.graph.node if n.output[0] not in ("b", "t")]
    at = [n.output[0] for n in nodes].index("sum")
    nodes[at] = node("Gemm", "x_d w bias", "sum", beta=2.0)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    bias = np.array([0.1234, -0.5, 1.0], np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(bias, "bias"))
    scale = np.float32(0.05) * np.array([0.01, 0.02, 0.015], np.float32)
    got = load_onnx(proto).layers[0].bias
    np.testing.assert_array_equal(got, np.rint(2.0 * bias.astype(float) / scale))


def test_uint8_activations():
    proto = qdq_model(["Relu"], z=np.uint8(131), yz=np.uint8(0))
    loaded = load_onnx(proto)
    assert loaded.inputs[0].zero_point == 3 and loaded.layers[0].zero_point == -128
    assert loaded.layers[0].table is None
    x = sample(100, 8)
    (got,) = integers(loaded, {"x": x})
    (close,) = run_onnxruntime(proto, {"x": x}, optimise=False)
    assert np.abs(got - close).max() <= 0.0201


def edited(change, functions=("Relu",)):
    proto = qdq_model(list(functions))
    change(proto.graph)
    return proto


def rename(graph, index, position, name):
    graph.node[index].input[position] = name


def replace_constant(graph, name, array):
    tensor = next(t for t in graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array), name))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda g: rename(g, 4, 0, "x"), "its input is not quantised"),
        (lambda g: replace_constant(g, "wz", np.full(3, 5, np.int8)), "beyond INT8"),
        (lambda g: replace_constant(g, "xs", np.float32(0)), "not positive and finite"),
        (lambda g: replace_constant(g, "xs", np.float32(np.nan)), "not positive and finite"),
        (lambda g: replace_constant(g, "ys", np.float32(1e-44)), "multiplier that float32"),
        (lambda g: replace_constant(g, "ys", B * B), "neither one number nor one per row"),
        (lambda g: replace_constant(g, "ws", np.full(3, 1e-44, np.float32)), "product that"),
        (lambda g: replace_constant(g, "yz", np.uint16(3)), "integers are uint16"),
    ],
)
def test_refused_quantisation(change, word):
    proto = edited(change)
    if word == "integers are uint16":
        if onnx.defs.onnx_opset_version() < 21:
            pytest.skip("this onnx has no 16-bit QuantizeLinear")
        proto.opset_import[0].version = 21
        proto.ir_version = 10
    reasons = refused(proto)
    assert any(word in reason for reason in reasons.values()), reasons


def test_float_weights_in_a_quantised_model():
    nodes = [*qdq("x", "s"), node("MatMul", "x_d w", "y")]
    proto = model(nodes, {"x": (4,)}, {"y": FLOAT}, w=W, s=np.float32(0.1), z=np.int8(0))
    assert "its weights are float32" in refused(proto)["n_y"]


def test_sums_between_layers():
    proto = qdq_model([], quantised_output=False)
    proto.graph.node[-1].output[0] = "h"
    wq = np.ones((3, 2), np.int8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(wq, "v"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "vs"))
    proto.graph.node.extend([node("DequantizeLinear", "v vs", "vd"), node("MatMul", "h vd", "y")])
    assert "its input is not quantised" in refused(proto)["n_y"]


# -- models made by others ---------------------------------------------------------------------


def as_qlinear_conv(proto):
    """Every DQ -> MatMul -> Add (-> Relu) -> Q of a chain as a 1 x 1 QLinearConv."""
    c = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    maker = {n.output[0]: n for n in proto.graph.node}
    constants, nodes = {}, []
    for quantise in [n for n in proto.graph.node if n.op_type == "QuantizeLinear"]:
        add = maker[quantise.input[0]]
        relu = add.op_type == "Relu"
        add = maker[add.input[0]] if relu else add
        product = maker[add.input[0]]
        x, w, b = maker[product.input[0]], maker[product.input[1]], maker[add.input[1]]
        name = f"l{len(nodes)}"
        weights = c[w.input[0]].T
        constants |= {
            f"{name}_w": weights.reshape(*weights.shape, 1, 1),
            f"{name}_wz": np.zeros(len(weights), np.int8),
            f"{name}_ws": np.full(len(weights), c[w.input[1]], np.float32),
        } | {i: c[i] for i in (*x.input[1:], *quantise.input[1:], b.input[0])}
        inputs = [
            "input_1" if x.input[0] == "input_1" else x.input[0],
            *x.input[1:], f"{name}_w", f"{name}_ws", f"{name}_wz", *quantise.input[1:], b.input[0],
        ]  # fmt: skip
        # Relu is the output's saturation here: its zero point is -128.
        assert not relu or c[quantise.input[2]] == -128
        nodes.append(onnx.helper.make_node("QLinearConv", inputs, [quantise.output[0]]))
    outputs = {n.output[0]: INT8 for n in nodes}
    return model(nodes, {"input_1": (INT8, (640, 1, 1))}, outputs, **constants)


@given(seed=st.integers(0, 2**32), scaled=st.booleans())
@settings(max_examples=30, deadline=None)
def test_constants_behind_integers(seed, scaled):
    """What is added to integers, or they are multiplied by first, is a layer of one weight a row:
    as in float, but where that lies next to a tie."""
    rng = np.random.default_rng(seed)
    rows, x_scale = int(rng.integers(1, 40)), np.float32(rng.uniform(0.001, 0.1))
    y_scale = np.float32(x_scale * rng.uniform(0.3, 2))
    gain = rng.uniform(-1, 1, rows).astype(np.float32)
    bias = (rng.uniform(-60, 60, rows) * x_scale).astype(np.float32)
    nodes = [
        node("DequantizeLinear", "x xs xz", "d"),
        *([node("Mul", "d gain", "g")] if scaled else []),
        node("Add", "g bias" if scaled else "d bias", "a"),
        node("QuantizeLinear", "a ys yz", "y"),
    ]
    zero_point = np.int8(rng.integers(-20, 20))
    proto = model(
        nodes, {"x": (INT8, (rows,))}, {"y": INT8}, xs=x_scale, xz=zero_point, ys=y_scale,
        yz=np.int8(0), bias=bias, **({"gain": gain} if scaled else {}),
    )  # fmt: skip
    x = np.repeat(np.arange(-128, 128, dtype=np.int8)[:, None], rows, 1)
    (got,) = integers(load_onnx(proto), {"x": x})
    each = (x.astype(np.float64) - zero_point) * x_scale
    exact = ((each * gain if scaled else each) + bias) / y_scale
    off = np.abs(got - np.clip(exact, -128, 127)) - 0.5
    # Near 0 a bias has the fewest fractions around it: 1/254 of a step of the input.
    assert off.max() < (x_scale / y_scale) / 250 + 1e-3
    wanted = np.clip(np.rint(exact), -128, 127)
    assert np.mean(got != wanted) < 2e-3 + 3 / rows / 256


def test_mlperf_tiny_int8_has_the_oracles_integers():
    path = shared_file("models", "mlperf-tiny", "ad_int8.onnx")
    if not onnxruntime_is_exact():
        pytest.skip("onnxruntime saturates sums on this CPU (no VNNI)")
    loaded = load_onnx(path)
    x = np.random.default_rng(0).integers(-128, 128, (500, 640)).astype(np.int8)
    tensors = oracle_model(loaded, {"input_1": x})
    exact = as_qlinear_conv(onnx.load(path))
    results = run_onnxruntime(exact, {"input_1": x.reshape(-1, 640, 1, 1)})
    for output, wanted in zip(exact.graph.output, results, strict=True):
        np.testing.assert_array_equal(tensors[output.name], wanted.reshape(len(x), -1))
    # The graph as it stands is computed in float by onnxruntime, so ties may fall differently.
    (plain,) = run_onnxruntime(path, {"input_1": x})
    assert np.mean(plain != tensors["Identity"]) < 0.002
    assert np.abs(plain.astype(int) - tensors["Identity"]).max() <= 4
