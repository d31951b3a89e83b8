# SPDX-License-Identifier: Apache-2.0
"""Why a plan is as it is: no stage works longer than its command, and words for what was chosen."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given

from layers import a_network, model_of, random_layer, random_window_layer
from planned import matrix, network
from pynq_bbs.builds import load_build
from pynq_bbs.cli import main
from pynq_bbs.interface import Command
from pynq_bbs.model.graph import Window
from pynq_bbs.pack.cycles import Memory, layer_cycles
from pynq_bbs.pack.explain import HEAD, explained, stage_cycles
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.plan import make_plan
from pynq_bbs.pack.schedule import possible_cuts
from random_commands import commands

BUILD = load_build("8x32")
MEMORY = Memory(142.857e6, 1.5e9)


def columns(commands: list[Command], name: str, memory: Memory = MEMORY) -> list[str]:
    names = [str(i) for i in range(len(commands))]
    return [row[HEAD.index(name)] for row in explained(names, commands, BUILD, memory)]


@given(command=commands(BUILD))
def test_no_stage_works_longer_than_its_command(command: Command) -> None:
    stages = stage_cycles(command, BUILD, MEMORY)
    assert {"multiply", "memory", "gather", "unpack", "finish"} <= set(stages)
    assert max(stages.values()) <= layer_cycles(command, BUILD, MEMORY).total


def test_what_bounds_a_layer() -> None:
    wide = matrix(BUILD, MEMORY, 4096, 1024, 128, (2, 2))
    one = matrix(BUILD, MEMORY, 4096, 1024, 1, (64, 8))
    short = matrix(BUILD, MEMORY, 8, 8, 1, (1, 1))
    flat = matrix(BUILD, Memory(142.857e6, 1e12), 4096, 8, 128, (1, 1))
    bounds = columns([wide, one, short], "bound by") + columns(
        [flat], "bound by", Memory(142.857e6, 1e12)
    )
    assert [bound.split()[0] for bound in bounds] == ["multiply", "memory", "latency", "finish"]


def test_next_best_is_no_better() -> None:
    run = network("resnet8", BUILD, MEMORY) + network("mobilenet", BUILD, MEMORY)
    for command, text in zip(run, columns(run, "next best"), strict=True):
        cuts = list(possible_cuts(command, BUILD))
        assert command.tiles_per_block in [cut.tiles_per_block for cut in cuts]
        if len(cuts) == 1:
            assert text == "nothing else fits"
        else:
            assert re.fullmatch(r"\d+ tiles?: \+\d+\.\d%", text), text


def test_where_things_are() -> None:
    run = network("resnet8", BUILD, MEMORY)
    assert columns(run, "input -> output")[:5] == [
        "memory -> chain + memory", "chain -> chain", "chain -> chain", "chain -> chain",
        "on chip -> memory",
    ]  # fmt: skip
    assert columns(run, "image") == ["whole"] * 9 + ["-"] * 2
    assert columns(run, "weights")[5] == f"fetched {run[5].tiles} times"
    on_chip = network("autoencoder", load_build("32x4x1"), MEMORY, resident=True)
    names = [""] * len(on_chip)
    rows = explained(names, on_chip, load_build("32x4x1"), MEMORY)
    assert {row[HEAD.index("weights")] for row in rows} == {"on chip"}


def test_a_large_image_comes_in_bands() -> None:
    window = Window(16, 96, 96, (3, 3), pads=(1, 1, 1, 1))
    layer = random_window_layer(np.random.default_rng(2), window, 8, 1, "plain")
    (command,) = make_plan(pack(model_of([layer], (16, 96, 96)), {}, BUILD), 1, MEMORY).commands
    (image,) = columns([command], "image")
    bands = re.fullmatch(r"bands of (\d+) rows", image)
    assert bands and 3 <= int(bands[1]) <= 2048 * BUILD.banks // (16 * 96)


def test_the_command_shows_every_layer(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{tmp_path}/program.bbs.npz"
    pack(a_network(), {"first": (4, 1)}, BUILD).save(path)
    assert main(["plan", path, "--samples", "3"]) == 0
    printed = capsys.readouterr().out
    for name in ("first", "second", "third", "fourth", "fifth", "bound by", "for 3 samples"):
        assert name in printed
    assert "in 20 parts" in printed
    assert main(["plan", path, "--samples", "0"]) != 0
    assert "1 or more" in capsys.readouterr().err


def test_samples_side_by_side(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/program.bbs.npz"
    layer = random_layer(np.random.default_rng(1), 40, 64, 4, 2)
    pack(model_of([layer], (64,)), {"layer": (4, 2)}, BUILD).save(path)
    assert main(["plan", path, "--samples", "64"]) == 0
    assert "of 2 " in capsys.readouterr().out
