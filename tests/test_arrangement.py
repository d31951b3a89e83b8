# SPDX-License-Identifier: Apache-2.0
"""Transposes and reshapes, one after the other, are one transpose between two reshapes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pynq_bbs.model.arrangement import AS_IT_IS


@settings(max_examples=300, deadline=None)
@given(data=st.data(), shape=st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
def test_moves_in_a_row(data, shape):
    plain = np.arange(2 * int(np.prod(shape))).reshape(2, -1)
    seen, arrangement = plain.reshape(2, *shape), AS_IT_IS
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            divisors = [n for n in range(1, seen[0].size + 1) if seen[0].size % n == 0]
            seen = seen.reshape(2, data.draw(st.sampled_from(divisors)), -1)
            continue
        axes = data.draw(st.permutations(range(seen.ndim - 1)))
        moved = arrangement.transposed(seen.shape[1:], axes)
        if moved is None:  # only where a reshape cut axes apart at other places
            return
        arrangement, seen = moved, seen.transpose(0, *(axis + 1 for axis in axes))
    flat = seen.reshape(2, -1)
    np.testing.assert_array_equal(arrangement.apply(plain), flat)
    np.testing.assert_array_equal(arrangement.undo(flat), plain)
    # The shortest form: what changes nothing is nothing.
    assert np.array_equal(flat, plain) == (arrangement == AS_IT_IS)


def test_layouts_of_images():
    first = AS_IT_IS.transposed((32, 30, 3), (2, 0, 1))
    assert first is not None and (first.factors, first.axes) == ((960, 3), (1, 0))
    assert first.transposed((3, 32, 30), (1, 2, 0)) == AS_IT_IS
    assert first.transposed((3, 960), (1, 0)) == AS_IT_IS
    assert first.transposed((2, 1440), (1, 0)) is None  # 2 and 3 channels
