# SPDX-License-Identifier: Apache-2.0
"""One layer by itself, giving its INT32 sums: how a mismatch is looked into."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..model.graph import QuantInput
from .program import Program, Tensor

#: Its tensors: what it reads, its weights where they are a tensor, and what it gives.
INPUT, WEIGHTS, SUMS = "x", "weights", "sums"


def sums_program(program: Program, index: int) -> Program:
    """Layer `index` of a program, from `INPUT` and, if its weights are a tensor, `WEIGHTS`, to
    `SUMS`; of a recurrent layer the sums of its gates, from the features of a step."""
    original = program.layers[index]
    layer = replace(
        original, sums_out=True, table=-1, combination=None, cell=None,
        input=INPUT, output=SUMS, first_row=0,
    )  # fmt: skip
    known = {name: tensor.alone for name, tensor in program.tensors.items()}
    source, target = known[original.input], known[original.output]
    rows = original.rows if original.first_row else target.features
    if original.cell:
        rows, source, target = original.rows, Tensor(original.features), Tensor(original.rows)
    tensors = {INPUT: source, SUMS: replace(target, features=rows, bits=32)}
    given = [INPUT]
    if original.weight_tensor:
        layer = replace(layer, weight_tensor=WEIGHTS)
        tensors[WEIGHTS] = known[original.weight_tensor]
        given.append(WEIGHTS)
    inputs = [
        QuantInput(name, name, (tensors[name].size,), "int8", np.float32(1), 0) for name in given
    ]
    return replace(program, tensors=tensors, layers=[layer], inputs=inputs, outputs=[], lengths="")
