# SPDX-License-Identifier: Apache-2.0
"""From a program and a batch to commands: where tensors lie, how each layer's loops are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..builds import PORT_BYTES, Build
from ..interface import (
    COMMAND_WORDS,
    FLAG_DENSE,
    FLAG_INT4,
    FLAG_SUMS_OUT,
    FLAG_TABLE,
    OP_LINEAR,
    Command,
)
from .cycles import Memory, layer_cycles
from .layout import tile_count
from .program import PackedLayer, Program

#: More tiles a block than this gain nothing: weights are then a small share of the traffic.
_MOST_TILES_PER_BLOCK = 16


@dataclass(frozen=True)
class Plan:
    """The memory block of one program at one batch size; offsets count 64-bit words."""

    columns: int
    tiles: int
    tensors: dict[str, int]
    first_command: int
    commands: list[Command]
    memory_words: int

    def words(self) -> NDArray[np.uint64]:
        """The commands as they lie in memory."""
        flat = [word for command in self.commands for word in command.encode()]
        return np.array(flat, np.uint64)


def make_plan(program: Program, columns: int, memory: Memory) -> Plan:
    """Lay out image, commands and tensors one after the other, and write the commands.

    Every tensor has a place of its own, so that each layer's output can be verified afterwards.
    """
    build = program.build
    tiles = tile_count(columns, build.cols)
    sums = {layer.output for layer in program.layers if layer.sums_out}
    first_command = len(program.image)
    at = first_command + COMMAND_WORDS * len(program.layers)
    tensors = {}
    for tensor, features in program.features().items():
        tensors[tensor] = at
        at += tiles * features * build.cols * (4 if tensor in sums else 1) // PORT_BYTES
    commands = [
        layer_command(layer, index, tensors, tiles, build, memory)
        for index, layer in enumerate(program.layers)
    ]
    return Plan(columns, tiles, tensors, first_command, commands, at)


def layer_command(
    layer: PackedLayer,
    index: int,
    tensors: dict[str, int],
    tiles: int,
    build: Build,
    memory: Memory,
) -> Command:
    """The command of one layer, its loops cut as the cycle model likes best."""
    shape = layer.csb(build.lanes)
    command = Command(
        op=OP_LINEAR,
        flags=(FLAG_DENSE if shape.dense else 0)
        | (FLAG_TABLE if layer.table >= 0 else 0)
        | (FLAG_SUMS_OUT if layer.sums_out else 0)
        | (FLAG_INT4 if layer.weight_bits == 4 else 0),
        layer=index,
        input=tensors[layer.input],
        output=tensors[layer.output],
        weights=layer.weights,
        indices=layer.indices,
        parameters=layer.parameters,
        table=max(layer.table, 0),
        features=layer.features,
        rows=layer.rows,
        tiles=tiles,
        bank_size=layer.bank_size,
        keep=layer.keep,
        index_bits=shape.index_bits,
        zero_point=layer.zero_point,
        groups=shape.groups,
        groups_per_pass=shape.groups_per_pass,
    )
    cuts = _possible_cuts(command, build)
    command.tiles_per_block, command.rows_per_block = min(
        cuts, key=lambda cut: _cycles_of(command, cut, build, memory)
    )
    return command


def _possible_cuts(command: Command, build: Build) -> list[tuple[int, int]]:
    """(tiles per block, rows per block) that fit the engine's buffers, largest block each."""
    pass_words = command.groups_per_pass * command.bank_size
    most = min(command.tiles, build.vector_words // pass_words, _MOST_TILES_PER_BLOCK)
    cuts = []
    for tiles in range(1, most + 1):
        rows = min(command.rows, build.block_rows)
        if tiles > 1:
            rows = min(rows, build.block_words // (command.groups_per_pass * command.keep))
        if command.groups > command.groups_per_pass:
            rows = min(rows, build.sum_words // tiles)
        if rows >= 1:
            cuts.append((tiles, rows))
    return cuts


def _cycles_of(command: Command, cut: tuple[int, int], build: Build, memory: Memory) -> float:
    command.tiles_per_block, command.rows_per_block = cut
    return layer_cycles(command, build, memory).total
