# SPDX-License-Identifier: Apache-2.0
"""Random commands that the engine takes: every kind, their loops cut in any way, good or bad."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from pynq_bbs.builds import Build
from pynq_bbs.interface import (
    FLAG_DENSE,
    FLAG_FROM_CHAIN,
    FLAG_IMAGE,
    FLAG_INT4,
    FLAG_KEEP_WEIGHTS,
    FLAG_MAXIMUM,
    FLAG_PRODUCT,
    FLAG_RESIDENT_INPUT,
    FLAG_RESIDENT_WEIGHTS,
    FLAG_RESIDUAL,
    FLAG_SUM_COLUMNS,
    FLAG_SUMS_OUT,
    FLAG_TABLE,
    FLAG_TO_CHAIN,
    FLAG_TO_MEMORY,
    OP_MATRIX,
    Command,
)
from pynq_bbs.pack.quotients import with_quotients

_OUTPUTS = (
    FLAG_TO_MEMORY,
    FLAG_TO_MEMORY | FLAG_SUMS_OUT,
    FLAG_TO_CHAIN,
    FLAG_TO_CHAIN | FLAG_TO_MEMORY,
)
_AFTER = (0, FLAG_TABLE, FLAG_RESIDUAL, FLAG_RESIDUAL | FLAG_PRODUCT | FLAG_TABLE)
_MORE = (0, 0, FLAG_MAXIMUM, FLAG_SUM_COLUMNS, FLAG_INT4)


def _built(flags: tuple[int, ...], build: Build) -> list[int]:
    """Those of the sets of flags that the build has something for."""
    missing = 0 if build.image_words else FLAG_MAXIMUM | FLAG_SUM_COLUMNS
    missing |= 0 if build.image_words or build.cell_words else FLAG_RESIDUAL
    return [one for one in flags if not one & missing]


def chain_words(c: Command, build: Build) -> int:
    """Words that the command takes from the chain."""
    if not c.flags & FLAG_FROM_CHAIN:
        return 0
    if c.flags & FLAG_IMAGE:
        return -(-c.height * c.width // build.cols) * c.channels
    return c.tiles * c.features // build.pack


def chain_filler(words: int, build: Build) -> Command:
    """A command that leaves at least so many words in the chain, and not many more."""
    step = build.row_step
    rows = -(-words * build.pack // step) * step
    most = build.block_rows // step * step
    return with_quotients(Command(
        op=OP_MATRIX, flags=FLAG_TO_CHAIN | FLAG_DENSE, features=build.pack, rows=rows, tiles=1,
        parts=1, part_rows=rows, tiles_per_block=1, bank_size=build.pack, keep=build.pack,
        groups=1, groups_per_pass=1, rows_per_block=min(rows, most), pace=1,
        input_stride=build.pack, last_columns=1,
        output_stride=rows,
    ))  # fmt: skip


@st.composite
def _images(draw: st.DrawFn, build: Build) -> Command:
    """An image, its windows and its features; nothing of the matrix but the bank size."""
    small = st.integers(1, 5)
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    parts, part_channels = draw(st.sampled_from([1, 1, 2, 3, 7])), draw(st.integers(1, 20))
    channels = parts * part_channels
    kernel_height, kernel_width = draw(small), draw(small)
    out_height, out_width = draw(st.integers(1, 24)), draw(st.one_of(st.just(width), small))
    bank_size = draw(st.integers(1, 24))
    most = build.image_words // channels
    tiles = -(-out_height * out_width // build.cols)
    base = draw(st.integers(0, 7))
    return Command(
        flags=FLAG_IMAGE | draw(st.sampled_from([0, 0, FLAG_FROM_CHAIN, FLAG_RESIDENT_INPUT])),
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        stride_y=draw(small),
        stride_x=draw(small),
        dilation_y=draw(st.integers(1, 3)),
        dilation_x=draw(st.integers(1, 3)),
        pad_top=draw(st.integers(0, 4)),
        pad_left=draw(st.integers(0, 4)),
        channels=channels,
        parts=parts,
        part_channels=part_channels,
        load_pace=draw(st.integers(1, 12)),
        image_base=base,
        image_words=draw(st.integers(1, min(most - 1, 60))),
        input_stride=channels + draw(st.integers(0, 3)),
        bank_size=bank_size,
        features=kernel_height * kernel_width * -(-part_channels // bank_size) * bank_size,
        tiles=tiles + draw(st.sampled_from([0, 0, 0, 1, 3])),
    )


@st.composite
def _features(draw: st.DrawFn, build: Build) -> Command:
    """Plain features."""
    step = build.pack
    sizes = [n for n in range(1, 257) if build.takes_bank(n)]
    usual = [n for n in (1, 2, 4, 16, 64, 256) if n in sizes]
    bank_size = draw(st.one_of(st.sampled_from(usual), st.sampled_from(sizes)))
    features = step * draw(st.integers(1, 7 * bank_size * build.lanes // step))
    return Command(
        flags=draw(st.sampled_from([0, 0, FLAG_FROM_CHAIN])),
        parts=1,
        bank_size=bank_size,
        features=features,
        input_stride=features + step * draw(st.integers(0, 3)),
        tiles=draw(st.integers(1, 12)),
    )


@st.composite
def commands(draw: st.DrawFn, build: Build) -> Command:
    """Any command that the engine takes; one that reads the chain wants `chain_filler` before."""
    kinds = [_features(build), _images(build)] if build.image_words else [_features(build)]
    c = draw(st.one_of(*kinds))
    step = build.row_step
    dense = draw(st.booleans())
    keep = c.bank_size if dense else draw(st.integers(1, c.bank_size))
    widths = [bits for bits in (4, 6, 8) if c.bank_size <= 1 << bits]
    groups = -(-c.features // (c.bank_size * build.lanes))
    part_rows = step * draw(st.integers(1, 70 // c.parts // step + 1))
    rows = c.parts * part_rows
    fitting = build.vector_words // build.bank_space(c.bank_size)
    per_pass = draw(st.one_of(st.just(min(groups, fitting)), st.integers(1, min(groups, fitting))))
    tiles_per_block = draw(st.integers(1, min(20, fitting // per_pass)))
    most_rows = min(part_rows, build.block_rows) * build.rows
    if tiles_per_block > 1:
        most_rows = min(most_rows, build.block_words // (per_pass * keep) * build.rows)
    if per_pass < groups:
        most_rows = min(most_rows, build.sum_words // tiles_per_block * build.rows)
    flags = c.flags | draw(st.sampled_from(_OUTPUTS)) | draw(st.sampled_from(_built(_MORE, build)))
    if not flags & FLAG_SUMS_OUT:
        flags |= draw(st.sampled_from(_built(_AFTER, build)))
    if per_pass == groups and groups * keep * (rows // build.rows) <= build.block_words:
        flags |= draw(st.sampled_from([0, 0, FLAG_KEEP_WEIGHTS, FLAG_RESIDENT_WEIGHTS]))
    c = replace(
        c, op=OP_MATRIX, flags=flags | FLAG_DENSE * dense, rows=rows, part_rows=part_rows,
        keep=keep, groups=groups, index_bits=0 if dense else draw(st.sampled_from(widths)),
        groups_per_pass=per_pass, tiles_per_block=tiles_per_block, pace=draw(st.integers(1, 40)),
        rows_per_block=step * draw(st.integers(1, max(most_rows // step, 1))),
        output_stride=rows + step * draw(st.integers(0, 2)),
        last_columns=draw(st.integers(1, build.cols)),
    )  # fmt: skip
    return _fitting(with_quotients(c), build)


def _fitting(c: Command, build: Build) -> Command:
    """The chain has room for what the command takes from it and leaves there."""
    taken = chain_words(c, build)
    if taken + build.rows > build.chain_words:
        c, taken = replace(c, flags=c.flags & ~FLAG_FROM_CHAIN), 0
    if c.flags & FLAG_FROM_CHAIN and not c.flags & FLAG_IMAGE and c.groups > c.groups_per_pass:
        c, taken = replace(c, flags=c.flags & ~FLAG_FROM_CHAIN), 0
    left = c.tiles * (c.rows // build.pack)
    # Outputs come block by block, and only so are they in the order of a tensor.
    ordered = c.rows <= c.rows_per_block or c.tiles_per_block == 1
    room = taken + build.rows + left <= build.chain_words
    if c.flags & FLAG_TO_CHAIN and not (ordered and room):
        c = replace(c, flags=c.flags & ~FLAG_TO_CHAIN | FLAG_TO_MEMORY)
    return c
