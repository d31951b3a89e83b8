# SPDX-License-Identifier: Apache-2.0
"""The host's operators against ONNX's own node tests."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynq_bbs.errors import InputError
from pynq_bbs.operators.call import Call
from pynq_bbs.operators.pointwise import erf
from pynq_bbs.operators.shapes import DTYPES
from pynq_bbs.operators.table import OPERATORS, refusal, run_operator

onnx = pytest.importorskip("onnx")
loader = pytest.importorskip("onnx.backend.test.loader")

#: Node tests whose results are random, or of operators in a form that only training has.
_LEFT_OUT = ("training_dropout",)


@cache
def cases() -> list[Any]:
    """Tests all of whose nodes the host has, on tensors of types that numpy has."""
    cases = []
    for case in loader.load_model_tests(kind="node"):
        model = onnx.load(Path(case.model_dir) / "model.onnx")
        values = [*model.graph.input, *model.graph.output]
        typed = all(v.type.tensor_type.elem_type in DTYPES for v in values)
        refused = [
            refusal(n.op_type, n.domain, attributes_of(n), len(n.output)) for n in model.graph.node
        ]
        left_out = case.name.startswith(tuple(f"test_{name}" for name in _LEFT_OUT))
        if typed and not any(refused) and not left_out:
            cases.append(case)
    return cases


def attributes_of(node: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, onnx.TensorProto):
            return onnx.numpy_helper.to_array(value)
        return value.decode() if isinstance(value, bytes) else value

    return {a.name: plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}


def data_of(folder: Path, kind: str, values: Any) -> dict[str, Any]:
    """The stored tensors of a test, by name."""
    given = {}
    for i, value in enumerate(values):
        tensor = onnx.load_tensor(str(folder / f"{kind}_{i}.pb"))
        given[value.name] = onnx.numpy_helper.to_array(tensor)
    return given


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_node(case: Any) -> None:
    model = onnx.load(Path(case.model_dir) / "model.onnx")
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        tensors = data_of(folder, "input", model.graph.input)
        for initializer in model.graph.initializer:
            tensors[initializer.name] = onnx.numpy_helper.to_array(initializer)
        for node in model.graph.node:
            call = Call(opset, attributes_of(node), len(node.output))
            inputs = [tensors[name] if name else None for name in node.input]
            results = run_operator(node.name, node.op_type, call, inputs)
            tensors.update(zip(node.output, results, strict=False))
        for name, expected in data_of(folder, "output", model.graph.output).items():
            assert tensors[name].dtype == expected.dtype
            assert tensors[name].shape == expected.shape
            np.testing.assert_allclose(tensors[name], expected, case.rtol, case.atol)


def test_every_operator_has_a_node_test() -> None:
    models = [onnx.load(Path(case.model_dir) / "model.onnx") for case in cases()]
    assert set(OPERATORS) == {node.op_type for model in models for node in model.graph.node} & set(
        OPERATORS
    )


@given(st.floats(-8, 8, width=32))
def test_error_function(x: float) -> None:
    assert abs(float(erf(np.float32([x]))[0]) - math.erf(x)) < 5e-7


@pytest.mark.parametrize(
    ("op", "attributes", "inputs"),
    [
        ("Add", {}, [np.zeros((2, 3), np.float32), np.zeros(4, np.float32)]),
        ("Gather", {}, [np.zeros(3, np.float32), np.array([3])]),
        ("Reshape", {}, [np.zeros(6, np.float32), np.array([4, -1])]),
        ("Expand", {}, [np.zeros(1, np.float32), np.array([1 << 20, 1 << 20])]),
        ("ConstantOfShape", {}, [np.array([1 << 40])]),
        ("Tile", {}, [np.zeros(9, np.float32), np.array([1 << 40])]),
        ("Pad", {}, [np.zeros(2, np.float32), np.array([0, 1 << 40])]),
        ("Resize", {}, [np.zeros(2, np.float32), None, None, np.array([1 << 40])]),
        ("Range", {}, [np.array(0), np.array(1 << 40), np.array(1)]),
        ("Range", {}, [np.array(0), np.array(1), np.array(0)]),
        ("Softmax", {"axis": 2}, [np.zeros((2, 3), np.float32)]),
        ("Split", {}, [np.zeros(4, np.float32), np.array([1, 2])]),
        ("Div", {}, [np.array([1]), np.array([0])]),
        ("MatMul", {}, [np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)]),
    ],
)
def test_inputs_that_do_not_fit(op: str, attributes: dict[str, Any], inputs: list[Any]) -> None:
    """Named, and without making what a damaged model asks for."""
    with pytest.raises(InputError, match=f"node 'n' \\({op}\\)"):
        run_operator("n", op, Call(17, attributes), inputs)


@pytest.mark.parametrize(
    ("op", "domain", "attributes", "reason"),
    [
        ("Einsum", "", {}, "operator Einsum is not supported"),
        ("Add", "org.example", {}, "domain 'org.example'"),
        ("Cast", "", {"to": 16}, "to is ONNX type 16"),
        ("BatchNormalization", "", {"training_mode": 1}, "training mode"),
    ],
)
def test_refused(op: str, domain: str, attributes: dict[str, Any], reason: str) -> None:
    assert reason in refusal(op, domain, attributes)


def test_older_operator_sets() -> None:
    """Node tests are of the newest form only."""
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)

    def run(op: str, opset: int, attributes: dict[str, Any], *inputs: Any) -> Any:
        return run_operator("n", op, Call(opset, attributes, 1), [x, *inputs])[0]

    np.testing.assert_allclose(run("Softmax", 11, {}).sum(), 1, rtol=1e-6)
    assert run("Squeeze", 11, {"axes": [0]}).shape == (3, 2, 2)
    assert run("Slice", 9, {"starts": [1], "ends": [9], "axes": [1]}).shape == (1, 2, 2, 2)
    assert run("ReduceSum", 11, {"axes": [1, 2, 3]}).item() == 66
    assert run("Clip", 7, {"min": 2.0, "max": 5.0}).max() == 5
    scales = np.float32([1, 1, 2, 2])
    doubled = x.repeat(2, 2).repeat(2, 3)
    np.testing.assert_array_equal(run("Upsample", 9, {}, scales), doubled)
    np.testing.assert_array_equal(run("Resize", 10, {}, scales), doubled)
