# SPDX-License-Identifier: Apache-2.0
"""Broken and hostile model files: a named error each, in seconds and in little memory.

All of them are read in one process of their own, whose memory is limited, so that a crash or a
request for more fails here and not the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, INT8, model, node, onnx, sample
from onnx_networks import random_network
from pynq_bbs.errors import BbsError, ModelError
from pynq_bbs.model.onnx_import import check_onnx, load_onnx

#: Seconds for one file, and bytes that reading all of them may take at most.
SECONDS, MEMORY = 15, 2 << 30
HUGE = 1 << 20

READER = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from pynq_bbs.errors import BbsError
from pynq_bbs.model.onnx_import import check_onnx, load_onnx
for path in sys.argv[1:]:
    start, said = time.perf_counter(), []
    for read in (check_onnx, load_onnx):
        try:
            read(path)
            said.append("read")
        except BbsError as error:
            said.append(f"{type(error).__name__}: {error}")
        except BaseException as error:
            said.append(f"CRASH {type(error).__name__}: {error}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps([path, said, time.perf_counter() - start, peak]), flush=True)
"""


def good(**constants: Any) -> Any:
    """Gemm, Relu, Gemm; constants in place of its own."""
    nodes = [
        node("Gemm", "x w b", "t", transB=1), node("Relu", "t", "r"),
        node("Gemm", "r v", "y", transB=1),
    ]  # fmt: skip
    own = {"w": sample(8, 4), "b": sample(8), "v": sample(3, 8)}
    return model(nodes, {"x": (4,)}, {"y": FLOAT}, **own | constants)


def edited(change: Callable[[Any], Any], proto: Any = None) -> bytes:
    proto = good() if proto is None else proto
    change(proto.graph)
    return bytes(proto.SerializeToString())


def initializer(graph: Any, name: str) -> Any:
    return next(t for t in graph.initializer if t.name == name)


def declared(graph: Any, name: str, *dims: int, kind: int = FLOAT) -> None:
    """A tensor said to be as large as `dims`, without data."""
    initializer(graph, name).CopyFrom(onnx.TensorProto(name=name, data_type=kind, dims=dims))


def external(graph: Any, **entries: str) -> None:
    tensor = initializer(graph, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def computed(nodes: list[Any], **constants: Any) -> bytes:
    """A model whose weights `c` are made of constants by `nodes`."""
    graph = [*nodes, node("Gemm", "x c", "y")]
    return bytes(model(graph, {"x": (4,)}, {"y": FLOAT}, **constants).SerializeToString())


def over(op: str, shape: tuple[int, ...], kind: int = FLOAT, **attributes: Any) -> bytes:
    nodes = [node(op, "x x" if op in ("Add", "Concat") else "x", "y", **attributes)]
    return bytes(model(nodes, {"x": (kind, shape)}, {"y": kind}).SerializeToString())


def nested(depth: int) -> Any:
    """An If in an If in an If."""
    z = [onnx.helper.make_tensor_value_info("z", FLOAT, None)]
    leaf = onnx.helper.make_graph([node("Identity", "w", "z")], "inner", [], z)
    graph = leaf
    for _ in range(depth):
        inner = onnx.helper.make_node("If", ["k"], ["z"], then_branch=graph, else_branch=leaf)
        graph = onnx.helper.make_graph([inner], "inner", [], z)
    proto = good(k=np.bool_(True))
    outer = onnx.helper.make_node("If", ["k"], ["u"], "if", then_branch=graph, else_branch=leaf)
    proto.graph.node.insert(0, outer)
    proto.graph.node[1].input[1] = "u"
    return proto


def chain(op: str, count: int) -> bytes:
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    more = " x" if op == "Add" else " w" if op == "Gemm" else ""
    nodes = [node(op, f"{a}{more}", b) for a, b in pairwise(names)]
    constants = {"w": sample(4, 4)} if op == "Gemm" else {}
    return bytes(model(nodes, {"x": (4,)}, {"y": FLOAT}, **constants).SerializeToString())


def doubled(count: int) -> bytes:
    nodes = [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(count)]
    nodes.append(node("Identity", f"c{count}", "c"))
    return computed(nodes, c0=sample(4, 4))


#: name -> (bytes of the file, what the error must say)
CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no graph"),
    "random bytes": (np.random.default_rng(0).bytes(5000), "not an ONNX model"),
    "text": (b"# a model\n" * 50, "not an ONNX model"),
    "cut short": (good().SerializeToString()[:-40], "not an ONNX model"),
    "half": (good().SerializeToString()[: good().ByteSize() // 2], "not an ONNX model"),
    "cycle": (edited(lambda g: g.node[0].input.__setitem__(0, "r")), "cycle: n_t"),
    "reads itself": (edited(lambda g: g.node[1].input.__setitem__(0, "r")), "cycle: n_r"),
    "missing initializer": (edited(lambda g: g.initializer.pop(0)), "reads 'w'"),
    "missing output": (edited(lambda g: g.node.pop()), "output 'y'"),
    "node defined twice": (
        edited(lambda g: g.node[1].output.__setitem__(0, "t")), "'t' is defined twice",
    ),
    "tensor defined twice": (
        edited(lambda g: g.initializer.append(g.initializer[0])), "w initializer name is not",
    ),
    "input defined twice": (edited(lambda g: g.input.append(g.input[0])), "'x' has been used"),
    "output named twice": (edited(lambda g: g.output.append(g.output[0])), "'y' is named twice"),
    "wrong weights": (good(w=sample(8, 5)).SerializeToString(), "5 features"),
    "wrong bias": (good(b=sample(7)).SerializeToString(), "shape (7,)"),
    "too little data": (
        edited(lambda g: setattr(initializer(g, "w"), "raw_data", b"1234")), "'w'",
    ),
    "no data": (edited(lambda g: declared(g, "w", 8, 4)), "tensor name: w"),
    "unknown type": (edited(lambda g: declared(g, "w", 8, 4, kind=77)), "tensor name: w"),
    "unknown type of input": (
        edited(lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 99)), "99",
    ),
    "unknown operator": (edited(lambda g: setattr(g.node[1], "op_type", "Frob")), "Frob"),
    "unknown domain": (edited(lambda g: setattr(g.node[1], "domain", "my.own")), "my.own"),
    "declared 2^40": (edited(lambda g: declared(g, "w", HUGE, HUGE)), "tensor name: w"),
    "declared beyond 2^63": (
        edited(lambda g: declared(g, "w", 1 << 40, 1 << 40)), "tensor name: w",
    ),
    "declared negative": (edited(lambda g: declared(g, "w", -8, 4)), "'w' is damaged"),
    "input of 2^40": (over("Relu", (HUGE, HUGE)), "values a sample"),
    "input beyond 2^63": (over("Relu", (1 << 40, 1 << 40)), "values a sample"),
    "average of 2^40": (over("GlobalAveragePool", (1, HUGE, HUGE)), "values a sample"),
    "a million channels": (over("Add", (HUGE,)), "move 1048576 channels"),
    "joined channels": (over("Concat", (HUGE * 20,), INT8, axis=1), "values a sample"),
    "Conv of 2^40": (
        model(
            [node("Conv", "x w", "y")], {"x": (1, 4096, 4096)}, {"y": FLOAT},
            w=sample(64, 1, 1, 1),
        ).SerializeToString(), "values a sample",
    ),
    "ConstantOfShape": (
        computed([node("ConstantOfShape", "s", "c")], s=np.array([HUGE, HUGE])), "ConstantOfShape",
    ),
    "Expand": (
        computed([node("Expand", "k s", "c")], k=sample(1), s=np.array([HUGE, HUGE])), "Expand",
    ),
    "outer product": (
        computed([node("MatMul", "k l", "c")], k=sample(HUGE, 1), l=sample(1, HUGE)), "MatMul",
    ),
    "broadcast": (computed([node("Add", "k l", "c")], k=sample(HUGE, 1), l=sample(1, HUGE)), "Add"),
    "gathered": (
        computed(
            [node("Gather", "k i", "c")], k=sample(1, HUGE), i=np.zeros(1 << 16, np.int64)
        ), "Gather",
    ),
    "doubled 50 times": (doubled(50), "more of constants"),
    "many outer products": (
        computed(
            [
                *(node("Mul", f"k{'' if i == 0 else i} l", f"c{i}") for i in range(1)),
                *(node("Mul", "k l", f"m{i}") for i in range(99)),
                node("Sum", "c0 " + " ".join(f"m{i}" for i in range(99)), "c"),
            ],
            k=sample(1 << 13, 1), l=sample(1, 1 << 13),
        ), "more of constants",
    ),
    "deep nesting": (nested(12).SerializeToString(), "If"),
    "nested beyond protobuf": (b"\x3a\xff\x7f" * 20000, "not an ONNX model"),
    "5000 functions": (chain("Relu", 5000), "function in a row"),
    "outside, absolute": (edited(lambda g: external(g, location="/etc/hostname")), "outside"),
    "outside, above": (edited(lambda g: external(g, location="../w.bin")), "outside"),
    "outside, by link": (edited(lambda g: external(g, location="link.bin")), "outside"),
    "external, missing": (edited(lambda g: external(g, location="none.bin")), "missing"),
    "external, no name": (edited(lambda g: external(g)), "'w'"),
    "external, a folder": (edited(lambda g: external(g, location="folder")), "missing"),
    "external, odd name": (edited(lambda g: external(g, location="a\0b")), "'w'"),
    "external, odd offset": (edited(lambda g: external(g, location="w.bin", offset="x")), "'w'"),
    "external, offset beyond": (
        edited(lambda g: external(g, location="w.bin", offset=str(1 << 40))), "'w'",
    ),
    "external, length beyond": (
        edited(lambda g: external(g, location="w.bin", length=str(1 << 40))), "'w'",
    ),
    "external, too short": (edited(lambda g: external(g, location="w.bin", length="64")), "'w'"),
    "external, huge file": (edited(lambda g: external(g, location="huge.bin")), "'w'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], float, int]]:
    """What reading each file says, the seconds it takes, and the memory taken until then."""
    folder = tmp_path_factory.mktemp("models")
    (folder.parent / "w.bin").write_bytes(bytes(128))
    (folder / "w.bin").write_bytes(bytes(128))
    (folder / "folder").mkdir()
    os.symlink("/etc/hostname", folder / "link.bin")
    with open(folder / "huge.bin", "wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    paths = {}
    for name, (content, _) in CASES.items():
        paths[name] = folder / f"{name.replace(' ', '_').replace('^', '')}.onnx"
        paths[name].write_bytes(content)
    with open(folder / "a.onnx", "wb") as file:
        file.truncate(1 << 40)
    paths["huge model"] = folder / "a.onnx"
    run = subprocess.run(
        [sys.executable, "-c", READER, *map(str, paths.values())],
        capture_output=True, text=True, timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    told = {line[0]: line[1:] for line in map(json.loads, run.stdout.splitlines())}
    missing = [name for name, path in paths.items() if str(path) not in told]
    assert not missing, f"the process ended at {missing[0]}: {run.returncode} {run.stderr[-2000:]}"
    return {name: told[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_named_error(name: str, said: dict[str, tuple[list[str], float, int]]) -> None:
    (checked, loaded), seconds, peak = said[name]
    assert loaded.startswith(("ModelError: ", "UnsupportedModelError: ")), loaded
    assert CASES[name][1] in loaded
    assert checked == "read" or checked.startswith("ModelError: "), checked
    assert len(loaded) < 20000  # no list of a thousand nodes that follow from one
    assert seconds < SECONDS and peak < MEMORY


def test_a_huge_file(said: dict[str, tuple[list[str], float, int]]) -> None:
    (_, loaded), seconds, peak = said["huge model"]
    assert loaded.startswith("ModelError: ") and "2 GiB" in loaded
    assert seconds < SECONDS and peak < MEMORY


@pytest.mark.parametrize("op", ["Gemm", "Add"])
def test_long_chains_are_models(op: str, tmp_path: Path) -> None:
    assert len(load_onnx(chain(op, 2000)).layers) == 2000


SEEDS = [
    good().SerializeToString(),
    *(net.model(*last).SerializeToString() for net, last in (random_network(3), random_network(4))),
    random_network(5, qdq=False)[0].model(random_network(5, qdq=False)[1][-1]).SerializeToString(),
]


@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 8), st.binary(max_size=4)),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_changed_bytes(seed: bytes, edits: list[tuple[float, int, bytes]]) -> None:
    """Whatever happens to a file, it is read, or refused by name."""
    content = bytearray(seed)
    for place, removed, added in edits:
        at = int(place * len(content))
        content[at : at + removed] = added
    try:
        load_onnx(bytes(content))
        assert all(n.runs != "unsupported" for n in check_onnx(bytes(content)))
    except BbsError as error:
        assert isinstance(error, ModelError) and str(error)


NUMBERS = [0, -1, 1, 2, 3, 16, 4097, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 62)]


@given(
    seed=st.integers(0, 300),
    qdq=st.booleans(),
    edits=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 10**6), st.sampled_from(NUMBERS)),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_changed_graphs(seed: int, qdq: bool, edits: list[tuple[int, int, int]]) -> None:
    """The same of files that are valid protobuf, with other numbers and names in them."""
    net, last = random_network(seed, qdq=qdq)
    proto = net.model(*last)
    for kind, place, number in edits:
        change_graph(proto.graph, kind, place, number)
    try:
        load_onnx(proto)
    except BbsError as error:
        assert isinstance(error, ModelError) and str(error)


def change_graph(graph: Any, kind: int, place: int, number: int) -> None:
    changed = graph.node[place % len(graph.node)]
    tensor = graph.initializer[place % len(graph.initializer)]
    names = [*(t.name for t in graph.initializer), *(o for n in graph.node for o in n.output), ""]
    if kind == 0 and tensor.dims:
        tensor.dims[place % len(tensor.dims)] = number
    elif kind == 1 and changed.attribute:
        attribute = changed.attribute[place % len(changed.attribute)]
        if attribute.ints:
            attribute.ints[place % len(attribute.ints)] = number
        else:
            attribute.i = number
    elif kind == 2 and changed.input:
        changed.input[place % len(changed.input)] = names[number % len(names)]
    elif kind == 3:
        dims = graph.input[0].type.tensor_type.shape.dim
        dims[place % len(dims)].dim_value = number
    elif kind == 4:
        changed.op_type = graph.node[number % len(graph.node)].op_type
    elif changed.input:
        del changed.input[place % len(changed.input)]
