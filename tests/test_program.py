# SPDX-License-Identifier: Apache-2.0
"""Program files: the same after a round trip, refused whole when anything is wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers import a_network, alone, model_of, pool, random_layer, random_window_layer
from pynq_bbs.builds import load_build
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.errors import InputError, ProgramError
from pynq_bbs.model.graph import (
    Combination,
    Function,
    QuantInput,
    QuantLayer,
    QuantModel,
    QuantOutput,
    Window,
)
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.image import folded_bias, pack
from pynq_bbs.pack.plan import make_plan
from pynq_bbs.pack.program import Program

BUILD = load_build("8x32")


def a_program() -> Program:
    layer = random_layer(np.random.default_rng(3), 10, 64, 8, 2, kind="table")
    program = pack(alone(layer), {"layer": (8, 2)}, BUILD)
    program.inputs = [
        QuantInput("in", "x", (8, 8), "float32", np.float32(0.1), -3, (Function("clip", (0, 6)),))
    ]
    program.outputs = [QuantOutput("out", "y", (10,), "float32", np.float32([0.3, 1e-30]), 7)]
    return program


def test_round_trip(tmp_path: Path) -> None:
    program = a_program()
    program.save(tmp_path / "p.bbs.npz")
    loaded = Program.load(tmp_path / "p.bbs.npz")
    assert loaded.layers == program.layers
    assert loaded.inputs == program.inputs
    assert loaded.build == program.build
    np.testing.assert_array_equal(loaded.image, program.image)
    np.testing.assert_array_equal(loaded.outputs[0].scale, program.outputs[0].scale)
    assert replace(loaded.outputs[0], scale=0) == replace(program.outputs[0], scale=0)


@given(data=st.data())
def test_any_damaged_byte_is_noticed(data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("damage")
    a_program().save(folder / "p")
    good = (folder / "p").read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    (folder / "p").write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
    try:
        loaded = Program.load(folder / "p")
    except ProgramError:
        return
    # Dates and names in the archive's own tables are not ours to guard: the contents are.
    np.testing.assert_array_equal(loaded.image, a_program().image)
    assert loaded.layers == a_program().layers


@given(length=st.integers(0, 3000))
def test_truncated(length: int, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("truncated")
    a_program().save(folder / "p")
    content = (folder / "p").read_bytes()
    (folder / "p").write_bytes(content[: min(length, len(content) - 1)])
    with pytest.raises(ProgramError, match="damaged"):
        Program.load(folder / "p")


def test_missing() -> None:
    with pytest.raises(ProgramError, match="no program file"):
        Program.load("nowhere.bbs.npz")


def test_other_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(ProgramError, match="not a program file"):
        Program.load(tmp_path / "x.npz")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    evil = np.array([print], dtype=object)
    np.savez(tmp_path / "x.npz", header=evil, image=evil, sha256=evil)
    with pytest.raises(ProgramError, match="not a program file"):
        Program.load(tmp_path / "x.npz")


def test_other_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pynq_bbs.pack.program.FORMAT", 99)
    a_program().save(tmp_path / "p")
    monkeypatch.undo()
    with pytest.raises(ProgramError, match="format 99"):
        Program.load(tmp_path / "p")


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "p"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        a_program().save(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_sums_that_could_overflow() -> None:
    layer = random_layer(np.random.default_rng(4), 4, 64, 8, 8)
    layer.bias[2] = 2**31 - 1000
    layer.weights[2] = 100
    with pytest.raises(InputError, match="row 2 can reach a sum"):
        folded_bias(layer)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, np.inf, np.nan])
def test_multipliers_must_be_finite_and_positive(multiplier: float) -> None:
    layer = random_layer(np.random.default_rng(5), 4, 64, 8, 8)
    layer.multiplier[3] = multiplier
    with pytest.raises(InputError, match=r"layer 'layer': row 3 has multiplier"):
        pack(alone(layer), {"layer": (8, 8)}, BUILD)


MEMORY = Memory(142.857e6, 1.5e9)


def test_round_trip_of_windows(tmp_path: Path) -> None:
    program = pack(a_network(), {"first": (4, 1)}, BUILD)
    program.save(tmp_path / "p.bbs.npz")
    loaded = Program.load(tmp_path / "p.bbs.npz")
    assert loaded.layers == program.layers
    names = [layer.name for layer in loaded.layers]
    assert names == ["first", "second", "third", "fourth", "fifth"]
    assert type(loaded.layers[1].combination) is Combination
    assert loaded.layers[1].window == Window(300, 9, 7, (3, 3), pads=(1, 1, 1, 1))
    assert [layer.parts for layer in loaded.layers] == [1, 20, 20, 1, 1]
    assert [layer.maximum for layer in loaded.layers] == [False, False, True, False, False]
    assert [layer.sum_columns for layer in loaded.layers] == [False] * 3 + [True, False]
    assert loaded.tensors == program.tensors and loaded.has_pixels
    plans = [make_plan(p, 3, MEMORY) for p in (program, loaded)]
    np.testing.assert_array_equal(plans[0].words(), plans[1].words())
    x = np.random.default_rng(7).integers(-128, 128, (3, 4 * 9 * 7)).astype(np.int8)
    before, after = (CpuDevice(p).run({"x": x}) for p in (program, loaded))
    for name in program.tensors:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_what_counts_as_sparse() -> None:
    """Pruned weights do; those of other channels, which a depthwise layer has not got, do not."""
    model = a_network()
    assert pack(model, {"first": (4, 1)}, BUILD).sparsity == pytest.approx(
        0.75 * 300 * 36 / (300 * 36 + 300 * 9 + 10 * 300)
    )
    rng = np.random.default_rng(8)
    window = Window(20, 9, 7, (3, 3))
    depthwise = model_of([random_window_layer(rng, window, 20, 20, "plain")], (20, 9, 7))
    assert pack(depthwise, {}, BUILD).sparsity == 0
    pooling = model_of([pool(window, maximum=True)], (20, 9, 7))
    assert pack(pooling, {}, BUILD).sparsity == 0


IMAGE = (4, 20, 20)


def convolution(window: Window, rows: int = 2, groups: int = 1) -> QuantLayer:
    return random_window_layer(np.random.default_rng(9), window, rows, groups, "plain")


def with_weights(layer: QuantLayer, *shape: int) -> QuantLayer:
    return replace(layer, weights=np.ones(shape, np.int8))


SIZE = Combination("x", 1, 0, 1, 0, 1, 0)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (convolution(Window(*IMAGE, (16, 1))), r"kernel \(16, 1\).*takes 1 to 15"),
        (convolution(Window(*IMAGE, (20, 20))), r"kernel \(20, 20\).*takes 1 to 15"),
        (convolution(Window(*IMAGE, (1, 1), (1, 16))), r"strides \(1, 16\)"),
        (convolution(Window(*IMAGE, (2, 1), dilations=(16, 1))), r"dilations \(16, 1\)"),
        (convolution(Window(*IMAGE, (3, 3), pads=(1, 16, 1, 1))), r"padding \(1, 16, 1, 1\)"),
        (
            convolution(Window(*IMAGE, (15, 15), dilations=(2, 2))),
            "gives 0 x 0 pixels.*at least one pixel",
        ),
        (convolution(Window(4, 20, 19, (3, 3))), r"width=19.*its input is.*width=20"),
        (convolution(Window(3, 20, 20, (3, 3))), r"channels=3.*its input is.*features=4"),
        (
            with_weights(convolution(Window(*IMAGE, (3, 3))), 2, 4, 3, 2),
            r"weights have shape \(2, 4, 3, 2\).*need \(rows, 4, 3, 3\)",
        ),
        (
            with_weights(convolution(Window(*IMAGE, (3, 3)), 4, 4), 4, 4, 3, 3),
            r"4 groups of .*need \(rows, 1, 3, 3\)",
        ),
        (
            replace(with_weights(convolution(Window(*IMAGE, (1, 1))), 4, 1, 1, 1), groups=3),
            "4 channels and 4 rows do not divide into 3 groups",
        ),
        (random_layer(np.random.default_rng(9), 2, 1600, 1, 1), "1600 features, its input is"),
        (random_layer(np.random.default_rng(9), 2, 4, 1, 1), "4 features, its input is"),
        (
            replace(convolution(Window(*IMAGE, (3, 3)), 4), combination=SIZE),
            "combines .*height=18.* with 'x', which is .*height=20",
        ),
        (
            replace(
                convolution(Window(*IMAGE, (1, 1)), 4), combination=replace(SIZE, tensor="later")
            ),
            "reads 'later', which no input and no layer before it gives",
        ),
        (
            replace(convolution(Window(*IMAGE, (1, 1)), 4), combination=SIZE, multiplier=None),
            "INT32 sums, which cannot be combined",
        ),
    ],
)
def test_windows_that_do_not_fit(layer: QuantLayer, message: str) -> None:
    over = QuantInput("x", "x", IMAGE, "int8", np.float32(1), 0)
    other = replace(convolution(Window(*IMAGE, (1, 1))), name="other", output="t")
    model = QuantModel("wrong", [over], [other, layer], [])
    with pytest.raises(InputError, match=f"layer 'layer': .*{message}"):
        pack(model, {}, BUILD)


def test_images_too_long() -> None:
    layer = convolution(Window(1, 1, 4097, (1, 3)))
    with pytest.raises(InputError, match="1 x 4097 pixels, the engine takes 4096 each way"):
        pack(model_of([layer], (1, 1, 4097)), {}, BUILD)


def test_a_build_without_image_memory() -> None:
    model = model_of([convolution(Window(*IMAGE, (3, 3)))], IMAGE)
    with pytest.raises(InputError, match=r"build 32x4x1 has no image memory.*another build"):
        pack(model, {}, load_build("32x4x1"))


def test_rows_that_the_image_memory_cannot_hold() -> None:
    """Found when the plan is made: it depends on where the image comes from."""
    layer = convolution(Window(300, 20, 200, (3, 3)))
    program = pack(model_of([layer], (300, 20, 200)), {}, BUILD)
    with pytest.raises(InputError, match="layer 'layer': the image memory of build 8x32 holds"):
        make_plan(program, 1, MEMORY)


@pytest.mark.parametrize(
    ("build", "bank", "message"),
    [("32x4x1", (64, 8), "sizes up to 16 that"), ("32x4x1", (12, 3), "multiples or parts of 8")],
)
def test_banks_that_a_build_does_not_take(build: str, bank: tuple[int, int], message: str) -> None:
    layer = random_layer(np.random.default_rng(10), 8, 128, *bank)
    with pytest.raises(InputError, match=f"layer 'layer': bank size {bank[0]}: .*{message}"):
        pack(alone(layer), {"layer": bank}, load_build(build))
