# SPDX-License-Identifier: Apache-2.0
"""Between what users hand in and the tensors that a program's first layers read, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compress.borders import by_name, checked_lengths, quantize_input, samples_of, shown_outputs
from .pack.program import Program

Tensors = dict[str, NDArray[np.generic]]
#: Name -> (shape without the batch, dtype).
Described = dict[str, tuple[tuple[int, ...], str]]


class Endpoints:
    """The inputs and outputs of a program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.inputs: Described = {i.name: (i.shape, i.dtype) for i in program.inputs}
        if program.lengths:
            self.inputs[program.lengths] = ((), "int64")
        self.outputs: Described = {o.name: (o.shape, o.dtype) for o in program.shown_outputs}
        #: The tensors that the outputs are made of.
        self.tensors = list(dict.fromkeys(o.tensor for o in program.outputs))

    def quantised(self, x: Any) -> tuple[Tensors, NDArray[np.int64] | None]:
        """The tensors (N, values of a sample), and the steps of each sample where the program
        takes them.

        Args:
            x: an array (N, *shape), or a dict of such arrays by input name where there are more.

        Raises:
            InputError: missing or unknown input, wrong shape or dtype, NaN.
        """
        x = by_name(x, list(self.inputs))
        tensors = {i.tensor: quantize_input(i, x[i.name]) for i in self._program.inputs}
        samples, name = samples_of(tensors), self._program.lengths
        if not name:
            return tensors, None
        layers, known = self._program.layers, self._program.tensors
        steps = next(known[layer.input].steps for layer in layers if layer.cell)
        return tensors, checked_lengths(name, x[name], steps, samples)

    def shown(self, pieces: Sequence[Mapping[str, NDArray[np.generic]]]) -> dict[str, NDArray[Any]]:
        """The outputs (N, *shape) by name, from the tensors of the pieces of a batch."""
        whole = pieces[0]
        if len(pieces) > 1:
            whole = {name: np.concatenate([p[name] for p in pieces]) for name in self.tensors}
        return shown_outputs(self._program.outputs, whole)
