# SPDX-License-Identifier: Apache-2.0
"""The cpu device: runs a packed program with kernels of its own, layer by layer.

It reads the same packed image as the engine, so a fault of packing shows as well.
"""

from __future__ import annotations

import time
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
from .recurrent import CellOp, cell_op, features_at, run_cell


class CpuDevice:
    """A program made ready for the host's processor."""

    def __init__(self, program: Program, threads: int = 0) -> None:
        """`threads` is the most to use, 0 for as many as this process may run on."""
        self._program = program
        self._threads = threads
        #: of every part of every layer
        self._ops = [
            [product_op(layer, program)] if layer.weight_tensor else linear_ops(layer, program)
            for layer in program.layers
        ]
        #: measured, of all runs so far, by layer
        self.seconds = np.zeros(len(program.layers))
        self._cells: dict[str, CellOp] = {}
        for layer, ops in zip(program.layers, self._ops, strict=True):
            if layer.cell:
                first = layer.cell.reset
                reset = linear_ops(first, program)[0] if first else None
                self._cells[layer.name] = cell_op(layer, program, ops[0], reset)

    def run(
        self,
        tensors: dict[str, NDArray[np.generic]],
        lengths: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.generic]]:
        """Every tensor of the program, (N, values of a sample), from its input tensors.

        Args:
            lengths: steps of each sample (N,), where the program takes them.
        """
        program, samples = self._program, len(next(iter(tensors.values())))
        # (N * steps, features, pixels)
        known = {name: self._tensor(name, samples) for name in program.tensors}
        for name, tensor in program.tensors.items():
            if tensor.whole:
                around = known[tensor.whole].reshape(samples, -1, *known[tensor.whole].shape[1:])
                steps = around[:, tensor.step : tensor.step + tensor.steps]
                part = steps.reshape(samples, -1, tensor.pixels)
                known[name] = part[:, tensor.first : tensor.first + tensor.features]
        for name, values in tensors.items():
            known[name][:] = values.reshape(known[name].shape)
        stamps = []
        for index, layer in enumerate(program.layers):
            stamps.append(time.perf_counter())
            whole = known[layer.output]
            x = known[layer.input].astype(np.int8, copy=False)
            if layer.cell:
                steps = x.reshape(samples, -1, x.shape[1])
                every, y_h, y_state = run_cell(self._cells[layer.name], known, steps, lengths)
                whole[:] = every.reshape(whole.shape)
                for name, last in ((layer.cell.y_h, y_h), (layer.cell.y_state, y_state)):
                    if name:
                        known[name][:] = last[:, :, None]
                continue
            rows = slice(layer.first_row, layer.first_row + layer.rows)
            if layer.weight_tensor:
                # (N, features, 1): the columns are samples.
                weights = known[layer.weight_tensor][:, :, 0].T.astype(np.int8, copy=False)
                op = replace(self._ops[index][0], values=np.ascontiguousarray(weights))
                self._ops[index] = [op]
            y = self._layer(index, x)[:, : whole.shape[1] - layer.first_row]
            if layer.combination is not None:
                y = combined(layer.combination, y, known[layer.combination.tensor][:, rows])
            whole[:, rows] = y
        self.seconds += np.diff([*stamps, time.perf_counter()])
        return {name: values.reshape(samples, -1) for name, values in known.items()}

    def _tensor(self, name: str, samples: int) -> NDArray[np.generic]:
        """(N * steps, features, pixels) of a tensor before anything is written: zeros, or a
        constant."""
        program = self._program
        tensor, build = program.tensors[name], program.build
        if tensor.content < 0:
            shape = (samples * tensor.steps, tensor.features, tensor.pixels)
            return np.zeros(shape, tensor.dtype)
        tiles, stride = tile_count(tensor.pixels, build.cols), build.padded(tensor.features)
        words = program.image[tensor.content :][: tiles * stride * build.cols // PORT_BYTES]
        stored = words.view(np.int8).reshape(1, tiles, stride, build.cols)
        values = images_from_tiles(stored, tensor.features, tensor.pixels)
        return np.repeat(values.reshape(1, tensor.features, -1), samples, axis=0)

    def by_step(self, tensor: str, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values (N, of a sample) as (N, steps, values of a step)."""
        return values.reshape(len(values), self._program.tensors[tensor].steps, -1)

    def step_features(
        self, index: int, known: dict[str, NDArray[np.generic]], step: int, length: int
    ) -> NDArray[np.int8]:
        """What the gates of layer `index` see at one step, (1, features), from all tensors of one
        sample of `length` steps."""
        layer = self._program.layers[index]
        x, y = (
            self.by_step(name, known[name])[0].astype(np.int8, copy=False)
            for name in (layer.input, layer.output)
        )
        return features_at(self._cells[layer.name], known, x, y, step, length)

    def sums(self, index: int, x: NDArray[np.int8]) -> NDArray[np.int32]:
        """The INT32 sums (N, M * pixels) of layer `index`, bias included, from its input `x`; a
        product of tensors has the weights of the last run. Of a recurrent layer those of its gates,
        from the features of a step."""
        layer = self._program.layers[index]
        if layer.cell:
            _, gates = linear(self._ops[index][0], x, threads=self._threads, want_sums=True)
            assert gates is not None
            return gates
        target = self._program.tensors[layer.output]
        sums = self._layer(index, x, want_sums=True)[:, : target.features - layer.first_row]
        return np.ascontiguousarray(sums).reshape(len(x), -1).astype(np.int32, copy=False)

    def _layer(
        self, index: int, x: NDArray[np.int8], *, want_sums: bool = False
    ) -> NDArray[np.generic]:
        """(N, M, pixels) from (N, values of a sample): what stands before a combination."""
        layer = self._program.layers[index]
        source = self._program.tensors[layer.input]
        # Steps are samples to a layer that is the same for each of them.
        images = x.reshape(-1, source.features, source.height, source.width)
        parts = [
            self._part(layer, part, op, images, want_sums or layer.sums_out)
            for part, op in enumerate(self._ops[index])
        ]
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _part(
        self,
        layer: PackedLayer,
        part: int,
        op: LinearOp,
        images: NDArray[np.int8],
        want_sums: bool,
    ) -> NDArray[np.generic]:
        """(N, rows of the part, pixels), of `images` (N, C, H, W)."""
        y: NDArray[np.int8] | None
        sums: NDArray[np.int32] | None
        if layer.sum_columns:
            y, sums = None, column_sums(op, images, self._program.build)
        else:
            columns = self._columns(layer, part, images)
            if layer.maximum:
                y, sums = None, maxima(op, columns)
            else:
                y, sums = linear(op, columns, threads=self._threads, want_sums=want_sums)
        result: NDArray[np.generic] | None = sums if want_sums else y
        if result is None:
            assert sums is not None  # there is one or the other
            result = requantised(op, sums)
        return result.reshape(len(images), -1, op.rows).transpose(0, 2, 1)

    def _columns(self, layer: PackedLayer, part: int, images: NDArray[np.int8]) -> NDArray[np.int8]:
        """What the weights of a part meet, (columns, features)."""
        window = layer.window
        if window is None:
            own = images[:, layer.first_feature : layer.first_feature + layer.features]
            columns = own.reshape(*own.shape[:2], -1).transpose(0, 2, 1)
            return np.ascontiguousarray(columns).reshape(-1, own.shape[1])
        channels = window.channels // layer.parts
        first = layer.first_feature + part * channels
        own = images[:, first : first + channels]
        return gathered(own, replace(window, channels=channels), layer.bank_size, layer.pad_value)


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


def linear_ops(layer: PackedLayer, program: Program) -> list[LinearOp]:
    """The parts of the layer as the cpu kernel takes them, read back from the packed image.

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
    rows = layer.rows // layer.parts
    parts = [slice(first, first + rows) for first in range(0, layer.rows, rows)]
    return [
        _op(layer, values[p], None if columns is None else columns[p], parameters[p], table)
        for p in parts
    ]


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
