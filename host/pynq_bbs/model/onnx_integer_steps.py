# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU of quantised models: between scales that the file gives, hidden values have their
own (docs/recurrent.md).

What the file quantises a hidden value to is a table of all its integers. What is not quantised on
the way is handed on as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from . import graph
from .arithmetic import Scale
from .graph import QuantLayer, View, image_shape
from .moving import copied, join, rescaled
from .onnx_numbers import (
    UNJOINED,
    Refusal,
    Steps,
    fixed_scale,
    later_table,
    requantised,
    scale_of,
    split,
)
from .onnx_plan import Plan
from .onnx_values import AtStep, Base, Cells, Dequantise, Hidden, Join, ModelInput, Value
from .recurrent import HIDDEN_SCALE, RecurrentLayer, quantise_weights


def recurrent(plan: Plan, cells: Cells) -> RecurrentLayer:
    """One layer for all that `cells` give."""
    x = scale_of(cells.source)
    for start in starts_of(cells):
        if start.steps:
            raise Refusal(
                "what it starts from is quantised; hidden values and states have scales of their "
                "own: leave out QuantizeLinear and DequantizeLinear there"
            )
    y, y_h, y_state = (Hidden(cells, kind) for kind in ("y", "y_h", "y_state"))
    h, state = cells.initial_h, cells.initial_state
    return RecurrentLayer(
        plan.layer(y),
        plan.tensor(cells.source.base, split(cells.source)[0]),
        plan.tensor(y, ()),
        quantise_weights(cells.weights, x.scale, x.zero_point),
        cells.reverse,
        y_h=plan.tensor(y_h, ()) if y_h in plan.forms else "",
        y_state=plan.tensor(y_state, ()) if y_state in plan.forms else "",
        initial_h=plan.tensor(h.base, ()) if h else "",
        initial_state=plan.tensor(state.base, ()) if state else "",
    )


def starts_of(cells: Cells) -> Iterator[Value]:
    """Initial values, where they are not zeros."""
    return (start for start in (cells.initial_h, cells.initial_state) if start)


def start_scales(plan: Plan) -> dict[Base, np.float32]:
    """Of inputs of the model that recurrent layers start from."""
    cells = [each.cells for each in plan.operators if isinstance(each, Hidden)]
    return {
        base: np.float32(2.0**-base.state_bits) if base.state_bits else HIDDEN_SCALE
        for each in cells
        for start in starts_of(each)
        if isinstance(base := start.base, ModelInput)
    }


def quantised(plan: Plan, base: Hidden | AtStep | Join, inner: str, steps: Steps) -> QuantLayer:
    """A layer that gives `base`, the tensor `inner`, as `steps` make it."""
    scale = fixed_scale(base)
    if scale is None or (isinstance(base, Hidden) and base.kind == "y_state"):
        raise Refusal("the last states of an LSTM are quantised; leave them to an output as floats")
    table = later_table((Dequantise(scale, 0), *steps))
    output = plan.tensor(base, steps)
    shape = image_shape((base.shape[-1],))
    return replace(copied(output, inner, shape), name=plan.layer(base), table=table)


def at_step(plan: Plan, base: AtStep, steps: Steps) -> tuple[list[QuantLayer], View]:
    """One step of hidden values, and what quantises it."""
    if fixed_scale(base) is None:
        raise Refusal("takes a step of what is not the hidden values of a recurrent layer")
    inner = plan.unnamed(base) if steps else plan.tensor(base, ())
    view = graph.AtStep(plan.tensor(base.source, ()), inner, base.step)
    return [quantised(plan, base, inner, steps)] if steps else [], view


def joined(plan: Plan, base: Join, steps: Steps) -> list[QuantLayer]:
    """Hidden values, or tensors of the same steps, one behind the other."""
    if fixed_scale(base) is not None:
        parts = [(plan.tensor(part.base, ()), part.base.shape[-1]) for part in base.sources]
        inner = plan.unnamed(base) if steps else plan.tensor(base, ())
        layers = join(inner, parts)
        return [*layers, quantised(plan, base, inner, steps)] if steps else layers
    one: Scale = np.float32(1), 0
    if base.dtype == "float32":
        if not steps:
            raise Refusal(UNJOINED)
        scales = [(x.scale, x.zero_point) for x in map(scale_of, base.sources)]
        y, table = requantised(steps)
    else:
        scales, y, table = [one] * len(base.sources), one, later_table(steps)
    output = plan.tensor(base, steps)
    layers, parts = list[QuantLayer](), list[tuple[str, int]]()
    for number, (part, x) in enumerate(zip(base.sources, scales, strict=True)):
        name, features = plan.tensor(part.base, split(part)[0]), part.base.shape[-1]
        moved = rescaled(f"{output}:x{number}", name, (features, 1, 1), x, y)
        layers.append(replace(moved, table=table))
        parts.append((moved.output, features))
    return [*layers, *join(output, parts)]
