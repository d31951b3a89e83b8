# SPDX-License-Identifier: Apache-2.0
"""The command of one layer: how its loops are cut, as the cycle model likes best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..builds import PORT_BYTES, Build
from ..errors import InputError
from ..interface import (
    FLAG_DENSE,
    FLAG_FROM_CHAIN,
    FLAG_GRU,
    FLAG_IMAGE,
    FLAG_INT4,
    FLAG_KEEP_WEIGHTS,
    FLAG_LSTM,
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
from ..model.recurrent import GATES
from .cycles import Memory, layer_cycles
from .gathering import image_tiles, is_whole, ring_words, steps, tile_words, tiles_of
from .program import PackedLayer
from .quotients import with_quotients
from .windows import whole_words

#: More tiles a block than this gain nothing: weights are then a small share of the traffic.
_MOST_TILES_PER_BLOCK = 32
#: What a pace can be at most: fields of 16 bits.
_MOST_PACE = 0xFFFF


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: word offset, features between its tiles, tiles, valid columns."""

    offset: int
    stride: int
    tiles: int
    columns: int


@dataclass(frozen=True)
class Route:
    """How a layer's tensors come and go: through memory, the chain, or the image memory.

    With a `block_base` the weights lie in the block buffer from there on: for this command if they
    are `resident`, for later ones if they are not yet.
    """

    from_chain: bool = False
    resident_input: bool = False
    to_chain: bool = False
    to_memory: bool = True
    block_base: int | None = None
    resident: bool = False


def layer_command(
    layer: PackedLayer,
    index: int,
    source: Place,
    target: Place,
    build: Build,
    memory: Memory,
    route: Route = Route(),
    residual: Place | None = None,
) -> Command:
    """The command of one layer, its loops cut as the cycle model likes best.

    Raises:
        InputError: an image of which not even the rows for one column tile fit the image memory.
    """
    command = _uncut(layer, index, source, target, build, route)
    if residual is not None:
        command.residual = residual.offset + _words(layer.first_row, build)
    cuts = list(possible_cuts(command, build))
    if not cuts:
        raise InputError(
            f"layer {layer.name!r}: the image memory of build {build.name} holds "
            f"{build.image_words * build.banks} pixels, too few for the rows of "
            f"{layer.window} that one column tile needs"
        )
    return with_quotients(min(cuts, key=lambda cut: layer_cycles(cut, build, memory).total))


def block_bases(layers: Iterable[PackedLayer], build: Build) -> list[int] | None:
    """Where the weights of each layer can stay in the block buffer beside the others', in CSB
    words; None if not all do."""
    at, bases = 0, []
    for layer in layers:
        shape = layer.csb(build)
        if shape.groups > shape.groups_per_pass or layer.weight_tensor:
            return None
        bases.append(at)
        at += shape.row_groups * shape.groups * shape.keep
    return bases if at <= build.block_words else None


def _uncut(
    layer: PackedLayer, index: int, source: Place, target: Place, build: Build, route: Route
) -> Command:
    shape = layer.csb(build)
    flags = {
        FLAG_DENSE: shape.dense,
        FLAG_TABLE: layer.table >= 0,
        FLAG_SUMS_OUT: layer.sums_out,
        FLAG_INT4: layer.weight_bits == 4,
        FLAG_IMAGE: layer.window is not None,
        FLAG_FROM_CHAIN: route.from_chain,
        FLAG_RESIDENT_INPUT: route.resident_input,
        FLAG_TO_CHAIN: route.to_chain,
        FLAG_TO_MEMORY: route.to_memory,
        FLAG_MAXIMUM: layer.maximum,
        FLAG_SUM_COLUMNS: layer.sum_columns,
        FLAG_KEEP_WEIGHTS: route.block_base is not None and not route.resident,
        FLAG_RESIDENT_WEIGHTS: route.resident,
    }
    item = 4 if layer.sums_out else 1
    command = Command(
        op=OP_MATRIX,
        flags=sum(flag for flag, wanted in flags.items() if wanted),
        layer=index,
        input=source.offset + _words(layer.first_feature, build),
        output=target.offset + item * _words(layer.first_row, build),
        weights=layer.weights,
        indices=layer.indices,
        parameters=layer.parameters,
        table=max(layer.table, 0),
        features=-(-layer.features // build.pack) * build.pack,
        rows=layer.rows,
        parts=layer.parts,
        part_rows=layer.rows // layer.parts,
        tiles=target.tiles,
        bank_size=layer.bank_size,
        keep=layer.keep,
        index_bits=shape.index_bits,
        zero_point=layer.zero_point,
        groups=shape.groups,
        groups_per_pass=shape.groups_per_pass,
        input_stride=source.stride * (source.tiles if layer.sum_columns else 1),
        last_columns=(target.columns - 1) % build.cols + 1,
        output_stride=target.stride,
        block_base=route.block_base or 0,
    )
    _add_window(command, layer, build)
    _add_combination(command, layer)
    if layer.cell:
        command.flags |= FLAG_LSTM if layer.cell.kind == "lstm" else FLAG_GRU
        command.shift = layer.cell.shift
    return command


def _words(features: int, build: Build) -> int:
    """Port words of `features` INT8 features of a column tile."""
    return features * build.cols // PORT_BYTES


def _add_window(command: Command, layer: PackedLayer, build: Build) -> None:
    window = layer.window
    if window is None:
        return
    command.pad_value = layer.pad_value
    command.height, command.width = window.height, window.width
    command.out_height, command.out_width = window.out_height, window.out_width
    command.kernel_height, command.kernel_width = window.kernel
    command.stride_y, command.stride_x = window.strides
    command.dilation_y, command.dilation_x = window.dilations
    command.pad_top, command.pad_left = window.pads[:2]
    command.channels = window.channels
    command.part_channels = window.channels // layer.parts
    command.image_words = min(whole_words(window, build), build.image_words // window.channels)
    reads = layer.parts * steps(command, build) * int(tiles_of(command, build).reads.sum())
    loads = image_tiles(command, build) * tile_words(command, build)
    command.load_pace = min(max(1, reads // loads), _MOST_PACE)


def _add_combination(command: Command, layer: PackedLayer) -> None:
    combination = layer.combination
    if combination is None:
        return
    command.flags |= FLAG_RESIDUAL | (FLAG_PRODUCT if combination.product else 0)
    command.a_scale, command.a_zero = combination.a_scale, combination.a_zero
    command.b_scale, command.b_zero = combination.b_scale, combination.b_zero
    command.shift, command.out_zero = combination.shift, combination.zero_point
    command.low, command.high = combination.low, combination.high


def possible_cuts(command: Command, build: Build) -> Iterator[Command]:
    """`command` with every number of tiles per block that fits the engine's buffers, and the most
    rows per block that fit beside it."""
    # Of a cell a block's hidden values, one for all gates of a unit, fill whole words too.
    cell = command.flags & (FLAG_LSTM | FLAG_GRU)
    step = math.lcm(build.row_step, GATES * build.pack) if cell else build.row_step
    pass_words = command.groups_per_pass * build.bank_space(command.bank_size)
    most = min(command.tiles, build.vector_words // pass_words, _MOST_TILES_PER_BLOCK)
    for tiles in range(1, most + 1):
        cut = replace(command, tiles_per_block=tiles)
        if command.flags & FLAG_IMAGE and not _ring_fits(cut, build):
            break
        row_groups = min(command.part_rows // build.rows, build.block_rows)
        if tiles > 1:
            words = command.groups_per_pass * command.keep
            row_groups = min(row_groups, build.block_words // words)
        if command.groups > command.groups_per_pass:
            row_groups = min(row_groups, build.sum_words // tiles)
        rows = row_groups * build.rows // step * step
        # Outputs come block by block: only so does the chain hold them in a tensor's order.
        if command.flags & FLAG_TO_CHAIN and tiles > 1 and rows < command.rows:
            continue
        if rows >= 1:
            cut.rows_per_block = rows
            cut.pace = _pace(cut, build)
            yield cut


def _ring_fits(command: Command, build: Build) -> bool:
    """Whether a channel's share of the image memory holds what a group of tiles needs."""
    return is_whole(command, build) or ring_words(command, build) <= command.image_words


def _pace(command: Command, build: Build) -> int:
    """Cycles of the multipliers for each word of the next filling, spread evenly."""
    one_pass = command.groups == command.groups_per_pass
    rows = command.part_rows if one_pass else command.rows_per_block
    multiply = rows // build.rows * command.groups_per_pass * command.keep
    if command.flags & FLAG_IMAGE:
        writes = steps(command, build)
    else:
        space = command.groups_per_pass * build.lanes * command.bank_size
        writes = min(command.features, space) // build.pack
    return min(max(1, multiply // writes), _MOST_PACE)
