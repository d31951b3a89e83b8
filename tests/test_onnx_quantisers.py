# SPDX-License-Identifier: Apache-2.0
"""Quantised models as tools write them: dynamic ones, INT4 weights, Brevitas' QDQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, INT8, UINT8, model, node, onnx, refused, sample
from oracle import run_onnxruntime
from pynq_bbs import Accelerator, compile, load_onnx
from pynq_bbs.compress.activations import run_float
from pynq_bbs.compress.quantize import quantize
from pynq_bbs.model.graph import Model, QuantModel
from pynq_bbs.model.onnx_import import check_onnx


def on_cpu(proto, x, **options):
    with Accelerator(compile(load_onnx(proto), **options), "cpu") as accelerator:
        return accelerator.run(x)


# -- dynamic -----------------------------------------------------------------------------------


def float_network(weights):
    nodes = [
        node("Conv", "x w1 b1", "c", pads=[1, 1, 1, 1]), node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f"),
        node("MatMul", "f w2", "m"), node("Add", "m b2", "h"),
        node("Gemm", "h w3 b3", "y", transB=1),
    ]  # fmt: skip
    return model(nodes, {"x": (3, 8, 8)}, {"y": FLOAT}, **weights)


WEIGHTS = {
    "w1": sample(6, 3, 3, 3), "b1": sample(6), "w2": sample(6, 7), "b2": sample(7),
    "w3": sample(5, 7), "b3": sample(5),
}  # fmt: skip


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_dynamic_quantiser(tmp_path: Path, per_channel: bool, kind: str) -> None:
    """As onnxruntime's tool writes it: a float model of the weights that its integers stand for."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    paths = [tmp_path / name for name in ("float.onnx", "dynamic.onnx")]
    onnx.save(float_network(WEIGHTS), paths[0])
    quantization.quantize_dynamic(
        *paths, per_channel=per_channel, weight_type=getattr(quantization.QuantType, kind)
    )
    proto = onnx.load(paths[1])
    assert [n.op_type for n in proto.graph.node].count("DynamicQuantizeLinear") == 3
    loaded = load_onnx(proto)
    assert isinstance(loaded, Model)
    assert all(n.runs != "unsupported" for n in check_onnx(proto))

    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}

    def floats(name: str, axis: int):
        q, scale, zero = (stored[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point"))
        shape = [-1 if i == axis else 1 for i in range(q.ndim)] if scale.size > 1 else ()
        q = q.astype(np.float32) - zero.astype(np.float32).reshape(shape)
        return (q * scale.reshape(shape)).astype(np.float32)

    w3 = floats("w3_Transposed", 1).T
    meant = float_network(WEIGHTS | {"w1": floats("w1", 0), "w2": floats("w2", 1), "w3": w3})
    x = sample(40, 3, 8, 8, seed=1)
    (wanted,) = run_onnxruntime(meant, {"x": x}, optimise=False)
    np.testing.assert_allclose(run_float(loaded, x)["y"], wanted, rtol=1e-4, atol=1e-4)
    got = on_cpu(proto, x, calibration=x)
    assert np.sqrt(np.mean((got - wanted) ** 2)) < 0.03 * wanted.std()


def test_integers_of_symmetric_dynamic_weights_stay() -> None:
    """With a row's largest integer at 127 and no zero point, calibrating gives the same ones."""
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (16, 5)).astype(np.int8)
    w[0] = 127
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"), node("MatMulInteger", "q w z wz", "t"),
        node("Cast", "t", "f", to=FLOAT), node("Mul", "s ws", "both"),
        node("Mul", "f both", "y"),
    ]  # fmt: skip
    proto = model(
        nodes, {"x": (16,)}, {"y": FLOAT}, w=w, wz=np.zeros(5, np.int8),
        ws=rng.uniform(0.01, 0.02, 5).astype(np.float32),
    )  # fmt: skip
    (layer,) = quantize(load_onnx(proto), sample(50, 16)).layers
    np.testing.assert_array_equal(layer.weights, w.T)


@pytest.mark.parametrize(
    ("nodes", "outputs", "word"),
    [
        (["DynamicQuantizeLinear x q,s,z"], {"q": UINT8}, "dynamically quantised"),
        (["DynamicQuantizeLinear x q,s,z"], {"s": FLOAT}, "does not come from a layer"),
        (
            ["DynamicQuantizeLinear x q,s,z", "DequantizeLinear q,s,z y"],
            {"y": FLOAT}, "products of them",
        ),
        (["DynamicQuantizeLinear x q,s,z", "Relu q y"], {"y": UINT8}, "dynamically quantised"),
        (["MatMulInteger x,w y"], {"y": FLOAT}, "must be int8 or uint8"),
    ],
)  # fmt: skip
def test_integers_of_no_known_scale(nodes, outputs, word) -> None:
    made = [
        node(op, a.replace(",", " "), b.replace(",", " ")) for op, a, b in map(str.split, nodes)
    ]
    constants = {"w": np.ones((4, 3), np.int8)} if "w" in nodes[0] else {}
    proto = model(made, {"x": (4,)}, outputs, **constants)
    reasons = refused(proto)
    assert any(word in reason for reason in reasons.values()), reasons


# -- static ------------------------------------------------------------------------------------


def branching_network():
    """Curves, a gate, a sum, a joined tensor; MatMul and Add, whose constant is quantised too."""
    nodes = [
        node("Conv", "x w1 b1", "c", pads=[1, 1, 1, 1]), node("LeakyRelu", "c", "r", alpha=0.1),
        node("Conv", "r w4", "g"), node("Sigmoid", "g", "sg"), node("Mul", "r sg", "gated"),
        node("Conv", "gated w5", "k"), node("Add", "k gated", "s"), node("Relu", "s", "sr"),
        node("Concat", "sr r", "cc", axis=1), node("Mul", "cc gain", "scaled"),
        node("MaxPool", "scaled", "mp", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "mp", "p"), node("Flatten", "p", "f"),
        node("MatMul", "f w2", "m"), node("Add", "m b2", "h"), node("Gemm", "h w3 b3", "y"),
    ]  # fmt: skip
    return model(
        nodes, {"x": (3, 8, 8)}, {"y": FLOAT}, w1=sample(4, 3, 3, 3), b1=sample(4),
        w4=sample(4, 4, 1, 1), w5=sample(4, 4, 1, 1), gain=np.abs(sample(8, 1, 1)),
        w2=sample(8, 6), b2=sample(6), w3=sample(6, 5), b3=sample(5),
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["QDQ", "QOperator"])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_static_quantiser(tmp_path: Path, layout: str, kind: str, per_channel: bool) -> None:
    """As onnxruntime's tool writes them; run in floats, as they stand, a few steps apart."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Samples(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": x}])

        def get_next(self):
            return next(self.batches, None)

    x = sample(40, 3, 8, 8, seed=1)
    paths = [tmp_path / name for name in ("float.onnx", "static.onnx")]
    onnx.save(branching_network(), paths[0])
    quantization.quantize_static(
        *paths, Samples(), per_channel=per_channel,
        quant_format=quantization.QuantFormat[layout],
        activation_type=quantization.QuantType[kind], weight_type=quantization.QuantType.QInt8,
        # Weights of seven bits: without VNNI onnxruntime adds pairs of products in 16 bits.
        reduce_range=True,
    )  # fmt: skip
    proto = onnx.load(paths[1])
    loaded = load_onnx(proto)
    assert isinstance(loaded, QuantModel)
    (wanted,) = run_onnxruntime(proto, {"x": x}, optimise=False)
    got = on_cpu(proto, x)
    steps = np.abs(got - wanted) / loaded.outputs[0].scale
    assert steps.max() <= 3.01 and np.mean(steps > 0.5) < 0.2
    assert len(np.unique(got)) > 50


@given(seed=st.integers(0, 2**32), image=st.booleans(), op=st.sampled_from(["Add", "Mul"]))
@settings(max_examples=60, deadline=None)
def test_constants_of_quantised_tensors(seed, image, op):
    """One weight a row; what the constant is rounded by is a step at ties at most."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 9, 3 if image else 1))
    constant = rng.uniform(-2, 2, (shape[0], 1, 1) if image else shape).astype(np.float32)
    nodes = [
        node("DequantizeLinear", "x xs xz", "d"), node("MaxPool", "d", "m", kernel_shape=[1, 1])
        if image else node("Identity", "d", "m"),
        node(op, "m c", "f"), node("QuantizeLinear", "f ys yz", "y"),
    ]  # fmt: skip
    proto = model(
        nodes, {"x": (INT8, shape)}, {"y": INT8}, xs=np.float32(0.05), xz=np.int8(7), c=constant,
        ys=np.float32(0.07), yz=np.int8(-9),
    )  # fmt: skip
    x = rng.integers(-128, 128, (9, *shape)).astype(np.int8)
    got = on_cpu(proto, x)
    x_scale, y_scale = np.float64(np.float32(0.05)), np.float64(np.float32(0.07))
    floats, off = (x.astype(np.int64) - 7) * x_scale, np.zeros(constant.shape)
    if op == "Mul":
        floats = floats * constant
    else:
        floats = floats + constant
        # what is added is a fraction of an input's step, of which the nearest is taken
        added, steps = constant[..., None] / x_scale, np.arange(1, 128)
        off = np.abs(np.rint(added * steps) / steps - added).min(axis=-1) * x_scale / y_scale
    real = floats / y_scale
    wanted = np.clip(np.rint(real) - 9, -128, 127)
    near_tie = np.abs(np.abs(real - np.rint(real)) - 0.5) < off + 1e-4
    np.testing.assert_array_equal(got[~near_tie], wanted[~near_tie])
    assert np.abs(got - wanted).max() <= 1
    (by_onnxruntime,) = run_onnxruntime(proto, {"x": x}, optimise=False)
    assert np.abs(got.astype(int) - by_onnxruntime).max() <= 1


# -- INT4 --------------------------------------------------------------------------------------


def int4_model(w, scale, zero=None, unsigned=False, **attributes):
    """INT8 x -> DequantizeLinear -> MatMul with INT4 weights (K, M) -> QuantizeLinear."""
    kind = onnx.TensorProto.UINT4 if unsigned else onnx.TensorProto.INT4
    nodes = [
        node("DequantizeLinear", "x xs xz", "d"),
        node("DequantizeLinear", "w ws wz" if zero is not None else "w ws", "v", **attributes),
        node("MatMul", "d v", "t"), node("QuantizeLinear", "t ys yz", "y"),
    ]  # fmt: skip
    proto = model(
        nodes, {"x": (INT8, (w.shape[0],))}, {"y": INT8}, opset=21, ws=scale,
        xs=np.float32(0.1), xz=np.int8(3), ys=np.float32(0.25), yz=np.int8(-4),
    )  # fmt: skip
    for name, values in (("w", w), ("wz", zero)):
        if values is not None:
            tensor = onnx.helper.make_tensor(name, kind, values.shape, values.reshape(-1).tolist())
            proto.graph.initializer.append(tensor)
    proto.ir_version = 10
    return proto


def wanted_integers(x, w, scale):
    """DESIGN.md section 3, for weights (K, M) less their zero point and a scale a row (M,)."""
    sums = (x.astype(np.int64) - 3) @ w.astype(np.int64)
    m = np.float32(0.1) * scale.astype(np.float32) / np.float32(0.25)
    return np.clip(np.rint(sums.astype(np.float32) * m) - 4, -128, 127).astype(np.int8)


needs_int4 = pytest.mark.skipif(
    onnx.defs.onnx_opset_version() < 21, reason="this onnx has no 4-bit integers"
)


@needs_int4
@given(seed=st.integers(0, 2**32), unsigned=st.booleans(), per_row=st.booleans())
@settings(max_examples=40, deadline=None)
def test_int4_weights(seed, unsigned, per_row):
    """The integers as they are; signed ones lie in 4 bits on the engine too."""
    rng = np.random.default_rng(seed)
    k, m = (int(n) for n in rng.integers(1, 40, 2))
    w = rng.integers(0 if unsigned else -8, 16 if unsigned else 8, (k, m))
    scale = rng.uniform(0.05, 0.3, m if per_row else ()).astype(np.float32)
    zero = np.full(scale.shape, 8) if unsigned else None
    proto = int4_model(w, scale, zero, unsigned, axis=1)
    x = rng.integers(-128, 128, (20, k)).astype(np.int8)
    program = compile(load_onnx(proto))
    assert {la.weight_bits for la in program.layers} == {4}
    with Accelerator(program, "cpu") as accelerator:
        got = accelerator.run(x)
    wanted = wanted_integers(x, w - 8 * unsigned, np.broadcast_to(scale, m))
    np.testing.assert_array_equal(got, wanted)


@needs_int4
@pytest.mark.parametrize("block", [4, 16, 32])
def test_blocks_of_a_scale_each(block):
    """Rounded to INT8 with one scale a row: as close as that allows."""
    rng = np.random.default_rng(block)
    w = rng.integers(-8, 8, (50, 6))
    blocks = -(-50 // block)
    scale = rng.uniform(0.05, 0.3, (blocks, 6)).astype(np.float32)
    proto = int4_model(w, scale, axis=0, block_size=block)
    loaded = load_onnx(proto)
    assert isinstance(loaded, QuantModel)
    meant = w * np.repeat(scale, block, axis=0)[:50].astype(np.float64)
    (layer,) = loaded.layers
    steps = np.abs(meant).max(axis=0) / 127
    np.testing.assert_allclose(layer.weights.T * steps, meant, atol=0.51 * steps.max())
    x = rng.integers(-128, 128, (20, 50)).astype(np.int8)
    (floats,) = run_onnxruntime(proto, {"x": x}, optimise=False)
    assert np.abs(on_cpu(proto, x).astype(int) - floats).max() <= 4


@needs_int4
def test_equal_blocks_are_one_scale():
    rng = np.random.default_rng(1)
    w, scale = rng.integers(-8, 8, (32, 6)), rng.uniform(0.05, 0.3, 6).astype(np.float32)
    proto = int4_model(w, np.tile(scale, (2, 1)), axis=0, block_size=16)
    x = rng.integers(-128, 128, (20, 32)).astype(np.int8)
    np.testing.assert_array_equal(on_cpu(proto, x), wanted_integers(x, w, scale))


@needs_int4
@pytest.mark.parametrize("block", [-1, 3, 64])
def test_blocks_that_do_not_fit(block):
    proto = int4_model(np.ones((32, 6), int), np.ones((2, 6), np.float32), axis=0, block_size=block)
    assert "do not fit blocks" in refused(proto)["n_v"]


# -- Brevitas ----------------------------------------------------------------------------------


def brevitas(bits: int, unsigned: bool):
    """Conv, Relu, Conv as Brevitas exports QDQ: float weights through QuantizeLinear and Clip,
    activations in a range of `bits`, biases of INT32."""
    most = 2 ** (bits - 1) - 1
    nodes = [
        node("QuantizeLinear", "x xs zero", "xq"), node("Clip", "xq low high", "xc"),
        node("DequantizeLinear", "xc xs zero", "xd"),
    ]  # fmt: skip
    constants = {
        "xs": np.float32(0.04 * 127 / most), "zero": np.int8(0),
        "low": np.int8(-most), "high": np.int8(most),
        "hs": np.float32(0.1 * 127 / most), "hz": np.uint8(0) if unsigned else np.int8(0),
        "hlow": np.uint8(0) if unsigned else np.int8(-most),
        "hhigh": np.uint8(2 * most + 1) if unsigned else np.int8(most),
    }  # fmt: skip
    name = "xd"
    for i, (rows, channels) in enumerate([(6, 4), (5, 6)]):
        w = sample(rows, channels, 3, 3, seed=i)
        scale = (np.abs(w).max(axis=(1, 2, 3)) / most).astype(np.float32)
        x_scale = constants["xs" if i == 0 else "hs"]
        constants |= {
            f"w{i}": w, f"ws{i}": scale, f"wz{i}": np.zeros(rows, np.int8),
            f"b{i}": np.arange(rows, dtype=np.int32) * 20 - 30, f"bs{i}": x_scale * scale,
            f"bz{i}": np.zeros(rows, np.int32),
        }  # fmt: skip
        nodes += [
            node("QuantizeLinear", f"w{i} ws{i} wz{i}", f"wq{i}", axis=0),
            node("Clip", f"wq{i} low high", f"wc{i}"),
            node("DequantizeLinear", f"wc{i} ws{i} wz{i}", f"wd{i}", axis=0),
            node("DequantizeLinear", f"b{i} bs{i} bz{i}", f"bd{i}", axis=0),
            node("Conv", f"{name} wd{i} bd{i}", f"c{i}"),
        ]
        name = f"c{i}"
        if i == 0:
            nodes += [
                node("Relu", "c0", "r"), node("QuantizeLinear", "r hs hz", "rq"),
                node("Clip", "rq hlow hhigh", "rc"), node("DequantizeLinear", "rc hs hz", "h"),
            ]  # fmt: skip
            name = "h"
    return model(nodes, {"x": (4, 8, 7)}, {name: FLOAT}, **constants)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("unsigned", [False, True])
def test_brevitas(bits, unsigned):
    """onnxruntime computes the graph as it stands, in floats: at ties it differs by a step."""
    proto = brevitas(bits, unsigned)
    x = sample(20, 4, 8, 7, seed=9)
    loaded = load_onnx(proto)
    assert isinstance(loaded, QuantModel) and len(loaded.layers) == 2
    (wanted,) = run_onnxruntime(proto, {"x": x}, optimise=False)
    got = on_cpu(proto, x)
    apart = np.abs(got - wanted)
    assert np.mean(apart > 1e-3) < 0.02 and apart.max() < 0.2 * wanted.std()
    shown = brevitas(bits, unsigned)
    del shown.graph.output[:]
    kind = UINT8 if unsigned else INT8
    shown.graph.output.append(onnx.helper.make_tensor_value_info("rc", kind, None))
    (integers,) = run_onnxruntime(shown, {"x": x}, optimise=False)
    ours = on_cpu(shown, x)
    assert ours.dtype == integers.dtype
    assert np.abs(ours.astype(int) - integers).max() <= 1
    assert np.mean(ours != integers) < 0.01 and len(np.unique(ours)) > 2 ** (bits - 2)


def test_brevitas_weights_of_4_bits_take_4():
    assert {la.weight_bits for la in compile(load_onnx(brevitas(4, True))).layers} == {4}
    assert {la.weight_bits for la in compile(load_onnx(brevitas(8, True))).layers} == {8}
