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

from layers import alone, random_layer
from pynq_bbs.builds import load_build
from pynq_bbs.errors import InputError, ProgramError
from pynq_bbs.model.graph import Function, QuantInput, QuantOutput
from pynq_bbs.pack.image import folded_bias, pack
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
