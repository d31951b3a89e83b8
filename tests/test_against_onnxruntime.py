# SPDX-License-Identifier: Apache-2.0
"""The engine's windows and combinations against the operators of onnxruntime.

Exact where ONNX defines the integers (QLinearConv, ConvInteger, MaxPool); within one unit where it
leaves them open (QLinearAdd, QLinearMul, QLinearAveragePool).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layers import images, model_of, pool, random_window_layer
from oracle import onnxruntime_is_exact, run_onnxruntime
from pynq_bbs.builds import load_build
from pynq_bbs.device.session import Session, open_device
from pynq_bbs.model.arithmetic import multiplier, product_of, sum_of
from pynq_bbs.model.graph import QuantLayer, Window
from test_windows import run_all, windows

pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper

BUILD = load_build("8x32")
#: Without VNNI onnxruntime adds pairs of unsigned times signed products in 16 bits, which saturate;
#: with weights of seven bits they cannot.
LARGEST_WEIGHT = 127 if onnxruntime_is_exact() else 63


@pytest.fixture(scope="module")
def session():
    with open_device("standin", BUILD, strict=True) as opened:
        yield opened


def run_node(
    op: str,
    feeds: dict[str, NDArray[Any]],
    constants: dict[str, Any],
    inputs: str,
    **attributes: Any,
) -> NDArray[Any]:
    """The first output of one node; `inputs` names its inputs in order."""
    domain = attributes.pop("domain", "")
    node = helper.make_node(op, inputs.split(), ["y"], domain=domain, **attributes)
    kinds = {name: helper.np_dtype_to_tensor_dtype(x.dtype) for name, x in feeds.items()}
    dtype = TensorProto.INT32 if op == "ConvInteger" else next(iter(kinds.values()))
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(n, kinds[n], x.shape) for n, x in feeds.items()],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return run_onnxruntime(model, feeds)[0]


def geometry(window: Window) -> dict[str, Any]:
    return {
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "dilations": window.dilations,
        "pads": window.pads,
    }


def narrow(layer: QuantLayer) -> QuantLayer:
    layer.weights = np.clip(layer.weights, -LARGEST_WEIGHT, LARGEST_WEIGHT)
    return layer


@settings(max_examples=300, deadline=None)
@given(data=st.data(), window=windows(8), seed=st.integers(0, 2**32 - 1))
def test_qlinear_conv(session: Session, data: st.DataObject, window: Window, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = data.draw(st.sampled_from([1, 1, window.channels]))
    rows = groups * data.draw(st.integers(1, 3))
    layer = narrow(random_window_layer(rng, window, rows, groups, "plain"))
    x_scale, y_scale = np.float32(0.03), np.float32(0.5)
    w_scale = (rng.random(rows).astype(np.float32) + np.float32(0.1)) / np.float32(75)
    layer.multiplier = multiplier(x_scale, w_scale, y_scale)
    x = images(rng, window, 1)
    constants = {
        "xs": x_scale,
        "xz": np.int8(layer.input_zero_point),
        "w": layer.weights,
        "ws": w_scale,
        "wz": np.zeros(rows, np.int8),
        "ys": y_scale,
        "yz": np.int8(layer.zero_point),
        "b": layer.bias,
    }
    want = run_node(
        "QLinearConv", {"x": x}, constants, "x xs xz w ws wz ys yz b", group=groups,
        **geometry(window),
    )  # fmt: skip
    got = run_all(session, model_of([layer], x.shape[1:]), {}, x)["y"]
    np.testing.assert_array_equal(got, want.reshape(1, -1))


@settings(max_examples=150, deadline=None)
@given(window=windows(8), rows=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_conv_integer(session: Session, window: Window, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = narrow(random_window_layer(rng, window, rows, 1, "sums"))
    layer.bias[:] = 0
    x = images(rng, window, 1)
    # It takes unsigned inputs: the same numbers, 128 higher.
    shifted = (x.astype(np.int16) + 128).astype(np.uint8)
    constants = {"w": layer.weights, "xz": np.uint8(layer.input_zero_point + 128)}
    want = run_node("ConvInteger", {"x": shifted}, constants, "x w xz", **geometry(window))
    got = run_all(session, model_of([layer], x.shape[1:]), {}, x)["y"]
    np.testing.assert_array_equal(got, want.reshape(1, -1))


def onnx_pool(window: Window) -> bool:
    """Whether ONNX takes such a pooling: padding less than the kernel."""
    kernel = (*window.kernel, *window.kernel)
    return all(p < k for p, k in zip(window.pads, kernel, strict=True))


@settings(max_examples=150, deadline=None)
@given(window=windows(12), seed=st.integers(0, 2**32 - 1))
def test_max_pool(session: Session, window: Window, seed: int) -> None:
    assume(onnx_pool(window))
    layer = pool(window, maximum=True)
    x = images(np.random.default_rng(seed), window, 2)
    want = run_node("MaxPool", {"x": x}, {}, "x", **geometry(window))
    got = run_all(session, model_of([layer], x.shape[1:]), {}, x)["y"]
    np.testing.assert_array_equal(got, want.reshape(2, -1))


@settings(max_examples=100, deadline=None)
@given(window=windows(12), padded=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_average_pool(session: Session, window: Window, padded: bool, seed: int) -> None:
    """Padding counts (count_include_pad), or there is none."""
    rng = np.random.default_rng(seed)
    pads = window.pads if padded else (0, 0, 0, 0)
    window = Window(window.channels, window.height, window.width, window.kernel, window.strides,
                    (1, 1), pads)  # fmt: skip
    assume(onnx_pool(window) and window.out_height > 0 and window.out_width > 0)
    x_zero, y_zero = (int(z) for z in rng.integers(-128, 128, 2))
    x_scale, y_scale = np.float32(0.05), np.float32(0.04)
    layer = pool(window, maximum=False, zero_point=x_zero)
    count = window.kernel[0] * window.kernel[1]
    layer.multiplier = np.full(window.channels, x_scale / (np.float32(count) * y_scale), np.float32)
    layer.zero_point = y_zero
    x = images(rng, window, 1)
    constants = {"xs": x_scale, "xz": np.int8(x_zero), "ys": y_scale, "yz": np.int8(y_zero)}
    want = run_node(
        "QLinearAveragePool", {"x": x}, constants, "x xs xz ys yz", domain="com.microsoft",
        kernel_shape=window.kernel, strides=window.strides, pads=window.pads,
        count_include_pad=int(padded),
    )  # fmt: skip
    got = run_all(session, model_of([layer], x.shape[1:]), {}, x)["y"].astype(int)
    assert np.abs(got - want.reshape(1, -1)).max() <= 1


def identity(channels: int, zero_point: int) -> QuantLayer:
    """Every pixel as it is."""
    window = Window(channels, 6, 7, (1, 1))
    layer = pool(window, maximum=False, zero_point=zero_point)
    layer.name, layer.output = "identity", "t"
    return layer


@settings(max_examples=150, deadline=None)
@given(
    op=st.sampled_from(["QLinearAdd", "QLinearMul"]),
    exponents=st.tuples(*[st.floats(-4, 0)] * 3),
    zero_points=st.tuples(*[st.integers(-128, 127)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_add_and_mul(
    session: Session,
    op: str,
    exponents: tuple[float, float, float],
    zero_points: tuple[int, int, int],
    seed: int,
) -> None:
    """Two tensors of one model: a window that moves nothing, and another one plus or times it."""
    rng = np.random.default_rng(seed)
    scales = [np.float32(2.0**e) for e in exponents]
    a, b, y = zip(scales, zero_points, strict=True)
    window = Window(5, 6, 7, (3, 3), pads=(1, 1, 1, 1))
    first = identity(5, b[1])
    second = random_window_layer(rng, window, 5, 1, "plain")
    second.name, second.input, second.input_zero_point = "second", "t", b[1]
    second.zero_point = a[1]
    plain = run_all(session, model_of([first, second], (5, 6, 7)), {}, x := images(rng, window, 1))
    second.combination = (sum_of if op == "QLinearAdd" else product_of)("t", a, b, y)
    got = run_all(session, model_of([first, second], (5, 6, 7)), {}, x)["y"].astype(int)
    constants = {
        "as": a[0], "az": np.int8(a[1]), "bs": b[0], "bz": np.int8(b[1]), "ys": y[0],
        "yz": np.int8(y[1]),
    }  # fmt: skip
    feeds = {"a": plain["y"].reshape(-1), "b": plain["t"].reshape(-1)}
    want = run_node(op, feeds, constants, "a as az b bs bz ys yz", domain="com.microsoft")
    difference = np.abs(got.reshape(-1) - want)
    assert difference.max() <= 1 and np.mean(difference) < 0.02
