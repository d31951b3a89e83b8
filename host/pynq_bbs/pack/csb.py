# SPDX-License-Identifier: Apache-2.0
"""Compressed sparse banks: the order in which a weight matrix lies in memory.

A row of `K` weights is cut into banks of `S`; bank `b` belongs to lane `b % lanes` of group
`b // lanes`. An engine works on `row_group` rows at a time. The weight plane is
`[pass][row group][group][keep][row of the row group][lane]`, INT8 or INT4; the index plane has the
same order with each weight's place in its bank, in 4, 6 or 8 bits. In both, every row group of
every pass starts on a 64-bit word. A pass is a run of groups whose features fit the engine's vector
buffer together. Banks beyond `K` carry weight 0.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..errors import InputError

#: Rows packed by one task: small enough to stay in cache, large enough to amortise numpy.
_ROWS_PER_TASK = 256


@dataclass(frozen=True)
class CsbShape:
    """The counts that follow from a matrix, its banks and the engine's parameters."""

    rows: int
    features: int
    bank_size: int
    keep: int
    lanes: int
    groups_per_pass: int
    weight_bits: int = 8
    row_group: int = 1

    @property
    def dense(self) -> bool:
        return self.keep == self.bank_size

    @property
    def index_bits(self) -> int:
        """0 where dense, else the narrowest width the engine reads."""
        if self.dense:
            return 0
        return 4 if self.bank_size <= 16 else 6 if self.bank_size <= 64 else 8

    @property
    def groups(self) -> int:
        return -(-self.features // (self.bank_size * self.lanes))

    @property
    def row_groups(self) -> int:
        return self.rows // self.row_group

    @property
    def passes(self) -> list[tuple[int, int]]:
        """(first group, number of groups) of every pass."""
        step = self.groups_per_pass
        return [(g, min(step, self.groups - g)) for g in range(0, self.groups, step)]

    def index_row_bytes(self, groups: int) -> int:
        """Bytes of the indices of one row group of one pass, whole 64-bit words."""
        return self._row_bytes(groups, self.index_bits)

    def weight_row_bytes(self, groups: int) -> int:
        """Bytes of the weights of one row group of one pass, whole 64-bit words."""
        return self._row_bytes(groups, self.weight_bits)

    @property
    def index_bytes(self) -> int:
        """Bytes of the index plane."""
        return self.row_groups * sum(self.index_row_bytes(groups) for _, groups in self.passes)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight plane."""
        return self.row_groups * sum(self.weight_row_bytes(groups) for _, groups in self.passes)

    def _row_bytes(self, groups: int, bits: int) -> int:
        return -(-groups * self.keep * self.row_group * self.lanes * bits // 64) * 8


def csb_shape(
    rows: int,
    features: int,
    bank_size: int,
    keep: int,
    lanes: int,
    vector_words: int,
    weight_bits: int = 8,
    row_group: int = 1,
) -> CsbShape:
    """The shape with as few passes as the vector buffer allows, their lengths evened out.

    Raises:
        InputError: bank size or keep outside what the engine takes, or rows that do not fill
            their row groups.
    """
    if rows % row_group:
        raise InputError(f"{rows} rows do not fill groups of {row_group}: add rows of zeros")
    if not 1 <= bank_size <= 256 or not 1 <= keep <= bank_size:
        raise InputError(
            f"bank size {bank_size} with keep {keep}: the engine takes bank sizes 1 to 256 "
            "and keeps 1 to the bank size"
        )
    groups = -(-features // (bank_size * lanes))
    passes = -(-groups // max(1, vector_words // bank_size))
    return CsbShape(
        rows, features, bank_size, keep, lanes, -(-groups // passes), weight_bits, row_group
    )


def shape_on(
    build: Build, rows: int, features: int, bank: tuple[int, int], weight_bits: int = 8
) -> CsbShape:
    """`csb_shape` for an engine of `build`; `bank` is bank size and keep."""
    size, keep = bank
    space = build.vector_words // build.bank_space(size) * size
    return csb_shape(rows, features, size, keep, build.lanes, space, weight_bits, build.rows)


def pack_csb(
    weights: NDArray[np.int8], shape: CsbShape
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The weight plane and the index plane (empty where dense) of `weights` (M, K).

    Raises:
        InputError: a bank has more than `keep` nonzeros, or a weight does not fit its bits;
            names the first row, and the bank.
    """
    if weights.shape != (shape.rows, shape.features) or weights.dtype != np.int8:
        raise InputError(
            f"weights are {weights.dtype} {weights.shape}, "
            f"wanted int8 {(shape.rows, shape.features)}"
        )
    if shape.weight_bits == 4:
        _check_int4(weights)
    starts = range(0, shape.rows, _ROWS_PER_TASK)
    with ThreadPoolExecutor() as pool:  # numpy's inner loops release the interpreter lock
        parts = list(pool.map(lambda r: _pack_rows(weights, shape, r), starts))
    # parts[task][pass] -> planes of that pass, rows one after the other
    values = [np.concatenate([p[i][0] for p in parts]) for i in range(len(shape.passes))]
    weight_plane = np.concatenate([v.reshape(-1) for v in values]).view(np.uint64)
    if shape.dense:
        return weight_plane, np.zeros(0, np.uint64)
    indices = [np.concatenate([p[i][1] for p in parts]) for i in range(len(shape.passes))]
    return weight_plane, np.concatenate([i.reshape(-1) for i in indices]).view(np.uint64)


def _check_int4(weights: NDArray[np.int8]) -> None:
    wrong = np.argwhere((weights < -8) | (weights > 7))
    if len(wrong):
        row, feature = (int(i) for i in wrong[0])
        raise InputError(
            f"row {row}, feature {feature} is {int(weights[row, feature])}, 4 bits hold -8 to 7: "
            "compile a float model with weight_bits=4, or leave the weights at 8 bits"
        )


def _pack_rows(
    weights: NDArray[np.int8], shape: CsbShape, start: int
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Both planes of some rows, by pass."""
    block = weights[start : start + _ROWS_PER_TASK]
    rows = len(block)
    s, k, lanes, groups = shape.bank_size, shape.keep, shape.lanes, shape.groups
    padded = np.zeros((rows, groups * lanes * s), np.int8)
    padded[:, : shape.features] = block
    if shape.dense:
        values = padded.reshape(rows, groups, lanes, s).transpose(0, 1, 3, 2)
        empty = np.zeros((rows // shape.row_group, 0), np.uint8)
        return [
            (_pack_weights(_by_row_group(values[:, g : g + n], shape), shape, n), empty)
            for g, n in shape.passes
        ]
    positions = _kept_positions(padded.reshape(-1, s), k, start, groups * lanes)
    order = (rows, groups, lanes, k)
    values = padded.reshape(-1)[positions].reshape(order).transpose(0, 1, 3, 2)
    places = (positions % s).astype(np.uint8).reshape(order).transpose(0, 1, 3, 2)
    return [
        (
            _pack_weights(_by_row_group(values[:, g : g + n], shape), shape, n),
            _pack_places(_by_row_group(places[:, g : g + n], shape), shape, n),
        )
        for g, n in shape.passes
    ]


def _by_row_group(fields: NDArray[Any], shape: CsbShape) -> NDArray[Any]:
    """(rows, groups, keep, lanes) as (row groups, all fields of a row group in their order)."""
    if shape.row_group > 1:
        fields = fields.reshape(-1, shape.row_group, *fields.shape[1:]).transpose(0, 2, 3, 1, 4)
    return fields.reshape(len(fields), -1)


def _kept_positions(
    banks: NDArray[np.int8], keep: int, first_row: int, banks_per_row: int
) -> NDArray[np.int64]:
    """Flat positions of exactly `keep` weights of every bank, all nonzeros among them."""
    mask = banks != 0
    counts = np.count_nonzero(mask, axis=1)
    too_many = np.flatnonzero(counts > keep)
    if len(too_many):
        row, bank = divmod(int(too_many[0]), banks_per_row)
        raise InputError(
            f"row {first_row + row}, bank {bank} has {int(counts[too_many[0]])} nonzeros, "
            f"keep is {keep}: prune the matrix to this bank size and keep first"
        )
    short = np.flatnonzero(counts < keep)
    if len(short):  # fill up with zeros, lowest index first
        order = np.argsort(~mask[short], axis=1, kind="stable")[:, :keep]
        mask[short[:, None], order] = True
    return np.flatnonzero(mask)


def _pack_weights(values: NDArray[np.int8], shape: CsbShape, groups: int) -> NDArray[np.uint8]:
    """(rows, n) weights as (rows, bytes)."""
    fields = values.view(np.uint8)
    if shape.weight_bits == 4:
        fields = fields & np.uint8(15)
    return _pack_bits(fields, shape.weight_bits, shape.weight_row_bytes(groups))


def _pack_places(places: NDArray[np.uint8], shape: CsbShape, groups: int) -> NDArray[np.uint8]:
    """(rows, n) indices as (rows, bytes)."""
    return _pack_bits(places, shape.index_bits, shape.index_row_bytes(groups))


def _pack_bits(fields: NDArray[np.uint8], bits: int, row_bytes: int) -> NDArray[np.uint8]:
    """(rows, n) fields of 4, 6 or 8 bits as (rows, row_bytes), lowest bits first."""
    packed: NDArray[np.uint8]
    if bits == 8:
        packed = fields
    elif bits == 4:
        packed = (fields[:, 0::2] | (fields[:, 1::2] << 4)).astype(np.uint8)
    else:
        a, b, c, d = (fields[:, i::4] for i in range(4))
        triple = np.stack([a | (b << 6), (b >> 2) | (c << 4), (c >> 4) | (d << 2)], axis=2)
        packed = triple.reshape(len(fields), -1)
    if packed.shape[1] == row_bytes:
        return packed
    out = np.zeros((len(fields), row_bytes), np.uint8)
    out[:, : packed.shape[1]] = packed
    return out


def unpack_csb(
    weight_plane: NDArray[np.uint64], index_plane: NDArray[np.uint64], shape: CsbShape
) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """Values (M, n) and absolute features (M, n) of the kept weights, n = banks x keep.

    Kept places beyond the last feature, which only padding has, become weight 0 of feature 0.
    """
    values, columns = [], []
    bytes_w, bytes_i = weight_plane.view(np.uint8), index_plane.view(np.uint8)
    at_w = at_i = 0
    for first, groups in shape.passes:
        order = (shape.row_groups, groups, shape.keep, shape.row_group, shape.lanes)
        count = groups * shape.keep * shape.row_group * shape.lanes
        size = shape.row_groups * shape.weight_row_bytes(groups)
        raw = bytes_w[at_w : at_w + size].reshape(shape.row_groups, -1)
        at_w += size
        value = _unpack_bits(raw, shape.weight_bits, count).view(np.int8).reshape(order)
        if shape.weight_bits == 4:
            value = (value << 4) >> 4  # the sign is in bit 3
        if shape.dense:
            counted = np.arange(shape.keep, dtype=np.uint8)[None, None, :, None, None]
            place = np.broadcast_to(counted, order)
        else:
            size = shape.row_groups * shape.index_row_bytes(groups)
            raw = bytes_i[at_i : at_i + size].reshape(shape.row_groups, -1)
            at_i += size
            place = _unpack_bits(raw, shape.index_bits, count).reshape(order)
        bank = (first + np.arange(groups))[:, None, None] * shape.lanes + np.arange(shape.lanes)
        values.append(_by_row(value, shape))
        columns.append(_by_row(bank[:, :, None] * shape.bank_size + place, shape))
    all_values = np.concatenate(values, axis=1)
    all_columns = np.concatenate(columns, axis=1).astype(np.int32)
    outside = all_columns >= shape.features
    if bool(np.any(all_values[outside])):
        raise InputError("a weight beyond the last feature is not zero: the planes are damaged")
    all_columns[outside] = 0
    return all_values, all_columns


def _by_row(fields: NDArray[Any], shape: CsbShape) -> NDArray[Any]:
    """The inverse of `_by_row_group`: (row groups, groups, keep, row, lanes) to (rows, n)."""
    return fields.transpose(0, 3, 1, 2, 4).reshape(shape.rows, -1)


def _unpack_bits(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `_pack_bits`: (rows, bytes) to (rows, count)."""
    if bits == 8:
        places = raw
    elif bits == 4:
        places = np.stack([raw & 15, raw >> 4], axis=2).reshape(len(raw), -1)
    else:
        usable = raw[:, : raw.shape[1] // 3 * 3]
        a, b, c = (usable[:, i::3].astype(np.uint16) for i in range(3))
        low = a | (b << 8)
        places = np.stack([low & 63, (low >> 6) & 63, (low >> 12) | ((c & 3) << 4), c >> 2], axis=2)
        places = places.astype(np.uint8).reshape(len(raw), -1)
    return places[:, :count]
