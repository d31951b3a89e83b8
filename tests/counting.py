# SPDX-License-Identifier: Apache-2.0
"""A counting build: the engine of `hls/`, with a counter in every pipelined loop.

The sources stay as they are. A copy is made in which every `#pragma HLS PIPELINE` is followed by
a call that counts, and `counting.hpp` takes the place of `dataflow.hpp`. A loop is called
`file:function:label`, and `file:function:label(port)` where several processes of the region are
calls of the same function, or of one that calls it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from pynq_bbs.builds import Build
from pynq_bbs.codegen import build_header
from pynq_bbs.device.emulator import Engine
from pynq_bbs.paths import hls_dir
from pynq_bbs.toolchain import shared_library

HERE = Path(__file__).parent
#: The loop of memory.hpp that moves words to the chain instead of to memory.
_LINKS = "links"
#: The loop that all commands of a region go through.
_OF_REGION = "multiply.hpp:multiply:csb_words"
#: The loop that takes the words of the next command, before it is checked.
_CHECKED = "run.hpp:check_job:command_words"

_CDEF = """
void bbs_counting_reset(int tracing);
uint64_t bbs_counting_trips(int process, int loop);
uint64_t bbs_counting_replay(uint32_t first, uint32_t last, double bytes_per_cycle, uint32_t fill,
                             uint64_t memory_loops, uint64_t region_loops, int check_loop,
                             uint64_t check_cycles, int last_process, uint64_t* ends);
"""
_PIPELINE = re.compile(r"\bHLS\s+PIPELINE\b", re.IGNORECASE)
_PRAGMA = re.compile(r"^\s*#pragma HLS PIPELINE II=1$")
_FUNCTION = re.compile(r"^(?!static_assert)[\w:]+ [\w:<>*& ]*?\b(\w+)\(")
_LABEL = re.compile(r"^\s*(\w+):$")
_HEADER = re.compile(r"^(\s*)(for|while) \(.*\) \{$")
_CALL = re.compile(r"^ +(\w+)\(.*\);$")
_PROCESS = re.compile(r"^\s*BBS_PROCESS\((\w+)\((\w+)")


class UncountedLoopError(Exception):
    """A pipelined loop that the counting build cannot see; names file and line."""


@dataclass(frozen=True)
class Loop:
    file: str
    function: str
    label: str

    def __str__(self) -> str:
        return f"{self.file}:{self.function}:{self.label}"


class Instrumented:
    """Sources with counters: loops and processes are numbered in the order they are found."""

    def __init__(self) -> None:
        self.loops: list[Loop] = []
        #: (function, first argument); number 0 is whatever runs outside of the region
        self.processes: list[tuple[str, str]] = [("", "")]
        #: (function, one that it calls by a statement of its own)
        self.calls: set[tuple[str, str]] = set()

    def source(self, file: str, text: str) -> str:
        """`text` of `file` with its loops and processes instrumented.

        Raises:
            UncountedLoopError: a pipelined loop has no label, or is written in an unknown way.
        """
        lines = text.splitlines()
        before: dict[int, list[str]] = {}  # what to put before a line
        function = ""
        for at, line in enumerate(lines):
            if start := _FUNCTION.match(line):
                function = start[1]
            elif call := _CALL.match(line):
                self.calls.add((function, call[1]))
            if _PIPELINE.search(line):
                self._loop(file, lines, at, before)
            if process := _PROCESS.match(line):
                self.processes.append((process[1], process[2]))
                before[at] = [f"bbs::counting::enter({len(self.processes) - 1});"]
        out = []
        for at, line in enumerate([*lines, ""]):
            out += [*before.get(at, []), line]
        return "\n".join(out)

    def _loop(self, file: str, lines: list[str], at: int, before: dict[int, list[str]]) -> None:
        def uncounted(reason: str) -> UncountedLoopError:
            return UncountedLoopError(f"{file}, line {at + 1}, {lines[at].strip()!r}: {reason}")

        if not _PRAGMA.match(lines[at]):
            raise uncounted("this way of asking for a pipeline is unknown here")
        head = at - 1
        while lines[head].lstrip().startswith(("//", "#pragma")):
            head -= 1
        header, label = _HEADER.match(lines[head]), _LABEL.match(lines[head - 1])
        if header is None:
            raise uncounted("it does not stand first in the body of a loop")
        if label is None:
            raise uncounted("the loop has no label")
        starts = [m[1] for line in lines[:at] if (m := _FUNCTION.match(line))]
        if not starts:
            raise uncounted("it is in no function")
        loop = Loop(file, starts[-1], label[1])
        if loop in self.loops:
            raise uncounted(f"{loop} is the name of two loops")
        end = next(i for i in range(at, len(lines)) if lines[i] == header[1] + "}")
        before.setdefault(head, []).append("bbs::counting::begin();")
        before.setdefault(at + 1, []).append(f"bbs::counting::trip({len(self.loops)});")
        before.setdefault(end + 1, []).append("bbs::counting::end();")
        self.loops.append(loop)


class CountingEngine(Engine):
    """Runs commands like `Engine`; what they count adds up until `reset`."""

    def __init__(self, library: str, sources: Instrumented) -> None:
        super().__init__(library)
        self._ffi.cdef(_CDEF)
        self._sources = sources
        self.reset()

    def reset(self, *, tracing: bool = False) -> None:
        """Forget everything; with `tracing`, keep what `replay` needs."""
        self._library.bbs_counting_reset(tracing)

    def counts(self) -> dict[str, int]:
        """Loop name -> trips since `reset`, every pipelined loop of the source."""
        sources = self._sources
        found: Counter[str] = Counter()
        for number, loop in enumerate(sources.loops):
            users = [
                function == loop.function or (function, loop.function) in sources.calls
                for function, _ in sources.processes
            ]
            for process, (_, argument) in enumerate(sources.processes):
                trips = int(self._library.bbs_counting_trips(process, number))
                if sum(users) <= 1:
                    found[str(loop)] += trips
                elif users[process]:
                    found[f"{loop}({argument})"] += trips
        return dict(found)

    def replay(
        self, first: int, last: int, bytes_per_cycle: float, fill: int, check: int
    ) -> list[int]:
        """Cycles of traced commands that follow each other: of each those that it adds.

        A command ends with its last output, and the last one with the check of the one behind it,
        if that is later.

        Args:
            first, last: which of the commands that ran since `reset`, in one run: before the first
                one runs one that does nothing.
            bytes_per_cycle: what the memory gives to all ports together.
            fill: latency of every pipelined loop.
            check: cycles to check the next command, once its words are there.
        """
        loops = [str(loop) for loop in self._sources.loops]
        memory = sum(
            1 << number
            for number, loop in enumerate(self._sources.loops)
            if loop.file == "memory.hpp" and loop.label != _LINKS
        )
        deliver = [function for function, _ in self._sources.processes].index("deliver")
        ends = self._ffi.new("uint64_t[]", last - first + 1)
        total = self._library.bbs_counting_replay(
            first + 1, last + 1, bytes_per_cycle, fill, memory, 1 << loops.index(_OF_REGION),
            loops.index(_CHECKED), check, deliver, ends,
        )  # fmt: skip
        return [b - a for a, b in pairwise([0, *list(ends)[:-1], int(total)])]


def instrumented_copy(folder: Path) -> Instrumented:
    """Writes the engine's sources with counters into `folder`.

    Raises:
        UncountedLoopError: a pipelined loop would not be counted.
    """
    sources = Instrumented()
    for path in (*sorted(hls_dir().glob("*.hpp")), hls_dir() / "engine.cpp"):
        text = path.read_text(encoding="utf-8")
        counted = sources.source(path.name, text)
        if counted.count("bbs::counting::trip(") != len(_PIPELINE.findall(text)):
            raise UncountedLoopError(f"{path.name}: it has more pipelined loops than were found")
        (folder / path.name).write_text(counted, encoding="utf-8")
    shutil.copy(HERE / "counting.hpp", folder)
    (folder / "dataflow.hpp").write_text('#pragma once\n#include "counting.hpp"\n')
    return sources


@cache
def counting_engine(build: Build) -> CountingEngine:
    """The counting build of `build`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = instrumented_copy(folder)
        replay = shutil.copy(HERE / "replay.cpp", folder)
        library = shared_library(
            f"bbs_counting_{build.name}",
            [folder / "engine.cpp", Path(replay)],
            headers={"build.hpp": build_header(build)},
            include_dirs=[folder],
            depends=sorted(folder.glob("*.hpp")),
            flags=["-std=c++17", "-Wno-unused-label"],
        )
    return CountingEngine(str(library), sources)
