# SPDX-License-Identifier: Apache-2.0
"""Walk an ONNX graph once and turn it into values; list every node that stands in the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import UnsupportedModelError
from .graph import Function
from .onnx_constants import MOST_FOLDED, fold_per_batch
from .onnx_file import FileGraph, FileNode, FileValue
from .onnx_operands import MOST_VALUES, Context, check_size, shown
from .onnx_operators import (
    BATCH_ANYWHERE,
    ENGINE,
    HOST,
    MICROSOFT,
    OPERATORS,
    QONNX,
    SEVERAL_OUTPUTS,
)
from .onnx_qonnx import DOMAINS
from .onnx_sequences import batch_axes, is_recurrent, length_inputs
from .onnx_values import (
    Base,
    Constant,
    Dequantise,
    Lengths,
    ModelInput,
    Opaque,
    Padded,
    PerBatch,
    Quantise,
    Step,
    UnsupportedNode,
    Value,
)

UNSUPPORTED = "unsupported"

_INPUT_TYPES = ("float32", "int8", "uint8")
_OUTPUT_TYPES = (*_INPUT_TYPES, "int32")

#: The engine's operators by domain.
OPERATOR_TABLES = {
    "": OPERATORS,
    "ai.onnx": OPERATORS,
    "com.microsoft": MICROSOFT,
    **dict.fromkeys(DOMAINS, QONNX),
}

#: A tensor by what it is: two names for the same thing share it.
Key = tuple[Base, tuple[Step, ...]]


@dataclass(frozen=True)
class NodeCheck:
    """What becomes of one node: `runs` is "engine", "host" or "unsupported"."""

    name: str
    op: str
    runs: str
    reason: str


@dataclass(frozen=True)
class Problem:
    """Something that stands in the way; `kind` is "node", "input" or "output"."""

    kind: str
    name: str
    op: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}" + (f" ({self.op})" if self.op else "")


_ADVICE = (
    "Change or remove these nodes, or give compile the file itself: it leaves to the host what the "
    "engine cannot run."
)


@dataclass
class Unknown:
    """The output of an unsupported node whose shape is not known either."""

    node: str


Result = Value | Constant | PerBatch | Lengths | Unknown


@dataclass
class Reading:
    """A graph as values, with the verdict on every node."""

    name: str
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    checks: list[NodeCheck] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    #: the file's name of every tensor, by what it is
    names: dict[Key, str] = field(default_factory=dict)
    folded: int = 0  # values that were made of constants
    #: the input that says how many steps each sample has
    lengths: str = ""

    @property
    def quantised(self) -> bool:
        """Whether activations are integers somewhere, so that the model is an integer model."""
        values = [*self.inputs.values(), *self.outputs.values()]
        return any(v.dtype != "float32" for v in values) or any(
            isinstance(step, (Quantise, Dequantise)) for _, steps in self.names for step in steps
        )

    def refuse(self, advice: str = _ADVICE) -> None:
        """Raise one error that lists everything in the way, with what to do about it; nothing where
        nothing is."""
        if not self.problems:
            return
        lines = "\n".join(f"  {problem}: {problem.reason}" for problem in self.problems)
        raise UnsupportedModelError(
            f"model {self.name!r} cannot run, {len(self.problems)} reason(s):\n{lines}\n"
            f"{advice} `bbs check` shows every node.",
            [(problem.name, problem.reason) for problem in self.problems],
        )


def read_values(graph: FileGraph) -> Reading:
    """Interpret every node of a valid graph; problems are collected, not raised."""
    reading = Reading(graph.name)
    values: dict[str, Result] = {name: Constant(array) for name, array in graph.constants.items()}
    places, lengths = batch_axes(graph), length_inputs(graph)
    context = Context(
        _common_batch(graph.inputs, places, reading), graph.opset, is_recurrent(graph)
    )
    for spec in graph.inputs:
        if spec.name in lengths:
            values[spec.name] = _read_lengths(spec, reading)
        else:
            values[spec.name] = _read_input(spec, places[spec.name], reading)
    live = live_nodes(graph)
    for index, node in enumerate(graph.nodes):
        if index not in live:
            reading.checks.append(NodeCheck(node.name, node.op, HOST, "unused: no output needs it"))
            continue
        results = _read_node(graph, context, node, values, reading)
        for name, result in zip(node.outputs, results, strict=False):
            values[name] = result
            if isinstance(result, Value):
                reading.names.setdefault((result.base, result.steps), name)
    for output in graph.outputs:
        _read_output(output.name, values[output.name], reading)
    _mark_host(graph, values, reading)
    return reading


def _common_batch(inputs: list[FileValue], places: dict[str, int], reading: Reading) -> int | None:
    """The batch of all inputs where it is fixed; None where it is open."""
    shapes = [(spec.shape, places[spec.name]) for spec in inputs]
    fixed = {shape[place] for shape, place in shapes if shape and place < len(shape)} - {None}
    if len(fixed) > 1:
        names = ", ".join(spec.name for spec in inputs)
        reading.problems.append(
            Problem(
                "input", names, "", f"have different batch dimensions {sorted(map(str, fixed))}"
            )
        )
    return next(iter(fixed)) if len(fixed) == 1 else None


def _read_lengths(spec: FileValue, reading: Reading) -> Lengths | Unknown:
    reason = ""
    if spec.dtype not in ("int32", "int64") or spec.shape is None or len(spec.shape) != 1:
        reason = f"is {spec.dtype} {spec.shape}, must be integers (batch,): steps of each sample"
    elif reading.lengths:
        reason = f"says how many steps samples have, and so does {reading.lengths!r}"
    if reason:
        reading.problems.append(Problem("input", spec.name, "", reason))
        return Unknown(f"input {spec.name!r}")
    reading.lengths = spec.name
    return Lengths(spec.name)


def _read_input(spec: FileValue, batch: int, reading: Reading) -> Value | Unknown:
    reason = ""
    shape = [] if spec.shape is None else [d for i, d in enumerate(spec.shape) if i != batch]
    if spec.dtype not in _INPUT_TYPES:
        reason = f"is {spec.dtype}, must be one of {', '.join(_INPUT_TYPES)}"
    elif spec.shape is None or any(d is None for d in shape):
        reason = (
            "has no fixed shape; every dimension but the first, the batch, must be a number "
            "(onnx.tools.update_model_dims sets them)"
        )
    elif len(spec.shape) < 2:
        reason = f"has {len(spec.shape)} dimension(s); the first must be the batch, then features"
    elif any(d < 1 for d in shape if d is not None):
        reason = f"has shape {spec.shape} with an empty dimension"
    else:
        try:
            check_size(tuple(d for d in shape if d is not None))
        except UnsupportedNode as error:
            reason = str(error)
    if reason:
        reading.problems.append(Problem("input", spec.name, "", reason))
        return Unknown(f"input {spec.name!r}")
    sizes = tuple(d for d in shape if d is not None)
    base = ModelInput(spec.name, spec.dtype, sizes, sizes, batch=batch)
    value = Value(base, (), sizes, spec.dtype, batch=batch)
    reading.inputs[spec.name] = value
    reading.names[(value.base, ())] = spec.name
    return value


def live_nodes(graph: FileGraph) -> set[int]:
    """The nodes, by index, that an output needs."""
    wanted = {output.name for output in graph.outputs}
    live = set()
    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        if wanted.intersection(node.outputs):
            live.add(index)
            wanted.update(node.inputs)
    return live


def _read_node(
    graph: FileGraph,
    context: Context,
    node: FileNode,
    values: dict[str, Result],
    reading: Reading,
) -> Sequence[Result]:
    """The node's outputs, and its verdict into `reading`."""
    runs, reason = UNSUPPORTED, ""
    results: Sequence[Result] = ()
    operands = [values[name] if name else None for name in node.inputs]
    unknown = [o for o in operands if isinstance(o, Unknown)]
    known = [o for o in operands if not isinstance(o, Unknown)]
    constants = [o for o in known if not isinstance(o, (Value, Lengths))]
    try:
        table = OPERATOR_TABLES.get(node.domain)
        if table is None:
            raise UnsupportedNode(f"operators of domain {node.domain!r} are not supported")
        if not unknown and len(constants) == len(operands):
            folded = fold_per_batch(node, constants, graph.opset, MOST_FOLDED - reading.folded)
            results = folded
            reading.folded += sum(
                r.each[0].array.size if isinstance(r, PerBatch) else r.array.size for r in folded
            )
            runs, reason = HOST, "constant, computed when the model is read"
        elif node.op not in table:
            named = f"{node.domain}.{node.op}" if table is MICROSOFT else node.op
            raise UnsupportedNode(f"operator {named} is not supported")
        elif any(node.outputs[1:]) and node.op not in SEVERAL_OUTPUTS:
            raise UnsupportedNode("only its first output is supported")
        elif unknown:
            reason = f"not judged: it reads the output of {unknown[0].node}"
        else:
            moved = [o for o in known if isinstance(o, Value) and o.batch]
            if moved and node.op not in BATCH_ANYWHERE:
                raise UnsupportedNode(
                    f"its input is {shown(moved[0])}; with the batch in front it is supported"
                )
            operator, runs, reason = table[node.op]
            made = operator(context, node, known)
            results = [made] if isinstance(made, (Value, Lengths)) else made
            first = results[0]
            if isinstance(first, Value) and isinstance(first.base, ModelInput) and runs == ENGINE:
                runs, reason = HOST, "applied to the model's input"
    except UnsupportedNode as error:
        runs, reason = UNSUPPORTED, str(error)
        reading.problems.append(Problem("node", node.name, node.op, reason))
    reading.checks.append(NodeCheck(node.name, node.op, runs, reason))
    return results or [_stand_in(graph, node.name, name) for name in node.outputs]


def _stand_in(graph: FileGraph, node: str, tensor: str) -> Value | Unknown:
    """What follows an unsupported node reads this, to be judged for itself where possible."""
    inferred = graph.inferred.get(tensor)
    if inferred is None or not inferred.shape:
        return Unknown(f"node {node!r}")
    shape = tuple(d for d in inferred.shape[1:] if d)
    if len(shape) != len(inferred.shape) - 1 or math.prod(shape) > MOST_VALUES:
        return Unknown(f"node {node!r}")
    return Value(Opaque(shape), (), shape, inferred.dtype)


def _read_output(name: str, value: Result, reading: Reading) -> None:
    if isinstance(value, Value) and value.dtype not in _OUTPUT_TYPES:
        reading.problems.append(Problem("output", name, "", f"is {value.dtype}"))
    elif isinstance(value, Value) and not isinstance(value.base, (ModelInput, Padded)):
        reading.outputs[name] = value
    elif not isinstance(value, Unknown):
        reading.problems.append(
            Problem("output", name, "", "does not come from a layer (Gemm, Conv, MaxPool, ...)")
        )


def _mark_host(graph: FileGraph, values: dict[str, Result], reading: Reading) -> None:
    """In an integer model, steps between the last integers and an output are the host's, and all
    from Softmax on."""
    if not reading.quantised:
        return
    shown: set[Key] = set()
    for output in reading.outputs.values():
        steps = output.steps
        while steps and (_on_host(steps) or not isinstance(steps[-1], Quantise)):
            shown.add((output.base, steps))
            steps = steps[:-1]
    needed: set[Key] = set()  # what a layer reads, or is quantised again, is not only shown
    for base, steps in reading.names:
        if steps and isinstance(steps[-1], Quantise) and not _on_host(steps):
            needed |= {(base, steps[:i]) for i in range(len(steps))}
        needed |= {(source.base, source.steps) for source in base.sources}
    for index, (node, check) in enumerate(zip(graph.nodes, reading.checks, strict=True)):
        value = values.get(node.outputs[0]) if node.outputs else None
        if isinstance(value, Value) and check.runs == ENGINE and value.steps:
            key = (value.base, value.steps)
            if key in shown - needed:
                reading.checks[index] = NodeCheck(
                    node.name, node.op, HOST, "applied to the model's output"
                )


def _on_host(steps: tuple[Step, ...]) -> bool:
    return any(isinstance(step, Function) and step.on_host for step in steps)
