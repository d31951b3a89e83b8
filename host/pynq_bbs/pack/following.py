# SPDX-License-Identifier: Apache-2.0
"""Which commands may begin while those before them still run: whose memory nobody writes by then.

Only what is read after it was written has to wait. Every stage takes the commands in their order,
and a word is written behind the stages that read: by then these have read all that earlier commands
read. What goes by the chain, or stays on chip, comes in order too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..builds import PORT_BYTES, Build
from ..interface import (
    FLAG_FOLLOWS,
    FLAG_FROM_CHAIN,
    FLAG_IMAGE,
    FLAG_RESIDENT_INPUT,
    FLAG_RESIDENT_WEIGHTS,
    FLAG_RESIDUAL,
    FLAG_STATE_IN,
    FLAG_STATE_OUT,
    FLAG_SUMS_OUT,
    FLAG_TO_MEMORY,
    Command,
)
from .fillings import Layer
from .gathering import image_tiles

#: First word, and the one behind the last.
Span = tuple[int, int]


def following(commands: Sequence[Command], build: Build) -> list[Command]:
    """The commands with the flag `follows` where they may follow.

    The first one does, also behind the commands of the sample before. Samples share the memory of
    activations, but up to the first command that waits, none reads what commands have written: it
    reads inputs, constants, and what comes by the chain.
    """
    marked: list[Command] = []
    written: list[Span] = []  # by the commands that the next one would follow
    for command in commands:
        waits = any(_meet(read, span) for read in reads(command, build) for span in written)
        if waits:
            written = []
        written += writes(command, build)
        flags = command.flags & ~FLAG_FOLLOWS | (0 if waits else FLAG_FOLLOWS)
        marked.append(replace(command, flags=flags))
    return marked


def reads(c: Command, build: Build) -> Iterator[Span]:
    """What a command reads of memory that commands write; row parameters and tables they do not."""
    if not c.flags & (FLAG_FROM_CHAIN | FLAG_RESIDENT_INPUT):
        image = c.flags & FLAG_IMAGE
        tiles = image_tiles(c, build) if image else c.tiles
        features = c.channels if image else c.features
        yield _tensor(c.input, tiles, c.input_stride, features, build)
    if c.flags & FLAG_RESIDUAL:
        yield _tensor(c.residual, c.tiles, c.output_stride, c.rows, build)
    if c.flags & FLAG_STATE_IN:
        yield c.residual, c.residual + c.state_words
    if not c.flags & FLAG_RESIDENT_WEIGHTS:
        layer = Layer(c, build)
        yield c.weights, c.weights + layer.plane_words(layer.weight_bits)
        yield c.indices, c.indices + layer.plane_words(c.index_bits)


def writes(c: Command, build: Build) -> Iterator[Span]:
    """What a command writes to memory."""
    if c.flags & FLAG_TO_MEMORY:
        item = 4 if c.flags & FLAG_SUMS_OUT else 1
        rows = c.rows // Layer(c, build).units
        yield _tensor(c.output, c.tiles, item * c.output_stride, item * rows, build)
    if c.flags & FLAG_STATE_OUT:
        yield c.state, c.state + c.state_words


def _tensor(offset: int, tiles: int, stride: int, features: int, build: Build) -> Span:
    return offset, offset + ((tiles - 1) * stride + features) * build.cols // PORT_BYTES


def _meet(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]
