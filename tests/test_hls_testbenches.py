# SPDX-License-Identifier: Apache-2.0
"""Every testbench of `hls/tb` passes: plainly, sanitised, and threaded.

Compiling takes most of the time, so a bench is only compiled for the builds that make a difference
to it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Lock

import pytest

from pynq_bbs.builds import build_names, load_build
from pynq_bbs.codegen import build_header
from pynq_bbs.interface import COMMAND_WORDS
from pynq_bbs.paths import hls_dir
from pynq_bbs.toolchain import find_compiler
from shallow import shallow_copy

HLS = hls_dir()
ALL_BENCHES = sorted(path.stem for path in (HLS / "tb").glob("*_tb.cpp"))


def distinct_builds() -> list[str]:
    """Of the builds that differ in their lanes and buffers only, the one of the fewest lanes."""
    by_lanes = sorted(build_names(), key=lambda name: -load_build(name).lanes)
    return sorted({(b.rows, b.cols): b.name for b in map(load_build, by_lanes)}.values())


BUILDS = distinct_builds()
#: builds that no board has: row groups, narrow and odd tiles, products in LUTs, tight buffers
TEST_BUILDS = sorted(str(path) for path in (Path(__file__).parent / "builds").glob("*.json"))
#: needs two builds of its own: test_buffer_before_it_is_filled_never_counts
BENCHES = [bench for bench in ALL_BENCHES if bench != "poison_tb"]
#: these run the region with a thread for each process
THREADED = [b for b in BENCHES if "#ifndef BBS_THREADED" in (HLS / "tb" / f"{b}.cpp").read_text()]

#: these run the whole engine
WITH_ENGINE = {
    bench
    for bench in ALL_BENCHES
    if re.search(r"(memory_block|programs)\.hpp", (HLS / "tb" / f"{bench}.cpp").read_text())
}

#: all stages together, and those that rows, columns and lanes shape most
OF_SHAPES = ("engine_tb", "gather_tb", "multiply_tb")
OF_NARROW = (*OF_SHAPES, "cell_tb", "check_tb", "finish_tb", "sequence_tb", "threaded_tb")
#: what could leave the range of its numbers
OF_NUMBERS = ("cell_tb", "combine_tb", "requantise_tb")

# Pragmas and labels are for HLS.
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-label")
PLAIN = ("-std=c++14", "-O1")
QUICK = ("-std=c++17", "-O0", "-DBBS_TB_QUICK")
SHARE = ("-std=c++14", "-O1", "-DBBS_TB_CASES=4")  # of the cases
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


def compile_to(output: Path, job: Job, hls: Path, build: Path, *inputs: Path | str) -> Path:
    """What the compiler makes of `inputs`; its words are an AssertionError."""
    threads = ("-DBBS_THREADED", "-pthread") if job.bench in THREADED else ()
    command = [*find_compiler(), *WARNINGS, *job.flags, *threads, f"-I{hls}", f"-I{build}"]
    result = subprocess.run(
        [*command, *map(str, inputs), "-o", str(output)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return output


class Workshop:
    """Compiles two jobs at a time, each once, while the tests run what is ready."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._pool = ThreadPoolExecutor(2)
        self._jobs: dict[Job, Future[Path]] = {}
        self._engines: dict[Job, Path] = {}
        self._making_an_engine = defaultdict[Job, Lock](Lock)

    def order(self, job: Job) -> Future[Path]:
        if job not in self._jobs:
            self._jobs[job] = self._pool.submit(self._compile, job)
        return self._jobs[job]

    def _compile(self, job: Job) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._out))
        (folder / "build.hpp").write_text(build_header(load_build(job.build)))
        hls = shallow_copy(folder) if job.shallow else HLS
        inputs = [HLS / "tb" / f"{job.bench}.cpp"]
        if job.bench in WITH_ENGINE:
            inputs.append(self._engine(job, hls, folder))
        return compile_to(folder / job.bench, job, hls, folder, *inputs)

    def _engine(self, job: Job, hls: Path, folder: Path) -> Path:
        """The engine as an object, one for all benches of a build and its flags."""
        kind = replace(job, bench="threaded_tb" if job.bench in THREADED else "engine_tb")
        with self._making_an_engine[kind]:
            if kind not in self._engines:
                object_file = folder / "engine.o"
                compile_to(object_file, job, hls, folder, "-c", hls / "engine.cpp")
                self._engines[kind] = object_file
            return self._engines[kind]

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
    return f"{value.bench}-{Path(value.build).stem}" if isinstance(value, Job) else None


def plain_jobs() -> list[Job]:
    """Every bench for the throughput build, and for others where they have a say in it."""
    wanted = [plain(BUILDS[-1], bench) for bench in BENCHES if bench != "fuzz_tb"]
    wanted.append(Job(BUILDS[-1], "fuzz_tb", SHARE))
    wanted += [plain(build, bench) for build in BUILDS[:-1] for bench in OF_NARROW]
    others = [name for name in build_names() if name not in BUILDS]
    wanted += [Job(build, "engine_tb", SHARE) for build in others]
    return wanted + [Job(build, bench, SHARE) for build in TEST_BUILDS for bench in OF_SHAPES]


def sanitized_jobs() -> list[Job]:
    """What may leave its bounds, with and without an image memory, or its numbers' range."""
    wanted = [(TEST_BUILDS[0], bench) for bench in OF_NUMBERS]
    wanted += [(build, "fuzz_tb") for build in (BUILDS[-1], TEST_BUILDS[-1])]
    return [sanitized(build, bench, "address,undefined") for build, bench in wanted]


@pytest.mark.parametrize("job", plain_jobs(), ids=name_of)
def test_passes(workshop: Workshop, job: Job) -> None:
    assert "all as wanted" in workshop.run(job)


@pytest.mark.slow
@pytest.mark.parametrize("job", sanitized_jobs(), ids=name_of)
def test_passes_sanitized(workshop: Workshop, job: Job) -> None:
    skip_unless(job.flags)
    assert "all as wanted" in workshop.run(job)


@pytest.mark.slow
@pytest.mark.parametrize("job", [sanitized(BUILDS[-1], "threaded_tb", "thread")], ids=name_of)
def test_threads_do_not_race(workshop: Workshop, job: Job) -> None:
    skip_unless(job.flags)
    assert "all as wanted" in workshop.run(job)


def high_water(printed: str) -> dict[str, tuple[int, int]]:
    """Stream name -> (fullest, depth)."""
    lines = re.findall(r"^stream (\w+) (\d+) of (\d+)$", printed, re.MULTILINE)
    return {name: (int(fullest), int(depth)) for name, fullest, depth in lines}


def idle_streams(build: str) -> set[str]:
    """Streams of what a build does without."""
    of_images = (
        set()
        if load_build(build).image_words
        else {
            "columns_commands",
            "tile_columns",
            "tile_fills",
        }
    )
    of_cells = {"cell_commands", "cell_visits", "states", "gates", "hidden"}
    return of_images | (set() if load_build(build).cell_words else of_cells)


@pytest.mark.parametrize("build", BUILDS)
def test_every_stream_is_bounded_and_used(workshop: Workshop, build: str) -> None:
    """The threaded run meets every stream of the region, and none beyond its depth."""
    source = (HLS / "engine.cpp").read_text()
    declared = re.findall(r'^ +[\w:]+Stream \w+\("(\w+)"\);$', source, re.M)
    marks = high_water(workshop.run(plain(build, "threaded_tb")))
    assert len(declared) > 10 and sorted(marks) == sorted(declared)
    assert all(marks.pop(name)[0] == 0 for name in idle_streams(build))
    for name, (fullest, depth) in marks.items():
        assert 0 < fullest <= depth, f"{name}: {fullest} of {depth}"


@pytest.mark.slow
@pytest.mark.parametrize("build", [BUILDS[-1], TEST_BUILDS[0]], ids=lambda b: Path(b).stem)
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
@pytest.mark.slow
@pytest.mark.parametrize(
    "job",
    [Job(b, "threaded_tb", SHARE, shallow=True) for b in BUILDS],
    ids=name_of,
)
def test_no_stream_needs_its_depth(workshop: Workshop, job: Job) -> None:
    """One place in every stream is enough to come to the end: depths are for speed alone.

    A stream that is too shallow where branches rejoin would block here.
    """
    marks = high_water(workshop.run(job))
    chain, _ = marks.pop("chain")
    assert marks.pop("next_words") == (COMMAND_WORDS, COMMAND_WORDS)
    used = [fullest for name, (fullest, _) in marks.items() if name not in idle_streams(job.build)]
    assert chain > 1 and used and all(fullest == 1 for fullest in used)
