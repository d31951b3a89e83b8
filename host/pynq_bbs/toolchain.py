# SPDX-License-Identifier: Apache-2.0
"""Finds a C++ compiler and builds shared libraries with it, each one once.

The emulated engine and the cpu device are C++ sources that are compiled on the machine that runs
them. A library is cached under a name that holds a hash of all that went into it, so a changed
source, compiler or processor makes a new one and an old one is never read by mistake.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from .errors import ToolchainError
from .paths import cache_dir

logger = logging.getLogger(__name__)

_HOW_TO_GET_ONE = (
    "Install one ('apt install g++' on Debian and Ubuntu, or 'pip install ziglang' without root), "
    "or name yours in the environment variable CXX."
)
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=off")
_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
_ERROR_LINES = 20


def find_compiler() -> list[str]:
    """The start of a C++ compiler's command line.

    The first of: `$CXX` (which may hold arguments), g++, c++, clang++ on the PATH, and the zig
    compiler of the `ziglang` wheel.

    Raises:
        ToolchainError: there is none, or `$CXX` names a program that does not exist.
    """
    wanted = _split_cxx(os.environ.get("CXX", ""))
    if wanted:
        program = shutil.which(wanted[0])
        if program is None:
            raise ToolchainError(
                f"CXX is {os.environ['CXX']!r}, but there is no program {wanted[0]!r}. "
                "Correct CXX, or unset it to let g++, c++, clang++ or ziglang be found."
            )
        return [program, *wanted[1:]]
    for name in ("g++", "c++", "clang++"):
        program = shutil.which(name)
        if program is not None:
            return [program]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    raise ToolchainError(
        f"no C++ compiler: looked for g++, c++, clang++ and ziglang. {_HOW_TO_GET_ONE}"
    )


def is_gcc() -> bool:
    """Whether `find_compiler` finds GCC, which some flags are meant for.

    Raises:
        ToolchainError: there is no compiler.
    """
    return "Free Software Foundation" in _identity(tuple(find_compiler()))


def shared_library(
    name: str,
    sources: Sequence[Path],
    *,
    headers: Mapping[str, str] | None = None,
    include_dirs: Sequence[Path] = (),
    depends: Sequence[Path] = (),
    flags: Sequence[str] = (),
) -> Path:
    """The path of the shared library that `sources` compile to, from the cache where it is there.

    Args:
        name: what the library is called in the cache and in messages.
        sources: C++ files; compiled together by one command.
        headers: generated headers, file name -> text; found before `include_dirs`.
        include_dirs: where `#include` looks.
        depends: files that the sources include. List every one: only their bytes, and not those
            of other files in `include_dirs`, decide whether a cached library is still good.
        flags: added after the defaults (C++17, -O3, no contraction of float operations), so they
            win over them. The host's own instruction set is used unless a flag starts with
            -march= or -mcpu=.

    Safe to call from several threads and processes at once. Nothing is printed; what is built and
    how long it took goes to the log of this module.

    Raises:
        ToolchainError: no compiler, it refused the sources, a source cannot be read, or there is
            no directory to keep the library in.
    """
    compiler = find_compiler()
    key = _key(compiler, [*sources, *depends], headers or {}, flags)
    file = f"{name}-{key}{_SUFFIX}"
    ready = cache_dir() / file
    if ready.is_file():
        return ready
    ready = _writable_cache() / file
    if ready.is_file():
        return ready
    # Built where it will lie, so that the last step is a rename within one file system: other
    # processes see the whole library or none, and whoever comes last wins with the same bytes.
    with tempfile.TemporaryDirectory(prefix=".build-", dir=ready.parent) as scratch:
        include = Path(scratch) / "include"
        for header, text in (headers or {}).items():
            (include / header).parent.mkdir(parents=True, exist_ok=True)
            (include / header).write_text(text, encoding="utf-8")
        output = Path(scratch) / file
        arguments = [*_FLAGS, *_native_flags(compiler, flags), *flags]
        arguments += [f"-I{directory}" for directory in (include, *include_dirs)]
        arguments += [*(str(source) for source in sources), "-o", str(output)]
        _compile(name, [*compiler, *arguments])
        with output.open("rb") as built:
            os.fsync(built.fileno())
        output.replace(ready)
    return ready


def _split_cxx(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ToolchainError(
            f"CXX is {text!r}, which is not a command line: {error}. "
            "Correct CXX, or unset it to let g++, c++, clang++ or ziglang be found."
        ) from None


def _run(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """`command` with `text` as its input; its two outputs come back as one."""
    try:
        return subprocess.run(
            command,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ToolchainError(
            f"cannot run the C++ compiler {shlex.join(command)}: {error}. {_HOW_TO_GET_ONE}"
        ) from None


def _compile(name: str, command: Sequence[str]) -> None:
    logger.info("building %s: %s", name, shlex.join(command))
    start = time.perf_counter()
    result = _run(command)
    if result.returncode != 0:
        lines = result.stdout.strip().splitlines() or ["(it printed nothing)"]
        shown = lines[:_ERROR_LINES]
        if len(lines) > len(shown):
            shown.append(f"... and {len(lines) - len(shown)} more lines")
        raise ToolchainError(
            f"the C++ compiler refused {name} (exit status {result.returncode}). Its command:\n"
            f"{shlex.join(command)}\nIts output:\n" + "\n".join(shown) + "\n"
            "Another compiler can be named in the environment variable CXX."
        )
    if result.stdout.strip():
        logger.warning("the compiler on %s: %s", name, result.stdout.strip())
    logger.info("built %s in %.1f s", name, time.perf_counter() - start)


def _key(
    compiler: Sequence[str],
    files: Sequence[Path],
    headers: Mapping[str, str],
    flags: Sequence[str],
) -> str:
    """Names everything that the library depends on; parts are length-prefixed, so none can leak
    into its neighbour."""
    parts: list[bytes] = [_identity(tuple(compiler)).encode(), _processor().encode()]
    parts += [flag.encode() for flag in (*_FLAGS, *flags)]
    for file in files:
        try:
            parts += [file.name.encode(), file.read_bytes()]
        except OSError as error:
            raise ToolchainError(
                f"cannot read the C++ source {file}: {error.strerror}. "
                "It comes with the package: install the package again."
            ) from None
    for header in sorted(headers):
        parts += [header.encode(), headers[header].encode()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:24]


@cache
def _identity(compiler: tuple[str, ...]) -> str:
    return f"{compiler} {_run([*compiler, '--version']).stdout}"


@cache
def _processor() -> str:
    """What the host's instruction set depends on.

    A home directory may be shared by machines: without this, one would load a library with
    instructions that only another one has.
    """
    fields = ("model name", "flags", "Features", "CPU part", "isa")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        # the sets of all cores, as a board may mix cores of several kinds
        found = sorted({line for line in lines if line.split(":")[0].strip() in fields})
    except OSError:
        found = [platform.processor(), platform.node()]
    return "\n".join([platform.machine(), sys.platform, *found])


def _native_flags(compiler: Sequence[str], flags: Sequence[str]) -> list[str]:
    """What makes this compiler use the host's own instruction set; nothing if it cannot."""
    if any(flag.startswith(("-march=", "-mcpu=")) for flag in (*compiler, *flags)):
        return []
    return list(_probe_native(tuple(compiler)))


@cache
def _probe_native(compiler: tuple[str, ...]) -> tuple[str, ...]:
    # into a directory of its own: as root, a compiler may replace /dev/null by its output
    with tempfile.TemporaryDirectory() as scratch:
        for flag in ("-march=native", "-mcpu=native"):
            command = [*compiler, flag, "-x", "c++", "-c", "-o", f"{scratch}/probe.o", "-"]
            if _run(command, "int probe;\n").returncode == 0:
                return (flag,)
    return ()


def _writable_cache() -> Path:
    """The cache directory, made where it is missing, or a private one in the temp directory."""
    directory = cache_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
        return directory
    except OSError as error:
        if os.environ.get("BBS_CACHE"):
            raise ToolchainError(
                f"cannot write to {directory}, which BBS_CACHE names: {error.strerror}. "
                "Name a directory that you can write to, or unset BBS_CACHE."
            ) from None
        private = _private_temp_dir()
        logger.warning("cannot write to %s (%s): using %s", directory, error.strerror, private)
        return private


def _private_temp_dir() -> Path:
    """A directory of the temp directory that nobody but this user can put a library into."""
    owner = os.getuid()
    directory = Path(tempfile.gettempdir()) / f"pynq_bbs-{owner}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise ToolchainError(
            f"no place for compiled libraries: cannot write to {cache_dir()} nor to {directory} "
            f"({error.strerror}). Name a directory in the environment variable BBS_CACHE."
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o022:
        raise ToolchainError(
            f"{directory} is open to other users, so compiled libraries there cannot be trusted. "
            "Remove it, or name a directory in the environment variable BBS_CACHE."
        )
    return directory
