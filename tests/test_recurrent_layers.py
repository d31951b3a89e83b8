# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU from a model to the emulated engine and the cpu device, against the definition."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from damage import damage
from layers import random_layer, random_window_layer
from oracle import oracle_layer
from pynq_bbs import Accelerator, Program
from pynq_bbs import compile as compile_model
from pynq_bbs.builds import Build, load_build
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.errors import InputError, VerificationError
from pynq_bbs.interface import FLAG_KEEP_WEIGHTS, FLAG_RESIDENT_WEIGHTS
from pynq_bbs.model.graph import (
    Combination,
    Concat,
    Constant,
    QuantInput,
    QuantLayer,
    QuantModel,
    QuantOutput,
    Slice,
    Window,
)
from pynq_bbs.model.moving import join
from pynq_bbs.model.recurrent import (
    RecurrentLayer,
    quantise_hidden,
    quantise_state,
    run_recurrent,
)
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.plan import make_plan
from recurrent_cases import BUILDS, KINDS, X_SCALE, Case, random_case, random_recurrent

MEMORY = Memory(142.857e6, 1.5e9)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"device": "cpu"},
    {"device": "standin"},
    {"device": "standin", "verify": True},
)


def outputs(program: Program, inputs: dict[str, Any], **options: Any) -> dict[str, NDArray[Any]]:
    with Accelerator(program, **options) as accelerator:
        for _ in range(2):  # the second time weights may be there
            y = accelerator.run(inputs)
    return y if isinstance(y, dict) else {program.outputs[0].name: y}


def check(case: Case, build: Build) -> None:
    program = pack(case.model(), case.banks, build)
    expected = case.expected()
    for options in OPTIONS:
        made = outputs(program, case.inputs(), strict=True, **options)
        assert set(made) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(made[name], values, err_msg=f"{name} {options} {case}")


#: units, inputs, steps, samples
ODD = [(1, 1, 1, 1), (1, 7, 3, 2), (9, 1, 2, 5), (13, 5, 1, 3), (3, 11, 5, 1), (17, 19, 4, 9)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.name)
def test_a_layer_is_the_definition(build: Build, kind: str) -> None:
    for seed, shape in enumerate(ODD * 3):
        check(random_case(build, kind, 1000 + seed, shape), build)
    for seed in range(25):
        check(random_case(build, kind, seed), build)


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.name)
def test_batches_of_changing_lengths(build: Build) -> None:
    """The memory block is used again, whatever lay beyond the ends of sequences, and in pieces; in
    the background in both of its banks, which have places of their own for states too."""
    rng = np.random.default_rng(3)
    case = random_case(build, "gru_before", 3, (5, 3, 6, 2))
    layer = replace(case.layer, reverse=True, initial_h="h", initial_state="state", y_h="y_h")
    case = replace(case, layer=layer, lengths=np.ones(2, np.int64))
    case.given["h"], case.given["state"] = np.zeros((2, 5), np.int8), np.zeros((2, 5), np.int16)
    program = pack(case.model(), case.banks, build)
    with Accelerator(program, "standin", strict=True, memory_bytes=64 << 10) as accelerator:
        submitted = []
        for samples in (3, 3, 90, 1, 700, 3):
            case.given = {
                name: rng.integers(np.iinfo(v.dtype).min, 128, (samples, *v.shape[1:]), v.dtype)
                for name, v in case.given.items()
            }
            case.lengths = rng.integers(1, 7, samples)
            inputs, expected = case.inputs(), case.expected()
            made = accelerator.run(inputs)
            for name, values in expected.items():
                np.testing.assert_array_equal(made[name], values, err_msg=f"{name} {samples}")
            submitted.append((inputs, expected))
        futures = [accelerator.submit(inputs) for inputs, _ in submitted * 2]
        for future, (_, expected) in zip(futures, submitted * 2, strict=True):
            for name, values in expected.items():
                np.testing.assert_array_equal(future.result(60)[name], values, err_msg=name)


def network(rng: np.random.Generator, steps: int, lengths: bool) -> QuantModel:
    """x -> both directions of a layer, joined -> a second layer -> sums of every step; the joined
    last values -> sums; and a third layer goes on from where the first one has ended."""
    features, f, b, second = 9, 11, 5, 6
    layers: list[QuantLayer | RecurrentLayer] = [
        RecurrentLayer(
            "f", "x", "f.y", random_recurrent(rng, "lstm", features, f), y_h="f.h", y_state="f.c"
        ),
        RecurrentLayer(
            "b", "x", "b.y", random_recurrent(rng, "gru_before", features, b), True, "b.h",
            initial_h="h", initial_state="state",
        ),
        *join("both", [("f.y", f), ("b.y", b)]),
        RecurrentLayer("second", "both", "second.y", random_recurrent(rng, "gru_after", f + b, 6)),
        replace(random_layer(rng, 7, second, 1, 1, kind="sums"), name="every", input="second.y"),
        *join("last", [("f.h", f), ("b.h", b)]),
        replace(random_layer(rng, 3, f + b, 1, 1, kind="sums"), name="class", input="last"),
        RecurrentLayer(
            "third", "f.y", "third.y", random_recurrent(rng, "lstm", f, f), True, "third.h",
            initial_h="f.h", initial_state="f.c",
        ),
    ]  # fmt: skip
    for layer in layers:
        if layer.name in ("every", "class"):
            layer.output = layer.name
    inputs = [
        QuantInput("x", "x", (steps, features), "int8", X_SCALE, 0, steps=steps),
        QuantInput("h", "h", (b,), "float32", np.float32(1 / 128), 0),
        QuantInput("h", "state", (b,), "float32", np.float32(2.0**-15), 0, bits=16),
    ]
    scales = rng.random(7).astype(np.float32) + 1
    outputs = [
        QuantOutput("every", "every", (steps, 7), "float32", scales, steps=steps),
        QuantOutput("class", "class", (3,), "int32"),
        QuantOutput("both", "both", (steps, f + b), "int8"),
        QuantOutput("third", "third.y", (steps, f), "int8"),
        QuantOutput("h", "third.h", (f,), "int8"),
    ]
    return QuantModel("network", inputs, layers, outputs, "lengths" if lengths else "")


def of_network(
    model: QuantModel, x: NDArray[np.int8], h: NDArray[np.float32], lengths: Any
) -> dict[str, NDArray[Any]]:
    """What comes out, layer by layer as the definition has it."""
    layers = {layer.name: layer for layer in model.layers}
    start = quantise_hidden(h), quantise_state(h, 15)

    def run(name: str, x: NDArray[np.int8], h: Any = None, state: Any = None) -> list[Any]:
        layer = layers[name]
        by_step = x.swapaxes(0, 1)
        y, *last = run_recurrent(layer.quantised, by_step, h, state, lengths, layer.reverse)
        return [y.swapaxes(0, 1), *last]

    (f, f_h, f_c), (b, b_h, _) = run("f", x), run("b", x, *start)
    both = np.concatenate([f, b], axis=2)
    second = run("second", both)[0]
    every = oracle_layer(layers["every"], second.reshape(-1, 6))[0].reshape(*x.shape[:2], 7)
    third = run("third", f, f_h, f_c)
    return {
        "every": every.astype(np.float32) * model.outputs[0].scale,
        "class": oracle_layer(layers["class"], np.concatenate([f_h, b_h], axis=1))[0],
        "both": both,
        "third": third[0],
        "h": third[1],
    }


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.name)
def test_layers_that_read_each_other(build: Build, lengths: bool, tmp_path: Path) -> None:
    for seed, (steps, samples) in enumerate([(1, 1), (5, 1), (4, 21), (6, 9)]):
        rng = np.random.default_rng(seed)
        model = network(rng, steps, lengths)
        inputs = {
            "x": rng.integers(-128, 128, (samples, steps, 9), np.int8),
            "h": rng.uniform(-1, 1, (samples, 5)).astype(np.float32),
        }
        ends = rng.integers(1, steps + 1, samples) if lengths else None
        expected = of_network(model, **inputs, lengths=ends)
        if lengths:
            inputs["lengths"] = ends
        compile_model(model, build=build).save(tmp_path / "network")
        program = Program.load(tmp_path / "network")
        for options in OPTIONS:
            made = outputs(program, inputs, **options)
            for name, values in expected.items():
                np.testing.assert_array_equal(made[name], values, err_msg=f"{name} {seed}")


def test_a_program_file_holds_all_of_it(tmp_path: Path) -> None:
    program = compile_model(network(np.random.default_rng(0), 3, True), build="32x4x1")
    program.save(tmp_path / "network")
    loaded = Program.load(tmp_path / "network")
    assert loaded.layers == program.layers and loaded.tensors == program.tensors
    assert loaded.lengths == program.lengths == "lengths" and loaded.inputs == program.inputs
    assert [i.tensor for i in program.inputs if i.name == "x"] == ["x", "b:x"]


def test_compiled_at_75_percent() -> None:
    build = load_build("32x4x1")
    rng = np.random.default_rng(1)
    everywhere = {"*": {"sparsity": 0.75, "bank_size": 16}}
    program = compile_model(network(rng, 4, False), layers=everywhere, build=build)
    kept = {layer.name: layer.keep / layer.bank_size for layer in program.layers}
    assert {kept[name] for name in ("f", "b", "second", "every", "third")} == {0.25}
    moved = ("both:0", "both", "second:x", "third:x")
    assert {la.keep for la in program.layers if la.name in moved} == {1}
    inputs = {
        "x": rng.integers(-128, 128, (5, 4, 9), np.int8),
        "h": rng.uniform(-1, 1, (5, 5)).astype(np.float32),
    }
    wanted = outputs(program, inputs, device="cpu")
    for name, values in outputs(program, inputs, device="standin", verify=True).items():
        np.testing.assert_array_equal(values, wanted[name])
        assert len(np.unique(values)) > 1


def test_weights_stay_from_step_to_step() -> None:
    """Where not all of a program fit the block buffer, those of a layer still do, while it runs."""
    build = load_build("32x4x1")
    rng = np.random.default_rng(2)
    layers = [
        RecurrentLayer(f"{n}", source, f"{n}.y", random_recurrent(rng, "lstm", 150, 150))
        for n, source in enumerate(["x", "0.y"])
    ]
    x = QuantInput("x", "x", (3, 150), "int8", X_SCALE, 0, steps=3)
    model = QuantModel("deep", [x], layers, [QuantOutput("y", "1.y", (3, 150), "int8")])
    program = compile_model(model, build=build)
    plan = make_plan(program, 2, MEMORY)
    for index, layer in enumerate(program.layers):
        flags = [c.flags for c in plan.commands if c.layer == index]
        if layer.cell:
            assert [bool(f & FLAG_KEEP_WEIGHTS) for f in flags] == [True, False, False]
            assert [bool(f & FLAG_RESIDENT_WEIGHTS) for f in flags] == [False, True, True]
        else:  # a copy of x
            assert len(flags) == 1 and not flags[0] & (FLAG_KEEP_WEIGHTS | FLAG_RESIDENT_WEIGHTS)
    given = rng.integers(-128, 128, (2, 3, 150), np.int8)
    wanted = given.swapaxes(0, 1)
    for layer in layers:
        wanted = run_recurrent(layer.quantised, wanted)[0]
    made = outputs(program, {"x": given}, device="standin", verify=True)["y"]
    np.testing.assert_array_equal(made, wanted.swapaxes(0, 1))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_wrong_unit_is_named(monkeypatch: pytest.MonkeyPatch, reverse: bool) -> None:
    """The first of the wrong steps, in the order of work, and the sums of the unit's gates."""
    build, rng = BUILDS[0], np.random.default_rng(5)
    layer = RecurrentLayer("cells", "x", "y", random_recurrent(rng, "lstm", 6, 7), reverse)
    x = rng.integers(-128, 128, (9, 5, 6), np.int8)
    case = Case(layer, {}, 5, 9, {"x": x}, np.array([5, 2, 3, 5, 1, 4, 4, 5, 3]))
    program = pack(case.model(), {}, build)
    word = program.layers[0].parameters + 4 * 3 + 1  # gate o of unit 3: no matter to the state
    image = program.image.copy()
    image[word] ^= np.uint64(1 << 12)
    good, bad = (
        CpuDevice(p).run({"x": x.reshape(9, -1)}, case.lengths)["y"].reshape(9, 5, 7)
        for p in (program, replace(program, image=image))
    )
    wrong = np.argwhere(good != bad)
    step = wrong[:, 1].max() if reverse else wrong[:, 1].min()
    sample, _, row = wrong[wrong[:, 1] == step][0]
    damage(monkeypatch, word, 1 << 12)
    with (
        Accelerator(program, "standin", verify=True) as accelerator,
        pytest.raises(VerificationError) as caught,
    ):
        accelerator.run(case.inputs())
    text = str(caught.value)
    assert f"layer 'cells', row {row}, column {sample}, step {step}: " in text
    at = sample, step, row
    assert f"the device gave {bad[at]}, the cpu device {good[at]} " in text
    found = re.search(r"\(sums \[(.*)\] and \[(.*)\]\)", text)
    assert found is not None
    device, cpu = (np.array(f.split(", "), int) for f in found.groups())
    if row == 3:
        assert np.flatnonzero(device != cpu).tolist() == [1]
        assert abs(device[1] - cpu[1]) == 1 << 12


def small(**fields: Any) -> tuple[QuantModel, Build]:
    """A model with a layer of 4 units over 3 steps of 2 features, and something changed in it."""
    rng = np.random.default_rng(0)
    layer = RecurrentLayer("cells", "x", "y", random_recurrent(rng, "lstm", 2, 4), y_state="c")
    x = QuantInput("x", "x", (3, 2), "int8", X_SCALE, 0, steps=3)
    model = QuantModel("small", [x], [replace(layer, **fields)], [])
    return model, BUILDS[0]


def test_what_a_layer_cannot_be() -> None:
    rng = np.random.default_rng(0)
    model, build = small()
    with pytest.raises(InputError, match="'cells': build 8x32 has no cells"):
        pack(model, {}, load_build("8x32"))
    wide = random_recurrent(rng, "lstm", 2, 65)
    with pytest.raises(InputError, match="65 units, build 8x2x4 holds the states of 64"):
        pack(small(quantised=wide)[0], {}, build)
    with pytest.raises(InputError, match=r"'cells': it reads 'h' as .* which is nothing"):
        pack(small(initial_h="h")[0], {}, build)
    with pytest.raises(InputError, match=r"reads 'x' as Tensor\(features=5"):
        pack(small(quantised=random_recurrent(rng, "lstm", 5, 4))[0], {}, build)
    with pytest.raises(InputError, match=r"reads 'x' as .* bits=16"):
        pack(small(initial_state="x")[0], {}, build)
    with pytest.raises(InputError, match=r"row \d+, bank \d+ has 2 nonzeros, keep is 1"):
        pack(model, {"cells": (2, 1)}, build)

    after = replace(random_layer(rng, 4, 4, 1, 1), output="after")
    with pytest.raises(InputError, match=r"reads 'c', which is .* takes INT8"):
        pack(replace(model, layers=[*model.layers, replace(after, input="c")]), {}, build)
    added = replace(after, input="y", combination=Combination("y", 1, 0, 1, 0, 0, 0))
    with pytest.raises(InputError, match="combines its output with 'y', which lies among"):
        pack(replace(model, layers=[*model.layers, added]), {}, build)
    other = replace(model.inputs[0], name="z", tensor="z", shape=(5, 2), steps=5)
    third = replace(model.layers[0], name="other", input="z", output="w", y_state="d")
    both = [*model.layers, third]
    two = replace(model, inputs=[*model.inputs, other], layers=both)
    assert len(pack(two, {}, build).layers) == 2
    with pytest.raises(InputError, match=r"recurrent layers have \[3, 5\]"):
        pack(replace(two, lengths="n"), {}, build)
    image = QuantInput("i", "i", (1, 2, 2), "int8", X_SCALE, 0)
    window = random_window_layer(rng, Window(1, 2, 2, (1, 1)), 1, 1, "plain")
    window = replace(window, input="i", output="o")
    mixed = replace(model, inputs=[*model.inputs, image], layers=[*model.layers, window])
    with pytest.raises(InputError, match="has recurrent layers and images"):
        pack(mixed, {}, build)


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (Slice("x", "v", 0, (1,)), "tensor 'x' has 3 steps: a view is of one step only"),
        (Concat(("y", "y"), "v"), "tensor 'y' has 3 steps"),
        (Slice("h", "v", 0, (2,)), "tensor 'h' lies among the features of a recurrent layer"),
        (Concat(("h", "z"), "v"), "tensor 'h' lies among"),
        (Slice("c", "v", 0, (2,)), "tensor 'c' has INT16 states"),
    ],
)
def test_views_are_of_one_step(view: Slice | Concat, text: str) -> None:
    model, build = small(y_h="h")
    model.inputs.append(QuantInput("z", "z", (4,), "int8", X_SCALE, 0))
    with pytest.raises(InputError, match=text):
        pack(replace(model, views=[view]), {}, build)


def test_constants_are_not_beside_steps() -> None:
    model, build = small()
    constant = Constant("k", np.zeros((2, 1, 1), np.int8))
    with pytest.raises(InputError, match="has recurrent layers and images or constants"):
        pack(replace(model, constants=[constant]), {}, build)
    plain = replace(random_layer(np.random.default_rng(0), 3, 2, 1, 1), output="after")
    model = replace(model, layers=[plain], constants=[constant])
    with pytest.raises(InputError, match="has tensors of several steps and images or constants"):
        pack(model, {}, build)


@pytest.mark.parametrize("lengths", [None, np.array([2, 4, 1, 4, 3])])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.name)
def test_views_around_recurrent_layers(build: Build, reverse: bool, lengths: Any) -> None:
    """The initial h is a slice of an input, or an input that is a part as well; the last h, once
    joined, is a part like any other."""
    rng, units = np.random.default_rng(6), 8
    quantised = random_recurrent(rng, "gru_after", 5, units)
    layer = RecurrentLayer("cells", "x", "y", quantised, reverse, y_h="y_h", initial_h="h")
    again = RecurrentLayer("again", "x", "w", quantised, reverse, y_h="w_h", initial_h="g")
    after = replace(random_layer(rng, 7, 5, 1, 1), name="after", input="part", output="after")
    inputs = [
        QuantInput("x", "x", (4, 5), "int8", X_SCALE, 0, steps=4),
        QuantInput("z", "z", (16,), "int8", X_SCALE, 0),
        QuantInput("g", "g", (units,), "int8", X_SCALE, 0),
    ]
    names = {"y_h": 8, "w_h": 8, "part": 5, "after": 7, "both": 32}
    shown = [QuantOutput(name, name, (features,), "int8") for name, features in names.items()]
    views = [
        Slice("z", "h", 3, (units,)),
        Slice("last", "part", 2, (5,)),
        Concat(("last", "z", "g"), "both"),
    ]
    model = QuantModel(
        "around", inputs, [layer, again, *join("last", [("y_h", units)]), after], shown,
        "n" if lengths is not None else "", views,
    )  # fmt: skip
    x = rng.integers(-128, 128, (5, 4, 5), np.int8)
    z, g = (rng.integers(-128, 128, (5, features), np.int8) for features in (16, units))
    last, other = (
        run_recurrent(quantised, x.swapaxes(0, 1), h, lengths=lengths, reverse=reverse)[1]
        for h in (z[:, 3 : 3 + units], g)
    )
    expected = {"y_h": last, "w_h": other, "part": last[:, 2:7]}
    expected["both"] = np.concatenate([last, z, g], axis=1)
    expected["after"] = oracle_layer(after, last[:, 2:7])[1]
    given = {"x": x, "z": z, "g": g} | ({} if lengths is None else {"n": lengths})
    for options in OPTIONS:
        made = outputs(pack(model, {}, build), given, **options)
        for name, values in expected.items():
            np.testing.assert_array_equal(made[name], values, err_msg=f"{name} {options}")


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        (np.array([1, 4]), "from 1 to 4, a sample has 1 to 3 steps"),
        (np.array([0, 3]), "from 0 to 3"),
        (np.array([1.0, 2.0]), "float64"),
        (np.array([1, 2, 3]), r"int64 \(3,\), must be integers \(2,\)"),
        (None, "exactly: x, n"),
    ],
)
def test_lengths_that_are_none(lengths: Any, text: str) -> None:
    model, build = small()
    model.outputs.append(QuantOutput("y", "y", (3, 4), "int8"))
    program = pack(replace(model, lengths="n"), {}, build)
    x = {"x": np.zeros((2, 3, 2), np.int8)} | ({} if lengths is None else {"n": lengths})
    with Accelerator(program, "cpu") as accelerator:
        assert accelerator.inputs["n"] == ((), "int64")
        with pytest.raises(InputError, match=text):
            accelerator.run(x)


def test_copies_are_in_the_report() -> None:
    program = compile_model(network(np.random.default_rng(0), 3, False), build="32x4x1")
    inputs = {"x": np.zeros((2, 3, 9), np.int8), "h": np.zeros((2, 5), np.float32)}
    with Accelerator(program, "standin") as accelerator:
        accelerator.run(inputs)
        cycles = {la.name: la.cycles for la in accelerator.report().layers}
    # The host puts x where the first two layers work; the others have theirs from the engine.
    assert "f:x" not in cycles and "b:x" not in cycles
    assert all(0 < cycles[f"{name}:x"] < cycles[name] for name in ("second", "third"))
