# SPDX-License-Identifier: Apache-2.0
"""Concat and Slice of quantised models: views, and layers where integers have to change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .arithmetic import Scale
from .graph import Concat, QuantLayer, Slice, View, image_shape
from .moving import concatenated, rescaled
from .onnx_numbers import (
    UNJOINED,
    UNQUANTISED,
    Refusal,
    Steps,
    later_table,
    requantised,
    scale_of,
    split,
)
from .onnx_plan import Plan
from .onnx_values import Join, Part


def joined(plan: Plan, base: Join, steps: Steps) -> tuple[list[QuantLayer], View]:
    """Channels of several tensors, one behind the other."""
    one: Scale = np.float32(1), 0
    if base.dtype == "float32":
        scales = [(x.scale, x.zero_point) for x in map(scale_of, base.sources)]
        if not steps:
            raise Refusal(UNJOINED)
        y, table = requantised(steps)
    else:
        scales = [one] * len(base.sources)
        y, table = one, later_table(steps)
    output = plan.tensor(base, steps)
    parts = [
        (plan.tensor(source.base, split(source)[0]), image_shape(source.base.shape), x)
        for source, x in zip(base.sources, scales, strict=True)
    ]
    if table is None:
        return concatenated(output, parts, y)
    layers = [
        replace(rescaled(f"{output}:{i}", *part, y), table=table) for i, part in enumerate(parts)
    ]
    return layers, Concat(tuple(layer.output for layer in layers), output)


def part(plan: Plan, base: Part, steps: Steps) -> tuple[list[QuantLayer], View]:
    """Some channels of a tensor."""
    if base.dtype == "float32":
        raise Refusal(UNQUANTISED)
    output, table = plan.tensor(base, steps), later_table(steps)
    view = output if table is None else f"{output}:0"
    shape = image_shape(base.shape)
    source = plan.tensor(base.source.base, split(base.source)[0])
    found = Slice(source, view, base.first, shape)
    if table is None:
        return [], found
    return [replace(rescaled(output, view, shape), table=table)], found
