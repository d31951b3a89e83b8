# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pynq_bbs.builds import load_build
from pynq_bbs.compress.prune import bank_mask, bank_prune, choose_bank
from pynq_bbs.errors import InputError

#: Builds that take other bank sizes: all, those that words of 4 or 8 features allow, up to 64.
BUILDS = [load_build("8x32")]
BUILDS += [replace(BUILDS[0], rows=4, cols=cols, index_bits=6) for cols in (1, 2)]


def slow_mask(weights, bank_size, keep):
    """The definition, one weight at a time."""
    mask = np.zeros(weights.shape, bool)
    for r, row in enumerate(weights.tolist()):
        for start in range(0, len(row), bank_size):
            bank = range(start, min(start + bank_size, len(row)))
            for i in sorted(bank, key=lambda i: (-abs(row[i]), i))[:keep]:
                mask[r, i] = True
    return mask


@st.composite
def cases(draw):
    bank_size = draw(st.integers(1, 40) | st.sampled_from([64, 255, 256]))
    keep = draw(st.integers(1, bank_size))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 3 * bank_size + 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["int8", "float32", "float64", "float16", "ties", "zeros"]))
    if kind == "int8":
        return rng.integers(-128, 128, shape).astype(np.int8), bank_size, keep
    if kind == "ties":
        return rng.integers(-2, 3, shape).astype(np.float32), bank_size, keep
    if kind == "zeros":
        return np.zeros(shape, draw(st.sampled_from([np.int8, np.float32]))), bank_size, keep
    return rng.standard_normal(shape).astype(kind), bank_size, keep


@given(cases())
@settings(max_examples=400, deadline=None)
def test_mask_follows_the_definition(case):
    weights, bank_size, keep = case
    before = weights.copy()
    mask = bank_mask(weights, bank_size, keep)
    np.testing.assert_array_equal(mask, slow_mask(weights, bank_size, keep))
    pruned = bank_prune(weights, bank_size, keep)
    assert pruned.dtype == weights.dtype
    np.testing.assert_array_equal(pruned[mask], weights[mask])
    assert not pruned[~mask].any() and not np.signbit(pruned[~mask].astype(float)).any()
    np.testing.assert_array_equal(weights, before)
    np.testing.assert_array_equal(bank_prune(pruned, bank_size, keep), pruned)


def test_most_negative_int8_is_the_largest():
    weights = np.array([[127, -128, 127, 0]], np.int8)
    np.testing.assert_array_equal(bank_prune(weights, 4, 1), [[0, -128, 0, 0]])


def test_rows_not_contiguous():
    weights = np.asfortranarray(np.random.default_rng(0).standard_normal((40, 70)))[::2, ::-1]
    np.testing.assert_array_equal(bank_mask(weights, 16, 3), slow_mask(weights, 16, 3))


def test_many_blocks_of_rows():
    weights = np.random.default_rng(0).integers(-3, 4, (700, 250)).astype(np.int8)
    mask = bank_mask(weights, 25, 4)
    assert (np.add.reduceat(mask, range(0, 250, 25), axis=1) == 4).all()
    np.testing.assert_array_equal(mask[600:], slow_mask(weights[600:], 25, 4))


@pytest.mark.parametrize(
    ("weights", "bank_size", "keep", "word"),
    [
        (np.zeros(4, np.int8), 4, 2, "two-dimensional"),
        (np.zeros((2, 4), np.int32), 4, 2, "int32"),
        (np.zeros((2, 4), np.int8), 0, 1, "bank_size is 0"),
        (np.zeros((2, 4), np.int8), 257, 1, "bank_size is 257"),
        (np.zeros((2, 4), np.int8), 4, 0, "keep is 0"),
        (np.zeros((2, 4), np.int8), 4, 5, "keep is 5"),
    ],
)
def test_wrong_arguments(weights, bank_size, keep, word):
    with pytest.raises(InputError, match=word):
        bank_prune(weights, bank_size, keep)


@given(
    st.integers(1, 5000),
    st.sampled_from(["0", "1/2", "3/4", "7/8", "1/3", "9/10", "15/16", "255/256"]),
    st.integers(1, 256),
    st.sampled_from([1, 4, 8, 32]),
    st.sampled_from(BUILDS),
)
@settings(max_examples=300, deadline=None)
def test_choose_bank(features, sparsity, bank_size, lanes, build):
    exact = Fraction(sparsity)
    allowed = [
        s
        for s in range(1, bank_size + 1)
        if build.takes_bank(s) and (s * (1 - exact)).denominator == 1
    ]
    if not allowed:
        with pytest.raises(InputError, match=r"Nearest: .* of (\d+)\)") as caught:
            choose_bank(features, float(exact), bank_size, lanes, build.takes_bank)
        assert build.takes_bank(int(re.search(r"keep \d+ of (\d+)", str(caught.value))[1]))
        return
    size, keep = choose_bank(features, float(exact), bank_size, lanes, build.takes_bank)
    assert size in allowed and keep == size * (1 - exact)
    padding = {s: -features % (lanes * s) for s in allowed}
    assert padding[size] == min(padding.values())
    best = [s for s in allowed if padding[s] == padding[size]]
    assert size == (min(best) if exact == 0 else max(best))


def test_choose_bank_examples():
    assert choose_bank(1024, 0.875, 64, 8) == (64, 8)
    assert choose_bank(640, 0.875, 64, 8) == (40, 5)
    assert choose_bank(640, 0.0, 64, 8) == (1, 1)
    assert choose_bank(640, 0.75, 16, 32, lambda size: size % 8 == 0) == (8, 2)
    assert choose_bank(128, 0.5, 4, 8) == (4, 2)
    assert choose_bank(64, 0.75, 64, 8, taps=1) == (8, 2)
    assert choose_bank(16, 0.75, 16, 8, taps=9) == (4, 1)
    assert choose_bank(128, 0.33333, 3, 8) == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((64, 0.875, 4, 8), r"Nearest: 0.75 \(keep 1 of 4\)"),
        ((64, 0.123456, 4, 8), "sparsity 0.123456 cannot be met"),
        ((64, 1.0, 64, 8), "less than 1"),
        ((64, -0.1, 64, 8), "at least 0"),
        ((64, float("nan"), 64, 8), "sparsity is nan"),
        ((64, 0.5, 512, 8), "bank_size is 512"),
        ((0, 0.5, 64, 8), "at least 1"),
    ],
)
def test_choose_bank_errors(arguments, word):
    with pytest.raises(InputError, match=word):
        choose_bank(*arguments)
