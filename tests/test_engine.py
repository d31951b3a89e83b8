# SPDX-License-Identifier: Apache-2.0
"""Emulated engine, cpu device and formula give the same integers, through driver and memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers import alone, random_layer
from oracle import oracle_layer
from pynq_bbs.builds import load_build
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.device.engine import EngineProgram
from pynq_bbs.device.session import Session, open_device
from pynq_bbs.model.graph import QuantLayer
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.image import pack
from pynq_bbs.report import PARTS

BUILD = load_build("8x32")
MEMORY = Memory(142.857e6, 1.5e9)
KINDS = ("plain", "table", "sums")


@pytest.fixture(scope="module")
def session():
    with open_device("standin", BUILD, strict=True) as opened:
        yield opened


def outputs(layer: QuantLayer, x: np.ndarray) -> np.ndarray:
    """What the oracle says: INT8, or INT32 sums."""
    sums, q = oracle_layer(layer, x)
    return sums if q is None else q


def check(session: Session, layer: QuantLayer, bank: tuple[int, int], x: np.ndarray) -> None:
    """All three agree on `x`, and no memory stays behind."""
    program = pack(alone(layer), {layer.name: bank}, BUILD)
    expected = outputs(layer, x)
    engine = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0))
    try:
        device = engine.run({"x": x}, ["y"])[0]["y"]
    finally:
        engine.close()
    np.testing.assert_array_equal(device, expected)
    np.testing.assert_array_equal(CpuDevice(program).run({"x": x})["y"], expected)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, int, int, str, int, int]:
    bank_size = draw(st.one_of(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 256]), st.integers(1, 256)))
    keep = draw(st.one_of(st.just(bank_size), st.integers(1, bank_size)))
    rows = draw(st.integers(1, 40))
    features = draw(st.integers(1, 300))
    columns = draw(st.sampled_from([1, 2, 31, 32, 33, 64, 65, 100]))
    return (
        rows,
        features,
        columns,
        bank_size,
        keep,
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from([8, 8, 4])),
        draw(st.integers(0, 2**32 - 1)),
    )


@settings(max_examples=2000)
@given(case=cases())
def test_random_layers(
    session: Session, case: tuple[int, int, int, int, int, str, int, int]
) -> None:
    rows, features, columns, bank_size, keep, kind, bits, seed = case
    rng = np.random.default_rng(seed)
    layer = random_layer(rng, rows, features, bank_size, keep, kind=kind, weight_bits=bits)
    x = rng.integers(-128, 128, (columns, features)).astype(np.int8)
    check(session, layer, (bank_size, keep), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("features", "bank_size", "keep"),
    [(5000, 64, 8), (9000, 256, 256), (4097, 16, 3), (20000, 64, 4), (4096, 2, 2)],
)
def test_features_in_several_passes(
    session: Session, features: int, bank_size: int, keep: int, kind: str
) -> None:
    """More features than the vector buffer holds: INT32 sums survive from pass to pass."""
    rng = np.random.default_rng(features)
    rows = 600 if features == 4097 else 21  # 600: more rows than a weight block takes
    layer = random_layer(rng, rows, features, bank_size, keep, kind=kind)
    x = rng.integers(-128, 128, (70, features)).astype(np.int8)
    check(session, layer, (bank_size, keep), x)


def test_most_negative_weights_and_activations(session: Session) -> None:
    """All -128: the largest products and pair sums there are."""
    layer = random_layer(np.random.default_rng(0), 9, 512, 8, 8)
    layer.weights[:] = -128
    x = np.full((40, 512), -128, np.int8)
    x[::3] = 127
    check(session, layer, (8, 8), x)


@pytest.mark.parametrize("multiplier", [1e-38, 1e-20, 0.5, 1.0, 3.0, 1e20, 3e38])
def test_extreme_scales_and_ties(session: Session, multiplier: float) -> None:
    """0.5 makes every odd sum a tie; the largest multipliers overflow to infinity."""
    rng = np.random.default_rng(1)
    layer = random_layer(rng, 33, 64, 4, 2)
    layer.multiplier = np.full(33, multiplier, np.float32)
    layer.weights //= 16
    layer.input_zero_point = 0
    layer.bias[:] = rng.integers(-200, 200, 33)
    x = rng.integers(-3, 4, (64, 64)).astype(np.int8)
    if multiplier == 0.5:
        assert np.any(outputs(layer, x) % 2)  # not all saturated
    with np.errstate(over="ignore"):
        check(session, layer, (4, 2), x)


@pytest.mark.parametrize(("bank_size", "keep"), [(64, 8), (2, 2), (16, 5)])
def test_int4_in_several_passes(session: Session, bank_size: int, keep: int) -> None:
    """Rows of half bytes that end inside a word, in every pass."""
    rng = np.random.default_rng(6)
    layer = random_layer(rng, 37, 5000, bank_size, keep, weight_bits=4)
    check(session, layer, (bank_size, keep), rng.integers(-128, 128, (33, 5000)).astype(np.int8))


def test_one_column_of_many_rows(session: Session) -> None:
    rng = np.random.default_rng(2)
    layer = random_layer(rng, 2000, 256, 32, 4)
    check(session, layer, (32, 4), rng.integers(-128, 128, (1, 256)).astype(np.int8))
