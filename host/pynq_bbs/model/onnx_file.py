# SPDX-License-Identifier: Apache-2.0
"""ONNX files: read, checked, sorted; everything damaged is refused here with a named cause.

Needs onnx, which is imported when a function is called: boards have none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .onnx_qonnx import converted

#: Operators are defined here as they are from this version of the ONNX operator set on.
MIN_OPSET = 7

#: A file's size, as protobuf limits it; and that of an element of a tensor, a complex number.
_MOST_BYTES, _MOST_ITEM = 1 << 31, 16

#: Shape with None for every dimension that the file leaves open; None where nothing is known.
Shape = tuple["int | None", ...]


@dataclass
class FileNode:
    """One node, with its attributes as Python values."""

    name: str
    op: str
    domain: str
    inputs: list[str]  # "" where an optional input is absent
    outputs: list[str]
    attributes: dict[str, Any]
    proto: Any


@dataclass
class FileValue:
    """A graph input or output."""

    name: str
    dtype: str  # numpy's name, or ONNX's where numpy has none
    shape: Shape | None


@dataclass
class FileGraph:
    """A valid graph whose nodes are in an order in which they can run."""

    name: str
    opset: int
    inputs: list[FileValue]
    outputs: list[FileValue]
    nodes: list[FileNode]
    constants: dict[str, NDArray[Any]]
    inferred: dict[str, FileValue] = field(default_factory=dict)  # of computed tensors
    #: their dimensions for a batch of one, where the batch is open
    of_one: dict[str, tuple[int, ...]] = field(default_factory=dict)


def read_graph(source: Any) -> FileGraph:
    """The graph in an ONNX file, bytes of one, or an `onnx.ModelProto`.

    Raises:
        ModelError: onnx is not installed, the file is missing or not ONNX, weights lie in a file
            that is missing or outside the model's folder, names are used twice or never
            defined, nodes form a cycle, or `onnx.checker` refuses the model.
    """
    try:
        import onnx
    except ImportError:
        raise ModelError(
            "reading ONNX models needs the onnx package: pip install 'pynq-bbs[onnx]'."
        ) from None
    model, folder = _parse(onnx, source)
    _load_external(onnx, model, folder)
    _sort(model.graph)
    _check(onnx, model)
    plain = converted(model)
    if plain is not model:
        model = plain
        _sort(model.graph)
        _check(onnx, model)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise ModelError(
            f"the model uses operator set {opset}, must be {MIN_OPSET} or newer. "
            "Convert it with onnx.version_converter."
        )
    return _graph(onnx, model, opset)


def _parse(onnx: Any, source: Any) -> tuple[Any, Path | None]:
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return copy, None
    folder = None
    if not isinstance(source, (bytes, bytearray, memoryview)):
        path = Path(source)
        if not path.is_file():
            what = "a folder, not a file" if path.is_dir() else "missing"
            raise ModelError(f"{path} is {what}; give the path of an ONNX file.")
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ModelError(f"{path} has {path.stat().st_size} bytes; an ONNX file has 2 GiB "
                                 "at most, larger weights lie in files beside it.")  # fmt: skip
            source, folder = path.read_bytes(), path.resolve().parent
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        model = onnx.load_model_from_string(bytes(source))
    except Exception as error:  # protobuf's class differs between its implementations
        raise ModelError(f"not an ONNX model, or a damaged one: {_first_line(error)}") from None
    if not model.HasField("graph"):
        raise ModelError("not an ONNX model: it has no graph.")
    return model, folder


def _load_external(onnx: Any, model: Any, folder: Path | None) -> None:
    """Bring in tensors kept in files beside the model; nothing outside its folder is opened."""
    from onnx.external_data_helper import (  # not reached as an attribute of onnx
        ExternalDataInfo,
        load_external_data_for_tensor,
        uses_external_data,
    )

    for tensor in _tensors(model.graph):
        if any(size < 0 for size in tensor.dims):  # older checkers let this pass
            raise ModelError(f"tensor {tensor.name!r} is damaged: shape {list(tensor.dims)}.")
        if not uses_external_data(tensor):
            continue
        if folder is None:
            raise ModelError(
                f"tensor {tensor.name!r} lies in a file of its own, which cannot be found "
                "from bytes; give the path of the model instead."
            )
        try:
            info = ExternalDataInfo(tensor)
            location = str(info.location)
            path = (folder / location).resolve()
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            raise ModelError(
                f"tensor {tensor.name!r} says wrongly where its data lie: {_first_line(error)}"
            ) from None
        if folder not in path.parents:
            raise ModelError(
                f"tensor {tensor.name!r} lies in {location!r}, outside the model's folder; "
                "data must lie beside the model."
            )
        if not path.is_file():
            raise ModelError(
                f"tensor {tensor.name!r} lies in {location!r}, which is missing from {folder}; "
                "copy the data file along with the model."
            )
        try:
            size = path.stat().st_size - (info.offset or 0) if info.length is None else info.length
            if not 0 <= size <= _MOST_ITEM * math.prod(tensor.dims):
                raise ValueError(f"{size} bytes for a tensor of shape {list(tensor.dims)}")
            load_external_data_for_tensor(tensor, str(folder))
            # The checker would look for the file again, in the current folder.
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        except Exception as error:
            raise ModelError(
                f"tensor {tensor.name!r} cannot be read from {location!r}: {_first_line(error)}"
            ) from None


def _tensors(graph: Any) -> list[Any]:
    constants = [a.t for n in graph.node for a in n.attribute if a.HasField("t")]
    return [*graph.initializer, *constants]


def _sort(graph: Any) -> None:
    """Put the nodes in an order in which they can run, keeping the file's order where it can."""
    known = {""} | {i.name for i in graph.input} | {t.name for t in graph.initializer}
    known |= {t.values.name for t in graph.sparse_initializer}
    made: dict[str, str] = {}
    for node in graph.node:
        for output in filter(None, node.output):
            if output in made or output in known:
                raise ModelError(f"tensor {output!r} is defined twice, the second time by node "
                                 f"{_title(node)!r}.")  # fmt: skip
            made[output] = _title(node)
    for node in graph.node:
        for name in node.input:
            if name not in known and name not in made:
                raise ModelError(
                    f"node {_title(node)!r} reads {name!r}, which no node, input or "
                    "initializer defines."
                )
    for index, out in enumerate(graph.output):
        if out.name in (other.name for other in graph.output[:index]):
            raise ModelError(f"output {out.name!r} is named twice.")
        if out.name not in known and out.name not in made:
            raise ModelError(f"output {out.name!r} is not defined by any node.")
    readers: dict[str, list[int]] = {}
    missing = []
    for index, node in enumerate(graph.node):
        wanted = {name for name in node.input if name not in known}
        missing.append(len(wanted))
        for name in wanted:
            readers.setdefault(name, []).append(index)
    order = [i for i, count in enumerate(missing) if not count]
    for index in order:  # grows while it runs
        for output in graph.node[index].output:
            for reader in readers.get(output, ()):
                missing[reader] -= 1
                if not missing[reader]:
                    order.append(reader)
    if len(order) < len(graph.node):
        stuck = [_title(n) for i, n in enumerate(graph.node) if missing[i]]
        raise ModelError(f"nodes form a cycle: {', '.join(stuck[:8])}.")
    if order != sorted(order):
        nodes = [graph.node[i] for i in order]
        copies = [type(n).FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _check(onnx: Any, model: Any) -> None:
    # The checker wants a shape on every input and output. Many exporters leave that of an output
    # out, and the reader has a better message for inputs.
    kinds = [v.type.tensor_type for v in [*model.graph.input, *model.graph.output]]
    without = [k for k in kinds if k.elem_type and not k.HasField("shape")]
    for kind in without:
        kind.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker's errors have no common base of their own
        raise ModelError(f"onnx.checker refuses the model: {_first_line(error)}") from None
    for kind in without:
        kind.ClearField("shape")


def _graph(onnx: Any, model: Any, opset: int) -> FileGraph:
    graph, what = model.graph, ""
    constants, nodes = {}, []
    try:
        for t in graph.initializer:
            what = f"tensor {t.name!r}"
            constants[t.name] = onnx.numpy_helper.to_array(t)
        for n in graph.node:
            what = f"an attribute of node {_title(n)!r}"
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}
            nodes.append(
                FileNode(
                    _title(n), n.op_type, n.domain, list(n.input), list(n.output), attributes, n
                )
            )
    except Exception as error:
        raise ModelError(f"{what} is damaged: {_first_line(error)}") from None
    inputs = [_value(onnx, i) for i in graph.input if i.name not in constants]
    outputs = [_value(onnx, o) for o in graph.output]
    made = FileGraph(graph.name or "model", opset, inputs, outputs, nodes, constants)
    _infer(onnx, model, made)
    return made


def _infer(onnx: Any, model: Any, graph: FileGraph) -> None:
    """Shapes of the tensors in between: to judge what follows an unsupported node, and to cut."""
    from .onnx_inference import Shapes  # which reads nodes as they are defined here

    shapes = Shapes(graph.opset, model.opset_import, graph.constants)
    for info in model.graph.input:
        shapes.declare(info)
    declared = {v.name: v for v in [*model.graph.value_info, *model.graph.output]}
    shapes.infer(graph.nodes, declared)
    names = [spec.name for spec in graph.inputs]
    names += [name for node in graph.nodes for name in node.outputs if name]
    for name in names:
        known = shapes.known(name)
        if known is not None:
            graph.inferred[name] = FileValue(name, _dtype(onnx, known[0]), known[1])
            graph.of_one[name] = shapes.of_one(name) or ()
        elif name in declared:
            graph.inferred[name] = _value(onnx, declared[name])


def plain_attributes(node: FileNode) -> dict[str, Any]:
    """A node's attributes as operators of the host take them: numbers, strings, lists, arrays.

    Raises:
        ModelError: one of them is damaged.
    """
    try:
        return {name: _plain(value) for name, value in node.attributes.items()}
    except (ValueError, TypeError) as error:
        raise ModelError(f"node {node.name!r} is damaged: {_first_line(error)}") from None


def _plain(value: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if isinstance(value, (list, tuple)) else value


def _value(onnx: Any, info: Any) -> FileValue:
    kind = info.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        dims = kind.shape.dim
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return FileValue(info.name, _dtype(onnx, kind.elem_type), shape)


def _dtype(onnx: Any, kind: int) -> str:
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)))
    except (KeyError, TypeError, ValueError):
        return f"ONNX type {kind}"


def _title(node: Any) -> str:
    return str(node.name or next(filter(None, node.output), node.op_type))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
