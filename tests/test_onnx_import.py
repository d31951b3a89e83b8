# SPDX-License-Identifier: Apache-2.0
"""Models in; the layers that come out compute what onnxruntime does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, INT32, model, node, onnx, refused, sample
from oracle import run_onnxruntime, shared_file
from pynq_bbs.compress.activations import run_float
from pynq_bbs.errors import ModelError
from pynq_bbs.model.graph import Function, Model
from pynq_bbs.model.onnx_import import check_onnx, load_onnx

W = np.arange(12, dtype=np.float32).reshape(4, 3) / 7 - 0.5
B = np.array([0.5, -0.25, 1.0], np.float32)


def float_outputs(loaded, feeds):
    tensors = run_float(loaded, feeds)
    return [tensors[o.tensor].reshape(-1, *o.shape) for o in loaded.outputs]


def assert_float_equal(proto, feeds, tolerance=1e-5):
    """Loading and running in numpy gives what onnxruntime gives, shapes included."""
    loaded = load_onnx(proto)
    assert isinstance(loaded, Model)
    wanted = run_onnxruntime(proto, feeds)
    got = float_outputs(loaded, feeds)
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)
    return loaded


# -- float models ------------------------------------------------------------------------------


@given(
    transposed=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5, -2.0]),
    beta=st.sampled_from([1.0, 0.25, -1.0]),
    c_shape=st.sampled_from([None, (), (1,), (3,), (1, 3), (1, 1)]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_gemm(transposed, alpha, beta, c_shape, seed):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((3, 5) if transposed else (5, 3)).astype(np.float32)
    constants = {"w": w}
    if c_shape is not None:
        constants["c"] = rng.standard_normal(c_shape).astype(np.float32)
    gemm = node(
        "Gemm", "x w c" if "c" in constants else "x w", "y",
        alpha=alpha, beta=beta, transB=int(transposed),
    )  # fmt: skip
    proto = model([gemm], {"x": (5,)}, {"y": FLOAT}, **constants)
    loaded = assert_float_equal(proto, {"x": sample(4, 5, seed=seed)})
    assert loaded.layers[0].name == "n_y" and loaded.layers[0].weights.shape == (3, 5)


FUNCTION_NODES = ["Relu", "Sigmoid", "Tanh", "Identity", "Dropout"]


@given(st.lists(st.sampled_from([*FUNCTION_NODES, "Clip"]), max_size=4), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_functions_fuse_in_order(ops, seed):
    nodes, name = [node("MatMul", "x w", "t")], "t"
    for i, op in enumerate(ops):
        extra = " low high" if op == "Clip" else ""
        nodes.append(node(op, name + extra, f"f{i}"))
        name = f"f{i}"
    nodes.append(node("MatMul", f"{name} v", "y"))
    proto = model(
        nodes, {"x": (4,)}, {"y": FLOAT},
        w=W, v=sample(3, 2), low=np.float32(-0.5), high=np.float32(0.75),
    )  # fmt: skip
    loaded = assert_float_equal(proto, {"x": sample(6, 4, seed=seed)})
    assert len(loaded.layers) == 2
    fused = [f.name for f in loaded.layers[0].functions]
    assert fused == [op.lower() for op in ops if op not in ("Identity", "Dropout")]


@pytest.mark.parametrize(
    ("opset", "inputs", "attributes"),
    [
        (7, "t", {"min": -0.25, "max": 0.5}),
        (10, "t", {"max": 0.5}),
        (11, "t low high", {}),
        (13, "t - high", {}),
        (13, "t low", {}),
        (13, "t", {}),
    ],
)
def test_clip_of_every_age(opset, inputs, attributes):
    nodes = [node("MatMul", "x w", "t"), node("Clip", inputs, "y", **attributes)]
    proto = model(
        nodes, {"x": (4,)}, {"y": FLOAT}, opset=opset,
        w=W, low=np.float32(-0.25), high=np.float32(0.5),
    )  # fmt: skip
    assert_float_equal(proto, {"x": sample(6, 4)})


@pytest.mark.parametrize("batch", ["N", 5])
@pytest.mark.parametrize("left", [False, True])
def test_matmul_with_bias_either_way(batch, left):
    add = node("Add", "b t" if left else "t b", "y")
    nodes = [node("MatMul", "x w", "t"), add]
    proto = model(nodes, {"x": (4,)}, {"y": FLOAT}, batch=batch, w=W, b=B)
    loaded = assert_float_equal(proto, {"x": sample(5, 4)})
    np.testing.assert_array_equal(loaded.layers[0].bias, B)


def test_weights_on_the_left():
    nodes = [node("MatMul", "w x", "t"), node("Add", "t b", "y")]
    b = B[:, None]
    proto = model(nodes, {"x": (4, 1)}, {"y": FLOAT}, w=np.ascontiguousarray(W.T), b=b)
    assert_float_equal(proto, {"x": sample(5, 4, 1)})


@pytest.mark.parametrize(
    ("shape", "target", "batch"),
    [
        ((2, 3, 4), [0, -1], "N"),
        ((2, 3, 4), [-1, 24], "N"),
        ((2, 3, 4), [7, 24], 7),
        ((2, 3, 4), [0, 1, 24], "N"),
        ((24,), [0, 0], "N"),
        ((1, 24), [0, 0, -1], "N"),
    ],
)
def test_reshape(shape, target, batch):
    nodes = [node("Reshape", "x s", "t"), node("MatMul", "t w", "y")]
    constants = {"s": np.array(target, np.int64), "w": sample(24, 3)}
    proto = model(nodes, {"x": shape}, {"y": FLOAT}, batch=batch, **constants)
    loaded = assert_float_equal(proto, {"x": sample(7, *shape)})
    assert loaded.inputs[0].shape == shape


@pytest.mark.parametrize(("axis", "shape"), [(1, (4, 2)), (-1, (8,)), (3, (1, 1, 8)), (-2, (4, 2))])
def test_flatten_and_reshaped_output(axis, shape):
    nodes = [
        node("Flatten", "x", "f", axis=axis),
        node("Gemm", "f w", "t"),
        node("Relu", "t", "r"),
        node("Reshape", "r s", "y"),
    ]
    constants = {"w": sample(8, 6), "s": np.array([0, 3, 2], np.int64)}
    proto = model(nodes, {"x": shape}, {"y": FLOAT}, **constants)
    loaded = assert_float_equal(proto, {"x": sample(5, *shape)})
    assert loaded.outputs[0].shape == (3, 2)


def test_branches_inputs_and_outputs():
    """Two inputs, a shared layer, a pre-activation needed with and without its function."""
    nodes = [
        node("Gemm", "a w b", "t"),
        node("Relu", "t", "r"),
        node("Relu", "a", "positive"),
        node("Gemm", "r v", "y1"),
        node("Gemm", "t v", "y2"),
        node("Gemm", "positive w", "y3"),
        node("Tanh", "t", "y4"),
        node("Gemm", "other w", "s"),
        node("Sigmoid", "s", "y5"),
        node("Identity", "t", "y6"),
    ]
    outputs = {f"y{i}": FLOAT for i in range(1, 7)}
    proto = model(nodes, {"a": (4,), "other": (4,)}, outputs, w=W, b=B, v=sample(3, 5))
    loaded = assert_float_equal(proto, {"a": sample(6, 4), "other": sample(6, 4, seed=1)})
    forms = [layer.functions for layer in loaded.layers if layer.name.startswith("n_t")]
    assert len(forms) == 3
    assert set(forms) == {(), (Function("relu"),), (Function("tanh"),)}
    assert len({layer.name for layer in loaded.layers}) == len(loaded.layers)
    assert {(i.name, i.tensor, i.functions) for i in loaded.inputs} == {
        ("a", "a", ()),
        ("a", "positive", (Function("relu"),)),
        ("other", "other", ()),
    }


def test_weights_from_folded_nodes():
    integers = np.random.default_rng(0).integers(-9, 9, (3, 4)).astype(np.int8)
    nodes = [
        node("DequantizeLinear", "q s z", "d", axis=0),
        node("Transpose", "d", "w", perm=[1, 0]),
        node("Constant", "", "b0", value=onnx.numpy_helper.from_array(B)),
        node("Reshape", "b0 shape", "b"),
        node("Mul", "b b", "bb"),
        node("MatMul", "x w", "t"),
        node("Add", "t bb", "y"),
        node("Softmax", "b", "unused"),
    ]
    proto = model(
        nodes, {"x": (4,)}, {"y": FLOAT}, q=integers, s=B * B, z=np.zeros(3, np.int8),
        shape=np.array([1, 3], np.int64),
    )  # fmt: skip
    assert_float_equal(proto, {"x": sample(5, 4)})
    assert {c.runs for c in check_onnx(proto)} == {"host", "engine"}


def test_nodes_out_of_order_are_sorted():
    nodes = [node("Relu", "t", "y"), node("MatMul", "x w", "t")]
    loaded = load_onnx(model(nodes, {"x": (4,)}, {"y": FLOAT}, w=W))
    assert loaded.layers[0].functions == (Function("relu"),)


def test_thousands_of_layers():
    eye = np.eye(2, dtype=np.float32)
    nodes = [node("MatMul", f"t{i} w", f"t{i + 1}") for i in range(2000)]
    loaded = load_onnx(model(nodes, {"t0": (2,)}, {"t2000": FLOAT}, w=eye))
    assert len(loaded.layers) == 2000


def test_external_data_beside_the_model(tmp_path):
    proto = model([node("MatMul", "x w", "y")], {"x": (4,)}, {"y": FLOAT}, w=W)
    path = tmp_path / "m.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    np.testing.assert_array_equal(load_onnx(path).layers[0].weights, W.T)
    with pytest.raises(ModelError, match="give the path of the model"):
        load_onnx(path.read_bytes())
    (tmp_path / "m.data").write_bytes(b"123")
    with pytest.raises(ModelError, match=r"cannot be read from 'm\.data'|refuses|damaged"):
        load_onnx(path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"'m\.data', which is missing"):
        load_onnx(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/../../secret", ""])
def test_external_data_outside_the_folder(tmp_path, location):
    proto = model([node("MatMul", "x w", "y")], {"x": (4,)}, {"y": FLOAT}, w=W)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "secret").write_bytes(W.tobytes())
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_onnx(path)


# -- what is refused ---------------------------------------------------------------------------


def test_all_unsupported_nodes_at_once():
    nodes = [
        node("Asin", "x", "a"),
        node("MatMul", "a w", "t"),
        node("Softsign", "t", "g"),
        node("MatMul", "g v", "u"),
        node("Div", "u u", "y"),
    ]
    proto = model(nodes, {"x": (4,)}, {"y": FLOAT}, w=W, v=sample(3, 3))
    assert set(refused(proto)) == {"n_a", "n_g", "n_y"}
    runs = {c.name: c.runs for c in check_onnx(proto)}
    assert runs["n_t"] == runs["n_u"] == "engine"


REFUSED = [
    ([node("Gemm", "x w", "y")], (7, 4), "A has 3 dimensions"),
    ([node("MatMul", "x v", "y")], (4,), "weights take 3 features, its input has 4"),
    ([node("MatMul", "x x", "y")], (4,), "both operands are computed"),
    ([node("Gemm", "x w", "y", transA=1)], (4,), "transA is 1"),
    ([node("MatMul", "x n", "y")], (4,), "NaN"),
    ([node("MatMul", "x w", "t"), node("Add", "t n2", "y")], (4,), "the bias holds NaN"),
    ([node("MatMul", "x w", "t"), node("Add", "t w", "y")], (4,), "the same for every sample"),
    ([node("MatMul", "x w", "t"), node("Reshape", "t flat", "y")], (4,), "batch dimension"),
    ([node("MatMul", "x w", "t"), node("Reshape", "t bad", "y")], (4,), "the 3 features"),
    ([node("MatMul", "x w", "t"), node("Flatten", "t", "y", axis=0)], (4,), "mixes samples"),
    ([node("Transpose", "x", "t"), node("MatMul", "t w", "y")], (4,), "features must be last"),
    ([node("Transpose", "x", "t"), node("Gemm", "t w", "y")], (4,), "with the batch in front"),
    ([node("MatMul", "x w", "t"), node("Cast", "t", "y", to=INT32)], (4,), "other than float32"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "shape", "word"), REFUSED, ids=[r[2] for r in REFUSED])
def test_refused_nodes(nodes, shape, word):
    used = {name for n in nodes for name in n.input}
    constants = {
        "w": W,
        "v": sample(3, 3),
        "n": np.full((4, 3), np.nan, np.float32),
        "n2": np.full(3, np.nan, np.float32),
        "four": np.arange(4, dtype=np.float32),
        "flat": np.array([1, -1], np.int64),
        "bad": np.array([0, 5], np.int64),
    }
    kept = {k: v for k, v in constants.items() if k in used}
    reasons = refused(model(nodes, {"x": shape}, {"y": FLOAT}, **kept))
    assert any(word in reason for reason in reasons.values()), reasons


@pytest.mark.parametrize(
    ("kind", "shape", "word"),
    [
        (FLOAT, ["N", "K"], "no fixed shape"),
        (FLOAT, None, "no fixed shape"),
        (FLOAT, [4], "must be the batch"),
        (FLOAT, ["N", 0], "empty dimension"),
        (onnx.TensorProto.DOUBLE, ["N", 4], "is float64"),
        (onnx.TensorProto.STRING, ["N", 4], "must be one of float32"),
    ],
)
def test_refused_inputs(kind, shape, word):
    proto = model([node("MatMul", "x w", "y")], {"x": (4,)}, {"y": FLOAT}, w=W)
    proto.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", kind, shape))
    assert word in refused(proto)["x"]


def test_outputs_without_a_layer():
    proto = model([node("Relu", "x", "y")], {"x": (4,)}, {"y": FLOAT})
    assert "does not come from a layer" in refused(proto)["y"]


def test_other_domains():
    proto = model([node("MatMul", "x w", "t"), node("Relu", "t", "y")], {"x": (4,)}, {"y": FLOAT},
                  w=W)  # fmt: skip
    proto.graph.node[1].domain = "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    assert "domain 'com.example'" in refused(proto)["n_y"]


GOOD = model([node("MatMul", "x w", "t"), node("Relu", "t", "y")], {"x": (4,)}, {"y": FLOAT}, w=W)


def damaged(change):
    proto = onnx.ModelProto()
    proto.CopyFrom(GOOD)
    change(proto.graph)
    return proto


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda g: g.node[0].input.__setitem__(0, "y"), "cycle: n_t, n_y"),
        (lambda g: g.node[1].input.__setitem__(0, "y"), "cycle: n_y"),
        (lambda g: g.initializer.pop(), "'n_t' reads 'w', which no node"),
        (lambda g: g.node[1].output.__setitem__(0, "t"), "'t' is defined twice"),
        (lambda g: g.node.pop(), "output 'y' is not defined"),
        (lambda g: setattr(g.initializer[0], "raw_data", b"123"), "checker refuses|damaged"),
        (lambda g: setattr(g.node[1], "op_type", "Nonsense"), "checker refuses"),
        (lambda g: g.initializer[0].dims.append(-3), "'w' is damaged"),
    ],
)
def test_damaged_graphs(change, word):
    for read in (load_onnx, check_onnx):
        with pytest.raises(ModelError, match=word):
            read(damaged(change))


def test_old_operator_sets():
    proto = model([node("MatMul", "x w", "y")], {"x": (4,)}, {"y": FLOAT}, opset=6, w=W)
    with pytest.raises(ModelError, match="operator set 6, must be 7 or newer"):
        load_onnx(proto)


def test_missing_files(tmp_path):
    with pytest.raises(ModelError, match="missing; give the path"):
        load_onnx(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="a folder, not a file"):
        load_onnx(tmp_path)
    with pytest.raises(ModelError):
        load_onnx(b"")


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_random_bytes(data):
    with pytest.raises(ModelError):
        load_onnx(data)


@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
@settings(max_examples=200, deadline=None)
def test_truncated_or_changed_files(position, byte, truncate):
    data = bytearray(GOOD.SerializeToString())
    position %= len(data)
    if truncate:
        del data[position:]
    else:
        data[position] = byte
    try:
        load_onnx(bytes(data))
    except ModelError:
        return
    assert not truncate or position == len(data)  # a changed byte may leave a valid model


def test_mlperf_tiny_float():
    path = shared_file("models", "mlperf-tiny", "ad_float.onnx")
    loaded = load_onnx(path)
    assert loaded.layers[0].weights.shape == (128, 640)
    x = sample(200, 640) * 5
    (wanted,) = run_onnxruntime(path, {"input_1": x})
    np.testing.assert_allclose(
        run_float(loaded, x)[loaded.outputs[0].tensor], wanted, rtol=1e-4, atol=1e-4
    )


def test_slice_of_a_tensor_without_features() -> None:
    """Of a shape, which is known when the model is read, and no output of a layer."""
    nodes = [
        node("Gemm", "x w", "g"), node("Shape", "g", "s"), node("Slice", "s a b", "y"),
    ]  # fmt: skip
    proto = model(
        nodes, {"x": (4,)}, {"y": onnx.TensorProto.INT64}, w=sample(4, 3), a=np.array([0]),
        b=np.array([1]),
    )  # fmt: skip
    assert "does not come from a layer" in refused(proto)["y"]
