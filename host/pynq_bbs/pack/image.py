# SPDX-License-Identifier: Apache-2.0
"""From integer layers to the image that the engine reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..errors import InputError
from ..model.graph import QuantInput, QuantLayer, QuantModel, Window
from ..model.recurrent import RecurrentLayer, join
from .csb import csb_shape, pack_csb
from .layout import tile_count
from .program import PackedLayer, Program, Tensor
from .recurrent import own_inputs, pack_recurrent, recurrent_tensors, tensors_read
from .windows import tap_matrix

_INT32 = 2**31 - 1
_LEAST = -128
#: What a kernel, stride, dilation or padding can be at most: fields of 4 bits.
_MOST_FIELD = 15
#: Channels of a part of a depthwise layer, about.
_PART_CHANNELS = 16
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
    tensors = {i.tensor: input_tensor(i, model) for i in model.inputs}
    inputs = set(tensors)
    layers: list[PackedLayer] = []
    within: set[str] = set()  # tensors that lie among the features of a recurrent layer
    for layer in model.layers:
        try:
            if isinstance(layer, RecurrentLayer):
                made = _pack_steps(layer, tensors, banks, build, image, inputs, bool(model.lengths))
                within |= {*made[-1].outputs, made[-1].input, *(copy.output for copy in made)}
                layers += made
                continue
            _check_tensors(layer, tensors, within)
            bank = banks.get(layer.name)
            layers.append(_pack_layer(layer, bank, tensors[layer.input], build, image))
        except InputError as error:
            raise InputError(f"layer {layer.name!r}: {error}") from None
        tensors[layer.output] = output_tensor(layer, tensors[layer.input])
    words = np.concatenate([*image.parts, np.zeros(0, np.uint64)])
    program = Program(
        model.name, build, tensors, layers, model.inputs, model.outputs, words, model.lengths
    )
    _check_recurrent(program)
    return program


def input_tensor(spec: QuantInput, model: QuantModel) -> Tensor:
    """A model input (C, H, W) is an image where the model has windows, else plain features."""
    windows = any(isinstance(layer, QuantLayer) and layer.window for layer in model.layers)
    shape = spec.tensor_shape or spec.shape
    if len(shape) == 3 and windows:
        return Tensor(*shape)
    return Tensor(spec.features // spec.steps, steps=spec.steps, bits=spec.bits)


def output_tensor(layer: QuantLayer, source: Tensor) -> Tensor:
    """What `layer` writes."""
    bits = 32 if layer.multiplier is None else 8
    if layer.window is None:
        return Tensor(len(layer.weights), steps=source.steps, bits=bits)
    size = (layer.window.out_height, layer.window.out_width)
    return Tensor(len(layer.weights), *size, bits=bits)


def _pack_steps(
    layer: RecurrentLayer,
    tensors: dict[str, Tensor],
    banks: dict[str, tuple[int, int]],
    build: Build,
    image: _Image,
    inputs: set[str],
    has_lengths: bool,
) -> list[PackedLayer]:
    """A recurrent layer, and before it what copies x and the initial h to where the layer works,
    but for those among the `inputs`, which the host puts there."""

    def plain(la: QuantLayer, bank: tuple[int, int] | None) -> PackedLayer:
        return _pack_layer(la, bank, Tensor(la.weights.shape[1]), build, image)

    packed = pack_recurrent(layer, tensors, banks, build, plain, has_lengths=has_lengths)
    copies = []

    def placed(name: str, what: str) -> str:
        """The tensor as it lies where the layer works."""
        if name in inputs:
            return name
        (copy,) = join(f"{layer.name}:{what}", [(name, tensors[name].features)])
        tensors[copy.output] = tensors[name]
        copies.append(plain(copy, None))
        return copy.output

    packed = replace(packed, input=placed(layer.input, "x"))
    if layer.initial_h and not (layer.reverse and has_lengths):
        assert packed.cell is not None
        cell = replace(packed.cell, initial_h=placed(layer.initial_h, "h"))
        packed = replace(packed, cell=cell)
    tensors |= recurrent_tensors(layer, tensors[layer.input].steps)
    return [*copies, packed]


def _check_recurrent(program: Program) -> None:
    """What recurrent layers want of the rest of the program."""
    steps = {program.tensors[la.input].steps for la in program.layers if la.cell}
    if steps and program.has_pixels:
        raise InputError(
            f"{program.name!r} has recurrent layers and images: samples run one after the other "
            "with those, and side by side with the others. Compile them to programs of their own"
        )
    if program.lengths and len(steps) != 1:
        raise InputError(
            f"{program.lengths!r} says how many steps a sample has, and the recurrent layers have "
            f"{sorted(steps) or 'none'}: they must all have as many"
        )


def _check_tensors(layer: QuantLayer, tensors: dict[str, Tensor], within: set[str]) -> None:
    """Whether the tensors that a layer reads are there, and as large as it takes them to be."""
    combination, window, read = layer.combination, layer.window, tensors_read(layer)
    missing = [name for name in read if name not in tensors]
    if missing:
        raise InputError(f"it reads {missing[0]!r}, which no input and no layer before it gives")
    beside = [name for name in read[1:] if name in within]
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
    if other != own:
        raise InputError(f"it combines {own} with {combination.tensor!r}, which is {other}")


def _pack_layer(
    layer: QuantLayer,
    bank: tuple[int, int] | None,
    source: Tensor,
    build: Build,
    image: _Image,
) -> PackedLayer:
    window = layer.window
    if layer.weight_tensor:
        return _pack_product(layer, build, image)
    if window is None or (window.is_pixel and layer.groups == 1 and not layer.maximum):
        weights = layer.weights.reshape(len(layer.weights), -1)
        moving = None if bank else moving_bank(weights, build)
        bank = bank or moving or dense_bank(weights.shape[1], build)
        packed = _packed(layer, weights, bank, build, image)
        return replace(packed, weights_per_row=1) if moving else packed
    _check_image(window, source, build)
    if _sums_all(layer):
        return _pack_column_sums(layer, window, build, image)
    _check_window(window)
    if layer.groups > 1:
        return _pack_groups(layer, window, bank or (1, 1), build, image)
    size, keep = bank or (1, 1)
    matrix = tap_matrix(layer.weights, size)
    return _packed(layer, matrix, (size, keep), build, image, window=window)


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


def dense_bank(features: int, build: Build) -> tuple[int, int]:
    """The bank of a dense layer: 1 idles the fewest lanes, but where words hold several features
    it fills the vector buffer with less."""
    groups = -(-features // build.lanes)
    size = 1 if groups * build.pack <= build.vector_words else build.pack
    return size, size


def moving_bank(weights: NDArray[np.int8], build: Build) -> tuple[int, int] | None:
    """The bank of a matrix that only moves features, one for each row at most: the widest, with one
    weight kept. None for any other matrix."""
    if np.count_nonzero(weights, axis=1).max() > 1:
        return None
    size = 1
    while 2 * size <= min(build.largest_bank, weights.shape[1]):
        size *= 2
    return size, 1


def _check_image(window: Window, source: Tensor, build: Build) -> None:
    if build.image_words == 0:
        raise InputError(
            f"build {build.name} has no image memory and runs fully connected layers only: "
            "compile for another build"
        )
    if (window.channels, window.height, window.width) != (
        source.features,
        source.height,
        source.width,
    ):
        raise InputError(f"its window is over {window}, its input is {source}")
    if max(window.height, window.width) > _MOST_PIXELS:
        raise InputError(
            f"its input has {window.height} x {window.width} pixels, the engine takes "
            f"{_MOST_PIXELS} each way"
        )


def _check_window(window: Window) -> None:
    fields = [*window.kernel, *window.strides, *window.dilations]
    out = (window.out_height, window.out_width)
    if min(*fields, *out) < 1 or max(*fields, *window.pads) > _MOST_FIELD:
        raise InputError(
            f"its window has kernel {window.kernel}, strides {window.strides}, dilations "
            f"{window.dilations}, padding {window.pads} and gives {out[0]} x {out[1]} pixels: "
            f"the engine takes 1 to {_MOST_FIELD} of each, and at least one pixel"
        )


def _sums_all(layer: QuantLayer) -> bool:
    """Whether every row adds up all pixels of one channel with one weight: a global average."""
    window = layer.window
    assert window is not None
    one_channel = layer.weights.shape[1] == 1 and layer.groups == window.channels
    if layer.maximum or not one_channel or len(layer.weights) != window.channels:
        return False
    whole = window.kernel == (window.height, window.width) and not any(window.pads)
    flat = layer.weights.reshape(len(layer.weights), -1)
    return whole and bool(np.all(flat == flat[:, :1]))


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


def _pack_groups(
    layer: QuantLayer, window: Window, bank: tuple[int, int], build: Build, image: _Image
) -> PackedLayer:
    """Rows of a group see no other group's channels, so groups are parts. Where a group has one
    channel, a part is several: banks hold one tap of its channels, and each row keeps its own.
    """
    rows_per_group = len(layer.weights) // layer.groups
    together = 0
    if window.channels == layer.groups:
        together = _groups_together(layer.groups, rows_per_group, build)
        bank = (together, 1)
    elif rows_per_group % build.row_step == 0:
        together = 1
    if together == 0:  # parts would not begin with a row group: one part, most of it zeros
        together, bank = layer.groups, (1, 1)
    weights = _spread(layer.weights, layer.groups, together)
    return _packed(
        layer,
        tap_matrix(weights, bank[0]),
        bank,
        build,
        image,
        window=window,
        parts=layer.groups // together,
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
) -> PackedLayer:
    """`matrix` (rows, features) in banks."""
    rows, features = matrix.shape
    padded = np.zeros((-(-rows // build.row_step) * build.row_step, features), np.int8)
    padded[:rows] = matrix
    size, keep = bank
    shape = csb_shape(
        len(padded),
        features,
        size,
        keep,
        build.lanes,
        build.vector_words // build.bank_space(size) * size,
        layer.weight_bits,
        build.rows,
    )
    if not build.takes_bank(size):
        words = f" that are multiples or parts of {build.pack}" if build.pack > 1 else ""
        raise InputError(
            f"bank size {size}: build {build.name} takes sizes up to {build.largest_bank}{words}"
        )
    weights, indices = pack_csb(padded, shape)
    parameters = np.zeros(len(padded), np.uint64)
    parameters[:rows] = row_parameters(layer)
    pad_value = _LEAST if layer.maximum else layer.input_zero_point
    return PackedLayer(
        name=layer.name,
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
        maximum=layer.maximum,
        sum_columns=sum_columns,
        parts=parts,
        combination=layer.combination,
        weights_per_row=layer.weights[0].size,
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
