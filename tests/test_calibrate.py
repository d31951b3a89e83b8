# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pynq_bbs.compress.calibrate import METHODS, make_observer
from pynq_bbs.errors import InputError

methods = pytest.mark.parametrize("method", METHODS)


def observe(method, *batches):
    observer = make_observer(method)
    for batch in batches:
        observer.update(np.asarray(batch))
    return observer.quantisation()


def error(values, scale, zero_point):
    q = np.clip(np.rint(values / float(scale)) + zero_point, -128, 127)
    return float(np.mean(((q - zero_point) * float(scale) - values) ** 2))


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@methods
@given(st.lists(arrays(np.float32, st.integers(0, 30), elements=finite), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_always_a_usable_scale(method, batches):
    if not sum(map(len, batches)):
        with pytest.raises(InputError, match="no values"):
            observe(method, *batches)
        return
    scale, zero_point = observe(method, *batches)
    assert isinstance(scale, np.float32) and np.isfinite(scale) and scale > 0
    assert isinstance(zero_point, int) and -128 <= zero_point <= 127
    if method == "minmax":
        values = np.concatenate(batches).astype(np.float64)
        step = float(scale)
        low, high = (-128 - zero_point) * step, (127 - zero_point) * step
        # Rounding the zero point may cut half a step off one end.
        assert low - 0.51 * step <= min(values.min(), 0.0)
        assert values.max() <= high + 0.51 * step and values.min() >= low - 0.51 * step


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("order", [1, -1])
def test_order_and_doubling_do_not_matter(method, order):
    rng = np.random.default_rng(3)
    batches = [rng.standard_normal(500) * 2.0**e for e in range(-4, 5)]
    assert observe(method, *batches[::order]) == pytest.approx(
        observe(method, np.concatenate(batches)), rel=0.05, abs=3
    )


@methods
def test_all_zero_and_constant(method):
    assert observe(method, np.zeros(9), np.zeros((2, 3))) == (1.0, 0)
    scale, zero_point = observe(method, np.full(100, 5.0))
    assert zero_point == -128 and (127 + 128) * scale == pytest.approx(5.0, rel=0.01)
    scale, zero_point = observe(method, np.full(100, -5.0))
    assert zero_point == 127 and 255 * scale == pytest.approx(5.0, rel=0.01)


@methods
def test_relu_tensor_spends_nothing_below_zero(method):
    values = np.maximum(np.random.default_rng(0).standard_normal(20000), 0)
    scale, zero_point = observe(method, values)
    assert zero_point == -128
    assert 255 * scale <= values.max() * 1.01


def test_minmax_is_the_range():
    scale, zero_point = observe("minmax", [-1.0, 0.5], [3.0])
    assert scale == np.float32(4.0 / 255.0)
    assert zero_point == -128 + 64


def test_percentile_ignores_single_outliers():
    values = np.random.default_rng(0).uniform(-1, 1, 100_000)
    scale, _ = observe("percentile", values, [1000.0])
    assert 255 * scale == pytest.approx(2.0, rel=0.6)  # bins are wide beside the outlier
    scale, _ = observe("minmax", values, [1000.0])
    assert 255 * scale == pytest.approx(1001.0, rel=0.01)
    scale, _ = observe("percentile", values, values, values)
    assert 255 * scale == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_searched_ranges_clip_long_tails(method):
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.standard_normal(200_000), [60.0]])
    chosen = observe(method, *np.array_split(values, 7))
    everything = observe("minmax", values)
    assert chosen[0] < 0.9 * everything[0]
    if method == "mse":
        assert error(values, *chosen) < error(values, *everything)


def test_mse_is_close_to_the_best_symmetric_range():
    values = np.random.default_rng(2).laplace(size=200_000)
    best = min(error(values, np.float32(2 * r / 255), 0) for r in np.linspace(3, 16, 40))
    assert error(values, *observe("mse", values)) <= best * 1.05


@methods
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(method, bad):
    with pytest.raises(InputError, match="NaN or infinity"):
        observe(method, [1.0, bad])


@methods
def test_extreme_magnitudes(method):
    for magnitude in (1e-45, 1e-30, 1e38):
        scale, _ = observe(method, np.array([magnitude, -magnitude], np.float32))
        assert np.isfinite(scale) and scale > 0


def test_unknown_method():
    with pytest.raises(InputError, match="'max'; known methods: minmax, percentile, entropy, mse"):
        make_observer("max")
