# SPDX-License-Identifier: Apache-2.0
"""What is known of an ONNX graph before any of it is read: shapes, readers, constants, MACs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..operators.call import Call
from ..operators.shapes import DTYPES
from ..operators.table import refusal, run_operator
from .onnx_constants import MOST_FOLDED, fold
from .onnx_file import FileGraph, FileValue, Shape, plain_attributes
from .onnx_reader import live_nodes
from .onnx_values import Constant, UnsupportedNode

#: Operators of products: which input has the weights, or whatever else meets the first one.
_WEIGHTS = {
    "Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "QGemm": 3,
    "Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1,
}  # fmt: skip


class Facts:
    """A graph, its live nodes by index, and what follows from them without running anything."""

    def __init__(self, graph: FileGraph) -> None:
        self.graph = graph
        self.nodes = {i: graph.nodes[i] for i in sorted(live_nodes(graph))}
        self.computed = {spec.name for spec in graph.inputs}
        self.producer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = defaultdict(list)
        self._inputs = {spec.name: spec for spec in graph.inputs}
        self._values: dict[str, Constant] = {n: Constant(a) for n, a in graph.constants.items()}
        for index, node in self.nodes.items():
            for name in filter(None, node.outputs):
                self.producer[name] = index
            for name in filter(None, node.inputs):
                self.readers[name].append(index)
            if self.computed.intersection(node.inputs):
                self.computed.update(filter(None, node.outputs))

    @cached_property
    def shown(self) -> set[str]:
        """The graph's outputs."""
        return {spec.name for spec in self.graph.outputs}

    def is_computed(self, index: int) -> bool:
        """Whether a node depends on an input of the model."""
        return bool(self.reads(index))

    def reads(self, index: int) -> list[str]:
        """The tensors that a node reads and that depend on an input of the model."""
        return [name for name in self.nodes[index].inputs if name in self.computed]

    def spec(self, name: str) -> FileValue:
        """Type and shape of a computed tensor, as far as they are known."""
        known = self._inputs.get(name) or self.graph.inferred.get(name)
        return known or FileValue(name, "", None)

    def shape(self, name: str) -> Shape | None:
        """The shape of any tensor; None where nothing is known."""
        if name in self.graph.constants:
            return self.graph.constants[name].shape
        return self.spec(name).shape

    def constant(self, name: str) -> NDArray[Any]:
        """The value of a tensor that depends on no input of the model.

        Raises:
            UnsupportedNode: an operator that is not computed when a model is read.
        """
        array = self._constant(name).value
        if str(array.dtype) in DTYPES.values():
            return array
        narrow = {"int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}
        if str(array.dtype) in narrow:
            return array.astype(narrow[str(array.dtype)])
        raise UnsupportedNode(f"reads {array.dtype}, which numpy has not")

    def _constant(self, name: str) -> Constant:
        if name not in self._values:
            node = self.nodes[self.producer[name]]
            inputs = [self._constant(read) if read else None for read in node.inputs]
            attributes = plain_attributes(node)
            if refusal(node.op, node.domain, attributes):
                results = fold(node, inputs, self.graph.opset, MOST_FOLDED)
            else:
                arrays = [None if x is None else x.value for x in inputs]
                call = Call(self.graph.opset, attributes, len(node.outputs))
                results = [Constant(y) for y in run_operator(node.name, node.op, call, arrays)]
            self._values.update(zip(node.outputs, results, strict=False))
        return self._values[name]

    def is_product(self, index: int) -> bool:
        """Whether a node multiplies matrices or convolves."""
        return self.nodes[index].op in _WEIGHTS

    def of_one(self, name: str) -> tuple[int, ...] | None:
        """The shape of any tensor for a batch of one, where the batch is open."""
        if name in self.graph.constants:
            return self.graph.constants[name].shape
        return self.graph.of_one.get(name)

    def macs(self, index: int) -> int | None:
        """Products of a node, for a batch of one where the batch is open; None where its shapes are
        not known."""
        node = self.nodes[index]
        at = _WEIGHTS.get(node.op)
        if at is None:
            return 0
        if at >= len(node.inputs):
            return None
        names = (node.inputs[at], node.outputs[0], node.inputs[0])
        weights, result, given = (self.of_one(name) for name in names)
        if weights is None or result is None or given is None or len(weights) < 2:
            return None
        if node.op == "ConvTranspose":
            return prod(given) * prod(weights[1:])
        if "Conv" in node.op:
            return prod(result) * prod(weights[1:])
        transposed = node.op in ("Gemm", "QGemm") and node.attributes.get("transB", 0)
        return prod(result) * weights[-1 if transposed else -2]


def simplified(graph: FileGraph) -> FileGraph:
    """The same graph with the shapes that exporters compute from an open batch as constants.

    A Reshape all of whose result's dimensions but the first are known takes (-1, *those).
    """
    constants, nodes = dict(graph.constants), []
    computed = {spec.name for spec in graph.inputs}
    for node in graph.nodes:
        if computed.intersection(node.inputs):
            computed.update(node.outputs)
        if node.op == "Reshape" and len(node.inputs) > 1 and node.inputs[1] in computed:
            result = graph.inferred.get(node.outputs[0])
            known = result.shape[1:] if result is not None and result.shape else (None,)
            if None not in known and 0 not in known:
                name = f"{node.outputs[0]}\0shape"
                constants[name] = np.array([-1, *(n or 1 for n in known)], np.int64)
                node = replace(node, inputs=[node.inputs[0], name])
        nodes.append(node)
    return replace(graph, nodes=nodes, constants=constants)
