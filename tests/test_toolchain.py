# SPDX-License-Identifier: Apache-2.0
"""The compiler is found, libraries are built once, and every failure says what to do."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cffi
import pytest

from pynq_bbs import toolchain
from pynq_bbs.errors import ToolchainError

ANSWER = '#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setenv("BBS_CACHE", str(directory))
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text(ANSWER)
    return path


def build(source: Path, answer: int = 42, flags: tuple[str, ...] = ()) -> Path:
    header = f"#define ANSWER {answer}\n"
    return toolchain.shared_library("answer", [source], headers={"answer.h": header}, flags=flags)


def call(library: Path) -> int:
    ffi = cffi.FFI()
    ffi.cdef("int answer();")
    return int(ffi.dlopen(str(library)).answer())


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\nexec true "$@"\n')
    path.chmod(0o755)
    return path


# --- finding a compiler ---


def test_cxx_wins_and_may_hold_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = executable(tmp_path / "my tools" / "mine")
    monkeypatch.setenv("CXX", f"'{mine}' -m32 --sysroot=/x")
    assert toolchain.find_compiler() == [str(mine), "-m32", "--sysroot=/x"]


@pytest.mark.parametrize("cxx", ["", "  "])
def test_the_path_is_searched_in_order(
    cxx: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", cxx)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("clang++", "c++", "g++"):
        path = executable(tmp_path / name)
        assert toolchain.find_compiler() == [str(path)]


def test_ziglang_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "ziglang").mkdir()
    (tmp_path / "ziglang" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert toolchain.find_compiler() == [sys.executable, "-m", "ziglang", "c++"]


def test_no_compiler_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"apt install g\+\+.*pip install ziglang"):
        toolchain.find_compiler()


@pytest.mark.parametrize("cxx", ["no-such-compiler -O2", "'unbalanced"])
def test_a_wrong_cxx_is_named(cxx: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(ToolchainError) as caught:
        toolchain.find_compiler()
    assert repr(cxx) in str(caught.value)
    assert "unset it" in str(caught.value)


# --- building ---


def test_a_library_is_built_once_and_silently(
    cache: Path, source: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pynq_bbs.toolchain")
    first = build(source)
    assert call(first) == 42
    assert "built answer in" in caplog.text
    caplog.clear()
    assert build(source) == first
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")
    assert list(cache.iterdir()) == [first]


def test_whatever_goes_in_changes_the_name(
    cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build(source)
    other_header = build(source, answer=43)
    assert call(other_header) == 43
    other_flags = build(source, flags=("-DOTHER",))
    depended = tmp_path / "depended.hpp"
    names = {base, other_header, other_flags}
    for text in ("one", "two"):
        depended.write_text(text)
        names.add(
            toolchain.shared_library(
                "answer", [source], headers={"answer.h": "#define ANSWER 1\n"}, depends=[depended]
            )
        )
    source.write_text(ANSWER + "\n")
    names.add(build(source))
    monkeypatch.setattr(toolchain, "_processor", lambda: "another machine that shares the cache")
    names.add(build(source))
    assert len(names) == 7
    assert set(cache.iterdir()) == names


def test_include_directories_and_generated_headers_in_folders(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "answer.h").write_text('#include "generated/number.h"\n')
    (tmp_path / "elsewhere").mkdir()
    source = tmp_path / "elsewhere" / "answer.cpp"
    source.write_text(ANSWER)
    library = toolchain.shared_library(
        "answer",
        [source],
        headers={"generated/number.h": "#define ANSWER 7\n"},
        include_dirs=[tmp_path / "include"],
    )
    assert call(library) == 7


def test_own_instruction_set_unless_one_is_named(
    cache: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pynq_bbs.toolchain")
    build(source)
    native = toolchain._probe_native(tuple(toolchain.find_compiler()))
    assert all(f" {flag} " in caplog.text for flag in native)
    assert toolchain._native_flags(["g++"], ["-march=armv7-a"]) == []
    assert toolchain._native_flags(["g++", "-mcpu=cortex-a9"], []) == []


def test_a_compile_error_shows_command_and_output_and_leaves_nothing(
    cache: Path, source: Path
) -> None:
    source.write_text("".join(f"int broken{i} = missing{i};\n" for i in range(30)))
    with pytest.raises(ToolchainError) as caught:
        build(source)
    message = str(caught.value)
    assert "refused answer (exit status" in message
    assert f"{source} -o" in message
    assert "error:" in message and "more lines" in message
    assert len(message.splitlines()) < 30
    assert list(cache.iterdir()) == []


def test_warnings_go_to_the_log(
    cache: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source.write_text(ANSWER + "#warning mind this\n")
    assert call(build(source)) == 42
    assert "mind this" in caplog.text


def test_a_missing_source_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"gone\.cpp: No such file"):
        toolchain.shared_library("gone", [tmp_path / "gone.cpp"])


def test_a_compiler_that_cannot_run_is_named(
    cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF not really")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(ToolchainError, match="cannot run the C\\+\\+ compiler"):
        build(source)


def test_processes_that_build_at_once_all_succeed(cache: Path, source: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pynq_bbs.toolchain import shared_library\n"
        "print(shared_library('answer', [Path(sys.argv[1])], headers={'answer.h':"
        " '#define ANSWER 5\\n'}))"
    )
    command = [sys.executable, "-c", script, str(source)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert {str(path) for path in cache.iterdir()} == paths
    assert call(Path(paths.pop())) == 5


# --- where the cache cannot be written; a file stands in the way, which stops root too ---


def test_an_unwritable_bbs_cache_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BBS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ToolchainError, match="which BBS_CACHE names"):
        build(source)


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default cache cannot be written; returns what is the temp directory meanwhile."""
    (tmp_path / "file").touch()
    monkeypatch.delenv("BBS_CACHE", raising=False)
    # zig's own cache stays where it is: filling a new one takes a minute
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if "ZIG_GLOBAL_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(usual / "zig"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    return tmp_path / "temp"


def test_an_unwritable_home_falls_back_to_a_private_directory(
    source: Path, no_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = build(source)
    assert call(library) == 42
    assert library.parent == no_home / f"pynq_bbs-{os.getuid()}"
    assert library.parent.stat().st_mode & 0o777 == 0o700
    assert "cannot write to" in caplog.text
    assert build(source) == library


def test_a_temp_directory_that_others_can_write_is_refused(source: Path, no_home: Path) -> None:
    shared = no_home / f"pynq_bbs-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ToolchainError, match="open to other users"):
        build(source)


def test_no_place_at_all_is_an_error(
    source: Path, no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(no_home / "missing"))
    with pytest.raises(ToolchainError, match="no place for compiled libraries"):
        build(source)
