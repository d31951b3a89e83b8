# SPDX-License-Identifier: Apache-2.0
"""The cpu device: runs a packed program with kernels of its own, layer by layer.

It reads the same packed image as the engine, so a fault of packing shows as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import ProgramError
from ..pack.csb import unpack_csb
from ..pack.program import PackedLayer, Program
from .linear import LinearOp, linear


class CpuDevice:
    """A program made ready for the host's processor."""

    def __init__(self, program: Program, threads: int = 0) -> None:
        """`threads` is the most to use, 0 for as many as this process may run on."""
        self._program = program
        self._threads = threads
        self._ops = [linear_op(layer, program) for layer in program.layers]

    def run(self, tensors: dict[str, NDArray[np.int8]]) -> dict[str, NDArray[np.generic]]:
        """Every tensor of the program, (N, features), from its input tensors (N, K) INT8."""
        known: dict[str, NDArray[np.generic]] = dict(tensors)
        for index, layer in enumerate(self._program.layers):
            y, sums = self._linear(index, known[layer.input])
            output = sums if layer.sums_out else y
            assert output is not None  # linear gives what the layer's multiplier asks for
            known[layer.output] = output
        return known

    def sums(self, index: int, x: NDArray[np.int8]) -> NDArray[np.int32]:
        """The INT32 sums (N, M) of layer `index`, bias included."""
        sums = linear(self._ops[index], x, threads=self._threads, want_sums=True)[1]
        assert sums is not None
        return sums

    def _linear(
        self, index: int, x: NDArray[np.generic]
    ) -> tuple[NDArray[np.int8] | None, NDArray[np.int32] | None]:
        return linear(self._ops[index], x.astype(np.int8, copy=False), threads=self._threads)


def linear_op(layer: PackedLayer, program: Program) -> LinearOp:
    """The layer as the cpu kernel takes it, read back from the packed image.

    Raises:
        ProgramError: the image does not hold what the layer says.
    """
    image, shape = program.image, layer.csb(program.build.lanes)
    weight_words, index_words = shape.weight_bytes // 8, shape.index_bytes // 8
    extents = [
        (layer.weights, weight_words),
        (layer.indices, index_words),
        (layer.parameters, layer.rows),
        (max(layer.table, 0), 32 if layer.table >= 0 else 0),
    ]
    if any(at < 0 or at + words > len(image) for at, words in extents):
        raise ProgramError(
            f"layer {layer.name!r} reaches outside the program's image of {len(image)} words: "
            "compile the model again"
        )
    weights, indices, parameters, table = (image[at : at + words] for at, words in extents)
    values, columns = unpack_csb(weights, indices, shape)
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
