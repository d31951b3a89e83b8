# SPDX-License-Identifier: Apache-2.0
"""What a graph with LSTM or GRU says of its inputs: where their batch is, which one has lengths."""

from __future__ import annotations

from .onnx_file import FileGraph, FileNode, FileValue

#: The first input of these has the axes of the output.
_KEEP_AXES = {
    "Add", "Cast", "Clip", "Concat", "DequantizeLinear", "Dropout", "Identity", "MatMul", "Mul",
    "QuantizeLinear", "Relu", "Sigmoid", "Slice", "Split", "Tanh",
}  # fmt: skip
_RECURRENT = {"LSTM", "GRU", "DynamicQuantizeLSTM"}
_LENGTHS = 4  # which input of LSTM and GRU


def is_recurrent(graph: FileGraph) -> bool:
    """Whether steps are those of LSTM or GRU, and no pixels."""
    return any(node.op in _RECURRENT for node in graph.nodes)


def batch_axes(graph: FileGraph) -> dict[str, int]:
    """Which axis of every input is the batch: the one that recurrent layers behind it take for it;
    beside them, of an input that they do not tell of, the only open one; else the first."""
    axes: dict[str, int] = {}
    for node in reversed(graph.nodes):
        if node.op in _RECURRENT:
            of_batch = 0 if node.attributes.get("layout", 0) == 1 else 1
            for index in (0, 5, 6):
                if index < len(node.inputs):
                    axes[node.inputs[index]] = of_batch
            continue
        known = [axes[name] for name in node.outputs if name in axes]
        if known and node.inputs:
            before = _before(node, known[0], graph)
            if before is not None:
                axes[node.inputs[0]] = before
    others = {spec.name: _only_open(spec) if axes else 0 for spec in graph.inputs}
    return {spec.name: axes.get(spec.name, others[spec.name]) for spec in graph.inputs}


def _only_open(spec: FileValue) -> int:
    """The axis that has no number, if there is just one; else the first."""
    places = [i for i, size in enumerate(spec.shape or ()) if size is None]
    return places[0] if len(places) == 1 else 0


def _before(node: FileNode, axis: int, graph: FileGraph) -> int | None:
    """Which axis of a node's first input is `axis` of its output; None where that is not told."""
    if node.op in _KEEP_AXES:
        return axis
    if node.op == "Transpose":
        order = node.attributes.get("perm", [])
        return int(order[axis]) if axis < len(order) else None
    if node.op == "Gather":
        taken = graph.constants.get(node.inputs[1])
        gone = node.attributes.get("axis", 0)
        return None if taken is None or taken.ndim or gone < 0 else axis + (axis >= gone)
    if node.op == "Unsqueeze":
        given = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        added = node.attributes.get("axes", None) if given is None else given.reshape(-1).tolist()
        if added is None or min(added) < 0 or axis in added:
            return None
        return int(axis - sum(place < axis for place in added))
    return None


def length_inputs(graph: FileGraph) -> set[str]:
    """Inputs that recurrent layers read as the steps of each sample."""
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op in _RECURRENT:
            wanted.update(node.inputs[_LENGTHS : _LENGTHS + 1])
        elif node.op in ("Cast", "Identity") and wanted.intersection(node.outputs):
            wanted.update(node.inputs)
    return wanted
