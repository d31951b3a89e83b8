# SPDX-License-Identifier: Apache-2.0
"""The resource model: formulas by hand, lists against the source, what fits and what not."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planned import matrix
from pynq_bbs import resource_terms, resources
from pynq_bbs.boards import Board, load_board, load_boards
from pynq_bbs.builds import Build, build_names, load_build
from pynq_bbs.codegen import build_header
from pynq_bbs.errors import BuildError
from pynq_bbs.interface import COMMAND_WORDS
from pynq_bbs.pack.cycles import CHECK_PRODUCTS, Memory, layer_cycles
from pynq_bbs.paths import hls_dir, overlay_dir
from pynq_bbs.resource_terms import (
    FAMILIES,
    block_rams,
    lutram_luts,
    multiplier_dsps,
    mux_luts,
    ultra_rams,
)
from pynq_bbs.resources import check_fits, estimate

BUILD = load_build("8x32")
REPOSITORY = Path(__file__).parents[1]
#: 512 products a cycle beside images: more than a 7-series part has LUTs for.
WIDE = dataclasses.replace(
    BUILD, name="wide", lanes=16, vector_words=256, block_words=512, fabric_lanes=6
)
LATENCY = load_build("32x4x1")
#: Places of a bank, of which one in eight is kept: the indices of 4 bits are the least traffic.
BANK = 16
#: Stages that are told of every command, or of some.
STAGES = ("Unpack", "Columns", "Gather", "Multiply", "Finish", "Cell", "Deliver")
WITHOUT_IMAGES = dataclasses.replace(BUILD, image_words=0)


def term(name: str, build: Build = BUILD, family: str = "zynq-7000") -> resource_terms.Term:
    found = [t for t in estimate(build, family).terms if t.name == name]
    assert len(found) == 1, name
    return found[0]


def source(name: str) -> str:
    return (hls_dir() / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("width", "depth", "expected"),
    # halves of 36 bits, 18 at twice the depth, 9 at four times
    [
        (72, 512, 1),
        (73, 512, 1.5),
        (72, 513, 2),
        (1, 1, 0.5),
        (256, 512, 4),
        (1024, 512, 14.5),
        (8, 2048, 0.5),
        (8, 2049, 1),
        (18, 1024, 0.5),
    ],
)
def test_block_rams(width: int, depth: int, expected: float) -> None:
    assert block_rams(width, depth) == expected


@pytest.mark.parametrize(
    ("width", "depth", "expected"), [(72, 4096, 1), (73, 4096, 2), (72, 4097, 2), (384, 4096, 6)]
)
def test_ultra_rams(width: int, depth: int, expected: int) -> None:
    assert ultra_rams(width, depth) == expected


@pytest.mark.parametrize(("choices", "luts"), [(1, 0), (2, 1), (4, 1), (5, 2), (32, 8)])
def test_choices(choices: int, luts: int) -> None:
    assert mux_luts(choices) == luts


@pytest.mark.parametrize(
    ("width", "depth", "expected"), [(6, 32, 4), (7, 32, 8), (6, 33, 8), (1024, 4, 684)]
)
def test_lutram(width: int, depth: int, expected: int) -> None:
    assert lutram_luts(width, depth) == expected


@pytest.mark.parametrize(
    ("a", "b", "result", "expected"),
    # 32 x 32 bits: tiles at bit 0, 17, 24 and 41, the last one above a result of 32
    [(24, 17, 41, 1), (25, 17, 42, 2), (32, 32, 64, 4), (32, 32, 32, 3)],
)
def test_multipliers_of_a_dsp48e1(a: int, b: int, result: int, expected: int) -> None:
    assert multiplier_dsps(a, b, result, "zynq-7000") == expected


def test_a_dsp48e2_is_two_bits_wider() -> None:
    assert multiplier_dsps(26, 17, 43, "zynq-7000") == 2
    assert multiplier_dsps(26, 17, 43, "zynq-ultrascale+") == 1


def test_memories_of_8x32_by_hand() -> None:
    # 256 bits are 7.5 BRAM36 at 1024 words: 15 halves of 18 bits. Eight lanes, both halves within
    assert term("vector buffer").bram36 == 8 * 7.5
    assert term("vector buffer").lut == 0
    # of each lane a place of 10 bits to read and to write, and one of three taps for 256 bits
    assert term("vector buffer access").lut == 8 * (10 + 10 + 256)
    assert term("block buffer").bram36 == 8 / 2  # 128 bits, 1024 words: 8 halves of 18 bits
    assert term("partial sums").bram36 == 14.5  # 1024 bits, 512 words: 29 halves
    assert term("row parameters").bram36 == 1  # 64 bits, 512 words
    # 32 words of 64 bits, 64 bits a LUT, and one of eight bytes
    assert term("table copies").lut == 8 * (32 + 8 * 2)
    assert term("image memory").bram36 == 40 / 2  # each bank 8 bits, 2048 words: half a BRAM36
    assert term("memory ports").bram36 == 6  # 64 bits x 512 words in flight


def test_memories_of_32x4x1_by_hand() -> None:
    # Eight features of a column in a word of 64 bits, 2 x 256 / 8 words: 4 x 11 x 2 LUTs
    assert term("vector buffer", LATENCY).bram36 == 0
    assert term("vector buffer", LATENCY).lut == 128 * 88
    # 128 copies: a place of 9 bits, one of eight features of a byte; 32 lanes: a place to write,
    # and of 64 bits one of eight banks'
    assert term("vector buffer access", LATENCY).lut == 128 * (9 + 8 * 2) + 32 * (9 + 64 * 2)
    # of eight words: 64 bits from bank sizes 1, 2, 4 and 8, a place each
    assert term("narrow banks", LATENCY).lut == 8 * (64 + 16)
    # 128 x (8 + 4) bits are 43 halves of 36 bits; 2560 words are five deep
    assert term("block buffer", LATENCY).bram36 == 43 * 5 / 2
    assert term("row parameters", LATENCY).bram36 == 4  # 4 x 64 bits are 8 halves
    assert term("partial sums", LATENCY).bram36 == 2
    assert term("stream csb_words", LATENCY).bram36 == 0
    assert term("stream csb_words", LATENCY).lut == 4 * 256 + 30


def test_arithmetic_of_8x32_by_hand() -> None:
    assert term("products").dsp == 128
    assert term("products").lut == 5700  # 1.5 x 3800
    assert term("products in fabric").lut == 0
    assert term("requantise units").dsp == 24
    assert term("requantise units").lut == 5100  # 1.5 x 3400
    assert term("combine units").dsp == 16
    # check 4 and 1, sequence 4, unpack 1, multiply 1, columns 3, gather 2
    assert term("counts and offsets").dsp == 4 + 1 + 4 + 1 + 1 + 3 + 2
    # 64 bits, one of 13 calls and of 17; 41 bits, one of 17
    assert term("counts and offsets").lut == 64 * (4 + 5) + 41 * 5
    assert term("narrow products").lut == 2 * 160 + 2 * 64 + 4 * 16 + 2 * 225
    assert term("command check").lut == 600
    assert term("accumulate").lut == 32 * (16 + 32)
    assert term("accumulate for images").lut == 32 * 16 + 31 * 32
    assert term("maximum").lut == 32 * (4 * 12 + 4 * 8 + 16)
    # eight sums to one of four units: two LUTs for each of 128 bits; 16 words of two sums to one:
    # four LUTs for each of 64 bits; 32 bits to one half of a word, and 64 from there
    assert term("output muxes").lut == 2 * 256  # units take whole port words
    assert term("unpack").lut == 1500


def test_images_of_8x32_by_hand() -> None:
    # 40 bytes turned by 32, 16 .. 1: three LUTs a bit. Of 11 bits of address one of two.
    # A column's place is a function of seven bits; two sums.
    assert term("window").lut == 40 * 8 * 3 + 40 * 11 + 6 * 2 + 2 * 6
    # two columns: five sums, four comparisons, four choices
    assert term("columns").lut == 2 * (32 + 64 + 16 + 24 + 32 + 16)
    # 3 x 256 bits twice; of each column a sum and five comparisons; one of 32 columns' 40 bits
    assert term("taps").lut == 2 * 768 + 32 * (16 + 5 * 8) + 40 * 8
    # 320 bits, one of five each, and five addresses
    assert term("pixels in").lut == 320 * 2 + 5 * 11
    # a read's pixel and two places; counters; one of 15 needs, three comparisons; three taps; and
    # three words and places from features or windows
    walk = 5 * 26 + 5 * 11 + 8 * 24 + 4 * 32 + 3 * 16 + 3 * 48 + 3 * 272 // 2
    assert term("window walk").lut == walk
    names = {t.name for t in estimate(BUILD, "zynq-7000").terms}
    assert names - {t.name for t in estimate(WITHOUT_IMAGES, "zynq-7000").terms} == {
        "image memory",
        "window",
        "taps",
        "pixels in",
        "columns",
        "window walk",
        "maximum",
        "accumulate for images",
        "combine units",
        "stream columns_commands",
        "stream tile_columns",
        "fill streams",  # one of two is left
    }
    assert term("stream fills", WITHOUT_IMAGES).lut == 4 * 34 + 30
    assert term("counts and offsets", WITHOUT_IMAGES).dsp == 11
    assert term("narrow products", WITHOUT_IMAGES).lut == 2 * 160


def test_cells_of_32x4x1_by_hand() -> None:
    # 2048 states of two columns, and two tables of tanh
    assert term("cell memory", LATENCY).bram36 == 2 + 1
    # two columns: four gates of a byte from two halves; five LUTs for each of 27 bits, clamps of
    # 32, tanh of 64, products and blend of 2 x 26, 3 x 17 and 16
    assert term("cells", LATENCY).lut == 2 * (4 * 8 + 27 * 5 + 32 + 64 + 52 + 51 + 16)
    assert term("cells", LATENCY).dsp == 2 * 4
    # check 4 and 1, sequence 4, unpack 1, multiply 1, cell 4
    assert term("counts and offsets", LATENCY).dsp == 15
    assert term("counts and offsets", LATENCY).lut == 64 * (4 + 5 + 1) + 41 * 5
    without = dataclasses.replace(LATENCY, cell_words=0)
    names = {t.name for t in estimate(LATENCY, "zynq-7000").terms}
    assert names - {t.name for t in estimate(without, "zynq-7000").terms} == {
        "cell memory",
        "cells",
        "stream cell_commands",
        "combine units",
    }
    assert term("visit streams", without).lut == 3 * (4 * 40 + 30)
    assert term("word streams", LATENCY).lut == 9 * (8 * 11 + 30)
    assert term("word streams", without).lut == 6 * (8 * 11 + 30)


@pytest.mark.parametrize(
    ("build", "dsp", "fabric"),
    [
        (BUILD, 128, 0),
        (WIDE, 160, 6 * 32),
        (LATENCY, 128, 0),  # a single column has no other to share a DSP with
        (dataclasses.replace(BUILD, lanes=4, rows=2), 128, 0),
    ],
)
def test_products_lie_in_dsps_or_in_fabric(build: Build, dsp: int, fabric: int) -> None:
    assert term("products", build).dsp == dsp
    assert term("products in fabric", build).lut == 99 * fabric  # 1.5 x 66


def test_memories_move_to_uram_where_the_build_says_so() -> None:
    build = dataclasses.replace(BUILD, sum_words=4096, block_words=4096, sum_memory="uram")
    assert (term("partial sums", build).bram36, term("partial sums", build).uram) == (0, 15)
    assert (term("block buffer", build).bram36, term("block buffer", build).uram) == (15, 0)
    build = dataclasses.replace(build, block_memory="uram")
    assert (term("block buffer", build).bram36, term("block buffer", build).uram) == (0, 2)


def test_streams_of_8x32_by_hand() -> None:
    assert term("burst streams").lut == 6 * (4 * 24 + 30)  # 1152 bits each: LUTRAM
    assert term("fill streams").lut == 2 * (4 * 34 + 30)
    assert term("visit streams").lut == 3 * (4 * 40 + 30)
    # two commands of 64, 200, 280, 128, 208 and 112 bits: LUTRAM, 6 bits in 4 LUTs
    stages = {
        "unpack": 11,
        "columns": 34,
        "gather": 47,
        "multiply": 22,
        "finish": 35,
        "deliver": 19,
    }
    for stage, blocks in stages.items():
        assert term(f"stream {stage}_commands").lut == 4 * blocks + 30
    # 40 bits a column, a count of 8 and 17 of 32: 1832 bits of LUTRAM
    assert term("stream tile_columns").lut == 4 * 306 + 30
    assert term("stream next_words").lut == 44 + 30  # 17 port words of LUTRAM, 6 bits in 4 LUTs
    assert term("stream vector_writes").lut == 4 * 140 + 30  # 3 x (256 + 16) + 24 bits
    assert term("stream sums").lut == 4 * 171 + 30
    # bound to LUTs, though 64 words deep
    assert (term("word streams").bram36, term("word streams").lut) == (0, 6 * (8 * 11 + 30))
    assert (term("stream csb_words").bram36, term("stream csb_words").lut) == (4, 30)
    assert (term("stream chain").bram36, term("stream chain").lut) == (14.5, 30)


def test_an_unused_chain_costs_next_to_nothing() -> None:
    chain = term("stream chain", dataclasses.replace(BUILD, chain_words=0))
    assert (chain.bram36, chain.lut) == (0, 256 + 30)


def test_buses_by_hand() -> None:
    # four HP ports and the control port; six ports of the engine and the processing system
    assert term("buses").lut == 5 * 400 + 7 * 250
    assert term("buses", BUILD, "zynq-ultrascale+").lut == 5 * 1000 + 7 * 500
    # six addresses of 64 bits; size, first and count; status, completed and version
    assert term("registers").lut == 6 * 64 + 6 * 32


def test_sums_are_those_of_the_terms() -> None:
    whole = estimate(BUILD, "zynq-7000")
    assert whole.dsp == 128 + 24 + 16 + 16
    assert whole.bram36 == 60 + 4 + 14.5 + 1 + 20 + 6 + 4 + 14.5
    assert whole.uram == 0
    assert whole.lut == sum(t.lut for t in whole.terms)
    assert {t.basis for t in whole.terms} == {"declared", "yosys", "assumed"}
    assert all(t.reason for t in whole.terms)
    assert len({t.name for t in whole.terms}) == len(whole.terms)


def engine_text() -> str:
    sources = [*hls_dir().glob("*.hpp"), *hls_dir().glob("*.cpp")]
    return "\n".join(path.read_text(encoding="utf-8") for path in sources)


def test_every_stream_of_the_source_is_counted_at_its_depth() -> None:
    declared = re.findall(r"^  (?:bbs::)?(\w+)Stream (\w+)\(", source("engine.cpp"), re.M)
    groups = resource_terms.streams(BUILD)
    assert sorted(declared) == sorted((g.type, name) for g in groups for name in g.names)
    constants = {f"k{k}": v for k, v in _camel_parameters(BUILD).items()}
    text = engine_text()
    for name in ("kVisitDepth", "kPortDepth", "kStageDepth"):
        (value,) = re.findall(rf"constexpr int {name} = (\d+);", text)
        constants[name] = int(value)
    constants["kCommandWords"] = COMMAND_WORDS
    constants["kChainWords > 2 ? kChainWords : 2"] = max(BUILD.chain_words, 2)
    depths = dict(re.findall(r"using (\w+)Stream = Stream<\w+, \(?([^()]+?)\)?>;", text))
    for group in groups:
        depth = depths[group.type]
        assert group.depth == (int(depth) if depth.isdigit() else constants[depth]), group.type


@pytest.mark.parametrize("name", build_names())
def test_widths_of_streams_are_those_of_their_structs(name: str, tmp_path: Path) -> None:
    """But for activations, which take two bytes in g++, indices, which take one, and alignment."""
    build = load_build(name)
    (tmp_path / "build.hpp").write_text(build_header(build), encoding="utf-8")
    wanted = {g.type: g.width for g in resource_terms.streams(build)}
    acts, steps = resource_terms.word_bits(build), build.rows * build.lanes
    structs = {  # name -> (bits, alignment)
        "Burst": (wanted["Burst"], 32),
        **{f"{s}Command": (wanted[f"{s}Command"], 32) for s in STAGES},
        "Fill": (wanted["Fill"], 32),
        "Visit": (wanted["Visit"], 32),
        "TileColumns": (wanted["Columns"], 32),
        "VectorWrite": (wanted["VectorWrite"] + build.taps * acts, 16),
        "WeightWord": (wanted["Weight"] + steps * (8 - build.index_bits), 8),
        "SumWord": (wanted["Sum"], 32),
        "ActWord": (wanted["Chain"] + acts, 16),
    }
    lines = ['#include "gather.hpp"', "using namespace bbs;"]
    for struct, (bits, alignment) in structs.items():
        padded = -(-bits // alignment) * alignment
        lines.append(f'static_assert(8 * sizeof({struct}) == {padded}, "{struct}");')
    (tmp_path / "widths.cpp").write_text("\n".join(lines), encoding="utf-8")
    command = ["g++", "-std=c++14", "-fsyntax-only", f"-I{tmp_path}", f"-I{hls_dir()}"]
    done = subprocess.run(
        [*command, str(tmp_path / "widths.cpp")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _camel_parameters(build: Build) -> dict[str, int]:
    return {"".join(p.capitalize() for p in k.split("_")): v for k, v in build.parameters.items()}


def test_every_bound_memory_of_the_source_is_counted() -> None:
    bound = re.findall(r"BIND_STORAGE variable=(\w+) type=\w+ impl=(\w+)", engine_text())
    assert sorted(bound) == [
        ("block", "bram"),
        ("block", "uram"),
        ("cell_commands", "lutram"),
        ("cells", "bram"),
        ("columns_commands", "lutram"),
        ("deliver_commands", "lutram"),
        ("feature_words", "lutram"),
        ("finish_commands", "lutram"),
        ("gates", "lutram"),
        ("gather_commands", "lutram"),
        ("hidden", "lutram"),
        ("image", "bram"),
        ("index_words", "lutram"),
        ("multiply_commands", "lutram"),
        ("outputs", "lutram"),
        ("partial", "bram"),
        ("partial", "uram"),
        ("residual_words", "lutram"),
        ("row_words", "lutram"),
        ("rows", "bram"),
        ("states", "lutram"),
        ("table", "lutram"),
        ("tile_columns", "lutram"),
        ("unpack_commands", "lutram"),
        ("vectors", "bram"),
        ("vectors", "lutram"),
        ("weight_words", "lutram"),
    ]
    (depth,) = re.findall(r"if \(kLaneDepth >= (\d+)\)", source("multiply.hpp"))
    assert int(depth) == resource_terms._VECTOR_BRAM_DEPTH


def calls_of(function: str) -> dict[str, int]:
    """Source -> calls of a function of check.hpp."""
    texts = {path.name: re.sub(r"//.*", "", source(path.name)) for path in hls_dir().glob("*.hpp")}
    calls = {name: len(re.findall(rf"\b{function}\(", text)) for name, text in texts.items()}
    calls["check.hpp"] -= 1  # its definition
    return {name: n for name, n in calls.items() if n}


def test_multipliers_of_the_source_are_counted() -> None:
    text = engine_text()
    shared = re.findall(r"ALLOCATION function instances=times limit=(\d)", text)
    assert shared == ["1"] * 3
    assert re.findall(r"ALLOCATION function instances=short_times limit=(\d)", text) == ["1"]
    counting = (
        resource_terms.COUNTING + resource_terms.IMAGE_COUNTING + resource_terms.CELL_COUNTING
    )
    assert {n for name, n, (bits, _), _ in counting if bits == 32} == {1}
    calls, short_calls = (calls_of(name) for name in ("times", "short_times"))
    assert calls == dict(resource_terms.TIMES_CALLS + resource_terms.CELL_TIMES_CALLS)
    assert calls["check.hpp"] == CHECK_PRODUCTS
    assert short_calls == {"check.hpp": resource_terms.SHORT_CALLS}
    in_fabric = re.findall(r"BIND_OP variable=(\w+) op=mul impl=fabric", text)
    counted_in_fabric = resource_terms.FABRIC_COUNTING + resource_terms.IMAGE_FABRIC_COUNTING
    network = {"product_a", "product_b"}  # the term "products in fabric"
    assert set(in_fabric) - network == {name for name, _, _ in counted_in_fabric}
    for name, *_ in counting:
        assert re.search(rf"^inline \w+ {name}\(", text, re.M), name


def test_no_plain_product_of_two_fields_is_left() -> None:
    """Each would take three DSPs or more that nothing above counts."""
    text = re.sub(r"//.*", "", engine_text())
    field = r"(?:c|at|visit|fill|s|burst)\.\w+"
    assert re.findall(rf"{field} \* {field}", text) == []


def test_bursts_and_processes_are_those_of_the_source() -> None:
    ports = source("ports.hpp")
    assert len(re.findall(r"max_(?:read|write)_burst_length=64 ", ports)) == 6
    assert len(re.findall(r"num_(?:read|write)_outstanding=8 ", ports)) == 6
    assert len(re.findall(r"^  BBS_PROCESS\(", source("engine.cpp"), re.M)) + 1 == (
        resource_terms._PROCESSES
    )
    # One check and one place that takes pixels, beside their definitions.
    assert len(re.findall(r"\bcheck_(?:job|command)\(", source("run.hpp"))) == 3
    assert len(re.findall(r" take_pixels\(", source("gather.hpp"))) == 2
    (kernel,) = re.findall(r"kMostKernel = (\d+);", source("columns.hpp"))
    assert int(kernel) == resource_terms._MOST_KERNEL


@pytest.mark.parametrize("name", ["8x32", "16x32", "32x4x1"])
def test_builds_of_a_7020_fit(name: str) -> None:
    """LUTs are what the model knows least. The targets of 160 DSP and 40 K LUT were set before
    images and residuals."""
    whole, board = estimate(load_build(name), "zynq-7000"), load_board("Pynq-Z2")
    assert whole.bram36 <= 130
    assert whole.dsp <= board.dsps
    assert whole.lut <= board.luts


def test_16x32_makes_a_thousand_gops_of_matrices() -> None:
    """Dense-equivalent, modelled: 4096 x 1024, 7 of 8 weights zero, 128 columns on a Pynq-Z2."""
    build, board = load_build("16x32"), load_board("Pynq-Z2")
    assert build.products_per_cycle == 512
    memory = Memory.of(board)
    command = matrix(build, memory, 4096, 1024, 128, (BANK, BANK // 8))
    seconds = layer_cycles(command, build, memory).total / memory.clock_hz
    assert 2 * 4096 * 1024 * 128 / seconds >= 1000e9


@pytest.mark.parametrize("board", load_boards(), ids=lambda b: b.name)
def test_every_board_holds_its_build(board: Board) -> None:
    check_fits(load_build(board.build), board)


def test_the_latency_build_fits_a_7020_with_a_network_on_chip() -> None:
    check_fits(LATENCY, load_board("Pynq-Z2"))
    # 264 K weights, 128 a word, and the rows' last words
    assert LATENCY.block_words * LATENCY.rows * LATENCY.lanes >= 1.02 * 264_000
    # SLICEM LUTs of a 7020; streams of LUTRAM and the lanes of the vector buffer share them
    memories = [t.lut for t in estimate(LATENCY, "zynq-7000").terms if "LUTRAM" in t.reason]
    assert sum(memories) <= 17_400


def test_a_build_too_large_names_what_is_short_and_why() -> None:
    board = load_board("Pynq-Z2")
    with pytest.raises(BuildError) as error:
        check_fits(WIDE, board)
    text = str(error.value)
    need = estimate(WIDE, board.family)
    assert f"LUT: needs {need.lut}, the part has 53200 (largest: products in fabric 19008, " in text
    assert "wide" in text and "XC7Z020" in text and "Pynq-Z2" in text
    assert "DSP:" not in text and "URAM" not in text and "BRAM36" not in text
    with pytest.raises(BuildError, match="DSP: needs 248, the part has 220"):
        check_fits(dataclasses.replace(WIDE, fabric_lanes=4), board)
    check_fits(WIDE, load_board("ZCU104"))


def test_exactly_full_fits_and_one_less_does_not() -> None:
    board = load_board("Pynq-Z2")
    need = estimate(BUILD, board.family)
    full = dataclasses.replace(board, dsps=need.dsp, bram36=int(need.bram36), luts=need.lut)
    assert int(need.bram36) == need.bram36
    check_fits(BUILD, full)
    for limit, name in (("dsps", "DSP"), ("bram36", "BRAM36"), ("luts", "LUT")):
        less = dataclasses.replace(full, **{limit: getattr(full, limit) - 1})
        with pytest.raises(BuildError, match=f" {name}: needs"):
            check_fits(BUILD, less)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(BuildError, match="virtex"):
        estimate(BUILD, "virtex")


@given(
    parameter=st.sampled_from(
        (
            "lanes",
            "rows",
            "cols",
            "vector_words",
            "block_words",
            "block_rows",
            "sum_words",
            "queue_words",
            "image_words",
            "chain_words",
        )
    ),
    factor=st.integers(2, 8),
    family=st.sampled_from(FAMILIES),
)
def test_a_larger_parameter_never_takes_less(parameter: str, factor: int, family: str) -> None:
    larger = dataclasses.replace(BUILD, **{parameter: factor * getattr(BUILD, parameter)})
    small, large = estimate(BUILD, family), estimate(larger, family)
    needs = [
        (getattr(small, kind), getattr(large, kind)) for kind in ("dsp", "bram36", "uram", "lut")
    ]
    assert all(a <= b for a, b in needs)
    # The memories of 8x32 fill their last block, so twice as much takes more.
    assert any(a < b for a, b in needs)


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert resources.main([]) == 0
    printed = capsys.readouterr().out
    assert "not synthesised" in printed
    for t in estimate(BUILD, "zynq-7000").terms:
        assert f"{t.name}: {t.reason}" in printed
    shipped = json.loads((overlay_dir() / "builds" / "8x32.json").read_text(encoding="utf-8"))
    path = tmp_path / "wide.json"
    path.write_text(json.dumps(shipped | {"name": "wide", "lanes": 64}), encoding="utf-8")
    assert resources.main(["--build", str(path)]) == BuildError.exit_code
    captured = capsys.readouterr()
    assert "products" in captured.out  # the table comes first, to see what to change
    assert "needs" in captured.err
    assert resources.main(["--board", "Spartan"]) == BuildError.exit_code
    assert "Spartan" in capsys.readouterr().err


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "engine.md").read_text(encoding="utf-8")
    assert resources.main(["--build", "8x32", "--board", "Pynq-Z2"]) == 0
    assert capsys.readouterr().out.strip() in page


def test_overlay_page_shows_what_each_build_takes() -> None:
    page = (overlay_dir() / "README.md").read_text(encoding="utf-8")
    for name in build_names():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        _, _, boards, products, *needs, _ = (cell.strip() for cell in row.split("|"))
        build = load_build(name)
        assert products == str(build.products_per_cycle)
        for board in map(load_board, boards.split(", ")):
            check_fits(build, board)
            whole = estimate(build, board.family)
            limits = (board.dsps, board.bram36, board.uram, board.luts)
            wanted = (whole.dsp, whole.bram36, whole.uram, whole.lut)
            if board.name == boards.split(", ")[0]:
                shares = [
                    f"{n:.7g} ({n / m:.0%})" if m else "-"
                    for n, m in zip(wanted, limits, strict=True)
                ]
                assert needs == shares, name


def test_shipped_builds_are_estimated_for_every_family() -> None:
    for name in build_names():
        for family in FAMILIES:
            build = load_build(name)
            in_dsps = build.rows * build.cols * (build.lanes - build.fabric_lanes)
            assert estimate(build, family).dsp >= in_dsps / 2


def test_the_worked_example_is_what_the_cycle_model_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs" / "engine.md").read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["modelled.py"])
    runpy.run_path(str(REPOSITORY / "benchmarks" / "modelled.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.strip() in page
    (total,) = re.findall(r"^8x32 +4096 x 1024 +8/64 +64 +(\d+)", printed, re.M)
    assert f"**{int(total):,} cycles**" in page
