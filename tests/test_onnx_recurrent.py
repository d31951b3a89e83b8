# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU from ONNX files: on the emulated engine layer by layer what the cpu device gives,
and within a stated error of onnxruntime's float operators."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, INT32, node, onnx, refused
from oracle import run_onnxruntime
from pynq_bbs import Accelerator, Program
from pynq_bbs import compile as compile_model
from pynq_bbs.compress.activations import run_float
from pynq_bbs.errors import InputError, ModelError, UnsupportedModelError
from pynq_bbs.model.graph import Model, apply_functions
from pynq_bbs.model.onnx_import import check_onnx, load_onnx

#: How far hidden values may be off, for weights within 1 / sqrt(max(inputs, units)) and inputs
#: within 3 (docs/recurrent.md); what a layer behind them gives, for weights of its own that small.
ALLOWED = {"LSTM": 0.03, "GRU": 0.05}
#: The same of an LSTM's cell states, which reach further.
ALLOWED_STATES = 0.06
GATES = {"LSTM": 4, "GRU": 3}


@dataclass
class Cell:
    """An LSTM or GRU node with weights, and the arrays that it is given."""

    op: str
    steps: int
    samples: int
    inputs: int
    units: int
    direction: str = "forward"
    layout: int = 0
    initial: bool = False
    lengths: bool = False
    bias: bool = True
    linear_before_reset: int = 0
    seed: int = 0
    arrays: dict[str, Any] = field(default_factory=dict)

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def outputs(self) -> list[str]:
        return ["y", "y_h", "y_c"][: GATES[self.op] - 1]

    def constants(self) -> dict[str, Any]:
        rng = np.random.default_rng(self.seed)
        rows, reach = GATES[self.op] * self.units, 1 / np.sqrt(max(self.inputs, self.units))
        shapes = {"w": (rows, self.inputs), "r": (rows, self.units), "b": (2 * rows,)}
        made = {
            name: rng.uniform(-reach, reach, (self.directions, *shape)).astype(np.float32)
            for name, shape in shapes.items()
        }
        return made if self.bias else {name: made[name] for name in "wr"}

    def given(self) -> dict[str, Any]:
        """What the model takes, in layout 0."""
        rng = np.random.default_rng([self.seed, 1])
        x = rng.uniform(-3, 3, (self.steps, self.samples, self.inputs))
        made = {"x": x.astype(np.float32)}
        shape = (self.directions, self.samples, self.units)
        if self.lengths:
            made["n"] = rng.integers(1, self.steps + 1, self.samples).astype(np.int32)
        if self.initial:
            made["h"] = rng.uniform(-1, 1, shape).astype(np.float32)
            if self.op == "LSTM":
                made["c"] = rng.uniform(-2, 2, shape).astype(np.float32)
        return made

    def node(self) -> Any:
        names = [n if n in self.constants() or n in self.given() else "-" for n in "wrbnhc"]
        names = names if self.op == "LSTM" else names[:-1]
        more: dict[str, Any] = {"layout": self.layout} if self.layout else {}
        if self.op == "GRU":
            more["linear_before_reset"] = self.linear_before_reset
        return node(
            self.op, " ".join(["x", *names]), " ".join(self.outputs), direction=self.direction,
            hidden_size=self.units, **more,
        )  # fmt: skip

    def in_layout(self, values: dict[str, Any]) -> dict[str, Any]:
        """Arrays of layout 0 as this node has them."""
        if not self.layout:
            return values
        moved = {"y": (2, 0, 1, 3), **dict.fromkeys(["x", "h", "c", "y_h", "y_c"], (1, 0, 2))}
        return {n: v.transpose(moved[n]) if n in moved else v for n, v in values.items()}

    def graph(
        self, nodes: Any = (), *, batch: Any = "N", outputs: Any = (), **constants: Any
    ) -> Any:
        """The node, with others behind it."""
        info, described = onnx.helper.make_tensor_value_info, []
        for name, array in self.in_layout(self.given()).items():
            axis = 0 if name == "n" or self.layout else 1
            shape = [batch if i == axis else n for i, n in enumerate(array.shape)]
            described.append(info(name, INT32 if name == "n" else FLOAT, shape))
        graph = onnx.helper.make_graph(
            [self.node(), *nodes], "cell", described,
            [info(name, FLOAT, None) for name in outputs or self.outputs],
            [
                onnx.numpy_helper.from_array(np.asarray(v), k)
                for k, v in (self.constants() | constants).items()
            ],
        )  # fmt: skip
        opsets = [onnx.helper.make_opsetid("", 17)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def wanted(self) -> dict[str, Any]:
        """By onnxruntime, which has layout 0 only."""
        plain = replace(self, layout=0)
        made = run_onnxruntime(plain.graph(), self.given(), optimise=False)
        return self.in_layout(dict(zip(self.outputs, made, strict=True)))


def named(program: Program, made: Any) -> dict[str, Any]:
    return dict(made) if isinstance(made, Mapping) else {program.outputs[0].name: made}


def run(proto: Any, feeds: dict[str, Any], **options: Any) -> dict[str, Any]:
    """On the emulated engine, every layer compared with the cpu device."""
    options = {"build": "32x4x1", "calibration": feeds, **options}
    program = compile_model(load_onnx(proto), **options)
    with Accelerator(program, device="standin", verify=True, strict=True) as accelerator:
        made = named(program, accelerator.run(feeds))
    with Accelerator(program, device="cpu") as accelerator:
        for name, values in named(program, accelerator.run(feeds)).items():
            np.testing.assert_array_equal(values, made[name])
    return made


def check(cell: Cell, **options: Any) -> None:
    proto, feeds, wanted = cell.graph(), cell.in_layout(cell.given()), cell.wanted()
    for name, values in of_floats(load_onnx(proto), feeds).items():
        np.testing.assert_allclose(values, wanted[name], atol=2e-5)
    made = run(proto, feeds, **options)
    assert set(made) == set(wanted)
    for name, values in wanted.items():
        assert made[name].shape == values.shape and made[name].dtype == values.dtype
        allowed = ALLOWED_STATES if name == "y_c" else ALLOWED[cell.op]
        assert np.abs(made[name] - values).max() <= allowed, (name, cell)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_cells(data: Any) -> None:
    small = st.sampled_from([1, 3, 7, 2, 5, 9])
    cell = Cell(
        op=data.draw(st.sampled_from(["LSTM", "GRU"])),
        steps=data.draw(small),
        samples=data.draw(st.integers(1, 4)),
        inputs=data.draw(small),
        units=data.draw(small),
        direction=data.draw(st.sampled_from(["forward", "reverse", "bidirectional"])),
        layout=data.draw(st.integers(0, 1)),
        initial=data.draw(st.booleans()),
        lengths=data.draw(st.booleans()),
        bias=data.draw(st.booleans()),
        linear_before_reset=data.draw(st.integers(0, 1)),
        seed=data.draw(st.integers(0, 2**16)),
    )
    check(cell)


@pytest.mark.parametrize("op", GATES)
def test_the_float_model_is_the_definition(op: str) -> None:
    """Calibration sees what onnxruntime computes."""
    for seed, direction in enumerate(["forward", "reverse", "bidirectional"]):
        cell = Cell(op, 5, 3, 4, 6, direction, initial=True, lengths=True, seed=seed)
        cell.linear_before_reset = seed % 2
        model = load_onnx(cell.graph())
        made = of_floats(model, cell.given())
        for name, values in cell.wanted().items():
            np.testing.assert_allclose(made[name], values, atol=2e-5)


@pytest.mark.parametrize("op", GATES)
def test_a_fixed_batch_is_no_bound(op: str) -> None:
    cell = Cell(op, 4, 5, 3, 6, "bidirectional", initial=True)
    wanted, feeds = cell.wanted(), cell.given()
    made = run(replace(cell, samples=2).graph(batch=2), feeds)
    for name, values in wanted.items():
        allowed = ALLOWED_STATES if name == "y_c" else ALLOWED[op]
        assert np.abs(made[name] - values).max() <= allowed


# -- what stands around them ---------------------------------------------------------------------

#: nodes behind y and y_h of a bidirectional layer over 4 steps with 6 units, output
BEHIND = {
    "every step": ([
        node("Transpose", "y", "t", perm=[0, 2, 1, 3]), node("Reshape", "t keep", "u"),
        node("MatMul", "u w12", "v"), node("Add", "v bias", "z"),
    ], 1),
    "every step, batch first": ([
        node("Transpose", "y", "t", perm=[2, 0, 1, 3]), node("Reshape", "t keep", "u"),
        node("MatMul", "u w12", "v"), node("Add", "v bias", "s"), node("Tanh", "s", "z"),
    ], 0),
    "the last step of both": ([
        node("Transpose", "y", "t", perm=[2, 0, 1, 3]), node("Reshape", "t keep", "u"),
        node("Gather", "u last", "v", axis=1), node("Gemm", "v w12 bias", "z"),
    ], 0),
    "the first step of both": ([
        node("Transpose", "y", "t", perm=[0, 2, 1, 3]), node("Reshape", "t keep", "u"),
        node("Slice", "u from to axis", "v"), node("Squeeze", "v axis", "f"),
        node("Gemm", "f w12 bias", "z"),
    ], 0),
    "a step of a layer of every step": ([
        node("Transpose", "y", "t", perm=[2, 0, 1, 3]), node("Reshape", "t keep", "u"),
        node("MatMul", "u w12", "v"), node("Add", "v bias", "s"), node("Relu", "s", "q"),
        node("Gather", "q two", "z", axis=1),
    ], 0),
    "one direction": ([
        node("Split", "y", "f g", axis=1), node("Squeeze", "g one", "u"),
        node("MatMul", "u w6", "z"),
    ], 1),
    "last values": ([
        node("Transpose", "y_h", "t", perm=[1, 0, 2]), node("Flatten", "t", "u"),
        node("Gemm", "u w12 bias", "z"),
    ], 0),
    "last values of the second": ([
        node("Gather", "y_h last", "u", axis=0), node("MatMul", "u w6", "z"),
    ], 0),
    "last values the other way round": ([
        node("Split", "y_h", "f g", axis=0), node("Concat", "g f", "c", axis=2),
        node("Squeeze", "c axis", "u"), node("Gemm", "u w12 bias", "z"),
    ], 0),
    "a residual": ([
        node("Transpose", "y", "t", perm=[2, 0, 1, 3]), node("Reshape", "t keep", "u"),
        node("MatMul", "u w12x12", "v"), node("Add", "v u", "z"),
    ], 0),
    "itself through a function": ([node("Relu", "y", "z")], 2),
    "beside the input": ([
        node("Transpose", "y", "t", perm=[0, 2, 1, 3]), node("Reshape", "t keep", "u"),
        node("Concat", "u x", "c", axis=2), node("MatMul", "c w15", "z"),
    ], 1),
}  # fmt: skip


def behind(name: str, op: str, lengths: bool = False) -> tuple[Cell, Any]:
    nodes, _ = BEHIND[name]
    cell = Cell(op, 4, 3, 3, 6, "bidirectional", lengths=lengths, seed=len(name))
    rng = np.random.default_rng(len(name))
    used = {n for each in nodes for n in each.input}
    constants = {
        "keep": np.array([0, 0, 12], np.int64),
        "last": np.array(-1, np.int64),
        "two": np.array(2, np.int64),
        "from": np.array([0], np.int64),
        "to": np.array([1], np.int64),
        "axis": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "bias": rng.uniform(-1, 1, 5).astype(np.float32),
    }
    for key, shape in {"w12": (12, 5), "w6": (6, 5), "w15": (15, 5), "w12x12": (12, 12)}.items():
        constants[key] = rng.uniform(-0.3, 0.3, shape).astype(np.float32)
    kept = {key: value for key, value in constants.items() if key in used}
    return cell, cell.graph(nodes, outputs=["z"], **kept)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("name", BEHIND)
def test_what_stands_behind(name: str, op: str) -> None:
    for lengths in (False, True):
        cell, proto = behind(name, op, lengths)
        feeds = cell.given()
        (wanted,) = run_onnxruntime(proto, feeds, optimise=False)
        made = run(proto, feeds)["z"]
        assert made.shape == wanted.shape
        assert np.abs(made - wanted).max() <= ALLOWED[op] + 0.02 * np.abs(wanted).max()
        (output,) = load_onnx(proto).outputs
        assert output.batch_axis == BEHIND[name][1]


def stacked(op: str, layers: int = 2) -> tuple[Any, dict[str, Any]]:
    """Layers as torch has them: one input with the initial values of all, one output with the last
    values of all."""
    cells = [Cell(op, 5, 3, 4 if i == 0 else 6, 6, seed=i) for i in range(layers)]
    rng, gates = np.random.default_rng(0), GATES[op]
    nodes, constants, x = [], {}, "x"
    states = ["h", "c"] if op == "LSTM" else ["h"]
    for i, cell in enumerate(cells):
        constants |= {f"{n}{i}": v for n, v in cell.constants().items()}
        constants |= {f"from{i}": np.array([i], np.int64), f"to{i}": np.array([i + 1], np.int64)}
        for state in states:
            nodes.append(node("Slice", f"{state} from{i} to{i} axis0", f"{state}{i}"))
        given = [x, f"w{i}", f"r{i}", f"b{i}", "-", *(f"{state}{i}" for state in states)]
        made = [f"y{i}", *(f"last_{state}{i}" for state in states)]
        more = {} if op == "LSTM" else {"linear_before_reset": 1}
        nodes.append(node(op, " ".join(given), " ".join(made), hidden_size=6, **more))
        nodes.append(node("Squeeze", f"y{i} axis1", f"x{i}"))
        x = f"x{i}"
    for state in states:
        parts = " ".join(f"last_{state}{i}" for i in range(layers))
        nodes.append(node("Concat", parts, f"last_{state}", axis=0))
    constants |= {"axis0": np.array([0], np.int64), "axis1": np.array([1], np.int64)}
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "stacked",
        [info("x", FLOAT, [5, "N", 4]), *(info(s, FLOAT, [layers, "N", 6]) for s in states)],
        [info(n, FLOAT, None) for n in [x, *(f"last_{state}" for state in states)]],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17)]
    feeds = {"x": rng.uniform(-3, 3, (5, 3, 4)).astype(np.float32)}
    feeds |= {s: rng.uniform(-1, 1, (layers, 3, 6)).astype(np.float32) for s in states}
    assert gates == len(states) + 2
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), feeds


@pytest.mark.parametrize("op", GATES)
def test_layers_on_top_of_each_other(op: str) -> None:
    for layers in (1, 2, 3):
        proto, feeds = stacked(op, layers)
        wanted = run_onnxruntime(proto, feeds, optimise=False)
        made = run(proto, feeds)
        for (name, values), want in zip(made.items(), wanted, strict=True):
            assert values.shape == want.shape
            assert np.abs(values - want).max() <= (0.06 if "_c" in name else ALLOWED[op]), name
        assert {c.runs for c in check_onnx(proto)} <= {"engine", "host"}


def test_an_encoder_hands_its_states_to_a_decoder() -> None:
    cell = Cell("LSTM", 4, 2, 6, 6)
    rng = np.random.default_rng(0)
    nodes = [
        node("Squeeze", "y one", "t"),
        node("LSTM", "t w2 r2 - - y_h y_c", "z", hidden_size=6, direction="reverse"),
    ]
    more = {n: rng.uniform(-0.4, 0.4, (1, 24, 6)).astype(np.float32) for n in ("w2", "r2")}
    proto = cell.graph(nodes, outputs=["z"], one=np.array([1], np.int64), **more)
    (wanted,) = run_onnxruntime(proto, cell.given(), optimise=False)
    assert np.abs(run(proto, cell.given())["z"] - wanted).max() <= ALLOWED["LSTM"]


@pytest.mark.parametrize("op", GATES)
def test_pruned_and_in_four_bits(op: str, tmp_path: Any) -> None:
    """Half of every bank is gone from the gates, and the program runs verified from its file."""
    cell, proto = behind("the last step of both", op)
    feeds = cell.given()
    options = {"build": "32x4x1", "sparsity": 0.5, "bank_size": 4}
    for bits in (8, 4):
        program = compile_model(load_onnx(proto), calibration=feeds, weight_bits=bits, **options)
        gates = [layer for layer in program.layers if layer.cell]
        assert len(gates) == 2 and all(2 * la.keep == la.bank_size for la in gates)
        assert {la.weight_bits for la in gates} == {bits}
        program.save(tmp_path / "program")
        loaded = Program.load(tmp_path / "program")
        with Accelerator(loaded, device="standin", verify=True) as accelerator:
            made = accelerator.run(feeds)
        with Accelerator(program, device="cpu") as accelerator:
            np.testing.assert_array_equal(made, accelerator.run(feeds))
        assert len(np.unique(made)) > 3


# -- what is refused -----------------------------------------------------------------------------

ATTRIBUTES = [
    ({"activations": ["Relu", "Tanh", "Tanh"]}, "activations are relu, tanh, tanh"),
    ({"clip": 3.0}, "clips the inputs"),
    ({"input_forget": 1}, "input_forget is 1"),
    ({"direction": "sideways"}, "direction is 'sideways'"),
    ({"hidden_size": 7}, "hidden_size is not that of its weights"),
]


@pytest.mark.parametrize(("more", "word"), ATTRIBUTES, ids=[word for _, word in ATTRIBUTES])
def test_refused_attributes(more: dict[str, Any], word: str) -> None:
    proto = Cell("LSTM", 3, 2, 4, 5).graph()
    (lstm,) = proto.graph.node
    for name, value in more.items():
        for attribute in [a for a in lstm.attribute if a.name == name]:
            lstm.attribute.remove(attribute)
        lstm.attribute.append(onnx.helper.make_attribute(name, value))
    assert word in refused(proto)["n_y"]


INPUTS = [
    (1, np.ones((1, 20, 3), np.float32), "W takes 3 features, X has 4"),
    (1, np.ones((20, 4), np.float32), "W has shape (20, 4)"),
    (2, np.ones((1, 20, 6), np.float32), "must be"),
    (3, np.ones((1, 39), np.float32), "B has shape (1, 39), must be (1, 40)"),
    (1, np.full((1, 20, 4), np.nan, np.float32), "W holds NaN"),
    (4, np.array([3, 2], np.int32), "sequence_lens are constant and not all 3"),
    (5, np.ones((1, 2, 5), np.float32), "initial_h is constant and not zero"),
    (7, np.ones((1, 15), np.float32), "peepholes"),
]


@pytest.mark.parametrize(("index", "array", "word"), INPUTS, ids=[word for *_, word in INPUTS])
def test_refused_inputs(index: int, array: Any, word: str) -> None:
    proto = Cell("LSTM", 3, 2, 4, 5).graph(other=array)
    names = proto.graph.node[0].input
    names.extend([""] * (index + 1 - len(names)))
    names[index] = "other"
    assert word in refused(proto)["n_y"]


def test_constants_that_change_nothing() -> None:
    """Zeros as initial values, peepholes of zeros, and every step as the length."""
    cell = Cell("LSTM", 3, 2, 4, 5)
    zeros = np.zeros((1, 2, 5), np.float32)
    proto = cell.graph(
        n=np.array([3, 3], np.int32), h=zeros, c=zeros, p=np.zeros((1, 15), np.float32)
    )
    names = proto.graph.node[0].input
    del names[4:]
    names.extend(["n", "h", "c", "p"])
    made = run(proto, cell.given())
    for name, values in run(cell.graph(), cell.given()).items():
        np.testing.assert_array_equal(made[name], values)


def test_refused_around_them() -> None:
    nodes = [
        node("Flatten", "t", "u"),
        node("MatMul", "u w", "v"),
        node("Slice", "t from to axis", "s"),
        node("Conv", "t k", "z"),
    ]
    cell = Cell("GRU", 4, 2, 3, 6)
    constants = {
        "one": np.array([1], np.int64),
        "from": np.array([1], np.int64),
        "to": np.array([3], np.int64),
        "axis": np.array([1], np.int64),
        "k": np.ones((2, 4, 3), np.float32),
    }
    before = [
        node("Squeeze", "y one", "q"),
        node("Transpose", "q", "t", perm=[1, 0, 2]),
    ]
    proto = cell.graph([*before, *nodes], outputs=["v", "s", "z"], **constants)
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((24, 2), np.float32), "wide")
    )
    proto.graph.node[-3].input[1] = "wide"
    reasons = refused(proto)
    assert "all steps at once" in reasons["n_v"] and "takes 2 of 4 steps" in reasons["n_s"]
    assert "n_z" in reasons


def test_lengths_are_checked() -> None:
    cell = Cell("GRU", 4, 2, 3, 5, lengths=True)
    proto, feeds = cell.graph(), cell.given()
    program = compile_model(load_onnx(proto), calibration=feeds, build="32x4x1")
    assert program.lengths == "n"
    for bad in (np.array([0, 1], np.int32), np.array([1, 5], np.int32), np.ones(2, np.float32)):
        with pytest.raises(InputError, match="'n'"):
            compile_model(load_onnx(proto), calibration=feeds | {"n": bad}, build="32x4x1")
    with pytest.raises(InputError, match="the model has 2 inputs"):
        compile_model(load_onnx(proto), calibration=feeds["x"], build="32x4x1")
    proto.graph.input[1].type.tensor_type.elem_type = FLOAT
    with pytest.raises(UnsupportedModelError, match="must be integers"):
        load_onnx(proto)


def test_inputs_are_described_as_the_file_has_them() -> None:
    cell = Cell("GRU", 4, 2, 3, 5)
    program = compile_model(load_onnx(cell.graph()), calibration=cell.given(), build="32x4x1")
    with Accelerator(program, device="cpu") as accelerator:
        assert accelerator.outputs["y"] == ((4, 1, 5), "float32")
        with pytest.raises(InputError, match=r"shape \(4, 3\), must be \(4, N, 3\).*x\[:, None\]"):
            accelerator.run(cell.given()["x"][:, 0])


def test_a_huge_constant_is_not_made() -> None:
    nodes = [node("ConstantOfShape", "size", "h0")]
    proto = Cell("GRU", 4, 2, 3, 5).graph(size=np.array([1 << 20, 1 << 20], np.int64))
    proto.graph.node.insert(0, nodes[0])
    proto.graph.node[1].input[5] = "h0"
    assert "constant of 1099511627776 values" in refused(proto)["n_h0"]


# -- damage --------------------------------------------------------------------------------------


def broken(rng: np.random.Generator, proto: Any) -> None:
    """One attribute, constant, input or dimension, changed to something else."""
    graph = proto.graph
    at, what = graph.node[rng.integers(len(graph.node))], rng.integers(5)
    if what == 0:
        name = str(rng.choice(["axis", "perm", "layout", "hidden_size", "direction", "axes"]))
        kept = [a for a in at.attribute if a.name != name]
        value: Any = [int(v) for v in rng.integers(-2, 5, 3)]
        value = value if name in ("perm", "axes") else int(rng.integers(-4, 9))
        del at.attribute[:]
        at.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
    elif what in (1, 2):
        tensor = graph.initializer[rng.integers(len(graph.initializer))]
        array = onnx.numpy_helper.to_array(tensor)
        shape = tuple(int(n) for n in rng.integers(0, 4, rng.integers(0, 5)))
        shape = array.shape if what == 1 else shape
        changed = np.asarray(rng.integers(-3, 14, shape)).astype(array.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    elif what == 3:
        names = [i.name for i in [*graph.initializer, *graph.input]]
        at.input[rng.integers(len(at.input))] = str(rng.choice([*names, ""]))
    else:
        dims = graph.input[rng.integers(len(graph.input))].type.tensor_type.shape.dim
        dims[rng.integers(len(dims))].dim_value = int(rng.integers(0, 7))


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_models_are_refused_by_name(seed: int) -> None:
    """A damaged model is a `ModelError`, or one of another meaning, which is then onnxruntime's;
    nothing else is raised."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.3:
        proto, _ = stacked(str(rng.choice(["LSTM", "GRU"])))
    else:
        name, op = str(rng.choice(list(BEHIND))), str(rng.choice(["LSTM", "GRU"]))
        _, proto = behind(name, op, bool(rng.integers(2)))
    for _ in range(int(rng.integers(1, 3))):
        broken(rng, proto)
    with suppress(ModelError):
        check_onnx(proto)
    with suppress(ModelError):
        model = load_onnx(proto)
        feeds = random_feeds(rng, model)
        try:
            given = {i.name: feeds[i.name] for i in proto.graph.input if i.name in feeds}
            wanted = run_onnxruntime(proto, given, optimise=False)
        except Exception:  # it refuses batches other than the file's, and types that do not fit
            return
        names = [output.name for output in proto.graph.output]
        for name, values in of_floats(model, feeds).items():
            want = wanted[names.index(name)]
            assert values.shape == want.shape
            np.testing.assert_allclose(values, want, atol=1e-3 * max(1, np.abs(want).max()))


def random_feeds(rng: np.random.Generator, model: Model) -> dict[str, Any]:
    feeds: dict[str, Any] = {}
    for spec in model.inputs:
        shape = [*spec.shape[: spec.batch_axis], 3, *spec.shape[spec.batch_axis :]]
        feeds[spec.name] = rng.uniform(-1, 1, shape).astype(np.float32)
    if model.lengths:
        steps = max(spec.steps for spec in model.inputs)
        feeds[model.lengths] = rng.integers(1, steps + 1, 3).astype(np.int32)
    return feeds


def of_floats(model: Model, feeds: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a float model, parts put together."""
    tensors, parts = run_float(model, feeds), dict[str, list[Any]]()
    for o in model.outputs:
        values = apply_functions(o.functions, o.arrangement.apply(tensors[o.tensor]))
        whole = np.moveaxis(values.reshape(-1, *o.shape), 0, o.batch_axis)
        parts.setdefault(o.name, []).append(whole)
    axes = {o.name: 0 if o.batch_axis else 1 for o in model.outputs}
    return {n: p[0] if len(p) == 1 else np.concatenate(p, axes[n]) for n, p in parts.items()}
