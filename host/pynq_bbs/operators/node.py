# SPDX-License-Identifier: Apache-2.0
"""One node of a model on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .call import Array, Call
from .table import run_operator


@dataclass(frozen=True)
class HostNode:
    """One operator on the host; names of tensors, "" where an optional input is left out."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    call: Call

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Its outputs by name, from the tensors that it reads.

        Raises:
            InputError: they do not fit the operator.
        """
        inputs = [tensors[name] if name else None for name in self.inputs]
        results = run_operator(self.name, self.op, self.call, inputs)
        return {name: y for name, y in zip(self.outputs, results, strict=False) if name}
