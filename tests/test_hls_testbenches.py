# SPDX-License-Identifier: Apache-2.0
"""Every testbench of `hls/tb` passes for every build: plainly, sanitised, and threaded."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from pynq_bbs.builds import build_names, load_build
from pynq_bbs.codegen import build_header
from pynq_bbs.paths import hls_dir
from pynq_bbs.toolchain import find_compiler

HLS = hls_dir()
ALL_BENCHES = sorted(path.stem for path in (HLS / "tb").glob("*_tb.cpp"))
#: needs two builds of its own: test_buffer_before_it_is_filled_never_counts
BENCHES = [bench for bench in ALL_BENCHES if bench != "poison_tb"]
#: these run the region with a thread for each process
THREADED = [b for b in BENCHES if "#ifndef BBS_THREADED" in (HLS / "tb" / f"{b}.cpp").read_text()]

# Pragmas and labels are for HLS.
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-label")
PLAIN = ("-std=c++14", "-O2")
QUICK = ("-std=c++17", "-O1", "-DBBS_TB_QUICK")
SANITIZERS = {
    "address,undefined": (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-D_GLIBCXX_ASSERTIONS",
    ),
    "thread": ("-fsanitize=thread", "-pthread"),
}

_TIMEOUT_S = 300


@dataclass(frozen=True)
class Job:
    """One executable to be made of one testbench."""

    build: str
    bench: str
    flags: tuple[str, ...]
    shallow: bool = False  # one place in every stream, whatever its depth


def compile_job(job: Job, out: Path) -> Path:
    """The executable of `job`; the compiler's words are an AssertionError."""
    folder = Path(tempfile.mkdtemp(dir=out))
    (folder / "build.hpp").write_text(build_header(load_build(job.build)))
    hls = shallow_copy(folder) if job.shallow else HLS
    sources = [HLS / "tb" / f"{job.bench}.cpp"]
    if "memory_block.hpp" in sources[0].read_text():
        sources.append(hls / "engine.cpp")
    threads = ("-DBBS_THREADED", "-pthread") if job.bench in THREADED else ()
    command = [*find_compiler(), *WARNINGS, *job.flags, *threads, f"-I{hls}", f"-I{folder}"]
    program = folder / job.bench
    result = subprocess.run(
        [*command, *map(str, sources), "-o", str(program)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return program


def shallow_copy(folder: Path) -> Path:
    """The engine's sources with one place in every stream of a threaded run."""
    for source in (*HLS.glob("*.hpp"), HLS / "engine.cpp"):
        shutil.copy(source, folder)
    dataflow = folder / "dataflow.hpp"
    text, places = re.subn(r"static_cast<size_t>\(kDepth\)", "1", dataflow.read_text())
    assert places == 1, "dataflow.hpp compares with kDepth in another way than this test knows"
    dataflow.write_text(text)
    return folder


class Workshop:
    """Compiles two jobs at a time, each once, while the tests run what is ready."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._pool = ThreadPoolExecutor(2)
        self._jobs: dict[Job, Future[Path]] = {}

    def order(self, job: Job) -> Future[Path]:
        if job not in self._jobs:
            self._jobs[job] = self._pool.submit(compile_job, job, self._out)
        return self._jobs[job]

    def run(self, job: Job) -> str:
        """What the testbench printed; its failure is an AssertionError that shows it."""
        program = self.order(job).result()
        result = subprocess.run([str(program)], capture_output=True, text=True, timeout=_TIMEOUT_S)
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result.stdout

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def plain(build: str, bench: str) -> Job:
    return Job(build, bench, PLAIN)


def sanitized(build: str, bench: str, sanitizer: str) -> Job:
    return Job(build, bench, (*QUICK, *SANITIZERS[sanitizer]))


@pytest.fixture(scope="module")
def workshop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workshop]:
    made = Workshop(tmp_path_factory.mktemp("testbenches"))
    for item in request.session.items:  # ahead of the tests, those that were asked for
        job = getattr(getattr(item, "callspec", None), "params", {}).get("job")
        if isinstance(job, Job) and why_not(job.flags) is None:
            made.order(job)
    yield made
    made.close()


@cache
def why_not(flags: Sequence[str]) -> str | None:
    """Why programs with these flags do not run here; None where they do."""
    if any("fsanitize" in flag for flag in flags) and any("zig" in w for w in find_compiler()):
        return "zig would build the sanitizers' libraries first, which takes minutes"
    with tempfile.TemporaryDirectory() as scratch:
        source, program = Path(scratch) / "probe.cpp", Path(scratch) / "probe"
        source.write_text("int main() { return 0; }\n")
        command = [*find_compiler(), *flags, str(source), "-o", str(program)]
        for step in (command, [str(program)]):
            result = subprocess.run(step, capture_output=True, text=True)
            if result.returncode != 0:
                said = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
                return f"{find_compiler()[0]} cannot do {' '.join(flags)}: {said}"
    return None


def skip_unless(flags: Sequence[str]) -> None:
    reason = why_not(tuple(flags))
    if reason is not None:
        pytest.skip(reason)


def name_of(value: object) -> str | None:
    return f"{value.bench}-{value.build}" if isinstance(value, Job) else None


def jobs(benches: Sequence[str], sanitizer: str | None = None) -> list[Job]:
    return [
        plain(build, bench) if sanitizer is None else sanitized(build, bench, sanitizer)
        for build in build_names()
        for bench in benches
    ]


@pytest.mark.parametrize("job", jobs(BENCHES), ids=name_of)
def test_passes(workshop: Workshop, job: Job) -> None:
    assert "all as wanted" in workshop.run(job)


@pytest.mark.parametrize("job", jobs(BENCHES, "address,undefined"), ids=name_of)
def test_passes_sanitized(workshop: Workshop, job: Job) -> None:
    skip_unless(job.flags)
    assert "all as wanted" in workshop.run(job)


@pytest.mark.parametrize("job", jobs(THREADED, "thread"), ids=name_of)
def test_threads_do_not_race(workshop: Workshop, job: Job) -> None:
    skip_unless(job.flags)
    assert "all as wanted" in workshop.run(job)


def high_water(printed: str) -> dict[str, tuple[int, int]]:
    """Stream name -> (fullest, depth)."""
    lines = re.findall(r"^stream (\w+) (\d+) of (\d+)$", printed, re.MULTILINE)
    return {name: (int(fullest), int(depth)) for name, fullest, depth in lines}


@pytest.mark.parametrize("build", build_names())
def test_every_stream_is_bounded_and_used(workshop: Workshop, build: str) -> None:
    """The threaded run meets every stream of the region, and none beyond its depth."""
    declared = re.findall(r'^  \w+Stream \w+\("(\w+)"\);$', (HLS / "engine.cpp").read_text(), re.M)
    marks = high_water(workshop.run(plain(build, "threaded_tb")))
    assert len(declared) > 10 and sorted(marks) == sorted(declared)
    for name, (fullest, depth) in marks.items():
        assert 0 < fullest <= depth, f"{name}: {fullest} of {depth}"


@pytest.mark.parametrize("build", build_names())
def test_buffer_before_it_is_filled_never_counts(workshop: Workshop, build: str) -> None:
    """Lanes without a bank read what nobody wrote; their weights are zero, so it is all one."""
    skip_unless((*PLAIN, "-ftrivial-auto-var-init=pattern"))
    zero, pattern = (
        Job(build, "poison_tb", (*PLAIN, f"-ftrivial-auto-var-init={value}"))
        for value in ("zero", "pattern")
    )
    workshop.order(pattern)
    of_zero, of_pattern = workshop.run(zero).splitlines(), workshop.run(pattern).splitlines()
    assert of_zero[0].startswith("outputs") and of_zero[0] == of_pattern[0]
    assert of_zero[1].startswith("probe") and of_zero[1] != of_pattern[1], "nothing was poisoned"


@pytest.mark.parametrize("standard", ["c++14", "c++17"])
def test_clang_has_nothing_to_say(tmp_path: Path, standard: str) -> None:
    clang = shutil.which("clang++")
    if clang is None:
        pytest.skip("there is no clang++ on the PATH")
    (tmp_path / "build.hpp").write_text(build_header(load_build(build_names()[0])))
    for bench in ALL_BENCHES:
        threads = ["-DBBS_THREADED"] if bench in THREADED else []
        sources = [str(HLS / "tb" / f"{bench}.cpp"), str(HLS / "engine.cpp")]
        command = [clang, "-fsyntax-only", f"-std={standard}", *WARNINGS, *threads]
        result = subprocess.run(
            [*command, f"-I{HLS}", f"-I{tmp_path}", *sources], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr


# Last, when no compiler takes its processors: a thread switch for every word is slow enough.
@pytest.mark.parametrize(
    "job",
    [Job(b, "threaded_tb", (*PLAIN, "-DBBS_TB_QUICK"), shallow=True) for b in build_names()],
    ids=name_of,
)
def test_no_stream_needs_its_depth(workshop: Workshop, job: Job) -> None:
    """One place in every stream is enough to come to the end: depths are for speed alone.

    A stream that is too shallow where branches rejoin would block here.
    """
    marks = high_water(workshop.run(job))
    assert marks and all(fullest == 1 for fullest, _ in marks.values())
