# SPDX-License-Identifier: Apache-2.0
"""GPTQ's rounding, against its definition and against rounding to nearest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, model, node, sample
from pynq_bbs import Accelerator, Program, compile, load_onnx
from pynq_bbs.cli import main
from pynq_bbs.compress.quantize import quantize
from pynq_bbs.compress.scores import by_taps, from_taps, input_moments
from pynq_bbs.compress.second_order import DAMPING, gptq
from pynq_bbs.errors import InputError
from pynq_bbs.model.graph import Model, QuantModel


def defined(w, scale, limit, products):
    """GPTQ's definition: after each column the inverse of what is left is found anew."""
    kept, w, k = w != 0, w.astype(np.float64) / scale[:, None], w.shape[1]
    h = products.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    h += DAMPING * np.trace(h) / k * np.eye(k)
    rounded = np.zeros(w.shape)
    for i in range(k):
        inverse = np.linalg.inv(h[i:, i:])
        rounded[:, i] = np.clip(np.rint(w[:, i]), -limit, limit) * kept[:, i]
        w[:, i:] -= np.outer((w[:, i] - rounded[:, i]) / inverse[0, 0], inverse[0])
    return rounded


@given(st.integers(1, 20), st.sampled_from([7, 127]), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_gptq_follows_the_definition(features, limit, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rng.integers(1, 60), features))
    x[:, rng.random(features) < 0.1] = 0.0
    w = rng.standard_normal((4, features)).astype(np.float32)
    w[rng.random(w.shape) < 0.3] = 0.0
    scale = np.maximum(np.abs(w).max(axis=1), 0.1) / np.float32(limit)
    got = gptq(w, scale, limit, x.T @ x)
    assert got.dtype == np.int8 and not got[w == 0].any()
    np.testing.assert_array_equal(got, defined(w, scale, limit, x.T @ x))


def test_columns_of_several_blocks_follow_it_too() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 12)) @ rng.standard_normal((12, 140))
    x += 0.3 * rng.standard_normal(x.shape)
    w = rng.standard_normal((3, 140)).astype(np.float32)
    scale = np.full(3, 0.5, np.float32)
    wanted = defined(w, scale, 7, x.T @ x)
    np.testing.assert_array_equal(gptq(w, scale, 7, x.T @ x), wanted)


def correlated(*shape: int) -> np.ndarray:
    """Samples whose channels go together, as behind a layer with fewer of them."""
    rng = np.random.default_rng(5)
    few = rng.standard_normal((shape[0], shape[1] // 4, *shape[2:]))
    mixed = np.einsum("nc...,ck->nk...", few, rng.standard_normal((shape[1] // 4, shape[1])))
    return (mixed + 0.1 * rng.standard_normal(shape)).astype(np.float32)


def one_layer(kind: str):
    """A layer a third of whose weights are 0, and samples of its input."""
    shape = (24, 32) if kind == "Gemm" else (24, 16, 3, 3)
    w = sample(*shape, seed=1)
    w[np.random.default_rng(2).random(shape) < 1 / 3] = 0.0
    x = correlated(300, 32) if kind == "Gemm" else correlated(8, 16, 7, 6)
    attributes = {"transB": 1} if kind == "Gemm" else {"pads": [1, 1, 1, 1]}
    made = node(kind, "x w", "y", **attributes)
    made.name = "y"
    return load_onnx(model([made], {"x": x.shape[1:]}, {"y": FLOAT}, w=w)), x, w


def rounded_both_ways(net: Model, x: np.ndarray, bits: int) -> tuple[QuantModel, QuantModel]:
    moments = input_moments(net, x, {"y": "sparsegpt"})
    return quantize(net, x, weight_bits=bits), quantize(net, x, weight_bits=bits, moments=moments)


@pytest.mark.parametrize("kind", ["Gemm", "Conv"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_loses_less_of_its_output(kind: str, bits: int) -> None:
    net, x, w = one_layer(kind)
    moments = input_moments(net, x, {"y": "sparsegpt"})["y"]
    lost = []
    for made in rounded_both_ways(net, x, bits):
        (layer,) = made.layers
        np.testing.assert_array_equal(layer.weights[w == 0], 0)
        assert np.abs(layer.weights.astype(int)).max() <= 2 ** (bits - 1) - 1
        scale = made.outputs[0].scale / made.inputs[0].scale
        error = by_taps(layer.weights) * scale[:, None].astype(np.float64) - by_taps(w)
        lost.append(float(np.trace(error @ moments @ error.T)))
    assert lost[1] < 0.5 * lost[0]


def test_what_is_not_asked_for_stays_as_it_was() -> None:
    """To the nearest integer in the same scales, and an average in its exact one."""
    net, x, w = one_layer("Gemm")
    nearest, own = (made.layers[0] for made in rounded_both_ways(net, x, 4))
    scale = (np.abs(w).max(axis=1) / np.float32(7))[:, None]
    np.testing.assert_array_equal(nearest.weights, np.rint(w / scale))
    assert (own.weights != nearest.weights).any()
    w[0] = 0.25
    net = replace(net, layers=[replace(net.layers[0], weights=w)])
    assert (rounded_both_ways(net, x, 4)[1].layers[0].weights[0] == 1).all()


def test_taps_come_back() -> None:
    w = sample(3, 4, 2, 5)
    np.testing.assert_array_equal(from_taps(by_taps(w), w.shape), w)


def network():
    nodes = [
        node("Conv", "x w1", "conv1", pads=[1, 1, 1, 1]),
        node("Conv", "conv1 d", "depth", group=8),
        node("Flatten", "depth", "flat"),
        node("Gemm", "flat w2", "fc", transB=1),
    ]
    for n in nodes:
        n.name = n.output[0]
    weights = {"w1": sample(8, 16, 3, 3), "d": sample(8, 1, 3, 3), "w2": sample(6, 160, seed=2)}
    return model(nodes, {"x": (16, 7, 6)}, {"fc": FLOAT}, **weights)


X = correlated(8, 16, 7, 6)


def test_it_goes_together_with_every_pruning(tmp_path) -> None:
    """From the command line, with a layer of its own in the file, as from Python."""
    (tmp_path / "m.onnx").write_bytes(network().SerializeToString())
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "l.toml").write_text('[fc]\nrounding = "nearest"\nweight_bits = 8\n')
    args = ["compile", str(tmp_path / "m.onnx"), "--calibration", str(tmp_path / "x.npy")]
    args += ["--weight-bits", "4", "--layers", str(tmp_path / "l.toml")]
    assert main([*args, "--rounding", "gptq", "-o", str(tmp_path / "p.npz")]) == 0
    layers = {"fc": {"rounding": "nearest", "weight_bits": 8}}
    options = {"calibration": X, "weight_bits": 4, "layers": layers}
    wanted = compile(load_onnx(network()), rounding="gptq", **options)
    nearest = compile(load_onnx(network()), **options)
    programs = (Program.load(tmp_path / "p.npz"), wanted, nearest)
    got, exact, other = (Accelerator(p, "cpu").run(X) for p in programs)
    np.testing.assert_array_equal(got, exact)
    assert (got != other).any()
    options["layers"] = {"*": {"sparsity": 0.5}, "depth": {"sparsity": 0.0}}
    for pruning in ("magnitude", "wanda", "sparsegpt"):
        pruned = compile(load_onnx(network()), rounding="gptq", pruning=pruning, **options)
        banks = {la.name: (la.keep, la.bank_size) for la in pruned.layers}
        assert all(2 * banks[name][0] == banks[name][1] for name in ("conv1", "fc")), banks


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rounding": "down"}, "rounding is 'down', must be nearest or gptq"),
        ({"layers": {"fc": {"rounding": 1}}}, "nearest or gptq"),
        ({"rounding": "gptq", "calibration": iter([X])}, "read twice for rounding 'gptq'"),
    ],
)
def test_what_is_refused(options, word) -> None:
    with pytest.raises(InputError, match=word):
        compile(load_onnx(network()), **{"calibration": X, **options})


def test_integers_are_not_rounded_again() -> None:
    integers = quantize(load_onnx(network()), X)
    with pytest.raises(InputError, match="is quantised: rounding 'gptq' takes a float model"):
        compile(integers, rounding="gptq")
