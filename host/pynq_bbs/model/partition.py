# SPDX-License-Identifier: Apache-2.0
"""A model that the engine cannot run alone, cut into programs and nodes of the host.

What the engine's reader takes goes into programs; a node that it refuses there is the host's, and
so is what then computes no product. That is asked again until nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
from .onnx_functions import FUNCTIONS
from .onnx_import import lower
from .onnx_operators import HOST
from .onnx_reader import UNSUPPORTED, NodeCheck, Problem, Reading, read_values
from .onnx_segments import Part, Segments
from .onnx_values import UnsupportedNode

if TYPE_CHECKING:
    from onnx import ModelProto

_NO_PRODUCTS = "computes no products, so that a program of its own would not pay"


_ADVICE = "Change or remove them."


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
        only, shown = found.stages[0], {spec.name for spec in found.outputs}
        if isinstance(only, Part) and not only.folded and shown == set(only.outputs):
            return only.model, found.checks
    return found, found.checks


class _Cut:
    def __init__(self, graph: FileGraph) -> None:
        self.facts = Facts(graph)
        self.host: dict[int, str] = {}  # why a computed node is the host's
        self.segments = Segments(self.facts)
        for index in self.facts.nodes:
            if self.facts.is_computed(index):
                reason = refused_at_once(self.facts, index)
                if reason:
                    self.host[index] = reason

    def run(self) -> Partition:
        self._check_inputs()
        while True:
            found, levels = self._groups()
            outputs = self.segments.outputs(found, self.host)
            refused: dict[int, str] = {}
            for group in found:
                refused.update(self.segments.read(group, outputs[group]).refused)
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
            if node.op in FUNCTIONS and not inside.intersection(group.nodes):
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
        if not self.facts.graph.inputs:
            problems.append(Problem("model", self.facts.graph.name, "", "has no input"))
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

    def _partition(
        self, found: list[Group], levels: dict[int, int], outputs: dict[Group, tuple[str, ...]]
    ) -> Partition:
        facts, graph = self.facts, self.facts.graph
        constants: dict[str, NDArray[Any]] = {}
        problems: list[Problem] = []
        placed: list[tuple[int, int, Part | HostNode]] = []
        for group in found:
            part = self.segments.read(group, outputs[group]).part
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
            [self._output(spec.name, constants) for spec in graph.outputs],
            [stage for _, _, stage in placed],
            constants,
            self._checks(placed, problems),
            problems,
        )

    def _output(self, name: str, constants: dict[str, NDArray[Any]]) -> FileValue:
        if name in constants:
            return FileValue(name, str(constants[name].dtype), constants[name].shape)
        return self.facts.spec(name)

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
        others = [
            NodeCheck(f"{problem.kind} {problem.name!r}", "", UNSUPPORTED, problem.reason)
            for problem in problems
            if problem.kind != "node"
        ]
        return others + [
            verdicts.get(node.name)
            or NodeCheck(node.name, node.op, HOST, constant if i in self.facts.nodes else unused)
            for i, node in enumerate(self.facts.graph.nodes)
        ]
