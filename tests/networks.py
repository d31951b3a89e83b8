# SPDX-License-Identifier: Apache-2.0
"""Commands of the layers of small networks, cut as the cycle model likes best."""

from __future__ import annotations

from dataclasses import replace

from pynq_bbs.builds import PORT_BYTES, Build
from pynq_bbs.interface import (
    FLAG_DENSE,
    FLAG_FROM_CHAIN,
    FLAG_IMAGE,
    FLAG_RESIDUAL,
    FLAG_TABLE,
    FLAG_TO_CHAIN,
    FLAG_TO_MEMORY,
    OP_MATRIX,
    Command,
)
from pynq_bbs.pack.cycles import Memory, layer_cycles

_MOST_TILES = 16
#: Reads of the image memory between two words of the image, at most: later is never better.
_MOST_LOAD_PACE = 64


def matrix(
    build: Build, memory: Memory, rows: int, features: int, columns: int, bank: tuple[int, int],
    flags: int,
) -> Command:  # fmt: skip
    """A fully connected layer; `bank` is bank size and keep."""
    c = Command(
        flags=flags, rows=rows, features=features, tiles=-(-columns // build.cols),
        bank_size=bank[0], keep=bank[1], input_stride=features,
    )  # fmt: skip
    return _cut(c, build, memory)


def window(
    build: Build, memory: Memory, rows: int, channels: int, size: tuple[int, int],
    kernel: tuple[int, int], stride: int, bank: tuple[int, int], flags: int,
) -> Command:  # fmt: skip
    """A convolution with the padding that keeps the image's size, but for the stride."""
    out = [-(-n // stride) for n in size]
    pads = [
        max((o - 1) * stride + k - n, 0) // 2 for o, k, n in zip(out, kernel, size, strict=True)
    ]
    blocks = -(-channels // bank[0])
    c = Command(
        flags=flags | FLAG_IMAGE,
        rows=rows,
        features=kernel[0] * kernel[1] * blocks * bank[0],
        tiles=-(-out[0] * out[1] // build.cols),
        bank_size=bank[0],
        keep=bank[1],
        input_stride=channels,
        height=size[0],
        width=size[1],
        out_height=out[0],
        out_width=out[1],
        kernel_height=kernel[0],
        kernel_width=kernel[1],
        stride_y=stride,
        stride_x=stride,
        dilation_y=1,
        dilation_x=1,
        pad_top=pads[0],
        pad_left=pads[1],
        channels=channels,
        image_words=min(build.image_words // channels, -(-size[0] * size[1] // build.cols) + 1),
    )
    return _cut(c, build, memory)


def _cut(c: Command, build: Build, memory: Memory) -> Command:
    """The fastest of some ways to cut the loops, by the cycle model."""
    c.op, c.last_columns, c.output_stride = OP_MATRIX, build.cols, c.rows
    if c.bank_size == c.keep:
        c.flags |= FLAG_DENSE
    else:
        c.index_bits = next(bits for bits in (4, 6, 8) if c.bank_size <= 1 << bits)
    c.groups = -(-c.features // (c.bank_size * build.lanes))
    c.groups_per_pass = min(c.groups, build.vector_words // build.bank_space(c.bank_size))
    fitting = build.vector_words // (c.groups_per_pass * build.bank_space(c.bank_size))
    found = []
    for tiles in range(1, min(fitting, c.tiles, _MOST_TILES) + 1):
        rows = min(c.rows // build.rows, build.block_rows)
        if tiles > 1:
            rows = min(rows, build.block_words // (c.groups_per_pass * c.keep))
        if c.groups > c.groups_per_pass:
            rows = min(rows, build.sum_words // tiles)
        step = build.row_step
        if c.flags & FLAG_TO_CHAIN and tiles > 1 and rows * build.rows < c.rows:
            continue  # outputs would come in another order
        if rows_per_block := rows * build.rows // step * step:
            cut = replace(c, tiles_per_block=tiles, rows_per_block=rows_per_block)
            found.append(paced(cut, build))
    return min(found, key=lambda x: layer_cycles(x, build, memory).total)


def paced(c: Command, build: Build) -> Command:
    """Words of the next filling, and of the image, come in even steps."""
    passes = -(-c.groups // c.groups_per_pass)
    groups = c.groups - (passes - 1) * c.groups_per_pass if passes > 1 else c.groups
    rows = min(c.rows_per_block, c.rows) if passes > 1 else c.rows
    work = rows // build.rows * groups * c.keep
    if c.flags & FLAG_IMAGE:
        taps = build.taps if c.dilation_x == 1 else 1
        reads = c.kernel_height * c.channels * -(-c.kernel_width // taps)
        words = c.channels * (1 if c.flags & FLAG_FROM_CHAIN else build.cols // PORT_BYTES)
        words *= -(-c.height * c.width // build.cols)
        c.load_pace = min(max(reads * c.tiles // words, 1), _MOST_LOAD_PACE)
    else:
        reads = min(c.features, c.groups_per_pass * build.lanes * c.bank_size)
        reads //= build.pack
    c.pace = max(min(work // reads, (1 << 16) - 1), 1)
    return c


def resnet(build: Build, memory: Memory) -> list[Command]:
    """ResNet-8 on an image of CIFAR: what the chain can pass on does not go to memory."""
    to_chain, stored = FLAG_TO_CHAIN, FLAG_TO_MEMORY
    added = FLAG_TO_MEMORY | FLAG_RESIDUAL
    layers = [
        (16, 3, 32, 3, 1, 3, to_chain | stored),
        (16, 16, 32, 3, 1, 2, FLAG_FROM_CHAIN | to_chain),
        (16, 16, 32, 3, 1, 2, FLAG_FROM_CHAIN | added),
        (32, 16, 32, 3, 2, 2, to_chain),
        (32, 32, 16, 3, 1, 4, FLAG_FROM_CHAIN | stored),
        (32, 16, 32, 1, 2, 2, added),
        (64, 32, 16, 3, 2, 4, to_chain),
        (64, 64, 8, 3, 1, 8, FLAG_FROM_CHAIN | stored),
        (64, 32, 16, 1, 2, 4, added | FLAG_TABLE),
    ]
    return [
        window(
            build,
            memory,
            rows,
            channels,
            (size, size),
            (kernel, kernel),
            stride,
            (bank, bank),
            flags,
        )
        for rows, channels, size, kernel, stride, bank, flags in layers
    ]


def mobilenet(build: Build, memory: Memory) -> list[Command]:
    """MobileNet 0.25 on 96 x 96 pixels, to the last convolution, all through memory."""
    commands = [window(build, memory, 8, 3, (96, 96), (3, 3), 2, (3, 3), FLAG_TO_MEMORY)]
    size, channels = 48, 8
    for rows, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2)):
        commands += _separable(build, memory, rows, channels, (size, size), stride, FLAG_TO_MEMORY)
        size, channels = size // stride, rows
    return commands


def keywords(build: Build, memory: Memory) -> list[Command]:
    """DS-CNN on 49 x 10 features: the first blocks, the second one through the chain."""
    chained = FLAG_FROM_CHAIN | FLAG_TO_CHAIN
    first = window(build, memory, 64, 1, (49, 10), (10, 4), 2, (1, 1), FLAG_TO_MEMORY)
    stored = _separable(build, memory, 64, 64, (25, 5), 1, FLAG_TO_MEMORY)
    stored[-1].flags |= FLAG_TO_CHAIN
    return [first, *stored, *_separable(build, memory, 64, 64, (25, 5), 1, chained)]


def _separable(
    build: Build, memory: Memory, rows: int, channels: int, size: tuple[int, int], stride: int,
    flags: int,
) -> list[Command]:  # fmt: skip
    """Depthwise, then pointwise."""
    out = (size[0] // stride, size[1] // stride)
    bank = max(channels // build.lanes, 1)
    return [
        window(build, memory, channels, channels, size, (3, 3), stride, (channels, 1), flags),
        window(build, memory, rows, channels, out, (1, 1), 1, (bank, bank), flags),
    ]
