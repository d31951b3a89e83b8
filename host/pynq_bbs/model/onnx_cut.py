# SPDX-License-Identifier: Apache-2.0
"""Where to cut a graph: which nodes a program runs together, as few programs as needed.

Nodes of one kind (the host's, or the engine's that fold the same dimensions into the batch) have a
level: how often the kind changes on the longest path that ends there. The engine's nodes of a level
that hang together are a group. No path leaves a group and comes back, for it would change the kind
and so the level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .onnx_facts import Facts
from .onnx_functions import FUNCTIONS
from .onnx_reader import OPERATOR_TABLES

#: These work on each place for itself, so that places can be samples.
_PLACEWISE = FUNCTIONS | {
    "Add", "Sub", "Mul", "Div", "QuantizeLinear", "DequantizeLinear", "Identity", "Dropout", "Cast",
}  # fmt: skip

#: The engine's reader takes them at outputs only, and then on the host.
_HOST_ONLY = {"Softmax"}


@dataclass(frozen=True)
class Group:
    """Nodes, by index, that a program runs; it takes `folded` dimensions behind the first one as
    part of the batch."""

    nodes: tuple[int, ...]
    folded: int


def refused_at_once(facts: Facts, index: int) -> str:
    """Why a node is the host's whatever stands beside it; empty where it may be the engine's."""
    node = facts.nodes[index]
    if node.op in _HOST_ONLY:
        return "depends on all values of a row"
    if node.op not in OPERATOR_TABLES.get(node.domain, {}):
        return f"the engine has no {node.op}"
    if not all(facts.of_one(name) for name in facts.reads(index)):
        return "the shape of what it reads is not known before it runs, or empty"
    if len({_leading(facts, name, 1) for name in facts.reads(index)}) > 1:
        return "what it reads has different first dimensions"
    return ""


def folds(facts: Facts, nodes: set[int]) -> dict[int, int]:
    """How many dimensions each of the engine's nodes folds: products of tokens by a matrix all
    between the first and the last; what works place by place the same as the products beside it."""
    chosen: dict[int, int] = {}
    for index in sorted(nodes):
        if facts.is_product(index):
            chosen[index] = _of_product(facts, index)
    # Behind a product first, then before one.
    for order, links in ((sorted(nodes), _before), (sorted(nodes, reverse=True), _behind)):
        for index in order:
            for other in links(facts, index):
                if index not in chosen and other in chosen and other in nodes:
                    if _fits(facts, index, chosen[other]):
                        chosen[index] = chosen[other]
    return {index: chosen.get(index, 0) for index in nodes}


def _before(facts: Facts, index: int) -> list[int]:
    made = [facts.producer.get(name) for name in facts.reads(index)]
    return [other for other in made if other is not None]


def _behind(facts: Facts, index: int) -> list[int]:
    return [reader for name in facts.nodes[index].outputs for reader in facts.readers[name]]


def _of_product(facts: Facts, index: int) -> int:
    node = facts.nodes[index]
    at = 3 if node.op == "QLinearMatMul" else 1
    if "MatMul" not in node.op or node.inputs[at] in facts.computed:
        return 0
    given, weights = facts.shape(node.inputs[0]), facts.shape(node.inputs[at])
    if given is None or weights is None or len(weights) != 2 or len(given) < 3:
        return 0
    return len(given) - 2


def _fits(facts: Facts, index: int, folded: int) -> bool:
    node = facts.nodes[index]
    if not folded:
        return True
    names = (*facts.reads(index), *node.outputs)
    ranks = {len(facts.shape(name) or ()) for name in names}
    same = len({_leading(facts, name, 1 + folded) for name in names}) == 1
    return node.op in _PLACEWISE and ranks == {folded + 2} and same


def _leading(facts: Facts, name: str, count: int) -> tuple[object, ...]:
    """The first dimensions as they are and for a batch of one: an open batch is not a 1, nor are
    twice as many samples."""
    return (facts.shape(name) or ())[:count], (facts.of_one(name) or ())[:count]


def groups(facts: Facts, engine: Mapping[int, int]) -> tuple[list[Group], dict[int, int]]:
    """The groups of the `engine`'s nodes, and the level of every computed node."""
    levels: dict[int, int] = {}
    roots: dict[int, int] = {}  # of nodes that hang together, one stands for all

    def root(index: int) -> int:
        while roots[index] != index:
            index = roots[index]
        return index

    first_reader: dict[tuple[str, int, int], int] = {}
    for index in facts.nodes:
        if not facts.is_computed(index):
            continue
        kind, level = engine.get(index), 0
        before = _before(facts, index)
        for other in before:
            level = max(level, levels[other] + (engine.get(other) != kind))
        levels[index] = level
        if kind is None:
            continue
        roots[index] = index
        for other in before:
            if engine.get(other) == kind and levels[other] == level:
                roots[root(index)] = root(other)
        for name in facts.reads(index):  # what reads the same tensor hangs together too
            other = first_reader.setdefault((name, kind, level), index)
            roots[root(index)] = root(other)
    members: dict[int, list[int]] = {}
    for index in roots:
        members.setdefault(root(index), []).append(index)
    return [Group(tuple(found), engine[found[0]]) for found in members.values()], levels
