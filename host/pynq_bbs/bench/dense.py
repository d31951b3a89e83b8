# SPDX-License-Identifier: Apache-2.0
"""A sparse program with the same integers, packed as dense: what sparsity is compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..pack.banks import dense_bank
from ..pack.csb import pack_csb, shape_on, unpack_csb
from ..pack.program import PackedLayer, Program
from ..pack.windows import tap_matrix


def is_pruned(layer: PackedLayer) -> bool:
    """Whether fewer weights are stored than the model has; averages and maxima have none."""
    has_weights = not (layer.weight_tensor or layer.maximum or layer.sum_columns)
    return has_weights and layer.kept_weights < layer.model_weights


def dense_program(program: Program) -> Program:
    """The program with every pruned layer packed as `compile` packs one that is not pruned.

    The zeros are stored and multiplied, and nothing else differs: outputs are the same integers.
    """
    image = _Image(program)
    layers = [image.dense(layer) for layer in program.layers]
    return replace(program, layers=layers, image=np.concatenate(image.parts))


class _Image:
    """The program's image, and behind it the weights that are packed anew."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.parts = [program.image]

    def dense(self, layer: PackedLayer) -> PackedLayer:
        """The layer, and what runs with it, packed as dense where it is pruned."""
        cell = layer.cell
        if cell is not None and cell.reset is not None:
            layer = replace(layer, cell=replace(cell, reset=self.dense(cell.reset)))
        if not is_pruned(layer):
            return layer
        offset = sum(map(len, self.parts))
        layer, plane = _dense(layer, self._program.image, self._program.build, offset)
        self.parts.append(plane)
        return layer


def stored_matrix(layer: PackedLayer, image: NDArray[np.uint64], build: Build) -> NDArray[np.int8]:
    """The weights of a layer (rows, features), zeros in their places."""
    shape = layer.csb(build)
    values, columns = unpack_csb(
        image[layer.weights :][: shape.weight_bytes // 8],
        image[layer.indices :][: shape.index_bytes // 8],
        shape,
    )
    matrix = np.zeros((layer.rows, layer.features), np.int8)
    # Places that only fill up are weight 0 of feature 0, which must not overwrite a weight.
    row, place = np.nonzero(values)
    matrix[row, columns[row, place]] = values[row, place]
    return matrix


def _dense(
    layer: PackedLayer, image: NDArray[np.uint64], build: Build, offset: int
) -> tuple[PackedLayer, NDArray[np.uint64]]:
    """The layer, its weights at word `offset`, and those weights."""
    matrix = stored_matrix(layer, image, build)
    if layer.window is None:
        size, keep = dense_bank(layer.features, build)
    else:
        size, keep = 1, 1
        matrix = tap_matrix(_untapped(matrix, layer), size)
    shape = shape_on(build, layer.rows, matrix.shape[1], (size, keep), layer.weight_bits)
    plane, _ = pack_csb(matrix, shape)
    dense = replace(
        layer,
        features=matrix.shape[1],
        bank_size=size,
        keep=keep,
        groups_per_pass=shape.groups_per_pass,
        weights=offset,
        indices=offset,
    )
    return dense, plane


def _untapped(matrix: NDArray[np.int8], layer: PackedLayer) -> NDArray[np.int8]:
    """The inverse of `tap_matrix`: (rows, features) as (rows, C / parts, kernel height, width)."""
    window = layer.window
    assert window is not None
    channels, (height, width) = window.channels // layer.parts, window.kernel
    blocks = -(-channels // layer.bank_size)
    split = matrix.reshape(len(matrix), height, blocks, width, layer.bank_size)
    taps = split.transpose(0, 2, 4, 1, 3).reshape(len(matrix), -1, height, width)
    return np.ascontiguousarray(taps[:, :channels])
