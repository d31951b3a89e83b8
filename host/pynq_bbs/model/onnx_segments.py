# SPDX-License-Identifier: Apache-2.0
"""A group of nodes as a model of its own: what it reads and makes, and what stands in its way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod

from ..errors import UnsupportedModelError
from .graph import Model, QuantModel
from .onnx_cut import Group
from .onnx_facts import Facts
from .onnx_file import FileGraph, FileValue
from .onnx_import import lower
from .onnx_reader import NodeCheck, Problem, read_values


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
        return tuple(dict.fromkeys(spec.name for spec in self.model.outputs))


@dataclass
class ReadGroup:
    """A group as it was read: a part of the model, or the nodes that stand in its way, by index."""

    part: Part | None
    refused: dict[int, str]


class Segments:
    """The groups of a graph, each read once."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._read: dict[tuple[Group, tuple[str, ...]], ReadGroup] = {}

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

    def inputs(self, group: Group) -> list[str]:
        """What a group needs of others."""
        nodes = self._nodes(group)
        made = {name for index in nodes for name in self.facts.nodes[index].outputs}
        reads = [name for index in nodes for name in self.facts.reads(index)]
        return [name for name in dict.fromkeys(reads) if name not in made]

    def outputs(self, found: list[Group], host: Iterable[int]) -> dict[Group, tuple[str, ...]]:
        """What others need of what each group makes."""
        needed = set(self.facts.shown)
        for index in host:
            needed.update(self.facts.reads(index))
        for group in found:
            needed.update(self.inputs(group))
        made = {
            group: [n for index in group.nodes for n in self.facts.nodes[index].outputs if n]
            for group in found
        }
        return {group: tuple(n for n in names if n in needed) for group, names in made.items()}

    def read(self, group: Group, outputs: tuple[str, ...]) -> ReadGroup:
        """A group as a part, or its nodes that the engine's reader refuses there."""
        key = (group, outputs)
        if key not in self._read:
            self._read[key] = self._read_group(group, outputs)
        return self._read[key]

    def _read_group(self, group: Group, outputs: tuple[str, ...]) -> ReadGroup:
        reading = read_values(self._graph(group, outputs))
        if not reading.problems:
            try:
                places = self._places(group)
                return ReadGroup(Part(lower(reading), group.folded, places, reading.checks), {})
            except UnsupportedModelError:  # says the same as the problems
                pass
        refused: dict[int, str] = {}
        for problem in reading.problems:
            for index in self._blamed(group, problem):
                refused.setdefault(index, problem.reason)
        return ReadGroup(None, refused or dict.fromkeys(group.nodes, "cannot be read"))

    def _places(self, group: Group) -> int:
        shape = self.facts.of_one(self.inputs(group)[0]) or ()
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
            inputs=[seen(name) for name in self.inputs(group)],
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
