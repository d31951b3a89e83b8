# SPDX-License-Identifier: Apache-2.0
"""Shapes of all tensors of a graph, also where an exporter computes them from the batch.

ONNX's own inference, node by node: so what is computed from shapes is known when the next node asks
for it. An open batch is a number that nothing else is a multiple of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..operators.call import Call
from ..operators.table import refusal, run_operator
from .onnx_file import FileNode, plain_attributes

#: Stands for an open batch.
_BATCH = 1_000_003

#: Elements of what may be a shape or a part of one.
_SMALL = 256

#: Type (ONNX's number) and dimensions.
Known = tuple[int, tuple[int, ...]]


class Shapes:
    """Types and dimensions of all tensors for which they are known."""

    def __init__(self, opset: int, opsets: Any, constants: Mapping[str, NDArray[Any]]) -> None:
        from onnx import helper

        self._opset, self._opsets = opset, opsets
        self._known: dict[str, Known] = {}
        self._values: dict[str, NDArray[Any]] = {}
        for name, array in constants.items():
            self._known[name] = helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            if array.size <= _SMALL:
                self._values[name] = array

    def declare(self, info: Any) -> None:
        """What a file says of a tensor, where nothing else is known of it and all dimensions but
        the first are there."""
        kind = info.type.tensor_type
        if info.name in self._known or not kind.elem_type or not kind.HasField("shape"):
            return
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        if None not in dims[1:]:
            shape = tuple(_BATCH if n is None else n for n in dims)
            self._known[info.name] = kind.elem_type, shape

    def infer(self, nodes: Iterable[FileNode], declared: Mapping[str, Any]) -> None:
        """Go through nodes in an order in which they can run; `declared` are the file's words on
        tensors, for operators that ONNX does not know."""
        for node in nodes:
            self._outputs(node)
            for name in node.outputs:
                if name in declared:
                    self.declare(declared[name])
            self._computed(node)

    def known(self, name: str) -> tuple[int, tuple[int | None, ...]] | None:
        """ONNX's type and the dimensions, None for an open batch or a multiple of it."""
        if name not in self._known:
            return None
        kind, shape = self._known[name]
        return kind, tuple(None if n and n % _BATCH == 0 else n for n in shape)

    def of_one(self, name: str) -> tuple[int, ...] | None:
        """The dimensions for a batch of one, where the batch is open."""
        if name not in self._known:
            return None
        return tuple(n // _BATCH if n and n % _BATCH == 0 else n for n in self._known[name][1])

    def _outputs(self, node: FileNode) -> None:
        import onnx
        from onnx import helper

        if node.op == "Constant":
            self._constant(node)
            return
        given = [name for name in dict.fromkeys(node.inputs) if name]
        if any(name not in self._known for name in given):
            return
        graph = helper.make_graph(
            [node.proto],
            "node",
            [
                helper.make_tensor_value_info(name, *self._known[name])
                for name in given
                if name not in self._values
            ],
            [helper.make_empty_tensor_value_info(name) for name in node.outputs if name],
            [
                onnx.numpy_helper.from_array(self._values[name], name)
                for name in given
                if name in self._values
            ],
        )
        model = helper.make_model(graph, opset_imports=self._opsets)
        try:
            made = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
        except Exception:  # the reader checks every shape it relies on by itself
            return
        for info in made:
            kind = info.type.tensor_type
            if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
                self._known[info.name] = kind.elem_type, tuple(d.dim_value for d in kind.shape.dim)

    def _constant(self, node: FileNode) -> None:
        from onnx import helper

        array = run_operator(node.name, node.op, Call(1, plain_attributes(node)), [])[0]
        if array.dtype.kind not in "biuf":  # text, or a sparse tensor
            return
        self._known[node.outputs[0]] = helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        if array.size <= _SMALL:
            self._values[node.outputs[0]] = array

    def _computed(self, node: FileNode) -> None:
        """The values of a node on shapes."""
        if node.op == "Shape" and node.inputs[0] in self._known:
            shape = np.array(self._known[node.inputs[0]][1], np.int64)
            start, end = node.attributes.get("start", 0), node.attributes.get("end")
            self._values[node.outputs[0]] = shape[start:end]
            return
        known = [self._known.get(name) for name in node.outputs if name]
        small = all(k is not None and prod(k[1]) <= _SMALL for k in known)
        values = [self._values.get(name) for name in node.inputs]
        if not small or any(v is None for v, name in zip(values, node.inputs, strict=True) if name):
            return
        attributes = plain_attributes(node)
        if refusal(node.op, node.domain, attributes, len(node.outputs)) or not values:
            return
        call = Call(self._opset, attributes, len(node.outputs))
        try:
            results = run_operator("", node.op, call, values)
        except InputError:
            return
        self._values.update(zip(node.outputs, results, strict=False))
