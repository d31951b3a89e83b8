# SPDX-License-Identifier: Apache-2.0
"""Linear layers of every column of (N, ..., K), and functions behind them, as a transformer's
encoder has them: the float model is onnxruntime's, and INT8 is close to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_build import FLOAT, model, node, refused, sample
from oracle import run_onnxruntime
from pynq_bbs import Accelerator
from pynq_bbs import compile as compile_model
from pynq_bbs.model.functions import Function, restored_functions
from pynq_bbs.model.graph import Model, apply_functions
from pynq_bbs.model.onnx_import import load_onnx
from test_onnx_float_networks import check_quantised, float_outputs

OPSET = 22


def check(proto: Any, feeds: dict[str, Any], allowed: float = 0.05, **options: Any) -> Model:
    loaded = load_onnx(proto)
    assert isinstance(loaded, Model)
    wanted = run_onnxruntime(proto, feeds, optimise=False)
    for got, want in zip(float_outputs(loaded, feeds), wanted, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * max(np.abs(want).max(), 1))
    check_quantised(loaded, feeds, allowed, **options)
    return loaded


def weights(rng: np.random.Generator, features: int, rows: int) -> Any:
    return (rng.standard_normal((features, rows)) / np.sqrt(features)).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(
    columns=st.lists(st.sampled_from([1, 3, 7, 2, 5]), min_size=1, max_size=3),
    features=st.sampled_from([1, 3, 9, 17, 4, 33]),
    rows=st.sampled_from([1, 5, 8, 19]),
    samples=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_every_column(columns: Any, features: int, rows: int, samples: int, seed: int) -> None:
    """Two layers with a bias and a function between, and what went in added to what comes out."""
    rng = np.random.default_rng(seed)
    function = str(rng.choice(["Relu", "Sigmoid", "Gelu", "HardSwish"]))
    more = {"approximate": "tanh"} if function == "Gelu" and seed % 2 else {}
    nodes = [
        node("MatMul", "x w", "a"), node("Add", "a b", "c"), node(function, "c", "d", **more),
        node("MatMul", "d v", "e"), node("Add", "e x", "y"),
    ]  # fmt: skip
    bias = rng.standard_normal((1, rows) if seed % 3 else rows).astype(np.float32)
    proto = model(
        nodes, {"x": (*columns, features)}, {"y": FLOAT}, OPSET,
        w=weights(rng, features, rows), b=bias, v=weights(rng, rows, features),
    )  # fmt: skip
    x = rng.standard_normal((samples, *columns, features)).astype(np.float32)
    loaded = check(proto, {"x": x}, 0.1)
    several = int(np.prod(columns)) > 1
    assert all((layer.window is not None) == several for layer in loaded.layers)


def test_columns_fill_the_engine() -> None:
    """Sixty-four columns of one sample are two full tiles of 32, not 64 with one column each."""
    rng = np.random.default_rng(0)
    nodes = [node("MatMul", "x w", "y")]
    proto = model(nodes, {"x": (64, 16)}, {"y": FLOAT}, w=weights(rng, 16, 8))
    x = sample(1, 64, 16)
    program = compile_model(load_onnx(proto), calibration=x)
    with Accelerator(program, device="standin", verify=True) as accelerator:
        accelerator.run(x)
        (layer,) = accelerator.report().layers
    assert layer.multiply_cycles == 2 * 8 * 16 // program.build.lanes


@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_columns_of_pruned_layers(sparsity: float) -> None:
    rng = np.random.default_rng(1)
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v", "y")]
    proto = model(
        nodes, {"x": (5, 32)}, {"y": FLOAT}, w=weights(rng, 32, 24), v=weights(rng, 24, 9)
    )
    x = sample(6, 5, 32)
    program = compile_model(load_onnx(proto), calibration=x, sparsity=sparsity, bank_size=16)
    assert [la.keep / la.bank_size for la in program.layers] == [1 - sparsity] * 2
    with Accelerator(program, device="standin", verify=True) as accelerator:
        y = accelerator.run(x)
    with Accelerator(program, device="cpu") as accelerator:
        np.testing.assert_array_equal(accelerator.run(x), y)


# -- what attention reads and gives ----------------------------------------------------------------


def heads_of(tensor: str, name: str) -> list[Any]:
    return [
        node("Reshape", f"{tensor} heads", f"{name}_h"),
        node("Transpose", f"{name}_h", name, perm=[0, 2, 1, 3]),
    ]


@pytest.mark.parametrize("op", ["Split", "Slice", "three"])
def test_queries_keys_and_values(op: str) -> None:
    """By heads, from one layer whose rows are split, or from three."""
    rng = np.random.default_rng(2)
    constants: dict[str, Any] = {"heads": np.array([0, 0, 3, 4], np.int64)}
    names = ["q", "k", "v"]
    if op == "three":
        constants |= {f"w{n}": weights(rng, 10, 12) for n in names}
        nodes = [node("MatMul", f"x w{n}", f"{n}_x") for n in names]
    else:
        constants |= {"w": weights(rng, 10, 36), "b": sample(36)}
        nodes = [node("MatMul", "x w", "m"), node("Add", "b m", "all")]
        if op == "Split":
            constants["sizes"] = np.array([12, 12, 12], np.int64)
            nodes.append(node("Split", "all sizes", "q_x k_x v_x", axis=-1))
        else:
            constants |= {"axes": np.array([2], np.int64), "steps": np.array([1], np.int64)}
            for i, n in enumerate(names):
                constants |= {f"{n}_b": np.array([12 * i]), f"{n}_e": np.array([12 * i + 12])}
                nodes.append(node("Slice", f"all {n}_b {n}_e axes steps", f"{n}_x"))
    for n in names:
        nodes += heads_of(f"{n}_x", n)
    proto = model(nodes, {"x": (5, 10)}, dict.fromkeys(names, FLOAT), **constants)
    loaded = check(proto, {"x": sample(3, 5, 10)})
    assert len(loaded.layers) == (3 if op == "three" else 1)


def test_what_attention_gives() -> None:
    """Heads to columns, a layer, and what stood before attention added."""
    nodes = [
        node("Transpose", "c", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t flat", "f"),
        node("MatMul", "f w", "m"),
        node("Add", "m b", "o"),
        node("Add", "x o", "y"),
    ]
    proto = model(
        nodes, {"c": (3, 5, 4), "x": (5, 12)}, {"y": FLOAT}, b=sample(12),
        w=weights(np.random.default_rng(3), 12, 12), flat=np.array([0, 0, 12], np.int64),
    )  # fmt: skip
    loaded = check(proto, {"c": sample(4, 3, 5, 4), "x": sample(4, 5, 12, seed=1)})
    assert len(loaded.layers) == 1


def test_columns_side_by_side() -> None:
    rng = np.random.default_rng(4)
    nodes = [
        node("MatMul", "x w", "a"), node("MatMul", "x v", "b"), node("Concat", "a b", "c", axis=-1),
        node("Tanh", "c", "d"), node("MatMul", "d u", "y"),
    ]  # fmt: skip
    proto = model(
        nodes, {"x": (7, 6)}, {"y": FLOAT}, w=weights(rng, 6, 8), v=weights(rng, 6, 5),
        u=weights(rng, 13, 4),
    )  # fmt: skip
    check(proto, {"x": sample(3, 7, 6)})


def test_the_batch_may_stand_behind_the_columns() -> None:
    """Torch's encoder layers move it there."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]), node("MatMul", "t w", "a"),
        node("Add", "a b", "c"), node("Relu", "c", "d"), node("Add", "d t", "y"),
    ]  # fmt: skip
    rng = np.random.default_rng(5)
    proto = model(nodes, {"x": (7, 6)}, {"y": FLOAT}, w=weights(rng, 6, 6), b=sample(1, 1, 6))
    (output,) = check(proto, {"x": sample(3, 7, 6)}).outputs
    assert output.batch_axis == 1


def test_refused_columns() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("Transpose", "a", "t", perm=[0, 2, 1]),
        node("MatMul", "t v", "m"),
        node("Transpose", "x", "last", perm=[1, 2, 0]),
        node("MatMul", "last w", "n"),
        node("Concat", "a x", "c", axis=2),
        node("Concat", "c xx", "d", axis=2),
    ]
    proto = model(
        nodes, {"x": (5, 6), "xx": (4, 6)}, dict.fromkeys("mnd", FLOAT), w=sample(6, 8),
        v=sample(5, 3),
    )  # fmt: skip
    reasons = refused(proto)
    assert "does not lie as 5 channels of every column" in reasons["n_m"]
    assert "its features must be last" in reasons["n_n"]
    assert "along their last axis" in reasons["n_d"]


# -- functions -------------------------------------------------------------------------------------

ROOT = np.float32(np.sqrt(2.0))
#: nodes from `a` to `b`, and constants
FUNCTIONS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Tanh": ([node("Tanh", "a", "b")], {}),
    "Erf": ([node("Erf", "a", "b")], {}),
    "LeakyRelu": ([node("LeakyRelu", "a", "b", alpha=0.2)], {}),
    "Elu": ([node("Elu", "a", "b", alpha=0.7)], {}),
    "HardSigmoid": ([node("HardSigmoid", "a", "b", alpha=0.3)], {}),
    "HardSwish": ([node("HardSwish", "a", "b")], {}),
    "Softplus": ([node("Softplus", "a", "b")], {}),
    "Mish": ([node("Mish", "a", "b")], {}),
    "Gelu": ([node("Gelu", "a", "b")], {}),
    "Gelu by tanh": ([node("Gelu", "a", "b", approximate="tanh")], {}),
    "Pow": ([node("Pow", "a three", "b")], {"three": np.float32(3)}),
    "x * sigmoid(x)": ([node("Sigmoid", "a", "s"), node("Mul", "s a", "b")], {}),
    "relu(x) + tanh(x)": (
        [node("Relu", "a", "r"), node("Tanh", "a", "t"), node("Add", "r t", "b")], {}
    ),
    "1 - sigmoid(x)": ([node("Sigmoid", "a", "s"), node("Sub", "one s", "b")],
                       {"one": np.float32(1)}),
    "sigmoid(x) - 1": ([node("Sigmoid", "a", "s"), node("Sub", "s one", "b")],
                       {"one": np.ones((1, 1), np.float32)}),
    "as torch writes Gelu": ([
        node("Div", "a root", "p"), node("Erf", "p", "q"), node("Add", "q one", "r"),
        node("Mul", "a r", "s"), node("Mul", "s half", "b"),
    ], {"root": ROOT, "one": np.float32(1), "half": np.float32(0.5)}),
    "as torch writes HardSwish": ([
        node("Add", "a three", "p"), node("Clip", "p zero six", "q"), node("Mul", "a q", "r"),
        node("Div", "r six", "b"),
    ], {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, shape: tuple[int, ...]) -> None:
    """A layer more is none of them."""
    functions, constants = FUNCTIONS[name]
    nodes = [node("MatMul", "x w", "m"), node("Add", "m c", "a"), *functions,
             node("MatMul", "b v", "y")]  # fmt: skip
    rng = np.random.default_rng(len(name))
    proto = model(
        nodes, {"x": shape}, {"y": FLOAT}, OPSET, w=2 * weights(rng, 6, 10), c=sample(10),
        v=weights(rng, 10, 4), **constants,
    )  # fmt: skip
    assert len(check(proto, {"x": sample(16, *shape)}).layers) == 2


def test_numbers_are_part_of_weights_and_biases() -> None:
    """Before a bias, behind one, and before an addition; not behind one."""
    nodes = [
        node("MatMul", "x w", "m"), node("Mul", "m two", "n"), node("Add", "n c", "o"),
        node("Div", "o two", "p"), node("Sub", "p two", "q"), node("Add", "q x", "r"),
        node("Mul", "r two", "y"),
    ]  # fmt: skip
    proto = model(
        nodes, {"x": (5, 6)}, {"y": FLOAT, "o": FLOAT}, w=weights(np.random.default_rng(0), 6, 6),
        c=sample(6), two=np.float32(2),
    )  # fmt: skip
    assert len(check(proto, {"x": sample(16, 5, 6)}).layers) == 3


def test_functions_at_the_border() -> None:
    """Of an input the host applies them."""
    nodes = [node("Sigmoid", "x", "s"), node("Mul", "x s", "t"), node("MatMul", "t w", "y")]
    proto = model(nodes, {"x": (6,)}, {"y": FLOAT}, w=sample(6, 3))
    assert len(check(proto, {"x": sample(16, 6)}).layers) == 1


def test_functions_survive_a_file(tmp_path: Any) -> None:
    from pynq_bbs import Program

    nodes = [node("Sigmoid", "x", "s"), node("Mul", "x s", "t"), node("MatMul", "t w", "y")]
    proto = model(nodes, {"x": (6,)}, {"y": FLOAT}, w=sample(6, 3))
    program = compile_model(load_onnx(proto), calibration=sample(16, 6))
    program.save(tmp_path / "program")
    assert Program.load(tmp_path / "program").inputs == program.inputs
    (function,) = program.inputs[0].functions
    assert function.chains == ((), (Function("sigmoid"),))
    assert restored_functions([]) == ()


def test_functions_are_right() -> None:
    """Against the definitions in float64, to what float32 holds."""
    from math import erf

    x = np.linspace(-9, 9, 5001).astype(np.float32)
    exact = x.astype(np.float64)
    wanted = {
        Function("erf"): np.array([erf(v) for v in exact]),
        Function("softplus"): np.log1p(np.exp(exact)),
        Function("elu", (0.5,)): np.where(exact < 0, 0.5 * (np.exp(exact) - 1), exact),
        Function("power", (3.0,)): exact**3,
        Function("sum", (), ((), (Function("tanh"),))): exact + np.tanh(exact),
    }
    for function, values in wanted.items():
        assert function(x).dtype == np.float32
        np.testing.assert_allclose(function(x), values, rtol=1e-6, atol=3e-7)
    assert apply_functions((), x) is x


REFUSED = [
    ([node("Div", "x a", "y")], "divisor is computed"),
    ([node("Div", "a zero", "y")], "one is zero"),
    ([node("Pow", "a half", "y")], "not one whole number"),
    ([node("LeakyRelu", "a", "y", alpha=float("nan"))], "alpha is nan"),
    ([node("Sub", "x a", "y")], "subtracts a computed tensor"),
]


@pytest.mark.parametrize(("nodes", "word"), REFUSED, ids=[word for _, word in REFUSED])
def test_refused_functions(nodes: Any, word: str) -> None:
    used = {name for each in nodes for name in each.input}
    constants = {"zero": np.float32(0), "half": np.float32(0.5), "some": sample(4)}
    kept = {name: value for name, value in constants.items() if name in used}
    proto = model(
        [node("MatMul", "x w", "a"), *nodes], {"x": (4,)}, {"y": FLOAT}, w=sample(4, 4), **kept
    )
    assert word in refused(proto)["n_y"]


# -- chains ----------------------------------------------------------------------------------------


def random_columns(seed: int) -> tuple[Any, tuple[int, ...]]:
    """A chain over (N, ..., features): layers, functions, additions of what came before, parts in
    another order, and axes that go and come."""
    rng = np.random.default_rng(seed)
    columns = [int(n) for n in rng.choice([1, 2, 3, 5, 7], int(rng.integers(1, 3)))]
    shape, features = [*columns, int(rng.integers(2, 9))], 0
    given, nodes, constants, name, kept = tuple(shape), [], {}, "x", {}

    def op(kind: str, *more: str, **attributes: Any) -> str:
        made = f"t{len(nodes)}"
        nodes.append(node(kind, " ".join([name, *more]), made, **attributes))
        return made

    for step in range(6):
        features = shape[-1]
        kinds = ["layer", "layer", "function", "parts", "axis", "add"]
        kind = str(rng.choice(kinds)) if step else "layer"
        if kind == "layer":
            rows = int(rng.integers(2, 9))
            constants[f"w{step}"] = weights(rng, features, rows)
            name = op("MatMul", f"w{step}")
            if rng.random() < 0.6:
                constants[f"b{step}"] = rng.standard_normal(rows).astype(np.float32)
                name = op("Add", f"b{step}")
            shape[-1] = rows
        elif kind == "function":
            name = op(str(rng.choice(["Relu", "Tanh", "Gelu", "HardSwish"])))
        elif kind == "parts" and features > 1:
            first = int(rng.integers(1, features))
            constants[f"s{step}"] = np.array([first, features - first], np.int64)
            nodes.append(node("Split", f"{name} s{step}", f"l{step} r{step}", axis=len(shape)))
            name = f"r{step}"
            name = op("Concat", f"l{step}", axis=-1)
        elif kind == "axis":
            constants[f"a{step}"] = np.array([1], np.int64)
            name = op("Unsqueeze", f"a{step}")
            if rng.random() < 0.5:
                name = op("Squeeze", f"a{step}")
            else:
                shape.insert(0, 1)
        elif kind == "add" and (before := kept.get(tuple(shape))):
            name = op("Add", before)
        kept[tuple(shape)] = name
    return model(nodes, {"x": given}, {name: FLOAT}, OPSET, **constants), given


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_chains(seed: int) -> None:
    proto, given_shape = random_columns(seed)
    check(proto, {"x": sample(8, *given_shape, seed=seed)}, 0.2)
