# SPDX-License-Identifier: Apache-2.0
"""What every part of the engine takes of a device, a term each: the formulas of `resources.py`.

Memories and multipliers follow the declarations in `hls/`. The basis of each term is one of

* declared: the bits, products or choices that the source declares, put into the part's primitives:
  a sum takes a LUT a bit, so does a choice among four; a comparison or a choice of two half a LUT;
* yosys: LUTs that yosys counted for hand-written RTL of the same function at 8 lanes and 32
  columns, scaled, times `HLS_MARGIN`;
* assumed: a round figure for what neither shows (bus adapters, state machines).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .builds import PORT_BYTES, TABLE_WORDS, Build
from .interface import BUILD_REGISTERS, COMMAND_WORDS, PORTS, REGISTERS

#: What HLS is taken to need over hand-written RTL. An assumption: no ratio has been measured.
HLS_MARGIN = 1.5
#: Operand bits that a DSP multiplies unsigned: DSP48E1 is 25 x 18 signed, DSP48E2 27 x 18.
_DSP_OPERANDS = {"zynq-7000": (24, 17), "zynq-ultrascale+": (26, 17)}
#: Device families that are known, as in `overlay/boards.json`.
FAMILIES = tuple(_DSP_OPERANDS)

#: LUTs by yosys (`synth_xilinx -family xc7`, LUTRAM left out) of parts for 256 products or 8 units.
_YOSYS_PRODUCTS = 256
_YOSYS_MAC_LUTS = 3800
_YOSYS_UNITS = 8
_YOSYS_DRAIN_LUTS = 3400
_YOSYS_UNPACK_LUTS = 500  # of one plane
#: A product of INT8 by four digits of its weight (`hls/mul_pair.hpp`), with its share of the sum;
#: of 154 written as a plain product.
_YOSYS_FABRIC_PRODUCT_LUTS = 66

#: Multipliers for counts and offsets: (function, how many, bits of the operands, of the result).
#: `check_command`, `sequence` and `cell` share as many as their ALLOCATION allows.
COUNTING = (
    ("check_command", 1, (32, 32), 64),
    ("short_times", 1, (24, 17), 41),
    ("sequence", 1, (32, 32), 64),
    ("unpack", 1, (24, 16), 32),
    ("multiply", 1, (24, 16), 32),
)
#: Those that only images or cells need. `gather` multiplies in `read_taps` and `begin_tile`.
IMAGE_COUNTING = (("columns", 3, (16, 16), 32), ("gather", 2, (16, 16), 32))
CELL_COUNTING = (("cell", 1, (32, 32), 64),)
#: Calls of `times` that share a multiplier, and so choose its operands: (source, calls).
TIMES_CALLS = (("check.hpp", 13), ("sequence.hpp", 17))
CELL_TIMES_CALLS = (("cell.hpp", 2),)
#: Those of `short_times`, all in the check.
SHORT_CALLS = 17
#: Products that `BIND_OP impl=fabric` keeps out of DSPs: (variable, bits of the operands, copies).
FABRIC_COUNTING = (("plane_bits", (40, 4), 2),)  # check_command and sequence
#: Those that only images need; five sums of 45 bits make the product with a constant.
IMAGE_FABRIC_COUNTING = (
    ("product", (16, 4), 2),  # scaled(): sizes in the check
    ("product", (4, 4), 4),  # taps in the check, a row in columns, distances in gather
    ("words", (45, 5), 2),
)
#: What each stage is told of a command (`hls/stages.hpp`), in bits; flags of their own take eight.
_STAGE_COMMANDS = tuple(
    (f"{stage.capitalize()}Command", (f"{stage}_commands",), "fields of a command", bits, 2)
    for stage, bits in (
        ("unpack", 32 + 16 + 2 * 8),
        ("columns", 2 * 32 + 5 * 16 + 7 * 8),
        ("gather", 3 * 32 + 8 * 16 + 7 * 8),
        ("multiply", 2 * 32 + 3 * 16 + 2 * 8),
        ("finish", 4 * 32 + 10 * 8),
        ("cell", 4 * 32 + 16 + 3 * 8),
        ("deliver", 3 * 32 + 2 * 8),
    )
)
#: Streams that nobody writes where a build has no images, no cells.
IMAGE_STREAMS: tuple[str, ...] = ("columns_commands", "tile_fills", "tile_columns")
CELL_STREAMS: tuple[str, ...] = ("cell_commands", "cell_visits", "states", "gates", "hidden")
#: `sequence`, five `fetch`, `unpack`, `columns`, `gather`, `multiply`, `finish`, `cell`,
#: `deliver`, and the command loop around them.
_PROCESSES = 14
#: Products of a column of a cell: gate times gate or candidate, times state, times tanh, and the
#: slope of tanh. None is wider than 17 x 11 bits.
_CELL_DSPS = 4
_FLOAT_DSPS = 3  # of a float32 multiplier in full use of DSPs; hand-written RTL took 2
_COMBINE_DSPS = 2  # 9 x 24 and 18 x 24 bits
_BURST_WORDS = 64  # max_read_burst_length in hls/ports.hpp
_BURSTS_IN_FLIGHT = 8  # num_read_outstanding
#: A stream becomes shift registers up to so many bits (the tool's own default) or two words.
_SHIFT_REGISTER_BITS = 1024
_SHIFT_REGISTER_DEPTH = 2
#: Deeper memories are taken to be block RAM, where the source does not bind them.
_LUTRAM_DEPTH = 32
#: Lanes of the vector buffer as deep as this are block RAM (`hls/multiply.hpp`).
_VECTOR_BRAM_DEPTH = 256
#: Columns of a unit that `cell` works on in a cycle.
_CELL_COLUMNS = 2
#: Rows of a window (`hls/columns.hpp`).
_MOST_KERNEL = 15

# Assumed LUTs.
_FIFO_CONTROL = 30
_COMPARISONS = 600  # of a command check, some forty
_PROCESS_CONTROL = 250
_M_AXI = 800
#: (each output, each input) of an AXI interconnect: AXI4 to AXI3 of the same width on a 7-series,
#: SmartConnect with its width converters on UltraScale+.
_BUS = {"zynq-7000": (400, 250), "zynq-ultrascale+": (1000, 500)}


@dataclass(frozen=True)
class Term:
    """One part of a build: an estimate of what it takes, and why."""

    name: str
    #: the formula, with the build's figures put in
    reason: str
    #: declared, yosys or assumed
    basis: str
    dsp: int = 0
    bram36: float = 0
    uram: int = 0
    lut: int = 0


@dataclass(frozen=True)
class StreamGroup:
    """Streams of one type in `hls/engine.cpp`."""

    type: str
    names: tuple[str, ...]
    word: str
    width: int
    depth: int


#: Shapes of half a BRAM36 with one write and one read port: bits and words.
_HALF_SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))


def block_rams(width: int, depth: int) -> float:
    """BRAM36 of a memory with one write and one read port, in halves."""
    return min(-(-width // w) * -(-depth // d) for w, d in _HALF_SHAPES) / 2


def ultra_rams(width: int, depth: int) -> int:
    """URAM of such a memory: each is 4096 words of 72 bits."""
    return -(-width // 72) * -(-depth // 4096)


def lutram_luts(width: int, depth: int) -> int:
    """LUTs of a small memory with one write and one read port: four hold 32 words of 6 bits."""
    return 4 * -(-width // 6) * -(-depth // 32)


def mux_luts(choices: int) -> int:
    """LUTs a bit of a choice: one for four, and the wide multiplexers of a slice join them."""
    return 0 if choices < 2 else -(-choices // 4)


def multiplier_dsps(a_bits: int, b_bits: int, result_bits: int, family: str) -> int:
    """DSPs of an unsigned multiplier: tiles of one DSP each, less those above the result."""
    wide, narrow = _DSP_OPERANDS[family]
    return sum(
        1 for a in range(0, a_bits, wide) for b in range(0, b_bits, narrow) if a + b < result_bits
    )


def word_bits(build: Build) -> int:
    """Bits of an activation word."""
    return 8 * max(build.cols, PORT_BYTES)


def _csb_bits(build: Build) -> int:
    return build.rows * build.lanes * (8 + build.index_bits)


def streams(build: Build) -> tuple[StreamGroup, ...]:
    """Every stream of the engine, with its width in bits and its depth in words."""
    port_bits = 8 * PORT_BYTES
    ports = ("weight_words", "index_words", "row_words", "feature_words", "residual_words")
    bursts = tuple(f"{n}_bursts" for n in ("weight", "index", "row", "act", "residual", "store"))
    visits = ("unpack_visits", "multiply_visits", "finish_visits", "cell_visits")
    words = (*ports, "outputs", "states", "gates", "hidden")
    tile = 40 * build.cols + 8 + 32 * _MOST_KERNEL + 64
    sums, acts = 32 * build.rows * build.cols, word_bits(build)
    chain = max(build.chain_words, 2)
    groups = (
        ("Burst", bursts, "4 counts and 2 flags", 4 * 32 + 2 * 8, 8),
        *_STAGE_COMMANDS,
        ("Fill", ("tile_fills", "fills"), "6 counts and a flag", 6 * 32 + 8, 8),
        ("Visit", visits, "6 counts and 6 flags", 6 * 32 + 6 * 8, 8),
        ("Word", words, "a port word", port_bits, 64),
        ("Command", ("next_words",), "a port word", port_bits, COMMAND_WORDS),
        ("Columns", ("tile_columns",), "40 bits a column and 15 + 2 counts", tile, 2),
        (
            "VectorWrite",
            ("vector_writes",),
            "taps x (word, 16) and 24",
            build.taps * (acts + 16) + 24,
            16,
        ),
        ("Weight", ("csb_words",), "a CSB word", _csb_bits(build), build.queue_words),
        ("Sum", ("sums",), "rows x columns x 32", sums, 8),
        ("Chain", ("chain",), "an activation word", acts, chain),
    )
    return tuple(StreamGroup(*group) for group in groups)


def built_streams(build: Build) -> Iterator[StreamGroup]:
    """Those of `streams` that a process of this build writes and reads."""
    unused = () if build.image_words else IMAGE_STREAMS
    unused += () if build.cell_words else CELL_STREAMS
    for group in streams(build):
        names = tuple(name for name in group.names if name not in unused)
        if names:
            yield replace(group, names=names)


def engine_terms(build: Build, family: str) -> Iterator[Term]:
    """Every part of the engine and of the buses around it, on a device of one of `FAMILIES`."""
    yield from _memory_terms(build)
    yield from _arithmetic_terms(build)
    yield from _output_terms(build)
    yield from _image_terms(build)
    yield from _cell_terms(build)
    yield from _control_terms(build, family)
    yield from (_stream_term(group) for group in built_streams(build))
    yield from _bus_terms(family)


def _choice_term(name: str, reason: str, memory: str, width: int, depth: int) -> Term:
    """A memory for which the build says what it is made of."""
    if memory == "uram":
        return Term(name, f"{reason}, URAM", "declared", uram=ultra_rams(width, depth))
    return Term(name, reason, "declared", bram36=block_rams(width, depth))


def _vector_terms(build: Build) -> Iterator[Term]:
    bits, pack = word_bits(build), build.pack
    depth, copies = 2 * build.vector_words // pack, build.rows * build.lanes
    in_bram = depth >= _VECTOR_BRAM_DEPTH
    yield Term(
        "vector buffer",
        f"{build.lanes} lanes x {build.rows} copies x {depth} x {bits} bits, both halves, "
        + ("block RAM" if in_bram else "LUTRAM"),
        "declared",
        bram36=copies * block_rams(bits, depth) if in_bram else 0,
        lut=0 if in_bram else copies * lutram_luts(bits, depth),
    )
    place_bits = (2 * build.vector_words - 1).bit_length()
    reads = copies * (place_bits + 8 * build.cols * mux_luts(pack))
    writes = build.lanes * (bits * mux_luts(build.taps) + place_bits)
    yield Term(
        "vector buffer access",
        f"of each copy a sum of {place_bits} bits, and a choice of 1 feature in {pack} of a word; "
        f"of each lane a choice of 1 word in {build.taps}",
        "declared",
        lut=reads + writes,
    )
    if pack > 1:
        # Banks of 1, 2, 4 or 8 features: what follows in a word goes to a lane of its own.
        sizes = pack.bit_length()
        yield Term(
            "narrow banks",
            f"{build.taps} words of {bits} bits from 1 of {sizes} places, a place of 16 bits each",
            "declared",
            lut=build.taps * (bits * mux_luts(sizes) + 16),
        )


def _memory_terms(build: Build) -> Iterator[Term]:
    yield from _vector_terms(build)
    bits = _csb_bits(build)
    reason = f"{build.block_words} x {bits} bits, weight and index of each lane and row"
    yield _choice_term("block buffer", reason, build.block_memory, bits, build.block_words)
    bits = 32 * build.rows * build.cols
    reason = f"{build.sum_words} x {bits} bits"
    yield _choice_term("partial sums", reason, build.sum_memory, bits, build.sum_words)
    bits = 8 * PORT_BYTES * build.rows
    yield Term(
        "row parameters",
        f"{build.block_rows} x {bits} bits",
        "declared",
        bram36=block_rams(bits, build.block_rows),
    )
    yield Term(
        "table copies",
        f"{build.requant_units} x {TABLE_WORDS} x 64 bits of LUTRAM, one port, 64 bits a LUT; of "
        "each a choice of 1 byte in 8",
        "declared",
        lut=build.requant_units * (TABLE_WORDS + 8 * mux_luts(PORT_BYTES)),
    )


def _arithmetic_terms(build: Build) -> Iterator[Term]:
    wide = build.rows * build.cols
    in_dsps, in_luts = (build.lanes - build.fabric_lanes) * wide, build.fabric_lanes * wide
    shared = 2 if build.cols > 1 else 1
    yield Term(
        "products",
        f"{build.lanes - build.fabric_lanes} lanes x {build.rows} x {build.cols}, {shared} in a "
        f"DSP; LUT: {_YOSYS_MAC_LUTS} for {_YOSYS_PRODUCTS}, x {HLS_MARGIN}",
        "yosys",
        dsp=in_dsps // shared,
        lut=round(HLS_MARGIN * _YOSYS_MAC_LUTS * in_dsps / _YOSYS_PRODUCTS),
    )
    yield Term(
        "products in fabric",
        f"{build.fabric_lanes} lanes x {build.rows} x {build.cols}, {_YOSYS_FABRIC_PRODUCT_LUTS} "
        f"LUTs each, x {HLS_MARGIN}, its share of the sum included",
        "yosys",
        lut=round(HLS_MARGIN * _YOSYS_FABRIC_PRODUCT_LUTS * in_luts),
    )
    if build.image_words:
        # Of two bytes the larger: 4 LUTs compare, 4 choose. Where weights are zero, a feature is
        # the least: two more inputs of the LUTs of the first such pair, so that 8 choose. Then once
        # more with the sum, and 16 LUTs choose between that and the products.
        larger = build.lanes // 2 * 12 + build.lanes // 2 * 8
        yield Term(
            "maximum",
            f"{wide} x ({build.lanes // 2} x 12 for the larger of two bytes that count, "
            f"{build.lanes // 2} x 8 for the larger of those and the sum, and a choice of 32 bits)",
            "declared",
            lut=wide * (larger + 16),
        )
    yield Term(
        "unpack",
        f"2 planes x {_YOSYS_UNPACK_LUTS}, x {HLS_MARGIN}",
        "yosys",
        lut=round(HLS_MARGIN * 2 * _YOSYS_UNPACK_LUTS),
    )
    # Bias or partial sum, two bits a LUT, and the sum.
    yield Term(
        "accumulate",
        f"{wide} x 32 bits: bias or partial sum, a sum",
        "declared",
        lut=wide * (16 + 32),
    )
    if build.image_words:
        yield Term(
            "accumulate for images",
            f"{wide} x 32 bits: a comparison; {build.rows} x {build.cols - 1} sums of columns",
            "declared",
            lut=wide * 16 + 32 * build.rows * (build.cols - 1),
        )


def _output_terms(build: Build) -> Iterator[Term]:
    units = build.requant_units
    yield Term(
        "requantise units",
        f"{units} x a float32 multiplier of {_FLOAT_DSPS}; "
        f"LUT: {_YOSYS_DRAIN_LUTS} for {_YOSYS_UNITS}, x {HLS_MARGIN}",
        "yosys",
        dsp=_FLOAT_DSPS * units,
        lut=round(HLS_MARGIN * _YOSYS_DRAIN_LUTS * units / _YOSYS_UNITS),
    )
    if build.image_words or build.cell_words:
        # 48 bits shifted by up to 47 places: three choices of 1 in 4 for each bit. The bit that is
        # odd: 1 in 48. Two sums, three clamps of 18 bits and the sums of zero points.
        yield Term(
            "combine units",
            f"{units} x {_COMBINE_DSPS} multipliers; LUT: 3 x 48 for the shift, 12 for the odd "
            "bit, 43 + 48 for sums, 80 for clamps and zero points",
            "declared",
            dsp=_COMBINE_DSPS * units,
            lut=units * (3 * 48 + 12 + 43 + 48 + 80),
        )
    # wide/units : 1 for the units' sums, wide/2 : 1 for a word of two sums: both 8 LUTs a sum.
    # Fewer units than bytes of a port word put theirs at one of several places.
    wide = build.rows * build.cols
    places = PORT_BYTES // units
    yield Term(
        "output muxes",
        f"{wide} sums to {units} units, and to words of two: 16 LUTs a sum; bytes to 1 of {places} "
        "places of a port word, and residuals from there",
        "declared",
        lut=16 * wide + (64 + 8 * units) * mux_luts(places),
    )


def _image_terms(build: Build) -> Iterator[Term]:
    if not build.image_words:
        return
    banks, taps, cols = build.banks, build.taps, build.cols
    place_bits = (build.image_words - 1).bit_length()
    yield Term(
        "image memory",
        f"{banks} banks x {build.image_words} x 8 bits",
        "declared",
        bram36=banks * block_rams(8, build.image_words),
    )
    turns = (banks - 1).bit_length()
    yield Term(
        "window",
        f"{banks} bytes turned in {turns} steps, two in a LUT; a choice of two addresses of "
        f"{place_bits} bits each; {turns} bits of a column's place and two sums",
        "declared",
        lut=banks * (8 * -(-turns // 2) + place_bits) + turns * (2 + 2),
    )
    # Of a column a number of 32 bits, compared with another; its place in the output's row, what is
    # left of the row, and the window's place, 16 bits each; three short comparisons; a row that
    # begins anew, none beyond the image, and two choices of a run.
    yield Term(
        "columns",
        f"{build.placed} x (32 + 4 x 16 for sums, 16 + 3 x 8 for comparisons, 2 x 16 + 2 x 8 for "
        "choices)",
        "declared",
        lut=build.placed * (32 + 4 * 16 + 16 + 3 * 8 + 2 * 16 + 2 * 8),
    )
    # A pixel by stride, 4:1; then that, the padding or what was there before.
    yield Term(
        "taps",
        f"{taps} x {cols} x 8 bits, 2 LUTs each; of {cols} columns a sum of 16 bits and "
        f"{taps + 2} comparisons; 40 bits chosen from the columns",
        "declared",
        lut=taps * cols * 8 * 2 + cols * (16 + (taps + 2) * 8) + 40 * mux_luts(cols),
    )
    yield Term(
        "pixels in",
        f"{banks} bytes, each of {banks // 8}, and two addresses",
        "declared",
        lut=banks * 8 * mux_luts(banks // 8) + banks // 8 * place_bits,
    )
    # Five sums of 26 bits to a pixel's word, two places in a ring of two sums and a comparison,
    # eight counters of 16 bits with their ends, the need of one of 15 kernel rows and three
    # comparisons with it; of each tap a place and a group. Features and windows write the same
    # stream.
    words = taps * (word_bits(build) + 16)
    yield Term(
        "window walk",
        f"5 x 26 bits, 2 x 2.5 x {place_bits}, 8 x 24, 4 x 32 + 3 x 16; {taps} x 48; a choice of "
        f"{words} bits",
        "declared",
        lut=130 + 5 * place_bits + 192 + 32 * mux_luts(_MOST_KERNEL) + 48 + 48 * taps + words // 2,
    )


def _cell_terms(build: Build) -> Iterator[Term]:
    if not build.cell_words:
        return
    yield Term(
        "cell memory",
        f"{build.cell_words} x 32 bits; tanh: 256 x 16 and 256 x 16 bits, two ports each",
        "declared",
        bram36=block_rams(32, build.cell_words) + 1,
    )
    # A gate is a byte of two halves. Sum, shift by 0 to 8 (three LUTs a bit) and rounding of 27
    # bits, clamps of 16; the absolute value, the cap, the line and its sign of 16; product and
    # blend rounded, 26 and 17 bits twice, clamp.
    choices = 4 * 8 * mux_luts(max(2 * build.cols // _CELL_COLUMNS, 2))
    arithmetic = 27 * (1 + 3 + 1) + 2 * 16 + 4 * 16 + 2 * 26 + 3 * 17 + 16
    yield Term(
        "cells",
        f"{_CELL_COLUMNS} columns x {_CELL_DSPS} multipliers; LUT: {choices} to find four gates, "
        f"{arithmetic} for sums, shifts and clamps",
        "declared",
        dsp=_CELL_COLUMNS * _CELL_DSPS,
        lut=_CELL_COLUMNS * (choices + arithmetic),
    )


def _control_terms(build: Build, family: str) -> Iterator[Term]:
    image, cell = build.image_words > 0, build.cell_words > 0
    counting = COUNTING + IMAGE_COUNTING * image + CELL_COUNTING * cell
    dsps = [n * multiplier_dsps(a, b, bits, family) for _, n, (a, b), bits in counting]
    calls = TIMES_CALLS + CELL_TIMES_CALLS * cell
    yield Term(
        "counts and offsets",
        "multipliers of "
        + ", ".join(f"{name} {dsp}" for (name, *_), dsp in zip(counting, dsps, strict=True))
        + "; LUT: 64 bits of operands, each 1 of "
        + ", ".join(f"{n} ({name})" for name, n in calls)
        + f", and 41 bits, each 1 of {SHORT_CALLS} (short_times)",
        "declared",
        dsp=sum(dsps),
        lut=sum(64 * mux_luts(n) for _, n in calls) + 41 * mux_luts(SHORT_CALLS),
    )
    in_fabric = FABRIC_COUNTING + IMAGE_FABRIC_COUNTING * image
    yield Term(
        "narrow products",
        "in fabric, a LUT for each pair of bits: "
        + ", ".join(f"{n} x {a} x {b}" for _, (a, b), n in in_fabric),
        "declared",
        lut=sum(n * a * b for _, (a, b), n in in_fabric),
    )
    yield Term(
        "command check",
        f"comparisons, {_COMPARISONS} LUTs",
        "assumed",
        lut=_COMPARISONS,
    )
    yield Term(
        "state machines",
        f"{_PROCESSES} processes with their counters, {_PROCESS_CONTROL} LUTs each",
        "assumed",
        lut=_PROCESSES * _PROCESS_CONTROL,
    )


def _stream_term(group: StreamGroup) -> Term:
    count, bits = len(group.names), group.width * group.depth
    block_ram, lut = 0.0, 0
    # To LUTRAM, in hls/engine.cpp.
    bound = group.type in ("Word", "Columns") or group.type.endswith("Command")
    if not bound and (group.depth <= _SHIFT_REGISTER_DEPTH or bits <= _SHIFT_REGISTER_BITS):
        where, lut = "shift registers", group.width
    elif bound or group.depth <= _LUTRAM_DEPTH:
        where, lut = "LUTRAM", lutram_luts(group.width, group.depth)
    else:
        where, block_ram = "block RAM", block_rams(group.width, group.depth)
    name = f"stream {group.names[0]}" if count == 1 else f"{group.type.lower()} streams"
    return Term(
        name,
        f"{count} x {group.depth} x {group.width} bits ({group.word}), {where}, "
        f"{_FIFO_CONTROL} LUTs of control",
        "declared",
        bram36=count * block_ram,
        lut=count * (lut + _FIFO_CONTROL),
    )


def _bus_terms(family: str) -> Iterator[Term]:
    words = _BURST_WORDS * _BURSTS_IN_FLIGHT
    yield Term(
        "memory ports",
        f"{len(PORTS)} m_axi, each {_BURSTS_IN_FLIGHT} bursts x {_BURST_WORDS} x "
        f"{8 * PORT_BYTES} bits and {_M_AXI} LUTs",
        "assumed",
        bram36=len(PORTS) * block_rams(8 * PORT_BYTES, words),
        lut=len(PORTS) * _M_AXI,
    )
    bits = sum(width for name, (_, width) in REGISTERS.items() if name not in BUILD_REGISTERS)
    reason = f"{bits} bits, a LUT each for the way out; those of the build are constants"
    yield Term("registers", reason, "assumed", lut=bits)
    # Four memory ports and the control port of the processing system, one bus each; the six
    # m_axi and the processing system's master come in (overlay/block_design.tcl).
    outputs, inputs = 4 + 1, len(PORTS) + 1
    each_output, each_input = _BUS[family]
    yield Term(
        "buses",
        f"{outputs} outputs x {each_output} and {inputs} inputs x {each_input} LUTs",
        "assumed",
        lut=outputs * each_output + inputs * each_input,
    )
