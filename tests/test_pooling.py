# SPDX-License-Identifier: Apache-2.0
"""Averages that leave padding out, and maxima of large images: the definition, and onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from oracle import run_onnxruntime
from pynq_bbs.builds import load_build
from pynq_bbs.compiler import compile
from pynq_bbs.device.session import Session, open_device
from pynq_bbs.errors import ModelError
from pynq_bbs.model.arithmetic import Scale, dequantise, quantise
from pynq_bbs.model.graph import Constant, QuantInput, QuantLayer, QuantModel, QuantOutput, Window
from pynq_bbs.model.pooling import average_pool, ceiled, global_maximum
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.plan import make_plan
from test_plan import MEMORY, check_places, check_plan, run_engine
from test_views import BUILD, HERE, CpuDevice

ROWS = load_build(str(HERE / "builds" / "16x2x16.json"))


@pytest.fixture(scope="module", params=[BUILD, ROWS], ids=lambda build: build.name)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with open_device("standin", request.param, strict=True) as opened:
        yield opened


def run_all(
    session: Session, layers: list[QuantLayer], constants: list[Constant], x: NDArray[np.int8]
) -> NDArray[np.generic]:
    """What engine and cpu device give for the last layer, the same; (N, values)."""
    spec = QuantInput("x", "x", x.shape[1:], "int8", np.float32(1), 0)
    shown = [QuantOutput("y", layers[-1].output, (), "int8")]
    model = QuantModel("pooling", [spec], layers, shown, constants=constants)
    program = pack(model, {}, session.build)
    inputs = {"x": x.reshape(len(x), -1)}
    cpu = CpuDevice(program).run(inputs)
    for every in (False, True):
        plan = make_plan(program, len(x), MEMORY, every=every)
        check_plan(program, plan)
        check_places(program, plan)
        for name, values in run_engine(program, session, inputs, every=every).items():
            np.testing.assert_array_equal(values, cpu[name], err_msg=f"{name}, {every=}")
    return cpu[layers[-1].output]


def averages(
    x: NDArray[np.int8], window: Window, counted: tuple[int, int, int, int], xs: Scale, ys: Scale
) -> NDArray[np.int8]:
    """docs/arithmetic.md, window by window."""
    out = np.empty((*x.shape[:2], window.out_height, window.out_width), np.int8)
    top, left, bottom, right = counted
    for oy in range(window.out_height):
        for ox in range(window.out_width):
            total, n = np.zeros(x.shape[:2], np.int64), 0
            for ky in range(window.kernel[0]):
                for kx in range(window.kernel[1]):
                    iy = oy * window.strides[0] - window.pads[0] + ky * window.dilations[0]
                    ix = ox * window.strides[1] - window.pads[1] + kx * window.dilations[1]
                    inside = 0 <= iy < window.height and 0 <= ix < window.width
                    if inside:
                        total += x[:, :, iy, ix].astype(np.int64) - xs[1]
                    n += -top <= iy < window.height + bottom and -left <= ix < window.width + right
            m = np.float32(xs[0]) / (np.float32(n) * np.float32(ys[0]))
            steps = np.rint(total.astype(np.float32) * m).astype(np.int64)
            out[:, :, oy, ox] = np.clip(steps + ys[1], -128, 127)
    return out


@st.composite
def pools(draw: st.DrawFn, *, dilated: bool) -> Window:
    """Padding less than the kernel, as ONNX wants it."""
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 20]))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    strides = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    apart = (draw(st.integers(1, 2)), draw(st.integers(1, 2))) if dilated else (1, 1)
    pads = tuple(draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
    sizes = [
        draw(st.integers(max(1, (k - 1) * d + 1 - a - b), 11))
        for k, d, a, b in zip(kernel, apart, pads[:2], pads[2:], strict=True)
    ]
    return Window(channels, *sizes, kernel, strides, apart, pads)


def scales(rng: np.random.Generator) -> tuple[Scale, Scale]:
    x, y = (np.float32(s) for s in 0.02 + 0.1 * rng.random(2))
    zeros = rng.integers(-128, 128, 2)
    return (x, int(zeros[0])), (y, int(zeros[1]))


@settings(max_examples=150, deadline=None)
@given(
    window=pools(dilated=True), ceil=st.booleans(), include=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_averages(session: Session, window: Window, ceil: bool, include: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    xs, ys = scales(rng)
    counted = window.pads if include else (0, 0, 0, 0)
    window = ceiled(window) if ceil else window
    x = rng.integers(-128, 128, (2, window.channels, window.height, window.width)).astype(np.int8)
    try:
        layers, constants = average_pool("y", "x", window, xs, ys, counted=counted)
    except ModelError:
        assume(False)
    got = run_all(session, layers, constants, x)
    np.testing.assert_array_equal(got, averages(x, window, counted, xs, ys).reshape(2, -1))


def run_node(
    op: str, x: NDArray[Any], constants: dict[str, Any], domain: str = "", **attributes: Any
) -> NDArray[Any]:
    from onnx import helper, numpy_helper

    node = helper.make_node(op, ["x", *constants], ["y"], domain=domain, **attributes)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return run_onnxruntime(model, {"x": x})[0]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    quantised=st.booleans(),
    ceil=st.booleans(),
    include=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_averages_of_onnxruntime(
    session: Session, data: st.DataObject, quantised: bool, ceil: bool, include: bool, seed: int
) -> None:
    """Its integer operator and its float one, which sum up float32 numbers: within one unit."""
    pytest.importorskip("onnxruntime")
    window = data.draw(pools(dilated=not quantised))
    rng = np.random.default_rng(seed)
    xs, ys = scales(rng)
    x = rng.integers(-128, 128, (1, window.channels, window.height, window.width)).astype(np.int8)
    wide = ceiled(window) if ceil else window
    counted = window.pads if include else (0, 0, 0, 0)
    attributes: dict[str, Any] = {
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "pads": window.pads,
        "count_include_pad": int(include),
        "ceil_mode": int(ceil),
    }
    if quantised:
        constants = {"xs": xs[0], "xz": np.int8(xs[1]), "ys": ys[0], "yz": np.int8(ys[1])}
        want = run_node("QLinearAveragePool", x, constants, "com.microsoft", **attributes)
        # Unlike ONNX's own, it counts what is beyond the padding as well.
        counted = wide.pads if include else counted
    else:
        attributes["dilations"] = window.dilations
        want = quantise(run_node("AveragePool", dequantise(x, *xs), {}, **attributes), *ys)
    try:
        layers, constants = average_pool("y", "x", wide, xs, ys, counted=counted)
    except ModelError:
        assume(False)
    assert want.shape[2:] == (wide.out_height, wide.out_width)
    got = run_all(session, layers, constants, x).reshape(want.shape).astype(int)
    assert np.abs(got - want).max() <= 1


def test_an_average_of_nothing_is_refused() -> None:
    window = Window(3, 4, 4, (2, 2), pads=(2, 0, 0, 0))
    one = (np.float32(1), 0)
    with pytest.raises(ModelError, match="windows that see nothing of the image"):
        average_pool("y", "x", window, one, one)


def test_an_average_of_all_taps_is_one_layer() -> None:
    one = (np.float32(1), 0)
    for window, counted in (
        (Window(3, 4, 4, (2, 2)), (0, 0, 0, 0)),
        (Window(3, 4, 4, (2, 2), pads=(1, 1, 1, 1)), (1, 1, 1, 1)),
    ):
        layers, constants = average_pool("y", "x", window, one, one, counted=counted)
        assert (len(layers), len(constants)) == (1, 0)


def test_the_same_constant_lies_in_the_image_once() -> None:
    window, scale = Window(4, 6, 7, (3, 3), pads=(1, 1, 1, 1)), (np.float32(1), 0)
    spec = QuantInput("x", "x", (4, 6, 7), "int8", np.float32(1), 0)
    layers, constants, words = [], [], []
    for name in ("a", "b", "c"):
        made, masks = average_pool(name, "x", window, scale, scale)
        layers, constants = layers + made, constants + masks
        shown = [QuantOutput(la.output, la.output, (), "int8") for la in layers]
        model = QuantModel("pooling", [spec], layers, shown, constants=constants)
        words.append(len(pack(model, {}, BUILD).image))
    mask = 2 * 4 * 3 * BUILD.cols // 8
    assert words[1] - words[0] == words[2] - words[1] == words[0] - mask


def test_an_average_is_not_pruned() -> None:
    """Not even of one channel, which is no group among others."""
    window, scale = Window(1, 6, 7, (3, 3), pads=(1, 1, 1, 1)), (np.float32(1), 0)
    layers, constants = average_pool("y", "x", window, scale, scale)
    spec = QuantInput("x", "x", (1, 6, 7), "int8", np.float32(1), 0)
    shown = [QuantOutput("y", "y", (), "int8")]
    model = QuantModel("pooling", [spec], layers, shown, constants=constants)
    x = {"x": np.random.default_rng(5).integers(-128, 128, (2, 42)).astype(np.int8)}
    pruned = CpuDevice(compile(model, sparsity=0.5, bank_size=4)).run(x)
    np.testing.assert_array_equal(pruned["y"], CpuDevice(pack(model, {}, BUILD)).run(x)["y"])


@pytest.mark.parametrize(
    "shape",
    [(3, 1, 1), (5, 15, 15), (5, 16, 3), (3, 7, 40), (20, 56, 56), (100, 56, 56), (2, 1, 300)],
)
def test_global_maximum(session: Session, shape: tuple[int, int, int]) -> None:
    layers = global_maximum("y", "x", shape)
    x = np.random.default_rng(4).integers(-128, -90, (2, *shape)).astype(np.int8)
    got = run_all(session, layers, [], x)
    np.testing.assert_array_equal(got, x.max(axis=(2, 3)))
    most = max(shape[1:])
    assert len(layers) == (1 if most <= 15 else 2 if most <= 225 else 3)
