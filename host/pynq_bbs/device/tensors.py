# SPDX-License-Identifier: Apache-2.0
"""The tensors of a program as they lie in device memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..builds import PORT_BYTES
from ..pack.layout import column_pairs, image_pairs
from ..pack.plan import Plan
from ..pack.program import Program

Array = NDArray[np.generic]


class DeviceTensors:
    """Views of the memory block that `plan` lays out; each is made once."""

    def __init__(self, program: Program, plan: Plan, block: NDArray[np.uint64]) -> None:
        self._program = program
        self._plan = plan
        self._block = block
        self._images = program.has_pixels
        self._views: dict[tuple[int, str], Array] = {}

    def pairs(self, bank: int, tensor: str, batch: Array) -> list[tuple[Array, Array]]:
        """What of a tensor in a bank is what of a batch (N, values of a sample): views of both."""
        shape, view = self._program.tensors[tensor], self._views.get((bank, tensor))
        if view is None:
            view = self._views[bank, tensor] = self._view(bank, tensor)
        if self._images:
            return image_pairs(view, batch.reshape(len(batch), shape.features, shape.pixels))
        return column_pairs(view, batch.reshape(len(batch), shape.steps, shape.features))

    def _view(self, bank: int, tensor: str) -> Array:
        """A tensor (runs or steps, tiles, features, cols). Of a constant all runs are the same
        memory."""
        plan, cols = self._plan, self._program.build.cols
        place, shape = plan.places[tensor], self._program.tensors[tensor]
        count = plan.runs if self._images else shape.steps
        tiles = place.tiles // shape.steps
        tile = place.stride * cols * shape.dtype.itemsize
        offset, apart = place.offset, tiles * tile
        if offset >= plan.layout.first_sample:
            offset += bank * plan.bank_words
            apart = plan.layout.sample_words * PORT_BYTES if self._images else apart
        elif self._images:
            apart = 0
        stored: Array = np.lib.stride_tricks.as_strided(
            self._block[offset:].view(shape.dtype),
            (count, tiles, shape.features, cols),
            (apart, tile, cols * shape.dtype.itemsize, shape.dtype.itemsize),
        )
        return stored
