# SPDX-License-Identifier: Apache-2.0
"""Pruning by what layers read: scores and the second-order update, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, model, node, sample
from pynq_bbs import Accelerator, Program, compile, load_onnx
from pynq_bbs.cli import main
from pynq_bbs.compiler import pruned_model
from pynq_bbs.compress.one_shot import prune_weights
from pynq_bbs.compress.prune import bank_mask
from pynq_bbs.compress.scores import input_moments, taylor
from pynq_bbs.compress.second_order import DAMPING, sparsegpt
from pynq_bbs.errors import InputError

X = sample(6, 3, 6, 6, seed=9)
WEIGHTS = {
    "w1": sample(8, 3, 1, 1),
    "w2": sample(8, 8, 3, 3, seed=1),
    "w3": sample(6, 8 * 3 * 3, seed=2),
    "w4": sample(4, 6, seed=3),
}


def network():
    nodes = [
        node("Conv", "x w1", "conv1"),
        node("Relu", "conv1", "relu1"),
        node("Conv", "relu1 w2", "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Flatten", "conv2", "flat"),
        node("Gemm", "flat w3", "fc1", transB=1),
        node("Gemm", "fc1 w4", "fc2", transB=1),
    ]
    for n in nodes:
        n.name = n.output[0]
    return model(nodes, {"x": (3, 6, 6)}, {"fc2": FLOAT}, **WEIGHTS)


def test_moments_are_those_of_the_columns_that_a_layer_multiplies() -> None:
    net = load_onnx(network())
    full = input_moments(net, X, {"conv2": "sparsegpt", "fc1": "sparsegpt"})
    squares = input_moments(net, X, {"conv2": "wanda", "fc1": "wanda"})
    relu = np.maximum(np.einsum("mc,nchw->nmhw", WEIGHTS["w1"][:, :, 0, 0], X), 0.0)
    padded = np.pad(relu.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    columns = np.array(
        [
            padded[n, :, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3].transpose(1, 2, 0).reshape(-1)
            for n in range(6)
            for y in range(3)
            for x in range(3)
        ]
    )
    np.testing.assert_allclose(full["conv2"], columns.T @ columns, rtol=1e-5, atol=1e-5)
    for name in squares:
        np.testing.assert_allclose(squares[name], np.diag(full[name]), rtol=1e-12)


def defined(w, products, channels, size, keep):
    """SparseGPT's definition: after each column the inverse of what is left is found anew."""
    w, k = w.astype(np.float64), w.shape[1]
    h = products.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    h += DAMPING * np.trace(h) / k * np.eye(k)
    inverses = [np.linalg.inv(h[i:, i:]) for i in range(k)]
    for tap in range(0, k, channels):
        for start in range(tap, tap + channels, size):
            end = min(start + size, tap + channels)
            cost = np.array([w[:, i] ** 2 / inverses[i][0, 0] for i in range(start, end)]).T
            mask = bank_mask(cost, size, keep)
            for i in range(start, end):
                for row in np.flatnonzero(~mask[:, i - start]):
                    w[row, i:] -= w[row, i] / inverses[i][0, 0] * inverses[i][0]
                    w[row, i] = 0
    return w


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 6), st.data())
@settings(max_examples=25, deadline=None)
def test_sparsegpt_follows_the_definition(channels, taps, size, data):
    keep = data.draw(st.integers(1, size))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x = rng.standard_normal((data.draw(st.integers(1, 40)), taps * channels))
    x[:, rng.random(taps * channels) < 0.1] = 0.0
    w = rng.standard_normal((4, taps * channels)).astype(np.float32)
    got = sparsegpt(w, x.T @ x, channels, size, keep)
    np.testing.assert_allclose(got, defined(w, x.T @ x, channels, size, keep), rtol=1e-4, atol=1e-5)
    for bank in np.split(got.reshape(-1, channels), range(size, channels, size), axis=1):
        assert (np.count_nonzero(bank, axis=1) <= keep).all()


def test_each_loses_less_of_the_outputs_than_the_one_before() -> None:
    """Features of unlike size that go together, as behind a Relu."""
    rng = np.random.default_rng(0)
    x = (
        rng.standard_normal((400, 12))
        @ rng.standard_normal((12, 64))
        * np.exp(rng.standard_normal(64))
    )
    w = rng.standard_normal((32, 64)).astype(np.float32)
    products = x.T @ x
    by = {
        "magnitude": prune_weights(w, 16, 4),
        "wanda": prune_weights(w, 16, 4, "wanda", np.diag(products)),
        "sparsegpt": prune_weights(w, 16, 4, "sparsegpt", products),
    }
    lost = [float(np.sum((x @ (kept - w).T) ** 2)) for kept in by.values()]
    assert lost[0] > lost[1] > 2 * lost[2]


@pytest.mark.parametrize("pruning", ["wanda", "sparsegpt"])
def test_compiled_layers_have_the_banks_asked_for(pruning: str, monkeypatch) -> None:
    import pynq_bbs.compiler as compiler

    made = []

    def kept(*args, **kwargs):
        made.append(pruned_model(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(compiler, "pruned_model", kept)
    net = load_onnx(network())
    options = {"sparsity": 0.75, "bank_size": 8, "calibration": X}
    compile(net, **options)
    program = compile(net, layers={"conv2": {"pruning": pruning}}, **options)
    plain, own = (m.layers for m in made)
    banks = {la.name: (la.keep, la.bank_size) for la in program.layers}
    assert banks["conv2"] == (1, 4)
    for bank in np.split(own[1].weights, 2, axis=1):
        assert (np.count_nonzero(bank, axis=1) <= 1).all()
    assert (own[1].weights != plain[1].weights).any()
    np.testing.assert_array_equal(own[2].weights, plain[2].weights)


def test_scores_of_the_user_choose() -> None:
    w = WEIGHTS["w2"]
    scores = sample(*w.shape, seed=5)
    kept = prune_weights(w, 8, 2, scores=taylor(w, scores))
    order = np.argsort(-np.abs(w * scores), axis=1)
    mask = np.zeros(w.shape, bool)
    np.put_along_axis(mask, order[:, :2], True, axis=1)
    np.testing.assert_array_equal(kept, np.where(mask, w, 0))
    compile(load_onnx(network()), sparsity=0.75, calibration=X, scores={"conv2": np.abs(scores)})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"pruning": "best"}, "magnitude or wanda or sparsegpt"),
        ({"layers": {"conv2": {"pruning": 3}}}, "pruning is 3"),
        ({"scores": {"conv9": X}}, "conv1, conv2"),
        ({"scores": {"conv2": X}}, "weights' shape"),
        ({"scores": {"conv2": -np.ones((8, 8, 3, 3))}}, "not negative"),
        ({"pruning": "wanda", "calibration": iter([X])}, "read twice"),
    ],
)
def test_what_is_refused(options, word) -> None:
    with pytest.raises(InputError, match=word):
        compile(load_onnx(network()), **{"sparsity": 0.5, "calibration": X, **options})


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="products"):
        sparsegpt(np.ones((2, 4), "f4"), np.eye(3), 4, 4, 2)
    with pytest.raises(InputError, match="one gradient"):
        taylor(np.ones((2, 4)), np.ones((4, 2)))


def test_on_the_command_line(tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(network().SerializeToString())
    np.save(tmp_path / "x.npy", X)
    args = ["compile", str(tmp_path / "m.onnx"), "--calibration", str(tmp_path / "x.npy")]
    args += ["--sparsity", "0.75", "-o"]
    assert main([*args, str(tmp_path / "a.npz")]) == 0
    assert main([*args, str(tmp_path / "b.npz"), "--pruning", "sparsegpt"]) == 0
    net = load_onnx(network())
    wanted = compile(net, sparsity=0.75, calibration=X, pruning="sparsegpt")
    programs = [Program.load(tmp_path / name) for name in ("a.npz", "b.npz")]
    by_magnitude, got, exact = (Accelerator(p, "cpu").run(X) for p in (*programs, wanted))
    np.testing.assert_array_equal(got, exact)
    assert (got != by_magnitude).any()
