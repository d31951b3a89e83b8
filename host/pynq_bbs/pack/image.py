# SPDX-License-Identifier: Apache-2.0
"""From integer layers to the image that the engine reads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..errors import InputError
from ..model.graph import MOST_FIELD, Constant, QuantLayer, QuantModel, Window
from ..model.recurrent import RecurrentLayer
from .banks import bank_of, moves
from .csb import pack_csb, shape_on
from .gathering import channels_at_once
from .layout import images_to_tiles, tile_count
from .program import PackedLayer, Program, Tensor
from .recurrent import own_inputs, pack_recurrent
from .views import output_tensor, settled, within_features
from .windows import sums_all, tap_matrix

_INT32 = 2**31 - 1
_LEAST = -128
#: Channels of a part of a depthwise layer, about.
_PART_CHANNELS = 16
#: Column tiles that a weight block should meet, where features can go in parts.
_WANTED_TILES = 4
#: Pixels of an image in a row or column at most (`check_image` of `hls/check.hpp`).
_MOST_PIXELS = 4096


class _Image:
    """Collects arrays of whole words and says where each one lies."""

    def __init__(self) -> None:
        self.parts: list[NDArray[np.uint64]] = []
        self.words = 0

    def add(self, part: NDArray[np.uint64]) -> int:
        offset = self.words
        self.parts.append(part)
        self.words += len(part)
        return offset


def pack(model: QuantModel, banks: dict[str, tuple[int, int]], build: Build) -> Program:
    """Pack every layer for `build`.

    Args:
        model: integer layers, pruned.
        banks: (bank size, keep) of every layer, by layer name; those that only move features
            (one channel a row: depthwise, pooling) have banks of their own and need none. Of a
            recurrent layer those of its matrices (`prune_recurrent`).

    Raises:
        InputError: a layer's sums could leave INT32, a multiplier is not finite and positive,
            a bank has more nonzeros than its keep, a window is too large for the engine, or a
            recurrent layer is not for this build or beside images.
    """
    image, model = _Image(), own_inputs(model)
    steps, tensors = settled(model, build)
    contents: dict[bytes, int] = {}
    for constant in model.constants:
        tiles = constant_tiles(constant, build)
        content = contents.setdefault(tiles.tobytes(), image.words)
        if content == image.words:
            image.add(tiles)
        tensors[constant.name] = replace(tensors[constant.name], content=content)
    within = within_features(model)
    layers: list[PackedLayer] = []

    def plain(layer: QuantLayer, bank: tuple[int, int] | None) -> PackedLayer:
        (packed,) = _pack_layer(layer, bank, build, image)
        return packed

    for layer in steps:
        try:
            if isinstance(layer, RecurrentLayer):
                has_lengths = bool(model.lengths)
                layers.append(pack_recurrent(layer, banks, build, plain, has_lengths=has_lengths))
            else:
                _check_tensors(layer, tensors, within)
                layers += _pack_layer(layer, banks.get(layer.name), build, image)
        except InputError as error:
            raise InputError(f"layer {layer.name!r}: {error}") from None
    words = np.concatenate([*image.parts, np.zeros(0, np.uint64)])
    program = Program(
        model.name, build, tensors, layers, model.inputs, model.outputs, words, model.lengths
    )
    _check_recurrent(program)
    return program


def _check_recurrent(program: Program) -> None:
    """What recurrent layers, and tensors of several steps, want of the rest of the program."""
    steps = {program.tensors[la.input].steps for la in program.layers if la.cell}
    several = any(tensor.steps > 1 for tensor in program.tensors.values())
    if (steps or several) and program.has_pixels:
        raise InputError(
            f"{program.name!r} has {'recurrent layers' if steps else 'tensors of several steps'} "
            "and images or constants: samples run one after the other with those, and side by side "
            "with the others. Compile them to programs of their own"
        )
    if program.lengths and len(steps) != 1:
        raise InputError(
            f"{program.lengths!r} says how many steps a sample has, and the recurrent layers have "
            f"{sorted(steps) or 'none'}: they must all have as many"
        )


def _check_tensors(layer: QuantLayer, tensors: dict[str, Tensor], within: set[str]) -> None:
    """Whether the tensors that a layer reads are as large as it takes them to be."""
    combination, window = layer.combination, layer.window
    beside = [name for name in layer.reads[1:] if name in within]
    if beside:
        raise InputError(
            f"it combines its output with {beside[0]!r}, which lies among the features of a "
            "recurrent layer: join() it to a tensor of its own first"
        )
    source = tensors[layer.input]
    if source.bits != 8:
        raise InputError(f"it reads {layer.input!r}, which is {source}, and takes INT8")
    if window is None:
        if (layer.weights.shape[1], 1) != (source.features, source.pixels):
            raise InputError(
                f"it has weights for {layer.weights.shape[1]} features, its input is {source}"
            )
    elif (window.channels, window.height, window.width) != source.shape:
        raise InputError(f"its window is over {window}, its input is {source}")
    elif layer.weights.shape[1:] != (window.channels // layer.groups, *window.kernel):
        raise InputError(
            f"its weights have shape {layer.weights.shape}, {layer.groups} groups of {window} "
            f"need (rows, {window.channels // layer.groups}, {window.kernel[0]}, "
            f"{window.kernel[1]})"
        )
    elif window.channels % layer.groups or len(layer.weights) % layer.groups:
        raise InputError(
            f"{window.channels} channels and {len(layer.weights)} rows do not divide into "
            f"{layer.groups} groups"
        )
    if combination is None:
        return
    if layer.multiplier is None:
        raise InputError("it gives INT32 sums, which cannot be combined with another tensor")
    other, own = tensors[combination.tensor], output_tensor(layer, source)
    if other.alone != own:
        raise InputError(f"it combines {own} with {combination.tensor!r}, which is {other}")


def _pack_layer(
    layer: QuantLayer, bank: tuple[int, int] | None, build: Build, image: _Image
) -> list[PackedLayer]:
    """One packed layer, or as many as its channels have to come in."""
    window = layer.window
    if layer.weight_tensor:
        return [_pack_product(layer, build, image)]
    if window is None or (window.is_pixel and layer.groups == 1 and not layer.maximum):
        weights = layer.weights.reshape(len(layer.weights), -1)
        return [
            _packed(
                layer, weights, bank or bank_of(weights, build, layer.weight_bits), build, image
            )
        ]
    if window.is_pixel and layer.groups == len(layer.weights) and not layer.maximum:
        return _pack_pixels(layer, build, image)
    _check_image(window, build)
    if sums_all(layer):
        return [_pack_column_sums(layer, window, build, image)]
    _check_window(window)
    if layer.groups > 1:
        return _pack_groups(layer, window, bank or (1, 1), build, image)
    size, keep = bank or (1, 1)
    matrix = tap_matrix(layer.weights, size)
    return [_packed(layer, matrix, (size, keep), build, image, window=window)]


def _pack_product(layer: QuantLayer, build: Build, image: _Image) -> PackedLayer:
    """The product of two tensors. As it lies, a tensor is a weight plane of many passes: each of
    its tiles has COLS weights of every row."""
    rows, features = layer.weights.shape
    if build.rows != 1 or features % build.cols or build.cols % build.lanes:
        raise InputError(
            f"a product over {features} columns on build {build.name}: it takes a build with one "
            "row at a time and a multiple of its columns; pad the columns with zeros"
        )
    if layer.input_zero_point:
        raise InputError(
            f"zero point {layer.input_zero_point} of {layer.input!r}: a product of two tensors "
            "takes zero points of 0, because no bias can make up for others"
        )
    table = -1 if layer.table is None else image.add(layer.table.view(np.uint64))
    return PackedLayer(
        name=layer.name,
        input=layer.input,
        output=layer.output,
        rows=rows,
        features=features,
        bank_size=1,
        keep=1,
        weight_bits=8,
        groups_per_pass=build.cols // build.lanes,
        zero_point=layer.zero_point,
        sums_out=layer.multiplier is None,
        weights=0,
        indices=0,
        parameters=image.add(row_parameters(layer)),
        table=table,
        combination=layer.combination,
        weight_tensor=layer.weight_tensor,
    )


def constant_tiles(constant: Constant, build: Build) -> NDArray[np.uint64]:
    """A constant as it lies in memory."""
    values = constant.values
    stride = build.padded(len(values))
    tiles = images_to_tiles(values.reshape(1, -1), len(values), build.cols, stride)
    return tiles.reshape(-1).view(np.uint64)


def _check_image(window: Window, build: Build) -> None:
    if build.image_words == 0:
        raise InputError(
            f"build {build.name} has no image memory and runs fully connected layers only: "
            "compile for another build"
        )
    if max(window.height, window.width) > _MOST_PIXELS:
        raise InputError(
            f"its input has {window.height} x {window.width} pixels, the engine takes "
            f"{_MOST_PIXELS} each way"
        )


def _check_window(window: Window) -> None:
    fields = [*window.kernel, *window.strides, *window.dilations]
    out = (window.out_height, window.out_width)
    if min(*fields, *out) < 1 or max(*fields, *window.pads) > MOST_FIELD:
        raise InputError(
            f"its window has kernel {window.kernel}, strides {window.strides}, dilations "
            f"{window.dilations}, padding {window.pads} and gives {out[0]} x {out[1]} pixels: "
            f"the engine takes 1 to {MOST_FIELD} of each, and at least one pixel"
        )


def _pack_column_sums(
    layer: QuantLayer, window: Window, build: Build, image: _Image
) -> PackedLayer:
    """The tiles of an image lie one after the other, so all of it is one tile of many features,
    and its columns are added up; those beyond the last pixel are zero.
    """
    tiles = tile_count(window.height * window.width, build.cols)
    channels, space = np.arange(window.channels), build.padded(window.channels)
    # As wide as may be, but within one tile: a bank then holds one weight of a row.
    size = next(s for s in range(min(space, build.largest_bank), 0, -1) if space % s == 0)
    matrix = np.zeros((window.channels, tiles, space), np.int8)
    matrix[channels, :, channels] = layer.weights.reshape(window.channels, -1)[:, :1]
    return _packed(
        layer,
        matrix.reshape(window.channels, -1),
        (size, 1),
        build,
        image,
        sum_columns=True,
    )


def _pack_pixels(layer: QuantLayer, build: Build, image: _Image) -> list[PackedLayer]:
    """A row for each group of features, pixel by pixel: groups that share few features are one
    matrix, as long as some tiles of them fit the vector buffer beside each other."""
    rows, per_group = layer.weights.shape[:2]
    together = build.lanes * build.vector_words // (_WANTED_TILES * per_group)
    together = max(together // build.row_step, 1) * build.row_step
    pieces = []
    for first in range(0, rows, together):
        weights = layer.weights[first : first + together]
        matrix = _spread(weights, len(weights), len(weights)).reshape(len(weights), -1)
        bank = bank_of(matrix, build, layer.weight_bits)
        start = (first * per_group, first)
        pieces.append(_packed(layer, matrix, bank, build, image, start=start))
    return pieces


def _pack_groups(
    layer: QuantLayer, window: Window, bank: tuple[int, int], build: Build, image: _Image
) -> list[PackedLayer]:
    """Rows of a group see no other group's channels, so groups come in pieces, where the image
    memory does not hold the channels of all of them."""
    per_group, rows_per_group = window.channels // layer.groups, len(layer.weights) // layer.groups
    # Groups whose rows fill row groups: a piece writes whole ones, so it must begin with one.
    step = build.row_step // math.gcd(build.row_step, rows_per_group)
    at_once = max(channels_at_once(window, build) // per_group // step, 1) * step
    # Alike, so that no piece is a small rest.
    count = -(-layer.groups // at_once)
    at_once = -(-layer.groups // (count * step)) * step
    pieces = []
    for first in range(0, layer.groups, at_once):
        groups = min(at_once, layer.groups - first)
        pieces.append(_pack_parts(layer, window, bank, build, image, first, groups))
    return pieces


def _pack_parts(
    layer: QuantLayer,
    window: Window,
    bank: tuple[int, int],
    build: Build,
    image: _Image,
    first: int,
    groups: int,
) -> PackedLayer:
    """So many `groups`, from the `first` on, are parts. Where a group has one channel, a part is
    several: banks hold one tap of its channels, and each row keeps its own.
    """
    per_group, rows_per_group = window.channels // layer.groups, len(layer.weights) // layer.groups
    together = 0
    if per_group == 1:
        together = _groups_together(groups, rows_per_group, build)
        bank = (together, 1)
    elif rows_per_group % build.row_step == 0:
        together = 1
    if together == 0:  # parts would not begin with a row group: one part, most of it zeros
        together, bank = groups, (1, 1)
    first_row = first * rows_per_group
    weights = layer.weights[first_row : first_row + groups * rows_per_group]
    return _packed(
        layer,
        tap_matrix(_spread(weights, groups, together), bank[0]),
        bank,
        build,
        image,
        window=replace(window, channels=groups * per_group),
        parts=groups // together,
        start=(first * per_group, first_row),
    )


def _groups_together(groups: int, rows_per_group: int, build: Build) -> int:
    """How many of the groups of one channel are a part, 0 if no number of them fits.

    Work on a part begins when its channels are gathered, so small parts begin early; but what a
    part costs besides takes as long as the gathering of about a dozen channels.
    """
    limit = min(build.largest_bank, build.vector_words)
    fitting = [
        n for n in range(1, min(groups, limit) + 1)
        if groups % n == 0 and (n == groups or n * rows_per_group % build.row_step == 0)
    ]  # fmt: skip
    small = [n for n in fitting if n <= _PART_CHANNELS]
    large = [n for n in fitting if n > _PART_CHANNELS]
    if large and (not small or small[-1] <= _PART_CHANNELS // 2):
        return large[0]
    return max(small, default=0)


def _spread(weights: NDArray[np.int8], groups: int, together: int) -> NDArray[np.int8]:
    """Weights (M, C / groups, ...) over the channels of `together` groups, (M, C together / groups,
    ...), zero where a row sees nothing."""
    rows, per_group, *kernel = weights.shape
    spread = np.zeros((rows, together, per_group, *kernel), np.int8)
    spread[np.arange(rows), np.arange(rows) * groups // rows % together] = weights
    return spread.reshape(rows, together * per_group, *kernel)


def _packed(
    layer: QuantLayer,
    matrix: NDArray[np.int8],
    bank: tuple[int, int],
    build: Build,
    image: _Image,
    *,
    window: Window | None = None,
    sum_columns: bool = False,
    parts: int = 1,
    start: tuple[int, int] = (0, 0),
) -> PackedLayer:
    """`matrix` (rows, features) in banks, which are those from feature and row `start` on."""
    rows, features = matrix.shape
    first_feature, first_row = start
    padded = np.zeros((-(-rows // build.row_step) * build.row_step, features), np.int8)
    padded[:rows] = matrix
    size, keep = bank
    shape = shape_on(build, len(padded), features, bank, layer.weight_bits)
    if not build.takes_bank(size):
        words = f" that are multiples or parts of {build.pack}" if build.pack > 1 else ""
        raise InputError(
            f"bank size {size}: build {build.name} takes sizes up to {build.largest_bank}{words}"
        )
    weights, indices = pack_csb(padded, shape)
    parameters = np.zeros(len(padded), np.uint64)
    parameters[:rows] = row_parameters(layer)[first_row : first_row + rows]
    pad_value = _LEAST if layer.maximum else layer.input_zero_point
    return PackedLayer(
        name=layer.name if first_row == 0 else f"{layer.name}:{first_row}",
        input=layer.input,
        output=layer.output,
        rows=len(padded),
        features=features,
        bank_size=size,
        keep=keep,
        weight_bits=layer.weight_bits,
        groups_per_pass=shape.groups_per_pass,
        zero_point=layer.zero_point,
        sums_out=layer.multiplier is None,
        weights=image.add(weights),
        indices=image.add(indices),
        parameters=image.add(parameters),
        table=-1 if layer.table is None else image.add(layer.table.view(np.uint64)),
        window=window,
        pad_value=pad_value if window else 0,
        first_feature=first_feature,
        first_row=first_row,
        maximum=layer.maximum,
        sum_columns=sum_columns,
        parts=parts,
        combination=layer.combination,
        weights_per_row=1 if moves(layer.weights) else layer.weights[0].size,
    )


def folded_bias(layer: QuantLayer) -> NDArray[np.int32]:
    """`bias - input_zero_point * sum(weights)`, (M,): what an engine's sum starts from.

    Raises:
        InputError: a sum could leave INT32 for some input; names the row.
    """
    if layer.maximum:  # starts from the least input there is
        return np.full(len(layer.weights), _LEAST, np.int32)
    weights = layer.weights.reshape(len(layer.weights), -1).astype(np.int64)
    if layer.weight_tensor:
        weights = np.full_like(weights, _LEAST)
    bias = layer.bias.astype(np.int64) - layer.input_zero_point * weights.sum(axis=1)
    # The largest magnitude any partial sum can reach, whatever the order of adding.
    bound = np.abs(weights).sum(axis=1) * 128 + np.abs(bias)
    worst = int(np.argmax(bound))
    if bound[worst] > _INT32:
        raise InputError(
            f"row {worst} can reach a sum of {int(bound[worst])}, INT32 ends at {_INT32}: "
            "use smaller weights, a smaller bias, or fewer features"
        )
    folded: NDArray[np.int32] = bias.astype(np.int32)
    return folded


def row_parameters(layer: QuantLayer) -> NDArray[np.uint64]:
    """One word a row: folded bias below, bits of the float32 multiplier above."""
    bias = folded_bias(layer).view(np.uint32).astype(np.uint64)
    if layer.multiplier is None:
        return bias
    multiplier = np.asarray(layer.multiplier, np.float32)
    good = np.isfinite(multiplier) & (multiplier > 0)
    if not np.all(good):
        row = int(np.flatnonzero(~good)[0])
        raise InputError(
            f"row {row} has multiplier {multiplier[row]}: scales must be finite and positive"
        )
    return bias | (multiplier.view(np.uint32).astype(np.uint64) << np.uint64(32))
