# SPDX-License-Identifier: Apache-2.0
"""Sparsity patterns against their definition, one weight at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pynq_bbs.compress.patterns import Banks, Blocks, Rows, Unstructured, mask_of, parse_pattern
from pynq_bbs.errors import InputError


def slow_mask(scores, groups, sparsity, by=np.mean):
    """`groups` are lists of lists of cells: of every list, the best units stay, whole."""
    mask = np.zeros(scores.shape, bool)
    values = np.abs(scores.astype(float))
    for units in groups:

        def badness(i, units=units):
            return -by([values[cell] for cell in units[i]]), i

        for i in sorted(range(len(units)), key=badness)[: round(len(units) * (1 - sparsity))]:
            for cell in units[i]:
                mask[cell] = True
    return mask


def blocks(m, k, rows, columns):
    return [
        [
            (r, c)
            for r in range(top, min(top + rows, m))
            for c in range(left, min(left + columns, k))
        ]
        for top in range(0, m, rows)
        for left in range(0, k, columns)
    ]


def banks(m, k, size):
    return [
        [[(r, c)] for c in range(s, min(s + size, k))] for r in range(m) for s in range(0, k, size)
    ]


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**32), st.booleans())
@settings(max_examples=40, deadline=None)
def test_masks_follow_their_definition(m, eighths, seed, tied):
    rng, k = np.random.default_rng(seed), 8 * eighths
    scores = rng.integers(-3, 4, (m, k)) if tied else rng.integers(-(2**20), 2**20, (m, k))
    scores = scores.astype(np.float32)
    for sparsity in (0.5, 0.75):
        cases = {
            "unstructured": slow_mask(scores, [blocks(m, k, 1, 1)], sparsity),
            "banks:8": slow_mask(scores, banks(m, k, 8), sparsity),
            "banks:row/2": slow_mask(scores, banks(m, k, k // 2), sparsity),
            "block:4x3": slow_mask(scores, [blocks(m, k, 4, 3)], sparsity),
            "block:2x5:max": slow_mask(scores, [blocks(m, k, 2, 5)], sparsity, max),
            "row": slow_mask(scores, [blocks(m, k, 1, k)], sparsity),
            "channel": slow_mask(scores, [blocks(m, k, m, 1)], sparsity),
        }
        for text, expected in cases.items():
            made = parse_pattern(text, sparsity).mask(scores)
            np.testing.assert_array_equal(made, expected, err_msg=text)
    np.testing.assert_array_equal(
        parse_pattern("2:4", 0.5).mask(scores), slow_mask(scores, banks(m, k, 4), 0.5)
    )


def test_convolutions_have_banks_of_channels_at_every_tap():
    weights = np.random.default_rng(0).standard_normal((3, 8, 3, 2)).astype(np.float32)
    mask = mask_of(Banks(4, 1), weights)
    assert (mask.reshape(3, 2, 4, 3, 2).sum(axis=2) == 1).all()
    assert mask_of(Unstructured(0.75), weights).sum() == 36
    outputs = mask_of(parse_pattern("row", 0.67), weights).reshape(3, -1)
    assert outputs.all(axis=1).sum() == outputs.any(axis=1).sum() == 1
    channels = mask_of(parse_pattern("channel", 0.75), weights).swapaxes(0, 1).reshape(8, -1)
    assert channels.all(axis=1).sum() == channels.any(axis=1).sum() == 2


@pytest.mark.parametrize(
    ("text", "sparsity", "word"),
    [
        ("spiral", 0.5, "take one of"),
        ("banks:", 0.5, "take one of"),
        ("block:4", 0.5, "take one of"),
        ("block:0x4", 0.5, "no weights"),
        ("block:4x4:median", 0.5, "take one of"),
        ("2:4", 0.75, "has sparsity 0.5"),
        ("5:4", 0.5, "cannot keep 5"),
        ("banks:16", 0.97, "must be an integer"),
        ("banks:row/0", 0.5, "at least 1"),
        ("unstructured", 1.0, "less than 1"),
        ("row", float("nan"), "less than 1"),
    ],
)
def test_wrong_patterns(text, sparsity, word):
    with pytest.raises(InputError, match=word):
        parse_pattern(text, sparsity)


def test_wrong_scores():
    with pytest.raises(InputError, match="two-dimensional"):
        Banks(4, 2).mask(np.zeros(4, np.float32))
    with pytest.raises(InputError, match="int64"):
        Unstructured(0.5).mask(np.zeros((2, 2), np.int64))


@pytest.mark.parametrize("pattern", [Unstructured(0.99), Blocks(2, 2, 0.99), Rows(0.99)])
def test_a_share_of_less_than_half_a_weight_keeps_none(pattern) -> None:
    assert not pattern.mask(np.arange(24.0).reshape(4, 6)).any()
