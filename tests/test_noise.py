# SPDX-License-Identifier: Apache-2.0
"""Signal-to-noise ratios of layers and models, against fake quantisation in plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, model, node, sample
from oracle import run_onnxruntime
from pynq_bbs import compile, load_onnx, sensitivity
from pynq_bbs.choices import layers_text, read_layers
from pynq_bbs.cli import main
from pynq_bbs.errors import InputError
from pynq_bbs.model.partition import Partition, read_model
from test_choices import X, network
from test_onnx_integers import qdq_model
from test_onnx_recurrent import Cell


def chain(seed: int, function: str):
    """Gemm, a function, Gemm; and what they compute."""
    w, v = sample(24, 64, seed=seed), sample(5, 24, seed=seed + 1)
    nodes = [
        node("Gemm", "x w", "t", transB=1), node(function, "t", "r"),
        node("Gemm", "r v", "y", transB=1),
    ]  # fmt: skip
    return load_onnx(model(nodes, {"x": (64,)}, {"y": FLOAT}, w=w, v=v)), w, v


def fake_quantised(x):
    """To INT8 and back, over the range of `x` and zero."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (high - low) / 255
    zero = np.clip(np.rint(-128 - low / scale), -128, 127)
    return (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale


def fake_weights(w, bits: int):
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1, keepdims=True) / limit
    return np.clip(np.rint(w / scale), -limit, limit) * scale


def half(w):
    """The two largest of every four."""
    banks = w.reshape(-1, 4)
    mask = np.abs(banks).argsort(axis=1).argsort(axis=1) >= 2
    return (banks * mask).reshape(w.shape)


def decibels(wanted, got):
    return 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - got) ** 2))


@given(seed=st.integers(0, 1000), bits=st.sampled_from([8, 4]))
@settings(max_examples=15, deadline=None)
def test_against_fake_quantisation(seed: int, bits: int) -> None:
    loaded, w, v = chain(seed, "Relu")
    x = sample(300, 64, seed=seed + 2)
    found = sensitivity(loaded, x, sparsities=[0.5], bank_size=4, weight_bits=bits)
    hidden = np.maximum(x @ w.T, 0)
    fake = fake_quantised(x)
    for of_w, of_v, got in (
        (w, v, [la.quantised for la in found.layers]),
        (half(w), half(v), [la.pruned[0] for la in found.layers]),
    ):
        # The scale behind the first layer is that of the dense model.
        scaled = np.clip(np.maximum(fake @ fake_weights(of_w, bits).T, 0), 0, hidden.max())
        step = hidden.max() / 255
        first = decibels(hidden, np.rint(scaled / step) * step)
        second = decibels(hidden @ v.T, fake_quantised(hidden) @ fake_weights(of_v, bits).T)
        np.testing.assert_allclose(got, [first, second], atol=0.1)


@pytest.mark.parametrize("function", ["Relu", "Sigmoid", "Tanh"])
def test_the_whole_is_what_compile_makes(function: str) -> None:
    """Both programs, run; and of one layer alone, the layer's ratio is the model's."""
    from pynq_bbs import Accelerator
    from pynq_bbs.compress.activations import run_float

    loaded, _, _ = chain(3, function)
    x = sample(300, 64, seed=5)
    found = sensitivity(loaded, x, sparsities=[0.75])
    wanted = run_float(loaded, x)["y"]
    for sparsity, db in zip((0.0, 0.75), (found.whole.quantised, *found.whole.pruned), strict=True):
        with Accelerator(compile(loaded, calibration=x, sparsity=sparsity), "cpu") as accelerator:
            assert decibels(wanted, accelerator.run(x)) == pytest.approx(db, abs=1e-3)


def test_of_a_single_layer() -> None:
    proto = model([node("Gemm", "x w", "y", transB=1)], {"x": (64,)}, {"y": FLOAT}, w=sample(9, 64))
    found = sensitivity(load_onnx(proto), sample(50, 64, seed=1), sparsities=[0.5, 0.75])
    (layer,) = found.layers
    assert layer.quantised == pytest.approx(found.whole.quantised)
    assert layer.pruned == pytest.approx(found.whole.pruned)
    assert layer.quantised > 30 > layer.pruned[0] > layer.pruned[1] > 0


def test_of_a_convolutional_network() -> None:
    """All kinds of layers; those that cannot be pruned have no ratio for it."""
    read = []
    found = sensitivity(load_onnx(network()), X, progress=read.append)
    rows = {la.name: la for la in found.layers}
    assert rows["depth"].pruned == rows["pool"].pruned == (None, None)
    assert rows["conv1"].pruned[1] is None and rows["conv1"].pruned[0] is not None
    assert all(la.quantised > 25 for la in found.layers)
    assert read == [4, 8, 12, 16]
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "weights", "quantised", "50", "%", "75", "%"]
    assert [line.split()[0] for line in lines[2:-1]] == [la.name for la in found.layers]
    worst = found.text(worst_first=True).splitlines()[2].split()[0]
    assert rows[worst].least == min(la.least for la in found.layers)


def test_residuals_and_joined_tensors() -> None:
    nodes = [
        node("Conv", "x w1", "a", pads=[1, 1, 1, 1]), node("Conv", "a w2", "b", pads=[1, 1, 1, 1]),
        node("Add", "a b", "s"), node("Relu", "s", "r"), node("Concat", "r a", "c", axis=1),
        node("Conv", "c w3", "y"),
    ]  # fmt: skip
    weights = {"w1": sample(8, 8, 3, 3), "w2": sample(8, 8, 3, 3), "w3": sample(4, 16, 1, 1)}
    loaded = load_onnx(model(nodes, {"x": (8, 6, 6)}, {"y": FLOAT}, **weights))
    found = sensitivity(loaded, sample(20, 8, 6, 6, seed=4), sparsities=[0.5])
    assert len(found.layers) == 3
    assert all(45 > la.quantised > 25 and 15 > la.pruned[0] > 3 for la in found.layers)
    assert found.whole.quantised > 20


def test_samples_are_measured_batch_by_batch() -> None:
    """More of them than a batch: the ratio is over all."""
    loaded, _, _ = chain(8, "Relu")
    x = sample(300, 64, seed=9)
    once, twice = (sensitivity(loaded, s, sparsities=[]) for s in (x, np.concatenate([x, x])))
    assert [la.quantised for la in once.layers] == pytest.approx(
        [la.quantised for la in twice.layers]
    )


def test_suggestion_is_what_compile_takes(tmp_path: Path) -> None:
    found = sensitivity(load_onnx(network()), X, sparsities=[0.25, 0.5, 0.75], bank_size=4)
    asked = found.suggested(8.0)
    assert set(asked) == {"conv1", "conv2", "conv3", "fc"}
    for layer in found.layers:
        if layer.name in asked:
            tried = dict(zip(found.sparsities, layer.pruned, strict=True))
            most = asked[layer.name]["sparsity"]
            assert most == 0 or tried[most] >= 8
            assert all(db is None or db < 8 for s, db in tried.items() if s > most)
    path = tmp_path / "layers.toml"
    path.write_text(layers_text(asked), "utf-8")
    assert read_layers(path) == asked
    compile(load_onnx(network()), calibration=X, bank_size=4, layers=asked)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 0.9)))
@settings(deadline=None)
def test_any_name_can_be_written(names: dict[str, float]) -> None:
    import tempfile

    asked = {name: {"sparsity": number} for name, number in names.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layers.toml")
        path.write_bytes(layers_text(asked).encode())
        assert read_layers(path) == asked


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(tmp_path / name) for name in ("m.onnx", "x.npy", "layers.toml", "p.bbs.npz")]
    Path(paths[0]).write_bytes(network().SerializeToString())
    np.save(paths[1], X)
    options = ["--calibration", paths[1]]
    assert main(["sensitivity", paths[0], *options, "--sort", "worst", "-o", paths[2]]) == 0
    printed = capsys.readouterr().out
    assert "all together" in printed and "leaves it 10 dB" in printed
    assert main(["compile", paths[0], *options, "--layers", paths[2], "-o", paths[3]]) == 0


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="read several times"):
        sensitivity(load_onnx(network()), iter([X]))
    with pytest.raises(InputError, match="sparsity is 1"):
        sensitivity(load_onnx(network()), X, sparsities=[1.0])
    path = tmp_path / "quantised.onnx"
    path.write_bytes(qdq_model(["Relu"]).SerializeToString())
    np.save(tmp_path / "x.npy", sample(3, 8))
    assert main(["sensitivity", str(path), "--calibration", str(tmp_path / "x.npy")]) == 3
    assert "quantised already" in capsys.readouterr().err


def attention() -> tuple[Any, dict[str, Any]]:
    """Two products of tokens by a matrix, and the softmax of their own product between them."""
    nodes = [
        node("MatMul", "x w1", "a"), node("Transpose", "a", "t", perm=[0, 2, 1]),
        node("MatMul", "a t", "s"), node("Softmax", "s", "p", axis=-1), node("MatMul", "p a", "c"),
        node("MatMul", "c w2", "y"),
    ]  # fmt: skip
    weights = {"w1": 0.2 * sample(32, 32), "w2": sample(32, 32, seed=1)}
    return model(nodes, {"x": (6, 32)}, {"y": FLOAT}, **weights), weights


def test_of_several_programs() -> None:
    """Each layer where it stands between the host's nodes; the whole is what compile makes."""
    from pynq_bbs import Accelerator

    proto, weights = attention()
    x = sample(50, 6, 32, seed=3)
    read: list[int] = []
    partition = read_model(proto)
    assert isinstance(partition, Partition)
    found = sensitivity(partition, x, sparsities=[0.5], bank_size=4, progress=read.append)
    first = x.astype(np.float64) @ weights["w1"]
    scores = first @ first.transpose(0, 2, 1)
    chances = np.exp(scores - scores.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    second = chances @ first
    assert len(found.layers) == 2
    for layer, inputs, w in zip(found.layers, (x, second), weights.values(), strict=True):
        for db, used in ((layer.quantised, w.T), (layer.pruned[0], half(w.T))):
            made = fake_quantised(inputs) @ fake_weights(used, 8).T
            assert db == pytest.approx(decibels(inputs @ w, made), abs=0.3)
    (wanted,) = run_onnxruntime(proto, {"x": x})
    for sparsity, db in ((0.0, found.whole.quantised), (0.5, found.whole.pruned[0])):
        pipeline = compile(partition, calibration=x, sparsity=sparsity, bank_size=4)
        with Accelerator(pipeline, "cpu") as accelerator:
            assert decibels(wanted, accelerator.run(x)) == pytest.approx(db, abs=1e-2)
    assert read[-1] == 3 * len(x)


def test_sequences_are_refused() -> None:
    with pytest.raises(InputError, match="works on sequences"):
        sensitivity(load_onnx(Cell("LSTM", 3, 2, 4, 5).graph()), {})
