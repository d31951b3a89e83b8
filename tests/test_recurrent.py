# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU: the integers against exact fractions, their meaning against onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pynq_bbs.errors import ModelError
from pynq_bbs.model.arithmetic import round_shifted
from pynq_bbs.model.recurrent import (
    CELL_BITS,
    GATE_SCALE,
    QuantRecurrent,
    fixed_tanh,
    gate_level,
    gate_table,
    gru_cell,
    lstm_cell,
    quantise_gru,
    quantise_hidden,
    quantise_lstm,
    quantise_state,
    run_recurrent,
)
from recurrent_oracle import (
    float_gru,
    float_lstm,
    gru_unit,
    level,
    lstm_unit,
    nearest,
    over_lengths,
    tanh_of,
)

X_SCALE = np.float32(3 / 127)

# What docs/recurrent.md promises for weights as training begins with, within 1 / sqrt(max(X, H)),
# and inputs within 3: the largest error of a hidden value, and the mean of a run.
LARGEST = {"lstm": 0.02, "gru": 0.04}
MEAN = {"lstm": 0.003, "gru": 0.005}


def corners(rng: np.random.Generator, count: int, kind: Any) -> NDArray[Any]:
    """Numbers of an integer type, a third of them at its ends or around zero."""
    info = np.iinfo(kind)
    values = rng.integers(info.min, info.max + 1, count)
    ends = rng.choice([info.min, info.min + 1, -1, 0, 1, info.max - 1, info.max], count)
    return np.where(rng.random(count) < 1 / 3, ends, values).astype(kind)


def test_tanh_is_the_definition_and_close() -> None:
    every = np.arange(-32768, 32768).astype(np.int16)
    got = fixed_tanh(every)
    sample = every[::37]
    assert np.array_equal(got[::37], [tanh_of(int(q)) for q in sample])
    assert np.abs(got / 32768 - np.tanh(every / 2048)).max() < 1.2e-4
    assert np.all(np.diff(got) >= 0) and np.abs(got).max() == 32767


def test_gates_take_the_nearest_level() -> None:
    table = gate_table()
    x = np.arange(-128, 128) * float(GATE_SCALE)
    wanted = 256 / (1 + np.exp(-x))
    levels = np.array([v for v in range(257) if v != 255])
    distance = np.abs(wanted[:, None] - levels).min(axis=1)
    got = gate_level(table)
    assert np.allclose(np.abs(wanted - got), distance)
    assert [level(int(q)) for q in table] == got.tolist()
    assert got[128] == 128 and got[255] == 256 and got[0] == 1
    # the tanh gates read the same table at twice the value
    assert np.abs((got - 128) / 128 - np.tanh(x / 2)).max() < 1 / 128


def test_rounding_takes_ties_to_even() -> None:
    for shift in (0, 1, 2, 8, 16):
        values = np.concatenate([np.arange(-600, 600), (np.arange(-9, 9) * 2 + 1) << shift >> 1])
        got = round_shifted(values, shift)
        fractions = [nearest(Fraction(int(v), 1 << shift)) for v in values]
        assert got.tolist() == fractions


def test_lstm_cell_is_the_definition() -> None:
    rng = np.random.default_rng(1)
    gates = corners(rng, 4 * 6000, np.int8).reshape(-1, 4)
    states = corners(rng, 6000, np.int16)
    hidden, after = lstm_cell(gates, states)
    wanted = [lstm_unit(g, s) for g, s in zip(gates.tolist(), states.tolist(), strict=True)]
    assert list(zip(hidden.tolist(), after.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 8])
def test_gru_cell_is_the_definition(shift: int) -> None:
    rng = np.random.default_rng(2)
    gates = corners(rng, 4 * 2000, np.int8).reshape(-1, 4)
    states = corners(rng, 2000, np.int16)
    hidden, after = gru_cell(gates, states, shift)
    wanted = [gru_unit(g, s, shift) for g, s in zip(gates.tolist(), states.tolist(), strict=True)]
    assert list(zip(hidden.tolist(), after.tolist(), strict=True)) == wanted


@dataclass
class Case:
    """A recurrent layer of ONNX with its inputs, one entry of the lists for each direction."""

    kind: str
    w: NDArray[np.float32]  # (D, gates H, X)
    r: NDArray[np.float32]
    b: NDArray[np.float32] | None
    x: NDArray[np.float32]  # (T, N, X)
    h: NDArray[np.float32] | None  # (D, N, H)
    c: NDArray[np.float32] | None
    lengths: NDArray[np.int32] | None
    direction: str
    linear_before_reset: bool

    @property
    def reverse(self) -> list[bool]:
        return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
            self.direction
        ]

    @property
    def ends(self) -> list[int]:
        steps, columns, _ = self.x.shape
        return [steps] * columns if self.lengths is None else self.lengths.tolist()


def random_case(kind: str, seed: int) -> Case:
    rng = np.random.default_rng([seed, len(kind)])
    hidden, inputs = (int(v) for v in rng.choice([1, 2, 3, 5, 8, 17, 33], 2))
    steps, columns = int(rng.choice([1, 2, 3, 7, 20])), int(rng.choice([1, 2, 3, 9]))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    ways = 2 if direction == "bidirectional" else 1
    gates = 4 if kind == "lstm" else 3
    reach = 1 / np.sqrt(max(hidden, inputs))

    def uniform(size: float, *shape: int) -> NDArray[np.float32]:
        return rng.uniform(-size, size, shape).astype(np.float32)

    def perhaps(array: NDArray[Any]) -> NDArray[Any] | None:
        return array if rng.random() < 0.6 else None

    return Case(
        kind,
        uniform(reach, ways, gates * hidden, inputs),
        uniform(reach, ways, gates * hidden, hidden),
        perhaps(uniform(reach, ways, 2 * gates * hidden)),
        np.clip(rng.standard_normal((steps, columns, inputs)), -3, 3).astype(np.float32),
        perhaps(uniform(0.99, ways, columns, hidden)),
        perhaps(uniform(2, ways, columns, hidden)) if kind == "lstm" else None,
        perhaps(rng.integers(1, steps + 1, columns).astype(np.int32)),
        direction,
        bool(seed % 2),
    )


def onnxruntime_outputs(case: Case) -> list[NDArray[np.float32]]:
    """Y (T, D, N, H), Y_h and, of an LSTM, Y_c (D, N, H) as onnxruntime has them."""
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    feeds = {"x": case.x, "w": case.w, "r": case.r, "b": case.b, "l": case.lengths, "h": case.h}
    outputs = ["y", "y_h"]
    attributes: dict[str, Any] = {"hidden_size": case.r.shape[2], "direction": case.direction}
    if case.kind == "lstm":
        feeds["c"] = case.c
        outputs.append("y_c")
    else:
        attributes["linear_before_reset"] = int(case.linear_before_reset)
    given = {k: v for k, v in feeds.items() if v is not None}
    kinds = {k: 6 if k == "l" else 1 for k in given}
    info = onnx.helper.make_tensor_value_info
    names = [k if k in given else "" for k in feeds]
    node = onnx.helper.make_node(case.kind.upper(), names, outputs, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "recurrent",
        [info(k, kinds[k], list(v.shape)) for k, v in given.items()],
        [info(k, 1, None) for k in outputs],
    )
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8
    )
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    result: list[NDArray[np.float32]] = session.run(None, given)
    return result


def float_outputs(case: Case, way: int) -> list[NDArray[np.float64]]:
    """Y (T, N, H) and the last values of one direction, in float64."""
    hidden = case.r.shape[2]
    w, r = case.w[way].astype(float), case.r[way].astype(float)
    b = np.zeros(2 * len(r)) if case.b is None else case.b[way].astype(float)
    zero = np.zeros((case.x.shape[1], hidden))
    h = zero if case.h is None else case.h[way].astype(float)
    c = zero if case.c is None else case.c[way].astype(float)

    def run(x: NDArray[Any], n: int) -> Any:
        if case.kind == "lstm":
            return float_lstm(x, w, r, b, h[n : n + 1], c[n : n + 1])
        return float_gru(x, w, r, b, h[n : n + 1], case.linear_before_reset)

    return over_lengths(run, case.x.astype(float), case.ends, case.reverse[way])


def quantised(case: Case, way: int) -> QuantRecurrent:
    b = None if case.b is None else case.b[way]
    if case.kind == "lstm":
        return quantise_lstm(case.w[way], case.r[way], b, X_SCALE)
    return quantise_gru(
        case.w[way], case.r[way], b, X_SCALE, linear_before_reset=case.linear_before_reset
    )


def integer_outputs(case: Case, way: int) -> list[NDArray[np.float64]]:
    """The same from the integers, as real numbers."""
    layer = quantised(case, way)
    x = np.clip(np.rint(case.x / X_SCALE), -128, 127).astype(np.int8)
    h = None if case.h is None else quantise_hidden(case.h[way])
    initial = case.c if case.kind == "lstm" else case.h
    state = None if initial is None else quantise_state(initial[way], layer.state_bits)
    y, last, after = run_recurrent(layer, x, h, state, case.lengths, case.reverse[way])
    return [y / 128, last / 128, after / (1 << layer.state_bits)]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_errors_are_as_promised(kind: str) -> None:
    """Hundreds of layers: onnxruntime, float64 and the integers agree."""
    errors = []
    for seed in range(150):
        case = random_case(kind, seed)
        reference = onnxruntime_outputs(case)
        for way in range(len(case.reverse)):
            exact = float_outputs(case, way)
            for got, want in zip(exact, (reference[0][:, way], *(v[way] for v in reference[1:])),
                                 strict=True):  # fmt: skip
                assert np.abs(got - want).max() < 2e-5, f"float64 against onnxruntime, {seed}"
            got = integer_outputs(case, way)
            for index in range(2):
                error = np.abs(got[index] - exact[index])
                assert error.max() < LARGEST[kind], f"output {index} of case {seed}"
            errors.append(np.abs(got[0] - exact[0]).mean())
            state = np.abs(got[2] - exact[-1])  # a GRU's state is its hidden value
            assert state.max() < 3 * LARGEST[kind], f"state of case {seed}"
    assert len(errors) > 150 and np.mean(errors) < MEAN[kind]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_errors_do_not_grow_with_time(kind: str) -> None:
    rng = np.random.default_rng(5)
    hidden, inputs, steps = 64, 32, 300
    gates = 4 if kind == "lstm" else 3
    w, r, b = (
        rng.uniform(-1 / 8, 1 / 8, (1, *shape)).astype(np.float32)
        for shape in ((gates * hidden, inputs), (gates * hidden, hidden), (2 * gates * hidden,))
    )
    x = np.clip(rng.standard_normal((steps, 2, inputs)), -3, 3).astype(np.float32)
    case = Case(kind, w, r, b, x, None, None, None, "forward", True)
    error = np.abs(integer_outputs(case, 0)[0] - float_outputs(case, 0)[0])
    assert error.max() < LARGEST[kind]
    assert error[-50:].mean() < 1.2 * error[:50].mean()


def test_finished_columns_keep_what_they_had() -> None:
    case = random_case("lstm", 11)
    layer = quantised(case, 0)
    rng = np.random.default_rng(3)
    x = corners(rng, 6 * 3 * layer.input_size, np.int8).reshape(6, 3, -1)
    lengths = np.array([6, 2, 4])
    y, last, state = run_recurrent(layer, x, lengths=lengths)
    for column, end in enumerate(lengths):
        alone = run_recurrent(layer, x[:end, column : column + 1])
        assert np.array_equal(y[:end, column], alone[0][:, 0]) and not y[end:, column].any()
        assert np.array_equal(last[column], alone[1][0])
        assert np.array_equal(state[column], alone[2][0])


def test_forget_gate_of_one_keeps_a_state() -> None:
    gates = np.array([[-128, 127, 127, 50]], np.int8)  # nothing enters, nothing is forgotten
    state = np.array([1 << CELL_BITS], np.int16)
    for _ in range(100):
        state = lstm_cell(gates, state)[1]
    assert state[0] == 1 << CELL_BITS


def test_contradicting_shapes_are_refused() -> None:
    w, r = np.zeros((8, 3), np.float32), np.zeros((8, 2), np.float32)
    assert quantise_lstm(w, r, None, X_SCALE).hidden_size == 2
    with pytest.raises(ModelError, match="W of the LSTM"):
        quantise_lstm(w[:7], r, None, X_SCALE)
    with pytest.raises(ModelError, match="B of the LSTM"):
        quantise_lstm(w, r, np.zeros(8, np.float32), X_SCALE)
    with pytest.raises(ModelError, match="candidate_bits is 2"):
        quantise_gru(w[:6], r[:6], None, X_SCALE, candidate_bits=2)
    with pytest.raises(ModelError, match="INT32"):
        quantise_lstm(w + 1, r, np.full(16, 1e9, np.float32), X_SCALE)
