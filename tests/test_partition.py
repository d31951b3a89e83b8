# SPDX-License-Identifier: Apache-2.0
"""Models in several programs: where they are cut, and that they give what the model gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, model, node, sample
from pynq_bbs import Accelerator, Program
from pynq_bbs import compile as compile_model
from pynq_bbs.cli import main
from pynq_bbs.errors import InputError, UnsupportedModelError
from pynq_bbs.model.graph import Model, QuantModel
from pynq_bbs.model.onnx_facts import Facts
from pynq_bbs.model.onnx_file import read_graph
from pynq_bbs.model.onnx_segments import Part
from pynq_bbs.model.partition import Partition, read_model
from pynq_bbs.operators.node import HostNode
from pynq_bbs.pack.pipeline import Pipeline
from pynq_bbs.pipeline_accelerator import run_named

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")

INT64 = onnx.TensorProto.INT64


def shape_of(partition: Any) -> list[Any]:
    """The stages: operators of the host, and of a part its inputs and outputs."""
    assert isinstance(partition, Partition)
    return [
        stage.op if isinstance(stage, HostNode) else (*stage.inputs, "->", *stage.outputs)
        for stage in partition.stages
    ]


def evaluated(proto: Any, feeds: dict[str, Any]) -> list[Any]:
    return reference.ReferenceEvaluator(proto).run(None, feeds)


def distance(y: Any, expected: Any) -> float:
    """Of INT8 from float, relative."""
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


def small_cnn() -> Any:
    """Convolutions around a Resize, and around x * sigmoid(x * g), g a scale for each channel."""
    nodes = [
        node("Conv", "x w1 b1", "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "a", "r"),
        node("Resize", "r - scales", "z", mode="linear"),
        node("Conv", "z w2", "c", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "c", "g"),
        node("Mul", "c g", "cg"),
        node("Sigmoid", "cg", "s"),
        node("Mul", "c s", "swish"),
        node("Conv", "swish w3", "d", strides=[2, 2]),
        node("Relu", "d", "dr"),
        node("GlobalAveragePool", "dr", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w4", "y", transB=1),
    ]
    return model(
        nodes,
        {"x": (3, 16, 16)},
        {"y": FLOAT},
        w1=sample(8, 3, 3, 3) / 5,
        b1=sample(8, seed=1),
        w2=sample(8, 8, 3, 3, seed=2) / 8,
        w3=sample(12, 8, 3, 3, seed=3) / 8,
        w4=sample(10, 12, seed=4),
        scales=np.float32([1, 1, 2, 2]),
    )


def test_small_cnn(tmp_path: Path) -> None:
    proto, x = small_cnn(), sample(24, 3, 16, 16, seed=9)
    partition = read_model(proto)
    assert shape_of(partition) == [
        ("x", "->", "r"), "Resize", ("z", "->", "c", "g"), "Mul", ("cg", "c", "->", "y"),
    ]  # fmt: skip
    pipeline = compile_model(partition, calibration=x)
    assert isinstance(pipeline, Pipeline)
    pipeline.save(tmp_path / "p.bbs.npz")
    (expected,) = evaluated(proto, {"x": x})
    with Accelerator(tmp_path / "p.bbs.npz", "standin", verify=True) as accelerator:
        y = accelerator.run(x)
        assert accelerator.report().verified_columns == len(x)
    assert distance(y, expected) < 0.05
    with Accelerator(pipeline, "cpu") as accelerator:
        np.testing.assert_array_equal(accelerator.run(x), y)


def test_calibration_in_batches() -> None:
    """Streamed in any pieces, the same ranges come out."""
    partition, x = read_model(small_cnn()), sample(50, 3, 16, 16, seed=9)
    whole = compile_model(partition, calibration=x)
    pieces = compile_model(partition, calibration=({"x": x[i : i + 7]} for i in range(0, 50, 7)))
    assert str(whole) == str(pieces)
    seen: list[int] = []
    compile_model(partition, calibration=x, progress=seen.append)
    assert seen == [8, 16, 24, 32, 40, 48, 50]


def test_float_parts_need_calibration() -> None:
    with pytest.raises(InputError, match="needs calibration"):
        compile_model(read_model(small_cnn()))
    with pytest.raises(InputError, match=r"must be \(N, 3, 16, 16\)"):
        compile_model(read_model(small_cnn()), calibration=sample(2, 3, 8, 8))
    with pytest.raises(InputError, match="no samples"):
        compile_model(read_model(small_cnn()), calibration=[])


def test_sparse_parts() -> None:
    partition, x = read_model(encoder()), sample(4, 6, 16, seed=9)
    pipeline = compile_model(
        partition, calibration=x, layers={"*": {"sparsity": 0.5, "bank_size": 4}}
    )
    assert isinstance(pipeline, Pipeline) and pipeline.sparsity == pytest.approx(0.5)


def encoder(
    batch: Any = "N", tokens: int = 6, width: int = 16, heads: int = 2, layers: int = 1
) -> Any:
    """A transformer encoder, as exporters write it where the batch is open."""
    nodes: list[Any] = []
    weights: dict[str, Any] = {
        "order": np.array([0, tokens, heads, width // heads]),
        "flat": np.array([0, tokens, width]),
        "root": np.float32(np.sqrt(width // heads)),
        "gain": 1 + sample(width, seed=20) / 8,
        "shift": sample(width, seed=21) / 8,
    }

    def linear(source: str, result: str, rows: int, features: int) -> None:
        weights[f"w_{result}"] = sample(features, rows, seed=len(weights)) / np.sqrt(features)
        weights[f"b_{result}"] = sample(rows, seed=len(weights)) / 4
        nodes.append(node("MatMul", f"{source} w_{result}", f"m_{result}"))
        nodes.append(node("Add", f"b_{result} m_{result}", result))

    def layer(x: str, n: str, y: str) -> None:
        for name in "qkv":
            linear(x, f"{name}{n}", width, width)
            nodes.append(node("Reshape", f"{name}{n} order", f"{name}_r{n}"))
            perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
            nodes.append(node("Transpose", f"{name}_r{n}", f"{name}_t{n}", perm=perm))
        nodes.extend(
            [
                node("MatMul", f"q_t{n} k_t{n}", f"scores{n}"),
                node("Div", f"scores{n} root", f"scaled{n}"),
                node("Softmax", f"scaled{n}", f"weights{n}", axis=-1),
                node("MatMul", f"weights{n} v_t{n}", f"mixed{n}"),
                node("Transpose", f"mixed{n}", f"mixed_t{n}", perm=[0, 2, 1, 3]),
                node("Reshape", f"mixed_t{n} flat", f"joined{n}"),
            ]
        )
        linear(f"joined{n}", f"o{n}", width, width)
        nodes.append(node("Add", f"o{n} {x}", f"residual{n}"))
        nodes.append(node("LayerNormalization", f"residual{n} gain shift", f"normal{n}"))
        linear(f"normal{n}", f"up{n}", 4 * width, width)
        nodes.append(node("Relu", f"up{n}", f"active{n}"))
        linear(f"active{n}", f"down{n}", width, 4 * width)
        nodes.append(node("Add", f"down{n} normal{n}", f"sum{n}"))
        nodes.append(node("LayerNormalization", f"sum{n} gain shift", y))

    for i in range(layers):
        layer(f"x{i}" if i else "x", str(i or ""), f"x{i + 1}" if i + 1 < layers else "y")
    return model(nodes, {"x": (tokens, width)}, {"y": FLOAT}, batch=batch, **weights)


@pytest.mark.slow
def test_encoder_of_bert_small() -> None:
    """Hidden 512, 8 heads, 4 layers, 128 tokens, 2048 in between: what the engine leaves to the
    host is attention's products, 4 % of all."""
    proto, x = encoder(tokens=128, width=512, heads=8, layers=4), sample(4, 128, 512, seed=9)
    partition = read_model(proto)
    assert isinstance(partition, Partition)
    facts = Facts(read_graph(proto))
    runs = {check.name: check.runs for check in partition.checks}
    macs = {"engine": 0, "host": 0}
    for index, checked in facts.nodes.items():
        macs[runs[checked.name]] += facts.macs(index) or 0
    assert sum(macs.values()) == 4 * 128 * (4 * 512**2 + 2 * 512 * 2048 + 2 * 128 * 512)
    assert macs["engine"] / sum(macs.values()) == pytest.approx(0.96)
    pipeline = compile_model(partition, calibration=x)
    assert isinstance(pipeline, Pipeline) and len(pipeline.programs) == 12
    (expected,) = evaluated(proto, {"x": x[:1]})
    with Accelerator(pipeline, "standin", verify=True) as accelerator:
        assert distance(accelerator.run(x[:1]), expected) < 0.05
        assert accelerator.report().verified_columns == 1


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_encoder(batch: Any) -> None:
    """Tokens are samples of the programs; three programs, as attention and normalisation are the
    host's."""
    proto, x = encoder(batch), sample(6, 6, 16, seed=9)
    partition = read_model(proto)
    assert isinstance(partition, Partition)
    parts = [stage for stage in partition.stages if isinstance(stage, Part)]
    assert [(part.folded, part.places) for part in parts] == [(1, 6)] * 3
    assert [part.outputs for part in parts] == [("q", "k", "v"), ("residual",), ("sum",)]
    ends = {check.name: check.runs for check in partition.checks}
    assert ends["n_active"] == ends["n_residual"] == ends["n_sum"] == "engine"
    assert ends["n_scores"] == ends["n_weights"] == ends["n_y"] == "host"
    pipeline = compile_model(partition, calibration=x)
    step = batch if isinstance(batch, int) else 6
    expected = [evaluated(proto, {"x": x[i : i + step]})[0] for i in range(0, 6, step)]
    with Accelerator(pipeline, "standin", verify=True) as accelerator:
        assert distance(accelerator.run(x), np.concatenate(expected)) < 0.05
        assert {layer.pixels for layer in accelerator.report().layers} == {6}


def test_tokens_behind_an_embedding() -> None:
    """Token numbers come in as integers; the host looks them up."""
    nodes = [
        node("Gather", "table ids", "e"), node("MatMul", "e w", "m"), node("Add", "m b", "y"),
    ]  # fmt: skip
    proto = model(
        nodes, {"ids": (INT64, (5,))}, {"y": FLOAT}, table=sample(20, 8), w=sample(8, 4, seed=1),
        b=sample(4, seed=2),
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 20, (7, 5))
    assert shape_of(read_model(proto)) == ["Gather", ("e", "->", "y")]
    with Accelerator(compile_model(read_model(proto), calibration=ids), "cpu") as accelerator:
        assert accelerator.inputs == {"ids": ((5,), "int64")}
        assert distance(accelerator.run(ids), evaluated(proto, {"ids": ids})[0]) < 0.03
        with pytest.raises(InputError, match="'ids' is float32, must be int64"):
            accelerator.run(ids.astype(np.float32))
        with pytest.raises(InputError, match="takes elements"):
            accelerator.run(ids + 20)


FIRST_HALF = [
    node("QuantizeLinear", "x s z", "xq"),
    node("DequantizeLinear", "xq s z", "xd"),
    node("DequantizeLinear", "w1 ws", "w1d"),
    node("Conv", "xd w1d", "c", pads=[1, 1, 1, 1]),
    node("Relu", "c", "r"),
    node("QuantizeLinear", "r s2 z", "rq"),
    node("DequantizeLinear", "rq s2 z", "m"),
]
SECOND_HALF = [
    node("QuantizeLinear", "n s2 z", "nq"),
    node("DequantizeLinear", "nq s2 z", "nd"),
    node("DequantizeLinear", "w2 ws", "w2d"),
    node("Conv", "nd w2d", "d"),
    node("QuantizeLinear", "d s2 z", "dq"),
    node("DequantizeLinear", "dq s2 z", "y"),
]


def quantised(nodes: list[Any], output: str = "y", **inputs: tuple[int, ...]) -> Any:
    """A model of halves and what stands between them, from float x, m or n on."""
    rng = np.random.default_rng(0)
    return model(
        nodes, inputs or {"x": (4, 8, 8)}, {output: FLOAT},
        w1=rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8),
        w2=rng.integers(-127, 128, (6, 8, 3, 3)).astype(np.int8), w3=sample(6, 8, 3, 3) / 9,
        s=np.float32(0.03), z=np.uint8(118), s2=np.float32(0.05), ws=np.float32(0.002),
        up=np.float32([1, 1, 2, 2]), opset=21,
    )  # fmt: skip


def test_quantised_model_is_cut_outside_its_layers() -> None:
    """DequantizeLinear -> operator -> QuantizeLinear stays whole: the integers of both halves."""
    larger = node("Resize", "m - up", "n", mode="nearest")
    partition = read_model(quantised([*FIRST_HALF, larger, *SECOND_HALF]))
    assert shape_of(partition) == [("x", "->", "m"), "Resize", ("n", "->", "y")]
    assert isinstance(partition, Partition) and not partition.is_float
    x = sample(5, 4, 8, 8, seed=3)
    with Accelerator(compile_model(partition), "standin", verify=True) as accelerator:
        y = accelerator.run(x)
    first, second = (
        read_model(half)
        for half in (quantised(FIRST_HALF, "m"), quantised(SECOND_HALF, n=(8, 16, 16)))
    )
    assert isinstance(first, QuantModel) and isinstance(second, QuantModel)
    with Accelerator(compile_model(first), "cpu") as one:
        middle = one.run(x).repeat(2, 2).repeat(2, 3)
    with Accelerator(compile_model(second), "cpu") as two:
        np.testing.assert_array_equal(y, two.run(middle))


def test_quantised_tensor_that_both_read() -> None:
    """Its DequantizeLinear is in the program and on the host: neither loses the scale."""
    between = [node("Exp", "m", "e"), node("Sub", "e m", "n")]
    stages = shape_of(read_model(quantised([*FIRST_HALF, *between, *SECOND_HALF])))
    assert stages == [("x", "->", "m"), "Exp", "Sub", ("n", "->", "y")]


def test_mixed_model() -> None:
    """A part that is quantised runs as it is while what follows it is calibrated."""
    proto = quantised([*FIRST_HALF, node("Exp", "m", "e"), node("Conv", "e w3", "y")])
    partition, x = read_model(proto), sample(9, 4, 8, 8, seed=3)
    assert isinstance(partition, Partition)
    kinds = [type(stage.model) for stage in partition.stages if isinstance(stage, Part)]
    assert kinds == [QuantModel, Model]
    pipeline = compile_model(partition, calibration=x)
    with Accelerator(pipeline, "cpu") as accelerator:
        assert distance(accelerator.run(x), evaluated(proto, {"x": x})[0]) < 0.05


def test_one_program_where_one_suffices(tmp_path: Path) -> None:
    """Also where an exporter computed a shape from the batch."""
    nodes = [
        node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Shape", "r", "shape"),
        node("Gather", "shape first", "n"), node("Unsqueeze", "n axes", "n1"),
        node("Concat", "n1 rest", "target", axis=0), node("Reshape", "r target", "f"),
        node("Gemm", "f v", "y"),
    ]  # fmt: skip
    proto = model(
        nodes, {"x": (2, 6, 6)}, {"y": FLOAT}, w=sample(4, 2, 3, 3), v=sample(64, 5, seed=1),
        first=np.array(0), axes=np.array([0]), rest=np.array([64]),
    )  # fmt: skip
    assert isinstance(read_model(proto), Model)
    onnx.save(proto, tmp_path / "m.onnx")
    program = compile_model(tmp_path / "m.onnx", calibration=sample(4, 2, 6, 6))
    assert isinstance(program, Program)


def test_nothing_for_the_engine() -> None:
    """Then there is no device either."""
    proto = model([node("Erf", "x", "e"), node("Exp", "e", "y")], {"x": (5,)}, {"y": FLOAT})
    pipeline = compile_model(read_model(proto))
    assert isinstance(pipeline, Pipeline) and not pipeline.programs
    x = sample(3, 5)
    with Accelerator(pipeline, "standin", verify=True) as accelerator:
        np.testing.assert_allclose(accelerator.run(x), evaluated(proto, {"x": x})[0], rtol=1e-5)
        assert accelerator.report().cycles == 0


def test_first_dimensions_that_differ() -> None:
    """A mean over the batch is one sample, which is not as many as there are: their sum is the
    host's, which broadcasts."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("ReduceMean", "a first", "m", keepdims=1),
        node("Add", "a m", "s"),
        node("MatMul", "s v", "y"),
    ]
    proto = model(
        nodes, {"x": (8,)}, {"y": FLOAT}, opset=18, w=sample(8, 8), v=sample(8, 4, seed=1),
        first=np.array([0]),
    )  # fmt: skip
    stages = shape_of(read_model(proto))
    assert stages == [("x", "->", "a"), "ReduceMean", "Add", ("s", "->", "y")]
    x = sample(7, 8)
    with Accelerator(compile_model(read_model(proto), calibration=x), "cpu") as accelerator:
        assert distance(accelerator.run(x), evaluated(proto, {"x": x})[0]) < 0.03


def test_outputs_that_no_node_computes() -> None:
    """Inputs and constants may be outputs, and tensors in between."""
    nodes = [node("Exp", "x", "e"), node("MatMul", "e w", "m"), node("Erf", "m", "y")]
    proto = model(
        nodes, {"x": (4,)}, {"y": FLOAT, "x": FLOAT, "w": FLOAT, "e": FLOAT}, w=sample(4, 3)
    )
    x = sample(6, 4)
    with Accelerator(compile_model(read_model(proto), calibration=x), "cpu") as accelerator:
        assert accelerator.outputs["w"] == ((3,), "float32")
        results = accelerator.run(x)
    np.testing.assert_array_equal(results["x"], x)
    np.testing.assert_array_equal(results["w"], sample(4, 3))
    through = model(
        [node("MatMul", "x w", "y")], {"x": (4,)}, {"y": FLOAT, "x": FLOAT}, w=sample(4, 3)
    )
    with Accelerator(compile_model(read_model(through), calibration=x), "cpu") as accelerator:
        np.testing.assert_array_equal(accelerator.run(x)["x"], x)
    np.testing.assert_allclose(results["e"], np.exp(x), rtol=1e-6)
    assert distance(results["y"], evaluated(proto, {"x": x})[0]) < 0.05


def test_constant_output_that_cannot_be(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "y"), node("Hardmax", "w", "z")]
    onnx.save(model(nodes, {"x": (4,)}, {"y": FLOAT, "z": FLOAT}, w=sample(4, 3)), tmp_path / "m")
    with pytest.raises(UnsupportedModelError, match="output 'z': Hardmax of constants"):
        read_model(tmp_path / "m")
    assert main(["check", str(tmp_path / "m")]) == 5


def test_model_without_inputs() -> None:
    proto = model([node("Exp", "w", "y")], {}, {"y": FLOAT}, w=sample(4, 3))
    with pytest.raises(UnsupportedModelError, match="no input"):
        read_model(proto)


def test_what_neither_can_run_is_listed_whole() -> None:
    nodes = [
        node("MatMul", "x w", "m"), node("Einsum", "m", "a", equation="ij->ij"),
        node("Exp", "a", "e"), node("Hardmax", "e", "y"),
    ]  # fmt: skip
    proto = model(nodes, {"x": (4,)}, {"y": FLOAT}, w=sample(4, 3))
    with pytest.raises(UnsupportedModelError) as caught:
        read_model(proto)
    reasons = dict(caught.value.nodes)
    assert set(reasons) == {"n_a", "n_y"}
    assert (
        reasons["n_a"] == "engine: the engine has no Einsum; host: operator Einsum is not supported"
    )


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every node with its share of the products, those of a compiled model with their time too."""
    onnx.save(encoder(), tmp_path / "m.onnx")
    assert main(["check", str(tmp_path / "m.onnx")]) == 0
    lines = capsys.readouterr().out.splitlines()
    of = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    total = 6 * (4 * 16**2 + 2 * 16 * 64 + 2 * 6 * 16)
    engine = 6 * (4 * 16**2 + 2 * 16 * 64)
    assert of["n_m_up"] == f"MatMul engine {100 * 6 * 16 * 64 / total:.1f} % linear layer"
    assert of["n_scores"].startswith(f"MatMul host {100 * 6 * 6 * 16 / total:.1f} % both operands")
    assert of["n_y"] == "LayerNormalization host - the engine has no LayerNormalization"
    assert lines[-1] == (
        f"{100 * engine / total:.1f} % of {total} MACs on the engine, in 3 programs: 6 crossings "
        "between host and engine"
    )
    compile_model(read_model(encoder()), calibration=sample(2, 6, 16)).save(tmp_path / "p")
    assert main(["check", str(tmp_path / "p")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "n_scores MatMul host - -" in [" ".join(line.split()) for line in lines]
    assert f"{engine} MACs, 3 program(s): 6 crossings" in lines[-1]


def test_check_of_what_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Hardmax", "m", "y")]
    onnx.save(model(nodes, {"x": (4,)}, {"y": FLOAT}, w=sample(4, 3)), tmp_path / "m.onnx")
    assert main(["check", str(tmp_path / "m.onnx")]) == 5
    printed = capsys.readouterr()
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert "n_m MatMul engine 100.0 % linear layer" in lines
    reason = "engine: the engine has no Hardmax; host: operator Hardmax is not supported"
    assert f"n_y Hardmax unsupported - {reason}" in lines
    assert "1 of 2 nodes" in printed.err
    open_shape = model(nodes, {"x": ("rows", 4)}, {"y": FLOAT}, w=sample(4, 3))
    onnx.save(open_shape, tmp_path / "m.onnx")
    assert main(["check", str(tmp_path / "m.onnx")]) == 5
    assert "has no fixed shape" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"x": (FLOAT, ("rows", 4))}, "'x': is float32 of shape"),
        ({"x": (onnx.TensorProto.STRING, (4,))}, "must be numbers"),
    ],
)
def test_inputs_that_cannot_be(inputs: dict[str, Any], reason: str) -> None:
    proto = model([node("Identity", "x", "y")], inputs, {"y": 0})
    proto.graph.output[0].type.CopyFrom(proto.graph.input[0].type)
    with pytest.raises(UnsupportedModelError, match=reason):
        read_model(proto)


def test_quantised_encoder() -> None:
    """As onnxruntime quantises one: the same numbers, whoever computes them."""
    runtime = pytest.importorskip("onnxruntime")
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": sample(4, 6, 16, seed=i)} for i in range(5)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("float.onnx", "quantised.onnx")]
        onnx.save(encoder(), paths[0])
        quantization.quantize_static(
            *paths, Samples(), weight_type=quantization.QuantType.QInt8, per_channel=True
        )
        partition, x = read_model(paths[1]), sample(3, 6, 16, seed=77)
        session = runtime.InferenceSession(str(paths[1]), options)
        (expected,) = session.run(None, {"x": x})
    assert isinstance(partition, Partition) and not partition.is_float
    with Accelerator(compile_model(partition), "standin", verify=True) as accelerator:
        assert distance(accelerator.run(x), expected) < 1e-3


def test_shapes_that_an_exporter_computes() -> None:
    """x.view(n, 2, c // 2, h, w) of an open batch, as a channel shuffle has it."""
    nodes = [
        node("Conv", "x w1", "c"),
        node("Shape", "c", "shape"),
        node("Gather", "shape zero", "n"),
        node("Gather", "shape one", "channels"),
        node("Div", "channels two", "half"),
        *(node("Unsqueeze", f"{name} axes", f"{name}_1") for name in ("n", "half")),
        node("Concat", "n_1 two_1 half_1 minus", "apart", axis=0),
        node("Reshape", "c apart", "a"),
        node("Transpose", "a", "t", perm=[0, 2, 1, 3]),
        node("Slice", "shape two_1 four", "size"),
        node("Concat", "n_1 minus size", "together", axis=0),
        node("Reshape", "t together", "s"),
        node("Conv", "s w2", "y"),
    ]
    numbers = {
        "zero": 0, "one": 1, "two": 2, "axes": [0], "two_1": [2], "minus": [-1], "four": [4],
    }  # fmt: skip
    proto = model(
        nodes, {"x": (3, 6, 6)}, {"y": FLOAT}, w1=sample(8, 3, 3, 3), w2=sample(4, 8, 1, 1),
        **{name: np.array(value) for name, value in numbers.items()},
    )  # fmt: skip
    graph = read_graph(proto)
    assert graph.inferred["a"].shape == (None, 2, 4, 16)
    assert graph.inferred["y"].shape == (None, 4, 4, 4)
    assert graph.of_one["y"] == (1, 4, 4, 4)
    assert shape_of(read_model(proto)) == [("x", "->", "t"), "Reshape", ("s", "->", "y")]
    x = sample(5, 3, 6, 6, seed=4)
    program = compile_model(read_model(proto), calibration=x)
    with Accelerator(program, "cpu") as accelerator:
        assert distance(accelerator.run(x), evaluated(proto, {"x": x})[0]) < 0.05


def test_images_of_bytes() -> None:
    """What makes floats of them is the host's, as the weights are floats."""
    nodes = [
        node("Cast", "x", "f", to=FLOAT), node("Mul", "f s", "g"),
        node("Transpose", "g", "t", perm=[0, 3, 1, 2]), node("Conv", "t w", "y"),
    ]  # fmt: skip
    proto = model(
        nodes, {"x": (onnx.TensorProto.UINT8, (8, 8, 3))}, {"y": FLOAT},
        s=np.float32(1 / 255), w=sample(4, 3, 3, 3),
    )  # fmt: skip
    assert shape_of(read_model(proto)) == ["Cast", "Mul", "Transpose", ("t", "->", "y")]
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    with Accelerator(compile_model(read_model(proto), calibration=x), "cpu") as accelerator:
        assert distance(accelerator.run(x), evaluated(proto, {"x": x})[0]) < 0.02


def test_running_needs_no_onnx(tmp_path: Path) -> None:
    """A board has numpy and cffi only."""
    path = tmp_path / "p.bbs.npz"
    compile_model(read_model(encoder()), calibration=sample(2, 6, 16)).save(path)
    script = (
        "import sys; sys.modules['onnx'] = sys.modules['torch'] = None\n"
        "import numpy as np; from pynq_bbs import Accelerator\n"
        f"y = Accelerator({str(path)!r}, 'cpu').run(np.ones((2, 6, 16), np.float32))\n"
        "print(y.shape)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "(2, 6, 16)\n", done.stderr


# ---- any graph ----

_WIDTH = 8


@st.composite
def graphs(draw: Any) -> tuple[Any, int]:
    """A graph of layers, functions, additions and operators of the host, all over (N, 8)."""
    tensors, nodes, weights = ["x"], [], {}
    for i in range(draw(st.integers(2, 12))):
        source = draw(st.sampled_from(tensors[-4:]))
        kind = draw(st.sampled_from(["MatMul", "MatMul", "Relu", "Add", "host"]))
        if kind == "MatMul":
            weights[f"w{i}"] = sample(_WIDTH, _WIDTH, seed=i) / np.sqrt(_WIDTH)
            nodes.append(node("MatMul", f"{source} w{i}", f"t{i}"))
        elif kind == "Add":
            nodes.append(node("Add", f"{source} {draw(st.sampled_from(tensors))}", f"t{i}"))
        elif kind == "host":
            nodes.append(node(draw(st.sampled_from(["Erf", "Softsign", "Sin"])), source, f"t{i}"))
        else:
            nodes.append(node("Relu", source, f"t{i}"))
        tensors.append(f"t{i}")
    outputs = {tensors[-1]: FLOAT} | {
        name: FLOAT for name in draw(st.sets(st.sampled_from(tensors[1:]), max_size=2))
    }
    return model(nodes, {"x": (_WIDTH,)}, outputs, **weights)


@settings(max_examples=60, deadline=None)
@given(proto=graphs())
def test_any_graph(proto: Any) -> None:
    """The stages can run in their order, each tensor is made once, and the results are close."""
    found, x = read_model(proto), sample(64, _WIDTH, seed=99)
    if isinstance(found, Partition):
        known = {"x", *found.constants}
        for stage in found.stages:
            assert known.issuperset(filter(None, stage.inputs))
            assert not known.intersection(stage.outputs)
            known.update(stage.outputs)
        assert all(spec.name in known for spec in found.outputs)
    expected = dict(
        zip([o.name for o in proto.graph.output], evaluated(proto, {"x": x}), strict=True)
    )
    with Accelerator(compile_model(found, calibration=x), "cpu") as accelerator:
        results = run_named(accelerator, x)
    assert results.keys() == expected.keys()
    for name, y in expected.items():
        if np.linalg.norm(y):
            assert distance(results[name], y) < 0.2, name
