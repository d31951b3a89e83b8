# SPDX-License-Identifier: Apache-2.0
"""Float convolutional networks: read as onnxruntime computes them, and close to that as INT8."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, model, node, refused, sample
from oracle import cifar_images, run_onnxruntime, shared_file
from pynq_bbs.accelerator import Accelerator
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.compress.activations import run_float
from pynq_bbs.compress.quantize import quantize
from pynq_bbs.model.graph import Model, apply_functions
from pynq_bbs.model.onnx_import import load_onnx


def float_outputs(loaded, feeds):
    """What the float layers give, by `run_float`, and what the host makes of it."""
    tensors = run_float(loaded, feeds)
    shown = [
        apply_functions(o.functions, o.arrangement.apply(tensors[o.tensor])).reshape(-1, *o.shape)
        for o in loaded.outputs
    ]
    return [
        np.moveaxis(values, 0, o.batch_axis)
        for o, values in zip(loaded.outputs, shown, strict=True)
    ]


def check_float(proto, x, tolerance=2e-5):
    """Layers that compute what onnxruntime does."""
    loaded = load_onnx(proto)
    assert isinstance(loaded, Model)
    wanted = run_onnxruntime(proto, {loaded.inputs[0].name: x}, optimise=False)
    for got, want in zip(float_outputs(loaded, x), wanted, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())
    return loaded


def check_quantised(loaded, x, allowed, **options):
    """As INT8 on the emulated device, layer by layer that of the cpu device, and close to float."""
    wanted = float_outputs(loaded, x)
    with Accelerator(
        compile_model(loaded, calibration=x, **options), device="standin", verify=True
    ) as accelerator:
        got = accelerator.run(x)
    got = list(got.values()) if isinstance(got, dict) else [got]
    for g, w in zip(got, wanted, strict=True):
        assert g.shape == w.shape
        assert np.sqrt(np.mean((g - w) ** 2)) <= allowed * max(float(w.std()), 1e-3)


class Chain:
    """A chain of float operators; every method goes on from the last tensor."""

    def __init__(self, seed: int, *shape: int) -> None:
        self.rng, self.shape, self.name = np.random.default_rng(seed), shape, "x"
        self.nodes, self.constants, self.given = [], {}, shape

    def op(self, op: str, *more: str, **attributes: object) -> str:
        before, self.name = self.name, f"t{len(self.nodes)}"
        self.nodes.append(node(op, " ".join([before, *more]), self.name, **attributes))
        return self.name

    def constant(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> str:
        name = f"c{len(self.constants)}"
        values = self.rng.standard_normal(shape) * scale + offset
        self.constants[name] = values.astype(np.float32)
        return name

    def conv(self, rows: int, kernel: int = 3, stride: int = 1, group: int = 1) -> str:
        channels, height, width = self.shape
        fan = channels // group * kernel * kernel
        w = self.constant(rows, channels // group, kernel, kernel, scale=fan**-0.5)
        half = kernel // 2
        sizes = [(n + 2 * half - kernel) // stride + 1 for n in (height, width)]
        self.shape = (rows, *sizes)
        return self.op(
            "Conv", w, self.constant(rows, scale=0.1), group=group, strides=[stride] * 2,
            pads=[half] * 4,
        )  # fmt: skip

    def normalise(self) -> str:
        rows = self.shape[0]
        names = [self.constant(rows, scale=0.2, offset=o) for o in (1.0, 0.0, 0.0, 1.5)]
        self.constants[names[3]] = np.abs(self.constants[names[3]]) + np.float32(0.5)
        return self.op("BatchNormalization", *names, epsilon=1e-3)

    def model(self) -> object:
        return model(self.nodes, {"x": self.given}, {self.name: FLOAT}, **self.constants)


def random_chain(seed: int, curves: bool) -> Chain:
    rng = np.random.default_rng(seed)
    chain = Chain(seed, int(rng.integers(1, 4)), int(rng.integers(7, 12)), int(rng.integers(7, 12)))
    functions = ["Relu", "Relu", ""] + (["Sigmoid", "Tanh"] if curves else [])
    kinds = ["conv", "depthwise", "strided", "maximum", "residual", "average", "joined"]
    for kind in rng.choice(kinds, 4):
        if kind == "joined":
            before, rows = chain.name, chain.shape[0]
            chain.conv(int(rng.integers(1, 5)))
            chain.op("Concat", before, axis=1)
            chain.shape = (chain.shape[0] + rows, *chain.shape[1:])
        elif kind == "residual":
            before = chain.name
            chain.conv(chain.shape[0])
            chain.op("Add", before)
        elif kind == "maximum":
            chain.op("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind == "average":
            chain.op("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
        else:
            group = chain.shape[0] if kind == "depthwise" else 1
            rows = group if kind == "depthwise" else int(rng.integers(2, 7))
            chain.conv(rows, int(rng.choice([1, 3])), 2 if kind == "strided" else 1, group)
            if rng.random() < 0.5:
                chain.normalise()
        if function := str(rng.choice(functions)):
            chain.op(function)
    chain.op("GlobalAveragePool" if rng.random() < 0.5 else "Relu")
    chain.op("Flatten")
    features = chain.shape[0] * (
        1 if chain.nodes[-2].op_type[0] == "G" else chain.shape[1] * chain.shape[2]
    )
    chain.op("Gemm", chain.constant(features, 5, scale=features**-0.5), chain.constant(5))
    return chain


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), curves=st.booleans())
def test_random_chains(seed, curves):
    chain = random_chain(seed, curves)
    x = chain.rng.standard_normal((16, *chain.given)).astype(np.float32)
    loaded = check_float(chain.model(), x)
    check_quantised(loaded, x, 0.25)


def test_normalisation_is_part_of_the_layer():
    chain = Chain(0, 3, 8, 8)
    chain.conv(4)
    chain.normalise()
    chain.op("Relu")
    loaded = check_float(chain.model(), sample(2, 3, 8, 8))
    assert len(loaded.layers) == 1 and loaded.outputs[0].shape == (4, 8, 8)
    check_quantised(loaded, sample(8, 3, 8, 8), 0.03)


def test_a_curve_behind_an_addition():
    """Sums end with a clamp, so a layer that changes nothing else looks up the curve."""
    chain = Chain(1, 4, 6, 6)
    before = chain.conv(4)
    chain.conv(4)
    chain.op("Add", before)
    chain.op("Sigmoid")
    loaded = check_float(chain.model(), sample(4, 4, 6, 6))
    assert [la.other != "" for la in loaded.layers] == [False, True, False]
    check_quantised(loaded, sample(8, 4, 6, 6), 0.05)


def test_products_of_two_tensors():
    """Part of a layer where nothing else reads it, a layer of its own else; and gates."""
    chain = Chain(12, 6, 8, 8)
    start, first = chain.name, chain.conv(6)
    chain.name = start
    chain.conv(6)
    gate = chain.op("Sigmoid")
    chain.nodes.append(node("Mul", f"{gate} {first}", "gated"))
    chain.name = "gated"
    second = chain.conv(6)
    chain.nodes.append(node("Mul", f"{second} gated", "both"))
    chain.nodes.append(node("Relu", "both", "clamped"))
    chain.nodes.append(node("Mul", "clamped gated", "again"))
    chain.name = "again"
    chain.conv(5)
    x = sample(40, 6, 8, 8, seed=3)
    loaded = check_float(chain.model(), x)
    assert [la.product for la in loaded.layers].count(True) == 3
    check_quantised(loaded, x, 0.1)


@pytest.mark.parametrize("image", [True, False])
def test_constants_of_what_no_layer_gives(image):
    """At an input, behind a function and a pool: layers of one weight a row, part of nothing."""
    chain = Chain(14, *((4, 8, 8) if image else (12,)))
    each = (4, 1, 1) if image else (12,)
    chain.op("Mul", chain.constant(*each, offset=2.0))
    chain.op("Add", chain.constant(*each))
    if image:
        chain.conv(6)
    else:
        chain.op("MatMul", chain.constant(12, 6))
    chain.op("Relu")
    each = (6, 1, 1) if image else (6,)
    chain.op("Add", chain.constant(*each))
    chain.op("Mul", chain.constant(*each))
    chain.op("Relu")
    chain.shape = each
    chain.normalise()
    x = sample(40, *chain.given, seed=6)
    loaded = check_float(chain.model(), x)
    assert len(loaded.layers) == 4
    check_quantised(loaded, x, 0.05)


def test_leaky_relu_has_calibrated_scales():
    chain = Chain(13, 4, 8, 8)
    chain.conv(8)
    chain.op("LeakyRelu", alpha=0.1)
    chain.op("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    chain.shape = (8, 4, 4)
    chain.op("LeakyRelu", alpha=0.3)
    chain.conv(5)
    chain.op("LeakyRelu")
    x = sample(40, 4, 8, 8, seed=4)
    loaded = check_float(chain.model(), x)
    check_quantised(loaded, x, 0.05)


def test_scales_and_biases_a_channel():
    chain = Chain(2, 3, 6, 5)
    chain.conv(4)
    chain.op("Mul", chain.constant(4, 1, 1, offset=1.0))
    chain.op("Add", chain.constant(1, 4, 1, 1))
    loaded = check_float(chain.model(), sample(4, 3, 6, 5))
    assert len(loaded.layers) == 1
    chain.op("Add", chain.constant(4, 6, 5))
    assert "one number a channel" in refused(chain.model())["n_t3"]


def test_softmax_at_an_output_is_the_hosts():
    chain = Chain(3, 4)
    chain.op("Gemm", chain.constant(4, 6))
    chain.op("Softmax", axis=-1)
    loaded = check_float(chain.model(), sample(4, 4))
    (output,) = loaded.outputs
    assert [f.name for f in output.functions] == ["softmax"] and not loaded.layers[0].functions
    check_quantised(loaded, sample(32, 4), 0.05)
    chain.op("Relu")
    check_float(chain.model(), sample(4, 4))
    chain.op("Gemm", chain.constant(6, 2))
    assert "at outputs only" in refused(chain.model())["n_t3"]


@pytest.mark.parametrize("shapes", [(1, 1), (3, 2)])
def test_squeezed_and_unsqueezed(shapes):
    chain = Chain(4, 2, *shapes)
    chain.conv(3, 1)
    chain.op("GlobalAveragePool")
    chain.op("Squeeze", "axes")
    chain.op("Unsqueeze", "axes")
    chain.constants["axes"] = np.array([2, 3], np.int64)
    check_float(chain.model(), sample(2, 2, *shapes))


def test_joined_tensors_have_one_scale():
    """So those that layers make take no other one; an input does."""
    chain = Chain(5, 2, 6, 8)
    before = chain.conv(3)
    chain.constants["c0"] *= 3
    chain.conv(4)
    chain.op("Relu")
    chain.op("Concat", before, "x", axis=1)
    chain.op("Relu")
    chain.shape = (9, *chain.shape[1:])
    chain.conv(5)
    x = sample(8, 2, 6, 8)
    loaded = check_float(chain.model(), x)
    assert len(loaded.layers) == 4 and len(loaded.views) == 1
    assert len(quantize(loaded, x).layers) == 5
    check_quantised(loaded, x, 0.03)


@pytest.mark.parametrize("shown", ["t1", "t2", "t3"])
def test_parts_and_joined_tensors_at_outputs(shown):
    chain = Chain(6, 2, 6, 8)
    chain.conv(5)
    chain.op("Slice", "begin", "end", "axes", axis=1)
    del chain.nodes[-1].attribute[:]
    chain.op("Concat", "t0", "x", axis=1)
    chain.op("Sigmoid")
    for name, number in (("begin", 1), ("end", 4), ("axes", 1)):
        chain.constants[name] = np.array([number], np.int64)
    chain.name = shown
    loaded = check_float(chain.model(), sample(8, 2, 6, 8))
    check_quantised(loaded, sample(8, 2, 6, 8), 0.05)


def test_averages_by_different_numbers_want_integers():
    for more in ({"pads": [1, 1, 1, 1]}, {"strides": [2, 2], "ceil_mode": 1}):
        chain = Chain(5, 2, 6, 8)
        chain.op("AveragePool", kernel_shape=[3, 3], **more)
        assert "quantise the model" in refused(chain.model())["n_t0"]
    chain = Chain(5, 2, 7, 9)
    chain.op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    chain.op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    check_float(chain.model(), sample(2, 2, 7, 9))


def test_averages_are_exact():
    """Weights of an average are ones: all that is lost is its own rounding."""
    chain = Chain(5, 2, 12, 9)
    chain.op("AveragePool", kernel_shape=[3, 4], strides=[2, 1])
    chain.op("Relu")
    loaded = load_onnx(chain.model())
    layer = quantize(loaded, sample(8, 2, 12, 9)).layers[0]
    assert np.all(layer.weights == 1)
    check_quantised(loaded, sample(8, 2, 12, 9), 0.02)


# -- models made by others ---------------------------------------------------------------------


def calibration(name, shape):
    if name == "ic_float":
        return cifar_images(24)[0].astype(np.float32)
    return np.abs(sample(24, *shape)) if name == "vww_float" else sample(24, *shape) * 20


@pytest.mark.parametrize(
    ("name", "shape"),
    [("ic_float", (32, 32, 3)), ("kws_float", (49, 10, 1)), ("vww_float", (96, 96, 3))],
)
def test_mlperf_tiny(name, shape):
    """As onnxruntime has it; dense close to that as INT8; at 75 % in banks it runs verified."""
    path = shared_file("models", "mlperf-tiny", f"{name}.onnx")
    x = calibration(name, shape)
    loaded = load_onnx(path)
    (wanted,) = run_onnxruntime(path, {"input_1": x})
    np.testing.assert_allclose(float_outputs(loaded, x)[0], wanted, atol=1e-4)
    for sparsity in (0, 0.75):
        program = compile_model(loaded, calibration=x, sparsity=sparsity)
        assert sparsity == 0 or 0.5 < program.sparsity < 0.75  # depthwise layers stay dense
        with Accelerator(program, device="standin", verify=True) as accelerator:
            y = accelerator.run(x[:6])
        assert y.shape == wanted[:6].shape
        if sparsity == 0:
            assert np.abs(y - wanted[:6]).max() < 0.2
            assert np.abs(y - wanted[:6]).mean() < 0.03


def test_resnet8_keeps_its_accuracy():
    """On 300 images, calibrated with others: as many right, give or take six."""
    path = shared_file("models", "mlperf-tiny", "ic_float.onnx")
    images, labels = cifar_images(500)
    x, labels = images[:300].astype(np.float32), labels[:300]
    (wanted,) = run_onnxruntime(path, {"input_1": x})
    program = compile_model(path, calibration=images[300:].astype(np.float32))
    with Accelerator(program, device="cpu") as accelerator:
        y = accelerator.run(x)
    right = [np.mean(scores.argmax(axis=1) == labels) for scores in (wanted, y)]
    assert abs(right[0] - right[1]) <= 0.02, right
    assert np.mean(wanted.argmax(axis=1) == y.argmax(axis=1)) > 0.93
