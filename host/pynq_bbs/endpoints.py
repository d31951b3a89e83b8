# SPDX-License-Identifier: Apache-2.0
"""Between what users hand in and the tensors that a program's first layers read, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compress.borders import quantize_input, shown_outputs
from .errors import InputError
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
        names = list(self.inputs)
        if not isinstance(x, Mapping):
            if len(names) != 1:
                raise InputError(
                    f"the model has {len(names)} inputs ({', '.join(names)}): give a dict of "
                    "arrays by name"
                )
            x = {names[0]: x}
        if set(x) != set(names):
            raise InputError(
                f"given inputs: {', '.join(sorted(map(str, x))) or 'none'}; "
                f"the model takes exactly: {', '.join(names)}"
            )
        tensors = {i.tensor: quantize_input(i, x[i.name]) for i in self._program.inputs}
        sizes = {len(values) for values in tensors.values()}
        if len(sizes) != 1:
            raise InputError(f"the inputs have different batch sizes: {sorted(sizes)}")
        if not self._program.lengths:
            return tensors, None
        return tensors, self._checked_lengths(x[self._program.lengths], *sizes)

    def shown(self, pieces: Sequence[Mapping[str, NDArray[np.generic]]]) -> dict[str, NDArray[Any]]:
        """The outputs (N, *shape) by name, from the tensors of the pieces of a batch."""
        whole = pieces[0]
        if len(pieces) > 1:
            whole = {name: np.concatenate([p[name] for p in pieces]) for name in self.tensors}
        return shown_outputs(self._program.outputs, whole)

    def _checked_lengths(self, given: Any, samples: int) -> NDArray[np.int64]:
        name, lengths = self._program.lengths, np.asarray(given)
        steps = next(
            self._program.tensors[la.input].steps for la in self._program.layers if la.cell
        )
        if lengths.shape != (samples,) or lengths.dtype.kind not in "iu":
            raise InputError(
                f"input {name!r} is {lengths.dtype} {lengths.shape}, must be integers "
                f"({samples},): the steps of each sample"
            )
        if lengths.min() < 1 or lengths.max() > steps:
            raise InputError(
                f"input {name!r} goes from {lengths.min()} to {lengths.max()}, a sample has 1 to "
                f"{steps} steps"
            )
        return lengths.astype(np.int64)
