# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU: one `Cells` for each direction, joined to what ONNX gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .arrangement import AS_IT_IS
from .onnx_file import FileNode
from .onnx_operands import Context, Operand, constant, floats, optional, result, shown, source
from .onnx_values import (
    Cells,
    Constant,
    Hidden,
    Join,
    Lengths,
    ModelInput,
    Opaque,
    PerBatch,
    UnsupportedNode,
    Value,
    steps_of,
)
from .recurrent import CELL_BITS, UNIT_BITS
from .recurrent_floats import RecurrentWeights

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_GATES = {"lstm": 4, "gru": 3}
_ACTIVATIONS = {"lstm": ["sigmoid", "tanh", "tanh"], "gru": ["sigmoid", "tanh"]}


def lstm(context: Context, node: FileNode, inputs: list[Operand]) -> list[Value]:
    peepholes = optional(inputs, 7)
    if peepholes is not None and constant(peepholes, "P").value.any():
        raise UnsupportedNode("it has peepholes (P); without them it is supported")
    if node.attributes.get("input_forget", 0):
        raise UnsupportedNode("input_forget is 1; 0 is supported")
    return _recurrent(node, inputs, "lstm")


def gru(context: Context, node: FileNode, inputs: list[Operand]) -> list[Value]:
    return _recurrent(node, inputs, "gru")


def dynamic_quantize_lstm(context: Context, node: FileNode, inputs: list[Operand]) -> list[Value]:
    """An LSTM of the weights that its integers stand for; they stand features first."""
    weights = [
        _dequantised(
            constant(optional(inputs, i), name), optional(inputs, at), optional(inputs, at + 1)
        )
        for i, name, at in ((1, "W", 8), (2, "R", 10))
    ]
    return lstm(context, node, [inputs[0], *weights, *inputs[3:8]])


def _dequantised(integers: Constant, scale: Operand, zero_point: Operand) -> Constant:
    """Integers (directions, features, rows) as floats (directions, rows, features); scale and zero
    point (directions,) or (directions, rows)."""
    steps, zero = constant(scale, "scale").value, constant(zero_point, "zero point").array
    array = integers.array
    for given in (steps, zero):
        if array.ndim != 3 or given.shape not in (array.shape[:1], array.shape[::2]):
            raise UnsupportedNode(
                f"weights of shape {array.shape} have a scale or zero point of shape {given.shape}"
            )
    along = [each.reshape(len(array), 1, -1) for each in (zero.astype(np.int32), steps)]
    values = (array.astype(np.int32) - along[0]) * along[1].astype(np.float32)
    return Constant(values.astype(np.float32).transpose(0, 2, 1))


def _recurrent(node: FileNode, inputs: list[Operand], kind: str) -> list[Value]:
    """Y, Y_h and, of an LSTM, Y_c."""
    directions = _directions(node, kind)
    layout = node.attributes.get("layout", 0)
    x = floats(inputs[0], "X")
    if len(x.shape) != 2 or x.batch != 1 - layout:
        raise UnsupportedNode(
            f"X has shape {shown(x)}, must be "
            + ("(batch, steps, features)" if layout else "(steps, batch, features)")
            + f" with layout {layout}"
        )
    x = by_step(x)
    steps = x.shape[0]
    weights = _weights(node, kind, inputs, len(directions))
    if weights[0].inputs != x.shape[1]:
        raise UnsupportedNode(f"W takes {weights[0].inputs} features, X has {x.shape[1]}")
    has_lengths = _has_lengths(optional(inputs, 4), steps)
    hidden = states = _initial(inputs, 5, "initial_h", len(directions), weights[0].units, layout)
    bits = UNIT_BITS  # a GRU's state is its hidden value, more precisely
    if kind == "lstm":
        states = _initial(inputs, 6, "initial_c", len(directions), weights[0].units, layout)
        bits = CELL_BITS
    states = [None if start is None else _as_state(start, bits) for start in states]
    cells = [
        Cells(node.name, x, weights[i], reverse, hidden[i], states[i], has_lengths)
        for i, reverse in enumerate(directions)
    ]
    made = []
    for output in ("y", "y_h", "y_state")[: 3 if kind == "lstm" else 2]:
        value = together(node, [result(Hidden(each, output)) for each in cells])
        shape: tuple[int, ...] = (len(cells), weights[0].units)
        batch = 0 if layout else 1
        if output == "y":
            shape, batch = (steps, *shape), 0 if layout else 2
        made.append(value.reshaped(shape, batch))
    return made


def by_step(value: Value) -> Value:
    """`value` of shape (T, features) as a tensor of T steps, with its batch in front."""
    steps = value.shape[0]
    base = source(value).base
    if isinstance(base, Opaque):
        return replace(value, base=Opaque(value.shape), batch=0)
    if isinstance(base, ModelInput) and base.steps == 1:
        base = replace(base, shape=value.shape, steps=steps)
    as_it_lies = steps_of(base) == steps and value.arrangement == AS_IT_IS
    if not as_it_lies or base.shape not in (value.shape, value.shape[1:]):
        raise UnsupportedNode(
            "its input does not lie step by step, because of what reshapes or transposes it "
            "within the model"
        )
    return replace(value, base=base, batch=0)


def together(node: FileNode, values: list[Value]) -> Value:
    """The features of all `values`, which have the same steps, one after the other."""
    if len(values) == 1:
        return values[0]
    steps = {steps_of(value.base) for value in values}
    if len(steps) > 1:
        raise UnsupportedNode(f"joins tensors of {sorted(steps)} steps")
    return result(Join(node.name, tuple(values), "float32", *steps))


def _directions(node: FileNode, kind: str) -> tuple[bool, ...]:
    """Whether each one is reversed; and whether anything is asked for that there is not."""
    attributes = node.attributes
    direction = attributes.get("direction", b"forward").decode()
    if direction not in _DIRECTIONS:
        raise UnsupportedNode(f"its direction is {direction!r}, must be one of "
                              f"{', '.join(_DIRECTIONS)}")  # fmt: skip
    given = [name.decode().lower() for name in attributes.get("activations", [])]
    usual = _ACTIVATIONS[kind] * len(_DIRECTIONS[direction])
    if given and given != usual:
        raise UnsupportedNode(
            f"its activations are {', '.join(given)}; {', '.join(usual)} are supported"
        )
    if "clip" in attributes:
        raise UnsupportedNode(
            "it clips the inputs of its activations; without clip it is supported"
        )
    if attributes.get("layout", 0) not in (0, 1):
        raise UnsupportedNode(f"its layout is {attributes['layout']}, must be 0 or 1")
    return _DIRECTIONS[direction]


def _weights(
    node: FileNode, kind: str, inputs: list[Operand], directions: int
) -> list[RecurrentWeights]:
    w, r = (constant(optional(inputs, i), name).value for i, name in ((1, "W"), (2, "R")))
    gates = _GATES[kind]
    units = r.shape[-1] if r.ndim else 0
    b = np.zeros((directions, 2 * gates * units), np.float32)
    if optional(inputs, 3) is not None:
        b = constant(inputs[3], "B").value
    wanted = (
        ("W", w, (directions, gates * units, w.shape[-1] if w.ndim else 0)),
        ("R", r, (directions, gates * units, units)),
        ("B", b, (directions, 2 * gates * units)),
    )
    for name, array, shape in wanted:
        if array.shape != shape or not array.size:
            raise UnsupportedNode(f"{name} has shape {array.shape}, must be {shape}")
        if not np.isfinite(array).all():
            raise UnsupportedNode(f"{name} holds NaN or infinity")
    if node.attributes.get("hidden_size", units) != units:
        raise UnsupportedNode(f"hidden_size is not that of its weights, {units}")
    before = bool(node.attributes.get("linear_before_reset", 0))
    w, r, b = (np.ascontiguousarray(array, np.float32) for array in (w, r, b))
    return [RecurrentWeights(kind, w[i], r[i], b[i], before) for i in range(directions)]


def _has_lengths(lengths: Operand, steps: int) -> bool:
    """Whether samples end after steps of their own; constant ones must be all steps."""
    if lengths is None or isinstance(lengths, Lengths):
        return lengths is not None
    numbers = (
        lengths.each if isinstance(lengths, PerBatch) else [constant(lengths, "sequence_lens")]
    )
    if any((each.value != steps).any() for each in numbers):
        raise UnsupportedNode(
            f"its sequence_lens are constant and not all {steps}; make them an input of the model"
        )
    return False


def _initial(
    inputs: list[Operand], index: int, name: str, directions: int, units: int, layout: int
) -> list[Value | None]:
    """What each direction starts from; None for zeros."""
    operand = optional(inputs, index)
    constants = operand.each if isinstance(operand, PerBatch) else [operand]
    if not any(isinstance(each, Value) for each in constants):
        if any(each is not None and constant(each, name).value.any() for each in constants):
            raise UnsupportedNode(
                f"its {name} is constant and not zero; zeros, inputs of the model and last values "
                "of other recurrent layers are supported"
            )
        return [None] * directions
    value = floats(operand, name)
    if value.shape != (directions, units) or value.batch != 1 - layout:
        raise UnsupportedNode(f"its {name} has shape {shown(value)}, must be of {directions} "
                              f"direction(s), the batch and {units} units")  # fmt: skip
    return [_started(part, name) for part in parts_of(value, [units] * directions)]


def _started(value: Value, name: str) -> Value:
    """Initial values, which nothing may have changed on their way."""
    wanted = "y_state" if name == "initial_c" else "y_h"
    base = value.base
    given = isinstance(base, ModelInput) or (isinstance(base, Hidden) and base.kind == wanted)
    if not given or (value.steps and not isinstance(base, ModelInput)):
        raise UnsupportedNode(
            f"its {name} is computed within the model; zeros, inputs of the model and last values "
            "of other recurrent layers are supported"
        )
    return value


def _as_state(start: Value, bits: int) -> Value:
    """Initial values as states, in steps of 2**-bits."""
    base = start.base
    if isinstance(base, Hidden):
        return replace(start, base=Hidden(base.cells, "y_state"))
    assert isinstance(base, ModelInput)
    return replace(start, base=replace(base, state_bits=bits))


def parts_of(value: Value, sizes: list[int]) -> list[Value]:
    """Neighbouring features of `value`, so many each, as they lie: whole tensors, or parts of a
    model's input."""
    base = value.base
    if len(sizes) == 1:
        return [replace(value, shape=base.shape, batch=0)]
    if isinstance(base, ModelInput) and base.steps == 1:
        firsts = np.cumsum([base.first, *sizes[:-1]])
        return [
            replace(
                value, base=replace(base, first=int(first), shape=(size,)), shape=(size,), batch=0
            )
            for first, size in zip(firsts, sizes, strict=True)
        ]
    if isinstance(base, Join) and [s.base.shape[-1] for s in base.sources] == sizes:
        return [replace(part, steps=(*part.steps, *value.steps), batch=0) for part in base.sources]
    raise UnsupportedNode("it reads parts of a tensor that do not lie by themselves")
