# SPDX-License-Identifier: Apache-2.0
"""Builds: every one that is shipped compiles, and a wrong one is refused as the source would."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pynq_bbs.builds import Build, build_names, load_build
from pynq_bbs.codegen import build_header
from pynq_bbs.errors import BuildError
from pynq_bbs.paths import hls_dir, overlay_dir

SHIPPED = {name: asdict(load_build(name)) for name in build_names()}


def compiles(build: Build, folder: Path, *headers: str) -> bool:
    """Whether g++ takes these sources of the engine with this build, without a warning."""
    (folder / "build.hpp").write_text(build_header(build), encoding="utf-8")
    source = folder / "source.cpp"
    source.write_text("".join(f'#include "{name}"\n' for name in headers), encoding="utf-8")
    flags = ["-std=c++14", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-Wno-unused-label", "-fsyntax-only", f"-I{folder}", f"-I{hls_dir()}"]
    done = subprocess.run(["g++", *flags, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "static assertion failed" in done.stderr, done.stderr
    return done.returncode == 0


def load_changed(folder: Path, **change: Any) -> Build:
    path = folder / "changed.json"
    path.write_text(json.dumps(SHIPPED["8x32"] | change), encoding="utf-8")
    load_build.cache_clear()
    return load_build(str(path))


@pytest.mark.parametrize("name", build_names())
def test_shipped_builds_compile(name: str, tmp_path: Path) -> None:
    build = load_build(name)
    assert build.name == name
    assert len(build.summary) > 20
    assert compiles(build, tmp_path, "engine.cpp")


# Each breaks one relation, some of them more.
BROKEN: list[dict[str, Any]] = [
    {"lanes": 12},
    {"lanes": 1, "rows": 8, "taps": 1},
    {"cols": 12},
    {"cols": 6, "requant_units": 6, "image_words": 0},
    {"cols": 3, "requant_units": 3, "image_words": 0},
    {"rows": 3, "cols": 4, "requant_units": 8, "image_words": 0},
    {"lanes": 16, "rows": 1, "cols": 1, "requant_units": 1, "image_words": 0},
    {"requant_units": 3},
    {"requant_units": 16},
    {"rows": 2, "cols": 1, "requant_units": 4, "taps": 8, "image_words": 0},
    {"taps": 1, "cols": 4, "image_words": 0},
    {"vector_words": 500},
    {"vector_words": 128},
    {"block_words": 256},
    {"sum_words": 0},
    {"block_rows": 0},
    {"taps": 0},
    {"taps": 9, "lanes": 16},
    {"cols": 4, "requant_units": 4},
    {"image_words": 1000},
    {"fabric_lanes": 3},
    {"fabric_lanes": 10},
    {"index_bits": 5},
    {"cols": 128},
    {"block_words": 65536},
    {"block_rows": 65536},
]


@pytest.mark.parametrize("change", BROKEN, ids=lambda c: "-".join(f"{k}{v}" for k, v in c.items()))
def test_a_broken_relation_is_refused_here_and_there(
    change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=r"changed\.json: not a build file: "):
        load_changed(tmp_path, **change)
    assert not compiles(Build(**SHIPPED["8x32"] | change), tmp_path, "columns.hpp", "image.hpp")


@pytest.mark.parametrize(
    "change",
    [
        {"lanes": 16, "rows": 2, "cols": 16},
        {"lanes": 4, "rows": 2, "cols": 8},
        {"lanes": 8, "rows": 2, "cols": 4, "image_words": 0, "taps": 2},
        {"lanes": 64, "rows": 2, "cols": 1, "requant_units": 2, "image_words": 0, "taps": 8},
        {"lanes": 24, "fabric_lanes": 24, "index_bits": 6, "taps": 8},
        {"rows": 3, "cols": 8},
        {"requant_units": 4},
        {"cols": 64, "queue_words": 1, "image_words": 1, "chain_words": 0},
    ],
)
def test_what_holds_is_taken_here_and_there(change: dict[str, Any], tmp_path: Path) -> None:
    assert compiles(load_changed(tmp_path, **change), tmp_path, "columns.hpp", "image.hpp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 0}, "lanes, rows and cols are at least 1"),
        ({"queue_words": 0}, "queue_words is at least 1"),
        ({"lanes": "8"}, "lanes is '8', wanted an integer"),
        ({"lanes": True}, "lanes is True, wanted an integer"),
        ({"chain_words": -1}, "chain_words is -1, wanted an integer from 0"),
        ({"sum_memory": "lutram"}, "sum_memory is 'lutram', wanted one of bram, uram"),
        ({"block_memory": 1}, "block_memory is 1, wanted one of bram, uram"),
        ({"colour": "pink"}, "unknown ['colour']"),
        ({"index_bits": 5, "taps": 9}, "taps is 1 to 8, lanes at most; index_bits is 4, 6 or 8"),
    ],
)
def test_messages_name_what_is_wanted(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as error:
        load_changed(tmp_path, **change)
    assert message in str(error.value)


def test_memories_become_constants_and_no_registers() -> None:
    build = Build(**SHIPPED["8x32"] | {"sum_memory": "uram"})
    header = build_header(build)
    assert "constexpr bool kSumInUram = true;" in header
    assert "constexpr bool kBlockInUram = false;" in header
    assert not any(name.endswith("_memory") for name in build.parameters)


def test_every_parameter_of_the_files_is_one_of_the_class() -> None:
    for path in (overlay_dir() / "builds").glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8")).keys() == SHIPPED["8x32"].keys()
