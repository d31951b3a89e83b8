# SPDX-License-Identifier: Apache-2.0
"""Packing: nothing is lost, and every byte lies where the format says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers import pruned
from pynq_bbs.errors import InputError
from pynq_bbs.pack.csb import csb_shape, pack_csb, unpack_csb


def dense_again(values: np.ndarray, columns: np.ndarray, features: int) -> np.ndarray:
    out = np.zeros((len(values), features), np.int64)
    np.add.at(out, (np.arange(len(values))[:, None], columns), values)
    return out


@given(
    rows=st.integers(1, 20),
    features=st.integers(1, 500),
    bank_size=st.integers(1, 256),
    data=st.data(),
)
def test_round_trip(rows: int, features: int, bank_size: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, bank_size))
    lanes = data.draw(st.sampled_from([8, 16]))
    bits = data.draw(st.sampled_from([4, 8]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weights = pruned(rng.integers(-3, 4, (rows, features)).astype(np.int8), bank_size, keep)
    shape = csb_shape(rows, features, bank_size, keep, lanes, 512, bits)
    planes = pack_csb(weights, shape)
    assert planes[0].nbytes == shape.weight_bytes and planes[1].nbytes == shape.index_bytes
    values, columns = unpack_csb(*planes, shape)
    assert values.shape == (rows, shape.groups * lanes * keep)
    np.testing.assert_array_equal(dense_again(values, columns, features), weights)


def test_golden_bytes() -> None:
    """Two rows of two banks of 4, keep 2, on 8 lanes: written out by hand."""
    weights = np.array([[0, 5, 0, -7, 1, 0, 0, 2], [3, 0, 0, 4, 0, 0, 0, 6]], np.int8)
    shape = csb_shape(2, 8, 4, 2, 8, 512)
    weight_plane, index_plane = pack_csb(weights, shape)
    rows = weight_plane.view(np.int8).reshape(2, 2, 8)  # row, keep, lane
    assert rows[0, :, :2].tolist() == [[5, 1], [-7, 2]]
    # Bank 1 of row 1 has one nonzero: the lowest zero fills up.
    assert rows[1, :, :2].tolist() == [[3, 0], [4, 6]]
    assert not rows[:, :, 2:].any()
    # Two CSB words of eight 4-bit indices are one 64-bit word a row, lane 0 lowest.
    nibbles = [[(int(word) >> (4 * i)) & 15 for i in range(16)] for word in index_plane]
    assert nibbles[0] == [1, 0, 0, 0, 0, 0, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1]
    assert nibbles[1] == [0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("bank_size", "keep", "bits"),
    [(4, 2, 4), (16, 4, 4), (17, 3, 6), (64, 8, 6), (65, 8, 8), (256, 9, 8), (8, 8, 0)],
)
def test_index_bits(bank_size: int, keep: int, bits: int) -> None:
    assert csb_shape(1, 512, bank_size, keep, 8, 512).index_bits == bits


@given(features=st.integers(1, 60000), bank_size=st.integers(1, 256))
def test_every_pass_fits_the_vector_buffer(features: int, bank_size: int) -> None:
    shape = csb_shape(1, features, bank_size, 1, 8, 512)
    assert sum(groups for _, groups in shape.passes) == shape.groups
    assert all(groups * bank_size <= 512 for _, groups in shape.passes)


def test_golden_bytes_int4() -> None:
    """Two halves a byte, the lower lane in the lower half; a row starts on a word."""
    weights = np.array([[-8, 7, 1], [-1, 2, 0]], np.int8)
    plane, _ = pack_csb(weights, csb_shape(2, 3, 2, 2, 8, 512, 4))
    # row 0: keep 0 of lanes 0 and 1 is (-8, 1), keep 1 is (7, 0)
    assert [int(word) for word in plane] == [0x0000_0007_0000_0018, 0x0000_0002_0000_000F]


def test_int4_weights_must_fit() -> None:
    with pytest.raises(InputError, match="row 1, feature 2 is 8, 4 bits hold -8 to 7"):
        pack_csb(np.array([[0, 0, 7], [0, 0, 8]], np.int8), csb_shape(2, 3, 2, 2, 8, 512, 4))


def test_too_many_nonzeros_name_row_and_bank() -> None:
    weights = np.zeros((3, 32), np.int8)
    weights[2, 17:20] = 1
    with pytest.raises(InputError, match=r"row 2, bank 2 has 3 nonzeros, keep is 2"):
        pack_csb(weights, csb_shape(3, 32, 8, 2, 8, 512))


@pytest.mark.parametrize(("bank_size", "keep"), [(0, 1), (257, 1), (8, 0), (8, 9)])
def test_impossible_banks(bank_size: int, keep: int) -> None:
    with pytest.raises(InputError, match="bank sizes 1 to 256"):
        csb_shape(4, 64, bank_size, keep, 8, 512)


def test_wrong_dtype() -> None:
    with pytest.raises(InputError, match="wanted int8"):
        pack_csb(np.zeros((3, 32)), csb_shape(3, 32, 8, 2, 8, 512))  # type: ignore[arg-type]
