# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU between QuantizeLinear and DequantizeLinear, and as onnxruntime's dynamic quantiser
writes them: near what onnxruntime makes of the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_build import FLOAT, node, onnx, refused
from oracle import run_onnxruntime
from pynq_bbs import Accelerator
from pynq_bbs import compile as compile_model
from pynq_bbs.model.graph import QuantModel
from pynq_bbs.model.onnx_import import load_onnx
from test_onnx_recurrent import ALLOWED, ALLOWED_STATES, BEHIND, GATES, Cell, behind, named, run

_COMPUTE = {"LSTM", "GRU", "MatMul", "Gemm", "Add", "Concat", "Tanh", "Relu"}


def quantised(proto: Any, feeds: dict[str, Any], keep: tuple[str, ...] = ()) -> Any:
    """`proto` with QuantizeLinear and DequantizeLinear behind its input and all that is computed,
    but for the tensors `keep` and what Add and Tanh read of MatMul and Add; matrices INT8."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    graph = proto.graph
    shown = [output.name for output in graph.output]
    made = [name for n in graph.node for name in n.output if n.op_type in _COMPUTE]
    chain = {n.input[0] for n in graph.node if n.op_type == "Tanh"}
    for n in graph.node:
        if n.op_type == "Add" and "bias" in n.input:
            chain.add(n.input[0])
    every = onnx.ModelProto.FromString(proto.SerializeToString())
    del every.graph.output[:]
    wanted = [name for name in made if name not in chain and name not in keep]
    every.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, FLOAT, None) for name in wanted
    )
    ran = run_onnxruntime(every, feeds, optimise=False) if wanted else []
    values = dict(zip(wanted, ran, strict=True))
    values["x"] = feeds["x"]
    constants, nodes = {}, []

    def through(name: str, values: Any, output: str) -> None:
        """Asymmetric, as onnxruntime chooses it."""
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 1e-3)
        scale = np.float32((high - low) / 255)
        constants[f"{name}_s"] = scale
        constants[f"{name}_z"] = np.int8(np.clip(np.rint(-128 - low / scale), -128, 127))
        nodes.append(node("QuantizeLinear", f"{name} {name}_s {name}_z", f"{name}_q"))
        nodes.append(node("DequantizeLinear", f"{name}_q {name}_s {name}_z", output))
        nodes[-1].name = f"n_{name}_d"

    if "x" not in keep:
        through("x", values["x"], "x_d")
    for n in graph.node:
        for i, name in enumerate(n.input):
            if name == "x" and "x" not in keep:
                n.input[i] = "x_d"
            elif n.op_type in ("MatMul", "Gemm") and name.startswith("w"):
                n.input[i] = f"{name}_d"
        last = [name for name in n.output if name in values]
        for name in last:
            n.output[list(n.output).index(name)] = f"{name}_f"
        nodes.append(n)
        for name in last:
            through(f"{name}_f", values[name], name)
    for tensor in list(graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.name.startswith("w") and array.ndim == 2:
            scale = np.float32(np.abs(array).max() / 127)
            constants[f"{tensor.name}_i"] = np.rint(array / scale).astype(np.int8)
            constants[f"{tensor.name}_s"] = scale
            name = tensor.name
            nodes.insert(0, node("DequantizeLinear", f"{name}_i {name}_s", f"{name}_d"))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()
    )
    assert [output.name for output in graph.output] == shown
    return proto


def as_it_is(proto: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    """On the emulated engine, every layer compared with the cpu device; nothing is calibrated."""
    loaded = load_onnx(proto)
    assert isinstance(loaded, QuantModel)
    program = compile_model(loaded, build="32x4x1")
    with Accelerator(program, device="standin", verify=True, strict=True) as accelerator:
        return named(program, accelerator.run(feeds))


def check(proto: Any, feeds: dict[str, Any], op: str) -> None:
    outputs = [output.name for output in proto.graph.output]
    wanted = dict(zip(outputs, run_onnxruntime(proto, feeds, optimise=False), strict=True))
    made = as_it_is(proto, feeds)
    assert set(made) == set(wanted)
    for name, values in wanted.items():
        assert made[name].shape == values.shape and made[name].dtype == values.dtype
        allowed = ALLOWED_STATES if name == "y_c" else ALLOWED[op]
        assert np.abs(made[name] - values).max() <= allowed + 0.03 * np.abs(values).max(), name


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("name", BEHIND)
def test_what_stands_behind(name: str, op: str) -> None:
    cell, proto = behind(name, op, lengths=op == "GRU")
    feeds = cell.given()
    check(quantised(proto, feeds), feeds, op)


@pytest.mark.parametrize("op", GATES)
def test_only_the_input_is_quantised(op: str) -> None:
    """Hidden values and states have their own scale: outputs, initial values and a layer on top
    need no other one."""
    cell = Cell(op, 5, 3, 4, 6, "bidirectional", initial=True, lengths=True)
    feeds = cell.given()
    check(quantised(cell.graph(), feeds, keep=tuple(cell.outputs)), feeds, op)
    name = "every step"
    cell, proto = behind(name, op)
    feeds = cell.given()
    check(quantised(proto, feeds, keep=("y", "y_h", "y_c")), feeds, op)


def test_what_lacks_a_scale() -> None:
    cell = Cell("LSTM", 3, 2, 4, 5, initial=True)
    feeds = cell.given()
    proto = quantised(cell.graph(), feeds, keep=("x", "y_h", "y_c"))
    assert "its input is not quantised" in refused(proto)["n_y"]
    proto = quantised(cell.graph(), feeds, keep=("y", "y_h"))
    assert "last states of an LSTM are quantised" in refused(proto)["n_y"]
    nodes = [node("QuantizeLinear", "h s z", "q"), node("DequantizeLinear", "q s z", "h_d")]
    proto = quantised(cell.graph(s=np.float32(0.01), z=np.int8(0)), feeds, keep=("y", "y_h", "y_c"))
    (lstm,) = (n for n in proto.graph.node if n.op_type == "LSTM")
    lstm.input[list(lstm.input).index("h")] = "h_d"
    for each in reversed(nodes):
        proto.graph.node.insert(0, each)
    assert "what it starts from is quantised" in refused(proto)["n_y"]


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamically_quantised(tmp_path: Path, per_channel: bool) -> None:
    """DynamicQuantizeLSTM is read as the float LSTM that its weights stand for."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    cell = Cell("LSTM", 5, 3, 4, 6, "bidirectional", seed=3)
    feeds, paths = cell.given(), [tmp_path / name for name in ("float.onnx", "dynamic.onnx")]
    onnx.save(cell.graph(), paths[0])
    quantization.quantize_dynamic(*paths, per_channel=per_channel)
    proto = onnx.load(paths[1])
    assert [n.op_type for n in proto.graph.node] == ["DynamicQuantizeLSTM"]
    made = run(proto, feeds)
    # Of the float model: with a scale a row, onnxruntime itself is 0.1 off where there are two
    # directions, though its integers stand for the same weights.
    for name, want in cell.wanted().items():
        allowed = ALLOWED_STATES if name == "y_c" else ALLOWED["LSTM"]
        assert np.abs(made[name] - want).max() <= allowed + 0.01, name
