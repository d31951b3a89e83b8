# SPDX-License-Identifier: Apache-2.0
"""The cpu device: runs a packed program with kernels of its own, layer by layer.

It reads the same packed image as the engine, so a fault of packing shows as well.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..builds import PORT_BYTES, TABLE_WORDS, Build
from ..errors import ProgramError
from ..model.arithmetic import round_shifted
from ..model.graph import Combination
from ..pack.csb import unpack_csb
from ..pack.layout import images_from_tiles, images_to_tiles, tile_count
from ..pack.program import PackedLayer, Program
from ..pack.windows import gathered
from .linear import LinearOp, linear


class CpuDevice:
    """A program made ready for the host's processor."""

    def __init__(self, program: Program, threads: int = 0) -> None:
        """`threads` is the most to use, 0 for as many as this process may run on."""
        self._program = program
        self._threads = threads
        self._ops = [
            product_op(layer, program) if layer.weight_tensor else linear_op(layer, program)
            for layer in program.layers
        ]

    def run(self, tensors: dict[str, NDArray[np.int8]]) -> dict[str, NDArray[np.generic]]:
        """Every tensor of the program, (N, values of a sample), from its INT8 input tensors."""
        program, samples = self._program, len(next(iter(tensors.values())))
        known = {name: self._tensor(name, samples) for name in program.tensors}
        for name, tensor in program.tensors.items():
            if tensor.whole:
                last = tensor.first + tensor.features
                part = known[tensor.whole].reshape(samples, -1, tensor.pixels)
                known[name] = part[:, tensor.first : last]
        for name, values in tensors.items():
            known[name][:] = values.reshape(known[name].shape)
        for index, layer in enumerate(program.layers):
            whole = known[layer.output]
            rows = slice(layer.first_row, layer.first_row + layer.rows)
            x = known[layer.input].astype(np.int8, copy=False)
            if layer.weight_tensor:
                # (N, features, 1): the columns are samples.
                weights = np.ascontiguousarray(known[layer.weight_tensor][:, :, 0].T)
                self._ops[index] = replace(
                    self._ops[index], values=weights.astype(np.int8, copy=False)
                )
            y = self._layer(index, x)[:, : whole.shape[1] - layer.first_row]
            if layer.combination is not None:
                y = combined(layer.combination, y, known[layer.combination.tensor][:, rows])
            whole[:, rows] = y
        return {name: values.reshape(samples, -1) for name, values in known.items()}

    def _tensor(self, name: str, samples: int) -> NDArray[np.generic]:
        """(N, features, pixels) of a tensor before anything is written: zeros, or a constant."""
        program = self._program
        tensor, build = program.tensors[name], program.build
        if tensor.content < 0:
            dtype = np.int32 if name in program.sums else np.int8
            return np.zeros((samples, tensor.features, tensor.pixels), dtype)
        tiles, stride = tile_count(tensor.pixels, build.cols), build.padded(tensor.features)
        words = program.image[tensor.content :][: tiles * stride * build.cols // PORT_BYTES]
        stored = words.view(np.int8).reshape(1, tiles, stride, build.cols)
        values = images_from_tiles(stored, tensor.features, tensor.pixels)
        return np.repeat(values.reshape(1, tensor.features, -1), samples, axis=0)

    def sums(self, index: int, x: NDArray[np.int8]) -> NDArray[np.int32]:
        """The INT32 sums (N, M * pixels) of layer `index`, bias included, from its input `x`; a
        product of tensors has the weights of the last run."""
        layer = self._program.layers[index]
        target = self._program.tensors[layer.output]
        sums = self._layer(index, x, want_sums=True)[:, : target.features - layer.first_row]
        return np.ascontiguousarray(sums).reshape(len(x), -1).astype(np.int32, copy=False)

    def _layer(
        self, index: int, x: NDArray[np.int8], *, want_sums: bool = False
    ) -> NDArray[np.generic]:
        """(N, M, pixels) from (N, values of a sample): what stands before a combination."""
        layer, op = self._program.layers[index], self._ops[index]
        source = self._program.tensors[layer.input]
        samples = len(x)
        images = x.reshape(samples, source.features, source.height, source.width)
        sums: NDArray[np.int32] | None
        if layer.sum_columns:
            sums = column_sums(op, images, self._program.build)
            pixels = 1
        else:
            columns = self._columns(layer, images)
            pixels = len(columns) // samples
            if layer.maximum:
                sums = maxima(op, columns)
            else:
                y, sums = linear(op, columns, threads=self._threads, want_sums=want_sums)
                if not (want_sums or layer.sums_out):
                    assert y is not None  # linear gives what the layer's multiplier asks for
                    return y.reshape(samples, pixels, -1).transpose(0, 2, 1)
        assert sums is not None  # linear gives them where they are wanted, or all there is
        if not (want_sums or layer.sums_out):
            return requantised(op, sums).reshape(samples, pixels, -1).transpose(0, 2, 1)
        return sums.reshape(samples, pixels, -1).transpose(0, 2, 1)

    def _columns(self, layer: PackedLayer, images: NDArray[np.int8]) -> NDArray[np.int8]:
        """What the weights meet, (columns, features)."""
        if layer.window is None:
            part = images[:, layer.first_feature : layer.first_feature + layer.features]
            columns = part.reshape(*part.shape[:2], -1).transpose(0, 2, 1)
            return np.ascontiguousarray(columns).reshape(-1, part.shape[1])
        last = layer.first_feature + layer.window.channels
        part = images[:, layer.first_feature : last]
        return gathered(part, layer.window, layer.bank_size, layer.pad_value)


def maxima(op: LinearOp, columns: NDArray[np.int8]) -> NDArray[np.int32]:
    """(N, M): the largest of bias and of the features with a weight, by row."""
    assert op.columns is not None or op.values.shape[1] == columns.shape[1]
    result = np.empty((len(columns), op.rows), np.int32)
    for row in range(op.rows):
        features = np.flatnonzero(op.values[row])
        if op.columns is not None:
            features = op.columns[row][features]
        result[:, row] = columns[:, features].max(axis=1, initial=-128)
    largest: NDArray[np.int32] = np.maximum(result, op.bias)
    return largest


def column_sums(op: LinearOp, images: NDArray[np.int8], build: Build) -> NDArray[np.int32]:
    """(N, M): weights times the sums over the columns of each tile, bias added once."""
    samples, channels = images.shape[:2]
    flat = images.reshape(samples, -1)
    tiles = images_to_tiles(flat, channels, build.cols, build.padded(channels))
    features = tiles.sum(axis=3, dtype=np.int64).reshape(samples, -1)
    chosen = features[:, op.columns] if op.columns is not None else features[:, None, :]
    sums = (chosen * op.values.astype(np.int64)).sum(axis=2) + op.bias
    as_int32: NDArray[np.int32] = sums.astype(np.int32)
    return as_int32


def requantised(op: LinearOp, sums: NDArray[np.int32]) -> NDArray[np.int8]:
    """INT8 from the sums (N, M) that no kernel of `linear.cpp` makes."""
    assert op.multiplier is not None
    with np.errstate(over="ignore"):
        steps = np.rint(sums.astype(np.float32) * op.multiplier)
    # Past 512 any zero point saturates.
    q = np.clip(np.clip(steps, -512, 512).astype(np.int32) + op.zero_point, -128, 127)
    y: NDArray[np.int8] = q.astype(np.int8) if op.table is None else op.table[q + 128]
    return y


def combined(c: Combination, a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.int8]:
    """The combination of two INT8 arrays of one shape."""
    from_a, from_b = a.astype(np.int64) - c.a_zero, b.astype(np.int64) - c.b_zero
    acc = c.a_scale * from_a * from_b if c.product else c.a_scale * from_a + c.b_scale * from_b
    rounded = round_shifted(acc, c.shift) + c.zero_point
    y: NDArray[np.int8] = np.clip(rounded, c.low, c.high).astype(np.int8)
    return y


def linear_op(layer: PackedLayer, program: Program) -> LinearOp:
    """The layer as the cpu kernel takes it, read back from the packed image.

    Raises:
        ProgramError: the image does not hold what the layer says.
    """
    image, shape = program.image, layer.csb(program.build)
    weight_words, index_words = shape.weight_bytes // 8, shape.index_bytes // 8
    extents = [
        (layer.weights, weight_words),
        (layer.indices, index_words),
        (layer.parameters, layer.rows),
        (max(layer.table, 0), TABLE_WORDS if layer.table >= 0 else 0),
    ]
    if any(at < 0 or at + words > len(image) for at, words in extents):
        raise ProgramError(
            f"layer {layer.name!r} reaches outside the program's image of {len(image)} words: "
            "compile the model again"
        )
    weights, indices, parameters, table = (image[at : at + words] for at, words in extents)
    values, columns = unpack_csb(weights, indices, shape)
    return _op(layer, values, columns, parameters, table)


def product_op(layer: PackedLayer, program: Program) -> LinearOp:
    """A product of two tensors, before its weights are known."""
    image = program.image
    parameters = image[layer.parameters : layer.parameters + layer.rows]
    table = image[max(layer.table, 0) :][: TABLE_WORDS if layer.table >= 0 else 0]
    values = np.zeros((layer.rows, layer.features), np.int8)
    return _op(layer, values, None, parameters, table)


def _op(
    layer: PackedLayer,
    values: NDArray[np.int8],
    columns: NDArray[np.int32] | None,
    parameters: NDArray[np.uint64],
    table: NDArray[np.uint64],
) -> LinearOp:
    return LinearOp(
        values=values,
        columns=columns,
        bias=(parameters & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32),
        multiplier=None
        if layer.sums_out
        else (parameters >> np.uint64(32)).astype(np.uint32).view(np.float32),
        zero_point=0 if layer.sums_out else layer.zero_point,
        table=table.view(np.int8) if layer.table >= 0 else None,
    )
