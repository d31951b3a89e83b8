# SPDX-License-Identifier: Apache-2.0
"""What is asked of single layers, what they get by default, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_build import FLOAT, model, node, onnx, sample
from pynq_bbs import Accelerator, compile, load_build, load_onnx
from pynq_bbs.choices import choose, read_layers
from pynq_bbs.cli import main
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.compress.quantize import quantize
from pynq_bbs.errors import InputError
from pynq_bbs.pack.image import pack

BUILD = load_build("8x32")
WEIGHTS = {
    "w1": sample(16, 3, 3, 3),
    "w2": sample(16, 1, 3, 3, seed=1),
    "w3": sample(32, 16, 3, 3, seed=2),
    "w4": sample(32, 32, 1, 1, seed=3),
    "w5": sample(10, 32, seed=4),
}
#: keep / bank size that a layer is left with
KEPT = dict[str, float]


def network():
    nodes = [
        node("Conv", "x w1", "conv1", pads=[1, 1, 1, 1]),
        node("Conv", "conv1 w2", "depth", pads=[1, 1, 1, 1], group=16),
        node("Conv", "depth w3", "conv2"),
        node("Relu", "conv2", "relu2"),
        node("Conv", "relu2 w4", "conv3"),
        node("GlobalAveragePool", "conv3", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat w5", "fc", transB=1),
    ]
    for n in nodes:
        n.name = n.output[0]
    return model(nodes, {"x": (3, 8, 8)}, {"fc": FLOAT}, **WEIGHTS)


X = sample(4, 3, 8, 8, seed=9)


def kept(**options) -> KEPT:
    program = compile(load_onnx(network()), calibration=X, **options)
    return {
        la.name: la.keep / la.bank_size
        for la in program.layers
        if la.name in ("conv1", "conv2", "conv3", "fc")
    }


def test_ends_are_kept_by_default() -> None:
    assert kept(sparsity=0.5) == {"conv1": 1, "conv2": 0.5, "conv3": 0.5, "fc": 1}
    chosen = choose(load_onnx(network()), BUILD, sparsity=0.5)
    assert {name: c.kept for name, c in chosen.items() if c.kept} == {
        "conv1": "first", "depth": "depthwise", "pool": "its weights are all the same",
        "fc": "last",
    }  # fmt: skip
    assert all(not c.kept for c in choose(load_onnx(network()), BUILD).values())


def test_what_is_asked_of_a_layer_wins() -> None:
    most: KEPT = {"conv1": 1, "conv2": 0.25, "conv3": 0.25, "fc": 0.25}
    assert kept(sparsity=0.75, layers={"fc": {"sparsity": 0.75}}) == most
    assert kept(layers={"*": {"sparsity": 0.75}}) == most  # of 3 channels none is a quarter
    assert kept(layers={"conv1": {"sparsity": 0.5}}) == dict.fromkeys(most, 1) | {"conv1": 0.5}
    assert kept(sparsity=0.5, layers={"conv?": {"sparsity": 0}}) == dict.fromkeys(most, 1)
    last = {"conv*": {"sparsity": 0.75}, "conv2": {"sparsity": 0.25, "bank_size": 4}}
    assert kept(layers=last) == {"conv1": 1, "conv2": 0.75, "conv3": 0.25, "fc": 1}


def test_bits_of_a_layer() -> None:
    program = compile(
        load_onnx(network()), calibration=X, weight_bits=4,
        layers={"conv1": {"weight_bits": 8}, "fc": {"weight_bits": 8}},
    )  # fmt: skip
    bits = {la.name: la.weight_bits for la in program.layers}
    assert bits["conv1"] == bits["fc"] == 8 and bits["conv2"] == bits["conv3"] == 4


def test_sums_that_are_also_read_have_the_same_choice() -> None:
    """A layer that is computed in two forms."""
    nodes = [node("Gemm", "x v1", "h", transB=1), node("Gemm", "h v2", "y", transB=1)]
    proto = model(
        nodes, {"x": (64,)}, {"h": FLOAT, "y": FLOAT}, v1=sample(64, 64), v2=sample(64, 64)
    )
    program = compile(load_onnx(proto), calibration=sample(9, 64), layers={"*": {"sparsity": 0.75}})
    assert len(program.layers) == 3
    assert {la.keep / la.bank_size for la in program.layers} == {0.25}


def test_ends_are_pruned_where_there_is_nothing_else() -> None:
    """Of a single layer, and of two, sparsity is what it says."""
    nodes = [node("Gemm", "x v1", "h", transB=1), node("Gemm", "h v2", "y", transB=1)]
    proto = model(nodes, {"x": (64,)}, {"y": FLOAT}, v1=sample(64, 64), v2=sample(64, 64))
    chosen = choose(load_onnx(proto), BUILD, sparsity=0.5)
    assert [c.sparsity for c in chosen.values()] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"conv9": {"sparsity": 0}}, ["'conv9'", "did you mean 'conv"]),
        ({"zzz": {"sparsity": 0}}, ["'zzz'", "there are 'conv1', 'depth'"]),
        ({"z*": {"sparsity": 0}}, ["'z*'"]),
        ({"conv2": {"sparsty": 0}}, ["'conv2'", "'sparsty'", "did you mean 'sparsity'"]),
        ({"conv2": {"sparsity": 1}}, ["'conv2'", "sparsity is 1", "less than 1"]),
        ({"conv2": {"sparsity": -0.5}}, ["-0.5"]),
        ({"conv2": {"sparsity": float("nan")}}, ["nan"]),
        ({"conv2": {"sparsity": True}}, ["True"]),
        ({"conv2": {"sparsity": "0.5"}}, ["'0.5'"]),
        ({"conv2": {"bank_size": 0}}, ["bank_size is 0", "1 to 256"]),
        ({"conv2": {"bank_size": 257}}, ["bank_size is 257"]),
        ({"conv2": {"bank_size": 8.0}}, ["bank_size is 8.0"]),
        ({"conv2": {"weight_bits": 3}}, ["weight_bits is 3", "4 or 8"]),
        ({"conv2": 0.5}, ["'conv2'", "must be a dict"]),
        ({"conv1": {"sparsity": 0.75}}, ["'conv1'", "3 channels"]),
        ({"depth": {"sparsity": 0.5}}, ["'depth'", "depthwise"]),
        ({"pool": {"sparsity": 0.5}}, ["'pool'", "all the same"]),
        ({"fc": {"sparsity": 0.999}}, ["'fc'", "0.999", "Nearest"]),
    ],
)
def test_refused(layers: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        compile(load_onnx(network()), calibration=X, layers=layers)
    assert all(word in str(caught.value) for word in words), caught.value


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("m.onnx", "x.npy", "layers.toml", "p.bbs.npz")]
    paths[0].write_bytes(network().SerializeToString())
    np.save(paths[1], X)
    paths[2].write_text('["conv2"]\nsparsity = 0.75\nbank_size = 16\n\n[fc]\nsparsity = 0.5\n')
    arguments = ["compile", str(paths[0]), "--calibration", str(paths[1]), "-o", str(paths[3])]
    assert main([*arguments, "--sparsity", "0.5", "--layers", str(paths[2])]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[4:] for line in printed if " x " in line}
    assert rows["conv2"][0] in ("1/4", "2/8", "4/16") and rows["conv1"] == ["1/1", "8", "first"]
    assert rows["depth"][2:] == ["depthwise"] and len(rows["fc"]) == 2
    assert any("--layers can ask for it" in line for line in printed)
    asked = read_layers(paths[2])
    assert asked == {"conv2": {"sparsity": 0.75, "bank_size": 16}, "fc": {"sparsity": 0.5}}
    program = compile_model(load_onnx(paths[0]), sparsity=0.5, layers=asked, calibration=X)
    program.save(tmp_path / "q.bbs.npz")
    assert (tmp_path / "q.bbs.npz").read_bytes() == paths[3].read_bytes()


def test_zeros_of_a_float_model_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2:4 along the channels of two layers, as a training tool leaves it; no option says so."""
    proto = network()
    for tensor in proto.graph.initializer:
        if tensor.name in ("w3", "w4"):
            weights = np.moveaxis(WEIGHTS[tensor.name], 1, -1)
            banks = weights.reshape(-1, 4).copy()
            banks[np.arange(len(banks))[:, None], np.abs(banks).argsort(axis=1)[:, :2]] = 0
            masked = np.moveaxis(banks.reshape(weights.shape), -1, 1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(masked), tensor.name))
    loaded = load_onnx(proto)
    found = compile(loaded, calibration=X)
    banks = {la.name: (la.keep, la.bank_size) for la in found.layers}
    assert banks["conv2"] == banks["conv3"] == (2, 4)
    dense = pack(quantize(loaded, X), dict.fromkeys(("conv2", "conv3"), (1, 1)), BUILD)
    assert {la.keep / la.bank_size for la in dense.layers if la.name in ("conv2", "conv3")} == {1}
    assert found.weight_bytes < dense.weight_bytes
    with Accelerator(found, "standin", verify=True) as one, Accelerator(dense, "cpu") as other:
        np.testing.assert_array_equal(one.run(X), other.run(X))
    paths = [tmp_path / name for name in ("m.onnx", "x.npy", "p.bbs.npz")]
    paths[0].write_bytes(proto.SerializeToString())
    np.save(paths[1], X)
    arguments = ["--calibration", str(paths[1]), "-o", str(paths[2])]
    assert main(["compile", str(paths[0]), *arguments]) == 0
    assert main(["info", str(paths[2])]) == 0
    assert main(["check", str(paths[0])]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("conv3")]
    assert sum(" 2/4 " in line for line in lines) == 2
    assert "keep/bank: conv2 2/4, conv3 2/4\n" in printed


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"sparsity = 0.5\n", "'sparsity' is no table"),
        (b"[conv2\n", "not a TOML file"),
        (b"\xff\xfe", "not a TOML file"),
        (None, "cannot read"),
        (b"[conv3x]\nsparsity=0\n", "did you mean 'conv3'"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes | None, word: str
) -> None:
    paths = [tmp_path / name for name in ("m.onnx", "layers.toml")]
    paths[0].write_bytes(network().SerializeToString())
    if text is not None:
        paths[1].write_bytes(text)
    assert main(["compile", str(paths[0]), "--layers", str(paths[1])]) == 3
    assert word in capsys.readouterr().err
