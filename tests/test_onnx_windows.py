# SPDX-License-Identifier: Apache-2.0
"""Convolutional networks come in through ONNX with the integers that they describe."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, INT8, INT32, UINT8, model, node, onnx, refused
from onnx_networks import Network, pooled, random_network, random_pool
from onnx_oracle import run_graph
from oracle import cifar_images, run_onnxruntime, shared_file
from pynq_bbs.accelerator import Accelerator
from pynq_bbs.builds import load_build
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.compress.borders import quantize_input
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.errors import ModelError
from pynq_bbs.model.graph import QuantModel
from pynq_bbs.model.onnx_import import check_onnx, load_onnx
from pynq_bbs.model.onnx_operators import MICROSOFT, OPERATORS

BUILD = load_build("8x32")


def flat(values, like):
    """A tensor of the graph as INT8 (N, features)."""
    values = values.reshape(len(values), -1)
    return values.view(np.int8) ^ np.int8(-128) if like == np.uint8 else values


def every_tensor(loaded, x, names=None):
    """Every tensor of the compiled model by name. Where a layer adds another tensor, the engine has
    no tensor of what it adds that to; `names` names those, which an extra layer makes here."""
    before = [
        replace(la, combination=None, name=f"before {la.name}", output=names[la.output])
        for la in loaded.layers
        if names and la.output in names
    ]
    program = compile_model(replace(loaded, layers=[*loaded.layers, *before]))
    tensors = {i.tensor: quantize_input(i, x) for i in loaded.inputs}
    return CpuDevice(program).run(tensors)


def added(proto, loaded):
    """Of every sum that is part of a layer, the quantised tensor that the layer adds to."""
    maker = {o: n for n in proto.graph.node for o in n.output}
    names = {}
    for layer in loaded.layers:
        if layer.combination and layer.weights.shape[-2:] != (1, 1):
            at = maker[layer.output.removesuffix(":0")]
            while at.op_type not in ("Add", "Mul"):
                at = maker[at.input[0]]
            sides = [maker[name].input[0] for name in at.input]
            names[layer.output] = next(s for s in sides if s != layer.combination.tensor)
    return names


def check_integers(proto, x, qdq=False):
    """Compiled, all tensors are the oracle's; the emulated device gives them too."""
    loaded = load_onnx(proto)
    assert isinstance(loaded, QuantModel)
    wanted = run_graph(proto, {loaded.inputs[0].name: x})
    tensors = every_tensor(loaded, x, added(proto, loaded) if qdq else None)
    moved = {output.tensor for output in loaded.outputs if output.arrangement.factors}
    # What layers make on the way to a tensor of the file is named behind it.
    made = {la.output for la in loaded.layers if la.output.rpartition(":")[0] not in wanted}
    for name in (made | set(tensors) & set(wanted)) - moved:
        values = tensors[name]
        np.testing.assert_array_equal(values, flat(wanted[name], wanted[name].dtype), err_msg=name)
    with Accelerator(compile_model(loaded), device="standin", verify=True) as accelerator:
        y = accelerator.run(x)
    for output in loaded.outputs:
        got = y[output.name] if isinstance(y, dict) else y
        assert got.dtype == wanted[output.name].dtype
        np.testing.assert_array_equal(got, wanted[output.name])
    return set(tensors) | {output.name for output in loaded.outputs}


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), qdq=st.booleans(), last=st.booleans(), unsigned=st.booleans()
)
def test_random_networks(seed, qdq, last, unsigned):
    net, shown = random_network(seed, qdq=qdq, channels_last=last, unsigned=unsigned)
    check_integers(net.model(*shown), net.sample(2))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), last=st.booleans(), unsigned=st.booleans())
def test_random_networks_against_onnxruntime(seed, last, unsigned):
    """What ONNX defines is exact, through the QLinear operators."""
    net, shown = random_network(seed, exact=True, qdq=False, channels_last=last, unsigned=unsigned)
    proto, x = net.model(*shown), net.sample(2)
    check_integers(proto, x)
    (wanted,) = run_onnxruntime(proto, {"x": x})
    np.testing.assert_array_equal(on_cpu(proto, x), wanted)


@pytest.mark.parametrize("fused", [True, False])
def test_qdq_networks_against_onnxruntime(fused):
    """What onnxruntime makes of a QDQ graph, or its floats as they stand: exact but for ties."""
    differences = []
    for seed in range(80):
        net, shown = random_network(seed, exact=True, qdq=True, unsigned=seed % 2 == 1)
        proto, x = net.model(*shown), net.sample(3)
        (wanted,) = run_onnxruntime(proto, {"x": x}, optimise=fused)
        differences.append(np.abs(on_cpu(proto, x).astype(int) - wanted).reshape(-1))
    every = np.concatenate(differences)
    assert every.max() <= 1 and every.mean() < 0.002


def on_cpu(proto, x):
    with Accelerator(compile_model(load_onnx(proto)), device="cpu") as accelerator:
        return accelerator.run(x)


@pytest.mark.parametrize("qdq", [False, True])
@pytest.mark.parametrize("kind", ["add", "multiply", "average", "borders", "global"])
def test_what_onnx_leaves_open_against_onnxruntime(kind, qdq):
    """Additions and averages: one unit apart at ties, rarely."""
    differences = []
    for seed in range(40):
        net = Network(np.random.default_rng(seed), qdq=qdq)
        x = net.input(3, 9, 8)
        y = net.conv(x, 3, pads=[1, 1, 1, 1])
        if kind == "add":
            y = net.add(x, y)
        elif kind == "multiply":
            y = net.add(x, y, op="Mul")
        elif kind == "average":
            y = net.average(y, "AveragePool", (3, 8, 6), kernel_shape=[2, 3])
        elif kind == "borders":
            more = random_pool(net.rng) | {"count_include_pad": seed % 2}
            # The operator on floats and that on integers count differently then.
            more["ceil_mode"] &= not (qdq and seed % 2)
            y = net.average(y, "AveragePool", pooled(y.shape, more), **more)
        else:
            y = net.average(y, "GlobalAveragePool", (3, 1, 1))
        proto, values = net.model(y), net.sample(4)
        (wanted,) = run_onnxruntime(proto, {"x": values})
        differences.append(np.abs(on_cpu(proto, values).astype(int) - wanted).reshape(-1))
    every = np.concatenate(differences)
    assert every.max() <= 1 and every.mean() < 0.02


@pytest.mark.parametrize("op", ["Sigmoid", "LeakyRelu"])
@pytest.mark.parametrize("unsigned", [False, True])
def test_curves_of_integers_against_onnxruntime(op, unsigned):
    """One table each; onnxruntime's sigmoid is rounded by itself, so it is one unit off at ties."""
    for seed in range(10):
        net = Network(np.random.default_rng(seed), qdq=False, unsigned=unsigned)
        y = net.conv(net.input(3, 5, 4), 4, (1, 1))
        more = {"alpha": float(net.rng.uniform(0, 0.5))} if op == "LeakyRelu" else {}
        proto, values = net.model(net.curve(y, op, **more), y), net.sample(4)
        assert len(load_onnx(proto).layers) == 2
        for got, wanted in zip(
            on_cpu(proto, values).values(), run_onnxruntime(proto, {"x": values}), strict=True
        ):
            apart = np.abs(got.astype(int) - wanted)
            assert apart.max() <= (op == "Sigmoid") and apart.mean() < 0.002


@pytest.mark.parametrize("opset", [7, 13])
def test_softmax_of_integers_at_an_output(opset):
    """The host's, in floats; onnxruntime's is one of tables, and may be a unit off."""
    net = Network(np.random.default_rng(opset), qdq=False)
    x = net.dense(net.flattened(net.conv(net.input(3, 5, 4), 4)), 6)
    net.constants |= {"ps": np.float32(1 / 256), "pz": np.int8(-128)}
    inputs = f"{x.name} {x.scale} {x.zero} ps pz"
    net.nodes.append(
        node("QLinearSoftmax", inputs, "p", domain="com.microsoft", axis=1, opset=opset)
    )
    proto, values = net.model(replace(x, name="p")), net.sample(20)
    (wanted,) = run_onnxruntime(proto, {"x": values})
    got = on_cpu(proto, values)
    assert got.dtype == wanted.dtype and len(np.unique(got)) > 5
    assert np.abs(got.astype(int) - wanted).max() <= 1
    assert {n.runs for n in check_onnx(proto) if n.op == "QLinearSoftmax"} == {"host"}


def quantised_conv(nodes, shape, kernel=(3, 3), rows=4, **constants):
    """INT8 x -> DequantizeLinear -> `nodes`, which lead from "d" to "f" -> QuantizeLinear."""
    rng = np.random.default_rng(3)
    channels = constants.pop("channels", shape[0])
    described = {
        "xs": np.float32(0.05), "xz": np.int8(5), "ys": np.float32(0.1), "yz": np.int8(-7),
        "wq": rng.integers(-63, 64, (rows, channels, *kernel)).astype(np.int8),
        "ws": rng.uniform(0.005, 0.02, rows).astype(np.float32), "wz": np.zeros(rows, np.int8),
    } | constants  # fmt: skip
    every = [
        node("DequantizeLinear", "wq ws wz", "w", axis=0),
        node("DequantizeLinear", "x xs xz", "d"),
        *nodes,
        node("QuantizeLinear", "f ys yz", "y"),
    ]
    used = {name for n in every for name in n.input}
    kept = {k: v for k, v in described.items() if k in used}
    return model(every, {"x": (INT8, shape)}, {"y": INT8}, **kept)


def random_int8(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("strides", "dilations"), [([1, 1], [2, 1]), ([2, 3], [1, 1])])
def test_automatic_padding(mode, strides, dilations):
    conv = node("Conv", "d w", "f", auto_pad=mode, strides=strides, dilations=dilations)
    proto = quantised_conv([conv], (3, 9, 8), (3, 2))
    check_integers(proto, random_int8(2, 3, 9, 8))


def test_sequences_are_images_of_one_row():
    nodes = [
        node("Conv", "d w", "c", strides=[2], pads=[1, 2]),
        node("QuantizeLinear", "c ys yz", "q"),
        node("DequantizeLinear", "q ys yz", "cd"),
        node("AveragePool", "cd", "f", kernel_shape=[2]),
    ]
    proto = quantised_conv(nodes, (3, 17), (4,))
    check_integers(proto, random_int8(2, 3, 17))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("last", [False, True])
def test_mean_over_pixels(keepdims, last):
    """Channels last too, where the model transposes before the mean."""
    nodes = [
        node("Conv", "d w", "c"),
        node("QuantizeLinear", "c ys yz", "q"),
        node("DequantizeLinear", "q ys yz", "cd"),
    ]
    name = "cd"
    if last:
        nodes.append(node("Transpose", "cd", "ct", perm=[0, 2, 3, 1]))
        name = "ct"
    axes = [1, 2] if last else [2, 3]
    nodes.append(node("ReduceMean", name, "f", axes=axes, keepdims=keepdims))
    proto = quantised_conv(nodes, (3, 20, 19))
    check_integers(proto, random_int8(2, 3, 20, 19))


@pytest.mark.parametrize("at", ["before", "behind", "both"])
def test_transposed_borders(at):
    """The user hands in and gets the model's own layout; a Flatten of channels last is weights."""
    nodes, name, shape = [], "d", (3, 6, 5)
    if at != "behind":
        nodes, name, shape = [node("Transpose", "d", "t", perm=[0, 3, 1, 2])], "t", (6, 5, 3)
    nodes.append(node("Conv", f"{name} w", "c" if at != "before" else "f", pads=[1, 1, 1, 1]))
    if at != "before":
        nodes.append(node("Transpose", "c", "f", perm=[0, 2, 3, 1]))
    proto = quantised_conv(nodes, shape, channels=3)
    check_integers(proto, random_int8(2, *shape))


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("last", [False, True])
def test_linear_layer_over_all_pixels(op, last):
    nodes = [
        node("Conv", "d w", "c"),
        node("QuantizeLinear", "c ys yz", "q"),
        node("DequantizeLinear", "q ys yz", "cd"),
        node("Transpose", "cd", "ct", perm=[0, 2, 3, 1] if last else [0, 1, 2, 3]),
        node("Flatten", "ct", "flat"),
        node("DequantizeLinear", "vq vs", "v"),
        node(op, "flat v", "f"),
    ]
    rng = np.random.default_rng(4)
    proto = quantised_conv(
        nodes, (3, 7, 6), vq=rng.integers(-127, 128, (80, 5)).astype(np.int8), vs=np.float32(0.001)
    )
    check_integers(proto, random_int8(2, 3, 7, 6))


def test_both_operands_are_read_again():
    """Neither layer can make the sum then: a layer of its own does."""
    nodes = [
        node("Conv", "d w", "a", pads=[1, 1, 1, 1]),
        node("QuantizeLinear", "a ys yz", "aq"),
        node("DequantizeLinear", "aq ys yz", "ad"),
        node("Add", "ad ad", "f"),
    ]
    proto = quantised_conv(nodes, (4, 6, 5))
    x = random_int8(2, 4, 6, 5)
    check_integers(proto, x)
    assert [la.combination is None for la in load_onnx(proto).layers] == [True, False]
    proto.graph.node[-2].input[1] = "d"
    check_integers(proto, x)
    assert len(load_onnx(proto).layers) == 1


def test_maximum_with_another_scale_behind_it():
    """Max of integers, then Relu and requantisation as a table."""
    nodes = [
        node("MaxPool", "d", "m", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1]),
        node("Relu", "m", "f"),
    ]
    check_integers(quantised_conv(nodes, (3, 8, 7)), random_int8(2, 3, 8, 7))


def test_joined_tensors_of_one_scale_take_no_layer():
    """Their own tensors lie in the joined one; a part of another scale takes a layer."""
    for same in (True, False):
        net = Network(np.random.default_rng(7))
        x = net.input(3, 6, 5)
        left, right = net.split(net.conv(x, 6, pads=[1, 1, 1, 1]), 4, 2)
        y = net.concat(right, left, same=same)
        z = net.concat(net.conv(y, 2, (1, 1)), y)
        proto = net.model(z, y, left)
        check_integers(proto, net.sample(2))
        assert len(load_onnx(proto).layers) == 2 + 2 * (not same) + 2


@pytest.mark.parametrize("shape", [(5,), (4, 9)])
@pytest.mark.parametrize("qdq", [False, True])
def test_parts_of_features_and_sequences(shape, qdq):
    """Those of a model's input as well, and shown as they are."""
    net = Network(np.random.default_rng(8), qdq=qdq)
    x = net.input(*shape)
    first, second = net.split(x, 2, shape[0] - 2)
    y = net.dense(x, 6) if len(shape) == 1 else net.conv(x, 6, (1,))
    parts = net.split(y, 1, 5)
    proto = net.model(net.concat(parts[1], first), parts[0], net.concat(second, second, parts[1]))
    values = net.sample(3)
    check_integers(proto, values)
    got = on_cpu(proto, values)
    for output, wanted in zip(got.values(), run_onnxruntime(proto, {"x": values}), strict=True):
        assert np.abs(output.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("function", ["Relu", "Clip", ""])
def test_joined_and_clamped(function, unsigned):
    """A function behind the join is done where its parts are made."""
    net = Network(np.random.default_rng(9), unsigned=unsigned)
    x = net.input(3, 6, 5)
    y = net.concat(x, net.conv(x, 4, pads=[1, 1, 1, 1]), function=function)
    proto, values = net.model(y), net.sample(3)
    check_integers(proto, values)
    (wanted,) = run_onnxruntime(proto, {"x": values})
    assert np.abs(on_cpu(proto, values).astype(int) - wanted).max() <= 1


def test_qgemm_without_a_scale_gives_floats():
    rng = np.random.default_rng(1)
    proto = model(
        [node("QGemm", "x xs xz w ws wz b", "y", domain="com.microsoft", transB=1)],
        {"x": (INT8, (7,))}, {"y": FLOAT}, xs=np.float32(0.05), xz=np.int8(3),
        w=rng.integers(-60, 61, (4, 7)).astype(np.int8), wz=np.zeros(4, np.int8),
        ws=rng.uniform(0.01, 0.02, 4).astype(np.float32), b=np.arange(4, dtype=np.int32) * 99,
    )  # fmt: skip
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    x = random_int8(3, 7)
    (wanted,) = run_onnxruntime(proto, {"x": x})
    np.testing.assert_allclose(on_cpu(proto, x), wanted, rtol=1e-6)
    del proto.graph.node[0].input[3:]
    assert "is missing" in refused(proto)["n_y"]


def test_conv_integer():
    nodes = [node("ConvInteger", "x w xz wz", "y", pads=[1, 0, 0, 2], strides=[2, 1])]
    rng = np.random.default_rng(0)
    proto = model(
        nodes, {"x": (UINT8, (3, 9, 8))}, {"y": INT32}, xz=np.uint8(7), wz=np.int8(3),
        w=rng.integers(-60, 61, (4, 3, 3, 2)).astype(np.int8),
    )  # fmt: skip
    x = rng.integers(0, 256, (2, 3, 9, 8)).astype(np.uint8)
    (wanted,) = run_onnxruntime(proto, {"x": x})
    with Accelerator(compile_model(load_onnx(proto)), device="standin", verify=True) as accelerator:
        np.testing.assert_array_equal(accelerator.run(x), wanted)


@pytest.mark.parametrize(
    ("inputs", "axis", "word"),
    [("ys yz x xs xz", [1, 2], "its axis is"), ("x yz", 1, "joins nothing"),
     ("- yz x xs xz", 1, "has no scale"), ("ys yz x - xz", 1, "has no scale")],
)  # fmt: skip
def test_damaged_qlinear_concat(inputs, axis, word):
    """The file's checks do not know this operator."""
    proto = quantised_conv([node("Conv", "d w", "c")], (3, 6, 5))
    del proto.graph.node[-1]
    joined = node("QLinearConcat", inputs, "y", domain="com.microsoft", axis=axis)
    proto.graph.node.append(joined)
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert word in refused(proto)["n_y"]


CONV = node("Conv", "d w", "f")
REFUSED = [
    ([node("Conv", "d w", "f", group=2)], {}, "do not fit an input of 3 channels"),
    ([node("Conv", "d w", "f", strides=[16, 1])], {"shape": (3, 40, 20)}, "up to 15 each"),
    ([CONV], {"shape": (3, 2, 9)}, "larger than its input"),
    ([CONV], {"shape": (3, 4, 5, 6)}, "its input has 5 dimensions"),
    ([node("MaxPool", "d", "f", kernel_shape=[16, 1])], {"shape": (3, 20, 9)}, "up to 15 each"),
    (
        [node("AveragePool", "d", "f", kernel_shape=[2, 2], pads=[2, 0, 0, 0])], {},
        "see nothing but padding",
    ),
    ([node("ReduceMean", "d", "f", axes=[1])], {}, "average over all pixels"),
    ([node("Add", "d p", "f"), node("Conv", "d w", "p")], {}, "two of the same shape"),
    (
        [node("Conv", "d w", "c"), node("QuantizeLinear", "c ys yz", "q"),
         node("DequantizeLinear", "q ys yz", "cd"),
         node("Transpose", "cd", "t", perm=[0, 1, 3, 2]), node("Add", "cd t", "f")],
        {"shape": (3, 5, 5)}, "lie in different orders",
    ),
    ([node("Conv", "d w", "c"), node("Transpose", "c", "t", perm=[0, 2, 1, 3]),
      node("MaxPool", "t", "f", kernel_shape=[2, 2])], {}, "transposed or reshaped within"),
    ([node("Pad", "d around two", "p"), node("Conv", "p w", "f")], {}, "pads with 2"),
    ([node("Pad", "d around", "p"), node("MaxPool", "p", "f", kernel_shape=[2, 2])], {},
     "supported right before Conv only"),
    ([node("Pad", "d around", "p", mode="reflect"), node("Conv", "p w", "f")], {},
     "pads by reflect"),
    ([node("Pad", "d cut", "p"), node("Conv", "p w", "f")], {}, "crops"),
    ([node("Softmax", "d", "s"), node("Conv", "s w", "f")], {}, "at outputs only"),
    ([node("Conv", "d w", "c"), node("MaxPool", "c", "f", kernel_shape=[2, 2])], {},
     "not quantised"),
    ([node("Conv", "d w", "c"), node("Add", "c c", "f")], {}, "not quantised"),
    ([node("Conv", "d w", "c"), node("LeakyRelu", "c", "f")], {}, "leaky_relu reads has no scale"),
    ([node("Add", "d d", "s"), node("LeakyRelu", "s", "f")], {}, "leaky_relu reads has no scale"),
    ([node("Concat", "d d", "f", axis=2)], {}, "axis 1, the channels"),
    ([node("Concat", "d p", "f", axis=1), node("Conv", "d w", "p")], {}, "different sizes"),
    ([node("Concat", "d around", "f", axis=1)], {}, "must be computed from"),
    ([node("Conv", "d w", "c"), node("Concat", "c c", "f", axis=1)], {}, "not quantised"),
    ([node("Conv", "d w", "c"), node("Split", "c", "f g", axis=1)], {}, "not quantised"),
    ([node("Split", "d some", "f g", axis=1)], {}, "splits 3 channels into"),
    ([node("Slice", "d some more axis", "f")], {"axis": np.array([2, 3])}, "works along axis 2"),
    ([node("Slice", "d some more axis some", "f")], {"axis": np.array([1, 3])},
     "one after the other"),
    ([node("Flatten", "d", "e"), node("Conv", "d w", "c"), node("QuantizeLinear", "c ys yz", "q"),
      node("Flatten", "q", "r"), node("DequantizeLinear", "r ys yz", "g"),
      node("Concat", "e g", "f", axis=1)], {}, "do not lie one after the other"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "more", "word"), REFUSED, ids=[r[2] for r in REFUSED])
def test_refused_nodes(nodes, more, word):
    constants = {
        "around": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "cut": np.array([0, 0, -1, 0, 0, 0, 0, 0], np.int64),
        "two": np.float32(2),
        "some": np.array([1, 3], np.int64),
        "more": np.array([7, 9], np.int64),
    }
    more = dict(more)
    proto = quantised_conv(nodes, more.pop("shape", (3, 9, 8)), **constants | more)
    reasons = refused(proto)
    assert any(word in reason for reason in reasons.values()), reasons
    named = {n.name for n in proto.graph.node}
    assert named >= set(reasons)


def damage(rng, proto):
    """One attribute, constant or input of one node, changed to something else."""
    at = proto.graph.node[rng.integers(len(proto.graph.node))]
    what = rng.integers(4)
    if what == 0 and at.attribute:
        attribute = at.attribute[rng.integers(len(at.attribute))]
        value = [int(v) for v in rng.integers(-3, 20, rng.integers(0, 6))]
        new = onnx.helper.make_attribute(attribute.name, value[0] if attribute.HasField("i") and
                                         value else value or [1])  # fmt: skip
        attribute.CopyFrom(new)
    elif what == 1:
        name = ["axis", "group", "ceil_mode", "axes", "perm", "auto_pad", "dilations", "pads"]
        name = str(rng.choice(name))
        value = b"SAME" if name == "auto_pad" else [int(v) for v in rng.integers(-2, 5, 2)]
        kept = [a for a in at.attribute if a.name != name]
        value = int(rng.integers(-4, 9)) if name in ("axis", "group", "ceil_mode") else value
        del at.attribute[:]
        at.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
    elif what == 2:
        tensor = proto.graph.initializer[rng.integers(len(proto.graph.initializer))]
        array = onnx.numpy_helper.to_array(tensor)
        shape = tuple(int(n) for n in rng.integers(0, 4, rng.integers(0, 5)))
        changed = rng.integers(-3, 4, shape).astype(array.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(changed), tensor.name))
    else:
        names = [i.name for i in [*proto.graph.initializer, *proto.graph.input]]
        at.input[rng.integers(len(at.input))] = str(rng.choice([*names, ""]))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), qdq=st.booleans())
def test_damaged_networks_are_refused_by_name(seed, qdq):
    """A damaged model is a `ModelError`, or one of another meaning; nothing else is raised."""
    net, shown = random_network(seed, qdq=qdq)
    proto = net.model(*shown)
    damage(np.random.default_rng(seed), proto)
    for read in (load_onnx, check_onnx):
        with suppress(ModelError):
            read(proto)


# -- models made by others ---------------------------------------------------------------------


@pytest.mark.parametrize("images", ["cifar", "random"])
def test_resnet8_int8_has_the_oracles_integers(images):
    path = shared_file("models", "mlperf-tiny", "ic_int8.onnx")
    if images == "cifar":
        x = (cifar_images(12)[0].astype(np.int16) - 128).astype(np.int8)
    else:
        x = np.random.default_rng(0).integers(-128, 128, (6, 32, 32, 3)).astype(np.int8)
    proto = onnx.load(path)
    checked = check_integers(proto, x, qdq=True)
    quantised = {n.output[0] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    assert len(quantised) == 15 and quantised <= checked
    verdicts = [c.runs for c in check_onnx(path)]
    assert set(verdicts) == {"engine", "host"}
    assert verdicts[-4:] == ["engine", "host", "host", "host"]  # Softmax and its borders
    # onnxruntime computes averages, additions and Softmax in its own ways.
    (plain,) = run_onnxruntime(path, {"input_1_int8": x})
    with Accelerator(compile_model(path), device="cpu") as accelerator:
        y = accelerator.run(x).astype(int)
    assert np.abs(plain - y).max() <= 12 and np.abs(plain - y).mean() < 0.3


def test_every_operator_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text(encoding="utf-8")
    table = text.split("## Quantised models")[0]
    missing = [op for op in {**OPERATORS, **MICROSOFT} if not re.search(rf"\b{op}\b", table)]
    assert not missing, missing
