# SPDX-License-Identifier: Apache-2.0
"""Convolution, pooling and combinations: emulated engine, cpu device and formula agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layers import images, model_of, pool, pruned, random_window_layer
from oracle import oracle_window
from pynq_bbs.builds import load_build
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.device.engine import EngineProgram
from pynq_bbs.device.session import Session, open_device
from pynq_bbs.model.arithmetic import product_of, sum_of
from pynq_bbs.model.graph import QuantLayer, QuantModel, Window
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.image import pack
from pynq_bbs.report import PARTS

BUILD = load_build("8x32")
MEMORY = Memory(142.857e6, 1.5e9)


@pytest.fixture(scope="module")
def session():
    with open_device("standin", BUILD, strict=True) as opened:
        yield opened


def run_all(
    session: Session, model: QuantModel, banks: dict[str, tuple[int, int]], x: NDArray[np.int8]
) -> dict[str, NDArray[np.generic]]:
    """What the engine gives, stored whole and stored as little as may be; the cpu device too."""
    program = pack(model, banks, BUILD)
    flat = x.reshape(len(x), -1)
    cpu = CpuDevice(program).run({"x": flat})
    for every in (True, False):
        engine = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0), every=every)
        wanted = [o.tensor for o in model.outputs] if every else [model.outputs[-1].tensor]
        try:
            device = engine.run({"x": flat}, wanted)[0]
        finally:
            engine.close()
        for name, values in device.items():
            np.testing.assert_array_equal(values, cpu[name], err_msg=f"{name}, every={every}")
    return cpu


def check(
    session: Session,
    layer: QuantLayer,
    x: NDArray[np.int8],
    banks: dict[str, tuple[int, int]] | None = None,
) -> None:
    """Engine and cpu device give the oracle's integers for this layer alone."""
    y = run_all(session, model_of([layer], x.shape[1:]), banks or {}, x)["y"]
    np.testing.assert_array_equal(y, oracle_window(layer, x).reshape(len(x), -1))


@st.composite
def windows(draw: st.DrawFn, most_channels: int = 12) -> Window:
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilations = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (2, 1)]))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = tuple(draw(st.integers(0, r)) for r in (*reach, *reach))
    height = draw(st.integers(max(1, reach[0] - pads[0] - pads[2]), 24))
    width = draw(st.one_of(st.integers(1, 40), st.sampled_from([8, 16, 24, 32, 48, 64])))
    width = max(width, reach[1] - pads[1] - pads[3])
    strides = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 3), (2, 4), (5, 1)]))
    channels = draw(st.integers(1, most_channels))
    return Window(channels, height, width, kernel, strides, dilations, pads)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), window=windows(), seed=st.integers(0, 2**32 - 1))
def test_convolutions(session: Session, data: st.DataObject, window: Window, seed: int) -> None:
    rng = np.random.default_rng(seed)
    divisors = [g for g in range(1, window.channels + 1) if window.channels % g == 0]
    groups = data.draw(st.sampled_from([1, 1, 1, window.channels, *divisors]))
    rows = groups * data.draw(st.integers(1, max(1, 12 // groups)))
    kind = data.draw(st.sampled_from(["plain", "table", "sums"]))
    layer = random_window_layer(rng, window, rows, groups, kind)
    bank = (1, 1)
    if groups == 1 and data.draw(st.booleans()):
        size = data.draw(st.integers(1, window.channels))
        bank = (size, data.draw(st.integers(1, size)))
        flat = layer.weights.transpose(0, 2, 3, 1).reshape(-1, window.channels)
        kept = pruned(flat, *bank).reshape(rows, *window.kernel, window.channels)
        layer.weights = np.ascontiguousarray(kept.transpose(0, 3, 1, 2))
    x = images(rng, window, data.draw(st.integers(1, 2)))
    check(session, layer, x, {"layer": bank})


@settings(max_examples=200, deadline=None)
@given(
    window=windows(20),
    maximum=st.booleans(),
    zero_point=st.integers(-128, 127),
    seed=st.integers(0, 2**32 - 1),
)
def test_pooling(
    session: Session, window: Window, maximum: bool, zero_point: int, seed: int
) -> None:
    layer = pool(window, maximum=maximum, zero_point=zero_point)
    x = images(np.random.default_rng(seed), window, 2)
    check(session, layer, x)


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(64, 8, 8), (5, 1, 1), (130, 7, 5), (64, 25, 5), (512, 7, 7)]
)
def test_global_average(session: Session, channels: int, height: int, width: int) -> None:
    layer = pool(Window(channels, height, width, (height, width)), maximum=False, zero_point=-7)
    assert layer.window is not None
    x = images(np.random.default_rng(1), layer.window, 3)
    check(session, layer, x)


def test_depthwise_of_many_channels(session: Session) -> None:
    """More channels than a bank can hold go in parts."""
    rng = np.random.default_rng(2)
    window = Window(600, 9, 7, (3, 3), pads=(1, 1, 1, 1))
    layer = random_window_layer(rng, window, 600, 600, "plain")
    x = images(rng, window, 1)
    check(session, layer, x)


@pytest.mark.parametrize("size", [(3, 224, 160), (64, 56, 56), (96, 30, 200)])
def test_images_that_come_round_in_the_ring(session: Session, size: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(3)
    window = Window(*size, (3, 3), (1, 1) if size[0] > 3 else (2, 2), pads=(1, 1, 1, 1))
    layer = random_window_layer(rng, window, 4, 1, "plain")
    x = images(rng, window, 1)
    check(session, layer, x)


def test_a_ring_that_turns_often_between_rows(session: Session) -> None:
    """One row is needed at a time and fifteen are passed over, each most of a turn of the ring."""
    rng = np.random.default_rng(5)
    window = Window(256, 60, 64, (1, 1), (15, 1))
    layer = random_window_layer(rng, window, 3, 1, "plain")
    x = images(rng, window, 1)
    check(session, layer, x)


def test_window_features_in_several_passes(session: Session) -> None:
    rng = np.random.default_rng(4)
    window = Window(512, 7, 7, (3, 3), pads=(1, 1, 1, 1))
    layer = random_window_layer(rng, window, 10, 1, "plain")
    x = images(rng, window, 1)
    check(session, layer, x, {"layer": (1, 1)})


def exact_combination(
    a: NDArray[np.int8], b: NDArray[np.int8], layer: QuantLayer
) -> NDArray[np.int8]:
    """The definition in Python's integers."""
    c = layer.combination
    assert c is not None
    out = []
    for p, q in zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True):
        p, q = p - c.a_zero, q - c.b_zero
        acc = c.a_scale * p * q if c.product else c.a_scale * p + c.b_scale * q
        unit = 1 << c.shift
        down, rest = divmod(acc, unit)
        up = 2 * rest > unit or (2 * rest == unit and down % 2 == 1)
        out.append(min(max(down + up + c.zero_point, c.low), c.high))
    return np.array(out, np.int8).reshape(a.shape)


@settings(max_examples=100, deadline=None)
@given(
    product=st.booleans(),
    exponents=st.tuples(*[st.floats(-6, 3)] * 3),
    zero_points=st.tuples(*[st.integers(-128, 127)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_residual_of_a_convolution(
    session: Session,
    product: bool,
    exponents: tuple[float, float, float],
    zero_points: tuple[int, int, int],
    seed: int,
) -> None:
    """Input -> convolution -> convolution + residual, through chain and memory."""
    rng = np.random.default_rng(seed)
    window = Window(6, 10, 13, (3, 3), pads=(1, 1, 1, 1))
    first = random_window_layer(rng, window, 6, 1, "plain")
    second = random_window_layer(rng, window, 6, 1, "plain")
    first = replace(first, name="first", output="t", zero_point=3)
    scales = [np.float32(2.0**e) for e in exponents]
    a, b, y = zip(scales, zero_points, strict=True)
    make = product_of if product else sum_of
    second = replace(
        second,
        name="second",
        input="t",
        input_zero_point=3,
        zero_point=zero_points[0],
        combination=make("t", a, b, y),
    )
    x = images(rng, window, 2)
    got = run_all(session, model_of([first, second], x.shape[1:]), {}, x)
    t = oracle_window(first, x)
    np.testing.assert_array_equal(got["t"], t.reshape(2, -1))
    plain = oracle_window(second, t.astype(np.int8)).astype(np.int8)
    np.testing.assert_array_equal(
        got["y"], exact_combination(plain, t.astype(np.int8), second).reshape(2, -1)
    )
