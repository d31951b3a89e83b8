# SPDX-License-Identifier: Apache-2.0
"""A model that the engine cannot run alone, cut into programs and nodes of the host.

What the engine's reader takes goes into programs; a node that it refuses there is the host's, and
so is what then computes no product. That is asked again until nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnsupportedModelError
from ..operators.call import Call
from ..operators.node import HostNode
from ..operators.shapes import DTYPES
from ..operators.table import refusal
from .graph import Model, QuantModel
from .onnx_cut import Group, folds, groups, refused_at_once
from .onnx_facts import Facts, simplified
from .onnx_file import FileGraph, FileValue, plain_attributes, read_graph
from .onnx_import import lower
from .onnx_operators import HOST
from .onnx_reader import UNSUPPORTED, NodeCheck, Problem, Reading, read_values
from .onnx_values import UnsupportedNode

if TYPE_CHECKING:
    from onnx import ModelProto

_NO_PRODUCTS = "computes no products, so that a program of its own would not pay"


_ADVICE = "Change or remove them."

#: Part of the layer before them.
_FUNCTIONS = {"Relu", "Clip", "Sigmoid", "Tanh"}


@dataclass
class Part:
    """Nodes that one program runs; its inputs and outputs have the names of the graph's tensors.

    Of those tensors as many dimensions as `folded` stand behind the first, and each place is a
    sample; of a sample of the whole model there are so many `places`.
    """

    model: Model | QuantModel
    folded: int
    places: int
    checks: list[NodeCheck] = field(repr=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(spec.name for spec in self.model.inputs))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.model.outputs)


@dataclass
class Partition:
    """Parts and nodes of the host in an order in which they can run, on tensors by name."""

    name: str
    inputs: list[FileValue]
    outputs: list[FileValue]
    stages: list[Part | HostNode]
    constants: dict[str, NDArray[Any]] = field(repr=False)
    checks: list[NodeCheck] = field(repr=False)
    problems: list[Problem] = field(default_factory=list, repr=False)

    @property
    def is_float(self) -> bool:
        """Whether some part is float, so that its scales have to be chosen."""
        return any(isinstance(s, Part) and isinstance(s.model, Model) for s in self.stages)

    @property
    def batch(self) -> int | None:
        """The first dimension of the inputs, where the file fixes it."""
        return self.inputs[0].shape[0] if self.inputs[0].shape else None


def read_model(
    source: str | PathLike[str] | bytes | ModelProto,
) -> Model | QuantModel | Partition:
    """What `load_onnx` returns where one program can run all of the model, else its partition.

    Raises:
        ModelError: missing, damaged or invalid file.
        UnsupportedModelError: valid, but with nodes that neither engine nor host can run; all are
            listed at once, in the message and in the error's `nodes`.
    """
    found, _ = read_and_check(source)
    if isinstance(found, Partition):
        Reading(found.name, problems=found.problems).refuse(_ADVICE)
    return found


def read_and_check(
    source: str | PathLike[str] | bytes | ModelProto,
) -> tuple[Model | QuantModel | Partition, list[NodeCheck]]:
    """What `read_model` returns, or a partition with problems; and the verdict on every node.

    Raises:
        ModelError: missing, damaged or invalid file.
        UnsupportedModelError: inputs that are no numbers, or of open shapes.
    """
    graph = read_graph(source)
    reading = read_values(graph)
    if not reading.problems:
        try:
            model = lower(reading)
            if model.layers:  # else there is nothing for the engine to compute
                return model, reading.checks
        except UnsupportedModelError:
            pass
    found = _Cut(simplified(graph)).run()
    if len(found.stages) == 1 and not found.problems:
        only = found.stages[0]
        if isinstance(only, Part) and not only.folded:
            return only.model, found.checks
    return found, found.checks


@dataclass
class _Segment:
    """A group as it was read: a part of the model, or the nodes that stand in its way, by index."""

    part: Part | None
    refused: dict[int, str]


class _Cut:
    def __init__(self, graph: FileGraph) -> None:
        self.facts = Facts(graph)
        self.host: dict[int, str] = {}  # why a computed node is the host's
        self._read: dict[tuple[Group, tuple[str, ...]], _Segment] = {}
        for index in self.facts.nodes:
            if self.facts.is_computed(index):
                reason = refused_at_once(self.facts, index)
                if reason:
                    self.host[index] = reason

    def run(self) -> Partition:
        self._check_inputs()
        while True:
            found, levels = self._groups()
            outputs = self._outputs(found)
            refused: dict[int, str] = {}
            for group in found:
                refused.update(self._segment(group, outputs[group]).refused)
                refused.update(self._beside_their_operands(group, outputs[group]))
            if not refused:
                return self._partition(found, levels, outputs)
            self.host.update(refused)

    def _beside_their_operands(self, group: Group, outputs: tuple[str, ...]) -> dict[int, str]:
        """Functions at the end of a group whose operand leaves it too: the group would compute that
        twice, once for each."""
        found = {}
        for index in group.nodes:
            node = self.facts.nodes[index]
            inside = {i for name in node.outputs for i in self.facts.readers[name]}
            if node.op in _FUNCTIONS and not inside.intersection(group.nodes):
                if set(outputs).intersection(self.facts.reads(index)):
                    found[index] = "its operand is needed on the host, so this is done there too"
        return found

    def _check_inputs(self) -> None:
        problems = []
        for spec in self.facts.graph.inputs:
            open_ = spec.shape is None or not spec.shape or None in spec.shape[1:]
            if open_ or spec.dtype not in DTYPES.values():
                reason = (
                    f"is {spec.dtype} of shape {spec.shape}; it must be numbers, and every "
                    "dimension but the first, the batch, known (onnx.tools.update_model_dims "
                    "sets them)"
                )
                problems.append(Problem("input", spec.name, "", reason))
        if len({spec.shape[0] for spec in self.facts.graph.inputs if spec.shape}) > 1:
            names = ", ".join(spec.name for spec in self.facts.graph.inputs)
            problems.append(Problem("input", names, "", "have different batch dimensions"))
        Reading(self.facts.graph.name, problems=problems).refuse(_ADVICE)

    def _groups(self) -> tuple[list[Group], dict[int, int]]:
        """Those that have products, or what the host cannot do; all other nodes go to the host."""
        while True:
            mine = {i for i in self.facts.nodes if self.facts.is_computed(i)} - set(self.host)
            found, levels = groups(self.facts, folds(self.facts, mine))
            small = [
                index
                for group in found
                if not any(self.facts.is_product(i) or self._host_refuses(i) for i in group.nodes)
                for index in group.nodes
            ]
            if not small:
                return found, levels
            self.host.update(dict.fromkeys(small, _NO_PRODUCTS))

    def _host_refuses(self, index: int) -> str:
        node = self.facts.nodes[index]
        attributes = plain_attributes(node)
        if any(not isinstance(v, (int, float, str, list, np.ndarray)) for v in attributes.values()):
            return "it has an attribute that is neither numbers nor text"
        return refusal(node.op, node.domain, attributes, len(node.outputs))

    def _nodes(self, group: Group) -> list[int]:
        """The group, DequantizeLinear of what it reads, and all that its constants come from.

        So that no operator loses the scale of its operands, whoever else reads them.
        """
        facts, found = self.facts, set(group.nodes)
        waiting = list(group.nodes)
        while waiting:
            for name in filter(None, facts.nodes[waiting.pop()].inputs):
                other = facts.producer.get(name)
                if other is None or other in found:
                    continue
                scales = facts.nodes[other].op == "DequantizeLinear"
                if name not in facts.computed or scales:
                    found.add(other)
                    waiting.append(other)
        return sorted(found)

    def _inputs(self, group: Group) -> list[str]:
        nodes = self._nodes(group)
        made = {name for index in nodes for name in self.facts.nodes[index].outputs}
        reads = [name for index in nodes for name in self.facts.reads(index)]
        return [name for name in dict.fromkeys(reads) if name not in made]

    def _outputs(self, found: list[Group]) -> dict[Group, tuple[str, ...]]:
        """What others need of what each group makes."""
        needed = set(self.facts.shown)
        for index in self.host:
            needed.update(self.facts.reads(index))
        for group in found:
            needed.update(self._inputs(group))
        made = {
            group: [n for index in group.nodes for n in self.facts.nodes[index].outputs if n]
            for group in found
        }
        return {group: tuple(n for n in names if n in needed) for group, names in made.items()}

    def _segment(self, group: Group, outputs: tuple[str, ...]) -> _Segment:
        key = (group, outputs)
        if key not in self._read:
            self._read[key] = self._read_segment(group, outputs)
        return self._read[key]

    def _read_segment(self, group: Group, outputs: tuple[str, ...]) -> _Segment:
        reading = read_values(self._graph(group, outputs))
        if not reading.problems:
            try:
                places = self._places(group)
                return _Segment(Part(lower(reading), group.folded, places, reading.checks), {})
            except UnsupportedModelError:  # says the same as the problems
                pass
        refused: dict[int, str] = {}
        for problem in reading.problems:
            for index in self._blamed(group, problem):
                refused.setdefault(index, problem.reason)
        return _Segment(None, refused or dict.fromkeys(group.nodes, "cannot be read"))

    def _places(self, group: Group) -> int:
        shape = self.facts.of_one(self._inputs(group)[0]) or ()
        batch = self.facts.graph.inputs[0].shape or (1,)
        return max(prod(shape[: 1 + group.folded]) // (batch[0] or 1), 1)

    def _graph(self, group: Group, outputs: tuple[str, ...]) -> FileGraph:
        """The group as a graph of its own, its tensors as the program sees them."""
        graph = self.facts.graph
        nodes = [self.facts.nodes[index] for index in self._nodes(group)]

        def seen(name: str) -> FileValue:
            spec = self.facts.spec(name)
            if not group.folded or spec.shape is None:
                return spec
            return replace(spec, shape=(None, *spec.shape[1 + group.folded :]))

        inferred = {name: seen(name) for node in nodes for name in node.outputs if name}
        return replace(
            graph,
            inputs=[seen(name) for name in self._inputs(group)],
            outputs=[seen(name) for name in outputs],
            nodes=nodes,
            inferred=inferred,
        )

    def _blamed(self, group: Group, problem: Problem) -> list[int]:
        """The nodes that a problem sends to the host."""
        nodes = self.facts.nodes
        if problem.kind == "input":
            names = problem.name.split(", ")
            return [i for i in group.nodes if set(names).intersection(nodes[i].inputs)]
        if problem.kind == "output":
            return [i for i in group.nodes if problem.name in nodes[i].outputs]
        found: list[int] = []
        for index in group.nodes:
            if nodes[index].name == problem.name:
                found += self._in_its_way(group, index) or [index]
        return found

    def _in_its_way(self, group: Group, index: int) -> list[int]:
        """Nodes without products right before one with products that the engine takes alone."""
        if not self.facts.is_product(index):
            return []
        alone = Group((index,), group.folded)
        outputs = tuple(filter(None, self.facts.nodes[index].outputs))
        if read_values(self._graph(alone, outputs)).problems:
            return []
        before = {self.facts.producer.get(name) for name in self.facts.reads(index)}
        return [i for i in group.nodes if i in before and not self.facts.is_product(i)]

    def _partition(
        self, found: list[Group], levels: dict[int, int], outputs: dict[Group, tuple[str, ...]]
    ) -> Partition:
        facts, graph = self.facts, self.facts.graph
        constants: dict[str, NDArray[Any]] = {}
        problems: list[Problem] = []
        placed: list[tuple[int, int, Part | HostNode]] = []
        for group in found:
            part = self._segment(group, outputs[group]).part
            assert part is not None
            placed.append((levels[group.nodes[0]], group.nodes[0], part))
        for index, why in self.host.items():
            node, reason = facts.nodes[index], self._host_refuses(index)
            try:
                if reason:
                    raise UnsupportedNode(reason)
                placed.append((levels[index], index, self._host_node(index, constants)))
            except (UnsupportedNode, InputError) as error:
                reason = f"engine: {why}; host: {error}"
                problems.append(Problem("node", node.name, node.op, reason))
        for name in facts.shown - facts.computed:
            try:
                constants[name] = facts.constant(name)
            except (UnsupportedNode, InputError) as error:
                problems.append(Problem("output", name, "", str(error)))
        placed.sort(key=lambda item: item[:2])
        return Partition(
            graph.name,
            graph.inputs,
            [facts.spec(spec.name) for spec in graph.outputs],
            [stage for _, _, stage in placed],
            constants,
            self._checks(placed, problems),
            problems,
        )

    def _host_node(self, index: int, constants: dict[str, NDArray[Any]]) -> HostNode:
        """A node for the host; the constants that it reads are added to `constants`."""
        node = self.facts.nodes[index]
        for name in filter(None, node.inputs):
            if name not in self.facts.computed and name not in constants:
                constants[name] = self.facts.constant(name)
        call = Call(self.facts.graph.opset, plain_attributes(node), len(node.outputs))
        return HostNode(node.name, node.op, tuple(node.inputs), tuple(node.outputs), call)

    def _checks(
        self, placed: list[tuple[int, int, Part | HostNode]], problems: list[Problem]
    ) -> list[NodeCheck]:
        """The verdict on every node, in the file's order."""
        verdicts: dict[str, NodeCheck] = {}
        for _, _, stage in placed:
            if isinstance(stage, Part):
                verdicts.update({check.name: check for check in stage.checks})
        for index, why in self.host.items():
            node = self.facts.nodes[index]
            verdicts[node.name] = NodeCheck(node.name, node.op, HOST, why)
        for problem in problems:
            verdicts[problem.name] = NodeCheck(
                problem.name, problem.op, UNSUPPORTED, problem.reason
            )
        constant, unused = "constant, computed when the model is read", "unused: no output needs it"
        return [
            verdicts.get(node.name)
            or NodeCheck(node.name, node.op, HOST, constant if i in self.facts.nodes else unused)
            for i, node in enumerate(self.facts.graph.nodes)
        ]
