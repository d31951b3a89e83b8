# SPDX-License-Identifier: Apache-2.0
"""From integer layers to the image that the engine reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..errors import InputError
from ..model.graph import QuantLayer, QuantModel
from .csb import csb_shape, pack_csb
from .program import PackedLayer, Program

_INT32 = 2**31 - 1


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
        banks: (bank size, keep) of every layer, by layer name.

    Raises:
        InputError: a layer's sums could leave INT32, a multiplier is not finite and positive,
            or a bank has more nonzeros than its keep.
    """
    image = _Image()
    layers = [_pack_layer(layer, *banks[layer.name], build, image) for layer in model.layers]
    words = np.concatenate([*image.parts, np.zeros(0, np.uint64)])
    return Program(model.name, build, layers, model.inputs, model.outputs, words)


def _pack_layer(
    layer: QuantLayer, bank_size: int, keep: int, build: Build, image: _Image
) -> PackedLayer:
    rows, features = layer.weights.shape
    shape = csb_shape(
        rows, features, bank_size, keep, build.lanes, build.vector_words, layer.weight_bits
    )
    try:
        weights, indices = pack_csb(layer.weights, shape)
        parameters = row_parameters(layer)
    except InputError as error:
        raise InputError(f"layer {layer.name!r}: {error}") from None
    table = -1 if layer.table is None else image.add(layer.table.view(np.uint64))
    return PackedLayer(
        name=layer.name,
        input=layer.input,
        output=layer.output,
        rows=rows,
        features=features,
        bank_size=bank_size,
        keep=keep,
        weight_bits=layer.weight_bits,
        groups_per_pass=shape.groups_per_pass,
        zero_point=layer.zero_point,
        sums_out=layer.multiplier is None,
        weights=image.add(weights),
        indices=image.add(indices),
        parameters=image.add(parameters),
        table=table,
    )


def folded_bias(layer: QuantLayer) -> NDArray[np.int32]:
    """`bias - input_zero_point * sum(weights)`, (M,): what an engine's sum starts from.

    Raises:
        InputError: a sum could leave INT32 for some input; names the row.
    """
    weights = layer.weights.astype(np.int64)
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
