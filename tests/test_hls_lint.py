# SPDX-License-Identifier: Apache-2.0
"""The lint of the engine's sources, and that it finds what it is there to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pynq_bbs.paths import hls_dir

pytest.importorskip("clang.cindex", reason="libclang is not installed (pip install libclang)")

from hls_lint import RULES, Finding, engine_findings, lint
from hls_source import Source

# A small engine of the same build as ours, without a fault.
SAMPLE = """\
#include <cstdint>
#include <hls_stream.h>

#include "build.hpp"

typedef hls::stream<uint64_t, 8> Words;
struct Lane { uint64_t v[kLanes]; };

inline uint64_t scale(uint64_t x) {
#pragma HLS INLINE
  uint64_t y = 0;
units:
  for (int u = 0; u < kLanes / 2; u++) {
#pragma HLS UNROLL
    y += x * u;
  }
  return y;
}

void fetch(const uint64_t* port, uint32_t count, Words& words) {
#pragma HLS INLINE off
words:
  for (uint32_t i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
    words.write(port[i]);
  }
}

void forward(Words& words, Words& scaled, uint32_t count) {
#pragma HLS INLINE off
  Lane lane[kDepth];
#pragma HLS AGGREGATE variable=lane compact=bit
#pragma HLS BIND_STORAGE variable=lane type=ram_s2p impl=bram latency=2
values:
  for (uint32_t i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
    // Each place is written once.
#pragma HLS DEPENDENCE variable=lane inter false
    lane[i % kDepth].v[0] = words.read();
    scaled.write(scale(lane[i % kDepth].v[0]));
  }
}

void fill(Words& words, Lane lane[kDepth]) {
#pragma HLS INLINE off
depth:
  for (int i = 0; i < kDepth; i++) {
#pragma HLS PIPELINE II=1
    lane[i].v[0] = words.read();
  }
}

void drain(const Lane lane[kDepth], Words& scaled) {
#pragma HLS INLINE off
depth:
  for (int i = 0; i < kDepth; i++) {
#pragma HLS PIPELINE II=1
    scaled.write(lane[i].v[0]);
  }
}

void swap(Words& words, Words& scaled, uint32_t count) {
#pragma HLS INLINE off
swaps:
  for (uint32_t i = 0; i < count; i++) {
#pragma HLS DATAFLOW
    Lane lane[kDepth];
    fill(words, lane);
    drain(lane, scaled);
  }
}

void store(uint64_t* port, uint32_t count, Words& words) {
#pragma HLS INLINE off
words:
  for (uint32_t i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
    port[i] = words.read();
  }
}

void hold(Words& back, Lane kept[kDepth], uint32_t count) {
#pragma HLS INLINE off
values:
  for (uint32_t i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
    kept[i % kDepth].v[0] = back.read();
  }
}

void feed(Words& back, uint32_t count) {
#pragma HLS INLINE off
values:
  for (uint32_t i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
    back.write(i);
  }
}

void run(const uint64_t* source, uint64_t* results, uint32_t count, Lane kept[kDepth],
         Words& back) {
#pragma HLS INLINE off
#pragma HLS DATAFLOW
  Words words("words");
  Words scaled("scaled");
  Words swapped("swapped");
  fetch(source, count, words);
  forward(words, scaled, count);
  swap(scaled, swapped, count);
  store(results, count, swapped);
  hold(back, kept, count);
  feed(back, count);
}

extern "C" void bbs_engine(const uint64_t* source, uint64_t* results, uint32_t count,
                           uint32_t* status) {
#include "ports.hpp"
  static Lane kept[kDepth];
  Words back("back");
commands:
  for (uint32_t i = 0; i < count; i++) {
    run(source, results, i, kept, back);
  }
  *status = 0;
}
"""

PORTS = """\
#pragma HLS INTERFACE s_axilite port=return bundle=control
#pragma HLS INTERFACE m_axi port=source bundle=source offset=slave depth=64 \\
    max_read_burst_length=64 num_read_outstanding=8 max_widen_bitwidth=0
#pragma HLS INTERFACE s_axilite port=source bundle=control offset=0x10
#pragma HLS INTERFACE mode=m_axi port=results bundle=results offset=slave depth=64 \\
    max_write_burst_length=64 num_write_outstanding=8 max_widen_bitwidth=0
#pragma HLS INTERFACE s_axilite port=results bundle=control offset=0x1c
#pragma HLS INTERFACE s_axilite port=count bundle=control offset=0x28
#pragma HLS INTERFACE s_axilite port=status bundle=control offset=0x30
"""

BUILD = "constexpr int kLanes = 8;\nconstexpr int kDepth = 512;\n"


def interface() -> dict[str, Any]:
    return {
        "registers": [
            {"name": "source", "offset": 0x10, "bits": 64, "port": True},
            {"name": "results", "offset": 0x1C, "bits": 64, "port": True},
            {"name": "count", "offset": 0x28, "bits": 32},
            {"name": "status", "offset": 0x30, "bits": 32},
        ]
    }


def findings(folder: Path, code: str = SAMPLE, ports: str = PORTS) -> list[Finding]:
    (folder / "engine.cpp").write_text(code)
    (folder / "ports.hpp").write_text(ports)
    return lint(folder / "engine.cpp", {"build.hpp": BUILD}, interface())


def changed(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new, 1)


def test_engine_is_clean() -> None:
    assert engine_findings() == []


def test_every_header_of_the_engine_is_looked_at() -> None:
    source = Source(hls_dir() / "engine.cpp", {"build.hpp": ""})
    assert {path.name for path in source.paths} >= {p.name for p in hls_dir().glob("*.hpp")}


def test_what_only_synthesis_sees_stays_in_few_places() -> None:
    """Channels, the width of an activation in g++'s memory, the packed product, the banked read
    of the image memory, what g++ must not inline, and where lasting memories live."""
    found = {
        path.name
        for path in [*hls_dir().glob("*.hpp"), *hls_dir().glob("*.cpp")]
        if "__SYNTHESIS__" in path.read_text(encoding="utf-8")
    }
    places = {"dataflow.hpp", "types.hpp", "mul_pair.hpp", "image.hpp", "gather.hpp", "engine.cpp"}
    assert found <= places


def test_sample_is_clean(tmp_path: Path) -> None:
    assert findings(tmp_path) == []


FAULTS = [
    # pragmas
    ("pragma", "PIPELINE II=1", "PIPELNE II=1", "unknown pragma 'PIPELNE'"),
    ("pragma", "PIPELINE II=1", "PIPELINE II=one", "II is 'one'"),
    ("pragma", "PIPELINE II=1", "PIPELINE", "lacks II or off"),
    ("pragma", "impl=bram", "impl=bramm", "impl is 'bramm', wanted one of"),
    ("pragma", "latency=2", "latncy=2", "takes no option 'latncy'"),
    ("pragma", "type=ram_s2p ", "", "BIND_STORAGE lacks type"),
    ("pragma", "inter false", "inter flase", "takes no 'flase'"),
    ("pragma", "inter false", "inter", "DEPENDENCE lacks"),
    ("pragma", "#pragma HLS AGGREGATE", "#pragma HLS UNROLL\n#pragma HLS AGGREGATE", "outside any"),
    ("pragma", "struct Lane", "#pragma HLS INLINE\nstruct Lane", "outside any function"),
    ("pragma", "UNROLL", "INLINE", "INLINE stands inside a loop"),
    # names
    ("variable", "AGGREGATE variable=lane", "AGGREGATE variable=lanes", "no variable 'lanes'"),
    (
        "variable",
        "  Lane lane[kDepth];\n#pragma HLS AGGREGATE variable=lane compact=bit",
        "#pragma HLS AGGREGATE variable=lane compact=bit\n  Lane lane[kDepth];",
        "declared after its pragma",
    ),
    ("claim", "    // Each place is written once.\n", "", "without a comment"),
    # loops
    ("loop", "units:\n", "", "a loop of scale has no label"),
    ("loop", "i < count; i++) {\n    run", "; i++) {\n    run", "has no bound"),
    ("loop", "for (uint32_t i = 0; i < count; i++) {\n    run(source, results, i,",
     "while (true) {\n    run(source, results, count,", "has no bound"),
    ("pipeline", "#pragma HLS UNROLL\n", "", "in the pipeline of loop values of forward"),
    ("pipeline", "u < kLanes / 2", "u < (int)x", "its bound is not constant"),
    ("division", "i % kDepth].v[0])", "i % count].v[0])", "% by 'count'"),
    ("division", "(port[i]);\n  }\n", "(port[i]);\n  }\n  count /= count;\n", "/= by 'count'"),
    # constructs
    ("construct", "uint64_t y = 0", "static uint64_t y = 0", "static variable 'y'"),
    ("construct", "  Words back(", "  static uint32_t runs;\n  Words back(", "variable 'runs'"),
    ("construct", "uint64_t y = 0", "volatile uint64_t y = 0", "volatile"),
    ("construct", "uint64_t y = 0", "double d = 1.5; uint64_t y = d", "double"),
    ("construct", "uint64_t y = 0", "uint64_t y = *new uint64_t", "new cannot"),
    ("construct", "struct Lane {", "struct Lane { virtual int f() { return 0; }", "virtual"),
    ("construct", "uint64_t y = 0", "auto f = [&] { return x; }; uint64_t y = f()", "a lambda"),
    ("parse", "#include <cstdint>", "#include <cstdint>\n#include <vector>", "'vector'"),
    ("parse", "y += x * u", "y += x * v", "'v'"),
    ("recursion", "return y;", "return x ? scale(x - 1) : y;", "scale calls itself"),
    # dataflow
    ("dataflow", "  store(results,", "  if (count) store(results,", "a if stmt"),
    ("dataflow", "  store(results,", "  for (;;) store(results,", "a for stmt"),
    ("dataflow", "  store(results,", "  count++;\n  store(results,", "a unary operator"),
    ("dataflow", "store(results, count,", "store(results, count + 1,", "expression 'count + 1'"),
    ("dataflow", "  Words scaled", "  uint32_t n = count;\n  Words scaled", "initialiser"),
    ("dataflow", "  store(results,", "  Words late;\n  store(results,", "after the first process"),
    ("dataflow", "  store(results,", "  scale(count);\n  store(results,", "returns something"),
    ("dataflow", "void store(uint64_t* port, uint32_t count, Words& words) {\n"
     "#pragma HLS INLINE off", "void store(uint64_t* port, uint32_t count, Words& words) {\n"
     "#pragma HLS INLINE", "store is no process"),
    ("dataflow", "    run(source,", "#pragma HLS DATAFLOW\n    run(source,", "memory port in the"),
    # channels and ports
    ("channel", "store(results, count, swapped)", "store(results, count, words)", "channel words"),
    ("channel", "  store(results, count, swapped);\n", "", "then one reader: write by swap"),
    ("channel", "  fetch(source, count, words);\n  forward(words, scaled, count);",
     "  forward(words, scaled, count);\n  fetch(source, count, words);", "read by forward, write"),
    ("channel", "    fill(words, lane);\n    drain(lane, scaled);",
     "    drain(lane, scaled);\n    fill(words, lane);", "channel lane wants one writer, then"),
    ("channel", "void drain(const Lane", "void drain(Lane", "write by fill, write by drain"),
    ("channel", "<uint64_t, 8>", "<uint64_t>", "has no depth"),
    # what outlives a region
    ("lasting", "  feed(back, count);\n", "", "stream back wants one reader and one writer: hold"),
    ("lasting", "  feed(back, count);", "  hold(back, kept, count);", "memory kept wants one proc"),
    ("lasting", "  hold(back, kept, count);\n", "", "memory kept wants one process: none"),
    ("port", "  forward(words", "  fetch(source, count, words);\n  forward(words", "2 processes"),
    ("length", "  *status = 0;\n", "  *status = 0;\n" * 60, "bbs_engine has 70 lines"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "old", "new", "message"), FAULTS)
def test_fault_is_found(rule: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    found = findings(tmp_path, changed(SAMPLE, old, new))
    hits = [finding for finding in found if finding.rule == rule and message in finding.text]
    assert hits, "\n".join(map(str, found))


PORT_FAULTS = [
    ("port=return", "port=count", "no s_axilite for return"),
    ("offset=0x28", "offset=0x2c", "count wants offset 0x28"),
    (" offset=0x30", "", "status has no s_axilite with an offset"),
    ("control offset=0x10", "other offset=0x10", "more than one bundle"),
    ("bundle=source", "bundle=results", "source wants bundle=source"),
    ("max_widen_bitwidth=0", "max_widen_bitwidth=512", "source wants max_widen_bitwidth=0"),
    ("num_read_outstanding=8 ", "", "source lacks num_read_outstanding"),
    ("max_write_burst", "max_read_burst", "results lacks max_write_burst_length"),
    ("depth=64", "", "lacks depth"),
    ("offset=slave depth", "depth", "lacks offset"),
    ("port=status", "port=state", "no parameter 'state'"),
]


@pytest.mark.parametrize(("old", "new", "message"), PORT_FAULTS)
def test_fault_of_the_ports_is_found(old: str, new: str, message: str, tmp_path: Path) -> None:
    found = findings(tmp_path, ports=changed(PORTS, old, new))
    assert any(message in finding.text for finding in found), "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("register", "offset", "message"),
    [(1, 0x18, "register results lies over its neighbour"), (0, 0x0C, "register source lies over")],
)
def test_overlapping_registers_are_found(
    register: int, offset: int, message: str, tmp_path: Path
) -> None:
    findings(tmp_path)
    table = interface()
    table["registers"][register]["offset"] = offset
    found = lint(tmp_path / "engine.cpp", {"build.hpp": BUILD}, table)
    assert any(message in finding.text for finding in found), "\n".join(map(str, found))


def test_register_that_is_no_parameter_is_found(tmp_path: Path) -> None:
    code = changed(SAMPLE, "uint32_t* status)", "uint32_t* state)")
    found = findings(tmp_path, changed(code, "*status = 0", "*state = 0"))
    assert any("not both register and parameter: state, status" in f.text for f in found)


def test_code_that_synthesis_leaves_out_is_not_judged(tmp_path: Path) -> None:
    emulator = "#ifndef __SYNTHESIS__\n#include <vector>\n#pragma HLS NONSENSE\n#endif\n"
    assert findings(tmp_path, emulator + SAMPLE) == []


def test_every_rule_has_a_fault() -> None:
    assert {rule for rule, *_ in FAULTS} >= set(RULES)


def test_finding_prints_its_place() -> None:
    assert str(Finding("a.hpp", 7, "loop", "no label")) == "a.hpp:7: loop: no label"
