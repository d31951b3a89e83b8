# SPDX-License-Identifier: Apache-2.0
"""The resource model: what a build takes of a part, term by term. Estimated, not synthesised.

`python -m pynq_bbs.resources [--build 8x32] [--board Pynq-Z2]` prints the table.

Memories and multipliers follow the declarations in `hls/`. The basis of each term is one of

* declared: the bits or products that the source declares, put into the part's primitives;
* yosys: LUTs that yosys counted for hand-written RTL of the same function at 8 lanes and 32
  columns, scaled, times `HLS_MARGIN`;
* assumed: a round figure for what neither shows (bus adapters, state machines).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from .boards import Board, load_board
from .builds import PORT_BYTES, Build, load_build
from .errors import BbsError, BuildError
from .interface import PORTS, REGISTERS
from .report import table

#: What HLS is taken to need over hand-written RTL. An assumption: no ratio has been measured.
HLS_MARGIN = 1.5
#: Operand bits that a DSP multiplies unsigned: DSP48E1 is 25 x 18 signed, DSP48E2 27 x 18.
_DSP_OPERANDS = {"zynq-7000": (24, 17), "zynq-ultrascale+": (26, 17)}

#: LUTs by yosys (`synth_xilinx -family xc7`, LUTRAM left out) of parts for 256 products or 8 units.
_YOSYS_PRODUCTS = 256
_YOSYS_MAC_LUTS = 3800
_YOSYS_UNITS = 8
_YOSYS_DRAIN_LUTS = 3400
_YOSYS_UNPACK_LUTS = 500  # of one plane

#: Bits of a product or count in each function that works some out, outside its inner loop.
MULTIPLYING = {
    "check_command": 64,
    "derive_shape": 32,
    "sequence": 64,
    "unpack": 32,
    "fill_vectors": 32,
    "multiply_fill": 32,
    "accumulate": 32,
    "requantise": 32,
}
#: Quotients and remainders in `hls/check.hpp`.
_DIVIDERS = 9
#: `sequence`, four `fetch`, `unpack`, `fill_vectors`, `multiply_fill`, `accumulate`,
#: `requantise`, `store`, and the command loop around them.
_PROCESSES = 12
_FLOAT_DSPS = 3  # of a float32 multiplier in full use of DSPs; hand-written RTL took 2
_BURST_WORDS = 64  # max_read_burst_length in hls/ports.hpp
_BURSTS_IN_FLIGHT = 8  # num_read_outstanding
_TABLE_ENTRIES = 256
#: A stream becomes shift registers up to so many bits (the tool's own default) or two words.
_SHIFT_REGISTER_BITS = 1024
_SHIFT_REGISTER_DEPTH = 2
#: Deeper memories are taken to be block RAM.
_LUTRAM_DEPTH = 32

# Assumed LUTs.
_FIFO_CONTROL = 30
_DIVIDER = 256
_PROCESS_CONTROL = 250
_M_AXI = 800
_BUS_OUTPUT = 1000
_BUS_INPUT = 500


@dataclass(frozen=True)
class Term:
    """One part of a build: an estimate of what it takes, and why."""

    name: str
    #: the formula, with the build's figures put in
    reason: str
    #: declared, yosys or assumed
    basis: str
    dsp: int = 0
    bram36: int = 0
    uram: int = 0
    lut: int = 0


#: (attribute of Term and Resources, attribute of Board, name in tables and messages)
_KINDS = (
    ("dsp", "dsps", "DSP"),
    ("bram36", "bram36", "BRAM36"),
    ("uram", "uram", "URAM"),
    ("lut", "luts", "LUT"),
)


@dataclass(frozen=True)
class Resources:
    """What a build takes of a device family, as a list of terms. Prints itself."""

    build: str
    family: str
    terms: tuple[Term, ...]

    @property
    def dsp(self) -> int:
        return sum(term.dsp for term in self.terms)

    @property
    def bram36(self) -> int:
        return sum(term.bram36 for term in self.terms)

    @property
    def uram(self) -> int:
        return sum(term.uram for term in self.terms)

    @property
    def lut(self) -> int:
        return sum(term.lut for term in self.terms)

    def rows(self) -> list[tuple[str, ...]]:
        """Head, terms and sum, as `report.table` takes them."""
        head = ("term", "basis", *(name for _, _, name in _KINDS))
        terms = [
            (t.name, t.basis, *(str(getattr(t, kind)) for kind, _, _ in _KINDS)) for t in self.terms
        ]
        return [head, *terms, ("sum", "", *(str(getattr(self, kind)) for kind, _, _ in _KINDS))]

    def reasons(self) -> str:
        """The formula of each term, one a line."""
        return "\n".join(f"{term.name}: {term.reason}" for term in self.terms)

    def __str__(self) -> str:
        return f"{table(self.rows())}\n\n{self.reasons()}"


@dataclass(frozen=True)
class StreamGroup:
    """Streams of one type in `hls/engine.cpp`."""

    type: str
    names: tuple[str, ...]
    word: str
    width: int
    depth: int


def block_rams(width: int, depth: int) -> int:
    """BRAM36 of a memory with one write and one read port: each is 512 words of 72 bits."""
    return -(-width // 72) * -(-depth // 512)


def lutram_luts(width: int, depth: int) -> int:
    """LUTs of a small memory with one write and one read port: four hold 32 words of 6 bits."""
    return 4 * -(-width // 6) * -(-depth // 32)


def multiplier_dsps(a_bits: int, b_bits: int, result_bits: int, family: str) -> int:
    """DSPs of an unsigned multiplier: tiles of one DSP each, less those above the result."""
    wide, narrow = _DSP_OPERANDS[family]
    return sum(
        1 for a in range(0, a_bits, wide) for b in range(0, b_bits, narrow) if a + b < result_bits
    )


def streams(build: Build) -> tuple[StreamGroup, ...]:
    """Every stream of the region, with its width in bits and its depth in words."""
    port_bits = 8 * PORT_BYTES
    ports = ("weight_words", "index_words", "row_words", "feature_words", "outputs")
    bursts = ("weight_bursts", "index_bursts", "row_bursts", "act_bursts", "store_bursts")
    visits = ("unpack_visits", "multiply_visits", "accumulate_visits")
    sums = 32 * build.cols
    return (
        StreamGroup("Burst", bursts, "2 counts and a flag", 2 * 32 + 8, 8),
        StreamGroup("Fill", ("fills",), "4 counts", 4 * 32, 8),
        StreamGroup("Visit", visits, "4 counts and 4 flags", 4 * 32 + 4 * 8, 8),
        StreamGroup("Word", ports, "a port word", port_bits, 64),
        StreamGroup("Weight", ("csb_words",), "lanes x 16", 16 * build.lanes, build.block_words),
        StreamGroup("Sum", ("sums",), "columns x 32", sums, 4),
        StreamGroup(
            "Table", ("table_words",), "a port word", port_bits, _TABLE_ENTRIES // PORT_BYTES
        ),
        StreamGroup("Total", ("totals",), "columns x 32, multiplier", sums + 32, 4),
    )


def estimate(build: Build, device_family: str) -> Resources:
    """What `build` takes of a part of `device_family`, engine and bus adapters together.

    Raises:
        BuildError: a device family other than those of `overlay/boards.json`.
    """
    if device_family not in _DSP_OPERANDS:
        raise BuildError(
            f"unknown device family {device_family!r}; known: {', '.join(_DSP_OPERANDS)}. "
            "Take the family of a board in overlay/boards.json."
        )
    terms = (
        *_memory_terms(build),
        *_arithmetic_terms(build),
        *_control_terms(device_family),
        *(_stream_term(group) for group in streams(build)),
        *_bus_terms(),
    )
    return Resources(build.name, device_family, terms)


def check_fits(build: Build, board: Board) -> None:
    """Return if the estimate of `build` is within the device of `board`.

    Raises:
        BuildError: it is not; names each resource that is short and the largest terms of it.
    """
    resources = estimate(build, board.family)
    short = []
    for kind, limit_name, name in _KINDS:
        need, limit = getattr(resources, kind), getattr(board, limit_name)
        if need <= limit:
            continue
        largest = sorted(resources.terms, key=lambda t: -getattr(t, kind))[:3]
        parts = ", ".join(f"{t.name} {getattr(t, kind)}" for t in largest if getattr(t, kind))
        short.append(f"{name}: needs {need}, the part has {limit} (largest: {parts})")
    if short:
        raise BuildError(
            f"build {build.name} is estimated not to fit the {board.device} of {board.name}: "
            f"{'; '.join(short)}. Make these parameters of the build smaller, or take a board "
            "with a larger part."
        )


def _memory_terms(build: Build) -> Iterator[Term]:
    lane_bits = 8 * build.cols
    yield Term(
        "vector buffer",
        f"{build.lanes} lanes x {build.vector_words} x {lane_bits} bits, x 2 for ping-pong; "
        "LUT: a 2:1 mux a bit read",
        "declared",
        bram36=2 * build.lanes * block_rams(lane_bits, build.vector_words),
        lut=build.lanes * lane_bits,
    )
    word_bits = 16 * build.lanes
    yield Term(
        "block buffer",
        f"{build.block_words} x {word_bits} bits, weight and index of each lane",
        "declared",
        bram36=block_rams(word_bits, build.block_words),
    )
    sum_bits = 32 * build.cols
    yield Term(
        "partial sums",
        f"{build.sum_words} x {sum_bits} bits",
        "declared",
        bram36=block_rams(sum_bits, build.sum_words),
    )
    row_bits = 8 * PORT_BYTES
    yield Term(
        "row parameters",
        f"{build.block_rows} x {row_bits} bits",
        "declared",
        bram36=block_rams(row_bits, build.block_rows),
    )
    yield Term(
        "table copies",
        f"{build.requant_units} x {_TABLE_ENTRIES} x 8 bits of LUTRAM, one port, 64 bits a LUT",
        "declared",
        lut=build.requant_units * _TABLE_ENTRIES * 8 // 64,
    )


def _arithmetic_terms(build: Build) -> Iterator[Term]:
    products = build.products_per_cycle
    yield Term(
        "products",
        f"{build.lanes} x {build.cols}, two in a DSP, DSPs in cascaded pairs; "
        f"LUT: {_YOSYS_MAC_LUTS} for {_YOSYS_PRODUCTS}, x {HLS_MARGIN}",
        "yosys",
        dsp=products // 2,
        lut=round(HLS_MARGIN * _YOSYS_MAC_LUTS * products / _YOSYS_PRODUCTS),
    )
    units = build.requant_units
    yield Term(
        "requantise units",
        f"{units} x a float32 multiplier of {_FLOAT_DSPS}; "
        f"LUT: {_YOSYS_DRAIN_LUTS} for {_YOSYS_UNITS}, x {HLS_MARGIN}",
        "yosys",
        dsp=_FLOAT_DSPS * units,
        lut=round(HLS_MARGIN * _YOSYS_DRAIN_LUTS * units / _YOSYS_UNITS),
    )
    yield Term(
        "unpack",
        f"2 planes x {_YOSYS_UNPACK_LUTS}, x {HLS_MARGIN}",
        "yosys",
        lut=round(HLS_MARGIN * 2 * _YOSYS_UNPACK_LUTS),
    )
    yield Term(
        "accumulate",
        f"{build.cols} adders of 32 bits, bias or partial sum chosen in the same LUT",
        "declared",
        lut=32 * build.cols,
    )
    # n:1 muxes at n/4 LUTs a bit: cols/units : 1 for the units' sums, cols/2 : 1 for a word of
    # two sums. Both come to 8 LUTs a column.
    yield Term(
        "output muxes",
        f"{build.cols} sums to {units} units, and to words of two: 16 LUTs a column",
        "declared",
        lut=16 * build.cols,
    )


def _control_terms(family: str) -> Iterator[Term]:
    dsps = [multiplier_dsps(32, 32, bits, family) for bits in MULTIPLYING.values()]
    yield Term(
        "counts and offsets",
        f"one 32 x 32 bit multiplier in each of {len(dsps)} functions, 3 DSP or for 64 bits of "
        "result 4, if HLS shares it there",
        "assumed",
        dsp=sum(dsps),
    )
    yield Term(
        "command check",
        f"{_DIVIDERS} sequential dividers of 32 bits, {_DIVIDER} LUTs each",
        "assumed",
        lut=_DIVIDERS * _DIVIDER,
    )
    yield Term(
        "state machines",
        f"{_PROCESSES} processes with their counters, {_PROCESS_CONTROL} LUTs each",
        "assumed",
        lut=_PROCESSES * _PROCESS_CONTROL,
    )


def _stream_term(group: StreamGroup) -> Term:
    count, bits = len(group.names), group.width * group.depth
    block_ram = lut = 0
    if group.depth <= _SHIFT_REGISTER_DEPTH or bits <= _SHIFT_REGISTER_BITS:
        where, lut = "shift registers", group.width
    elif group.depth <= _LUTRAM_DEPTH:
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


def _bus_terms() -> Iterator[Term]:
    words = _BURST_WORDS * _BURSTS_IN_FLIGHT
    yield Term(
        "memory ports",
        f"{len(PORTS)} m_axi, each {_BURSTS_IN_FLIGHT} bursts x {_BURST_WORDS} x "
        f"{8 * PORT_BYTES} bits and {_M_AXI} LUTs",
        "assumed",
        bram36=len(PORTS) * block_rams(8 * PORT_BYTES, words),
        lut=len(PORTS) * _M_AXI,
    )
    bits = sum(width for _, width in REGISTERS.values())
    yield Term("registers", f"{bits} bits, a LUT each for the way out", "assumed", lut=bits)
    # Four memory ports and the control port of the processing system, one bus each; the five
    # m_axi and the processing system's master come in (overlay/block_design.tcl).
    outputs, inputs = 4 + 1, len(PORTS) + 1
    yield Term(
        "buses",
        f"SmartConnect, {outputs} x {_BUS_OUTPUT} and {inputs} inputs x {_BUS_INPUT} LUTs",
        "assumed",
        lut=outputs * _BUS_OUTPUT + inputs * _BUS_INPUT,
    )


def _printed(resources: Resources, board: Board) -> str:
    limits = [getattr(board, limit) for _, limit, _ in _KINDS]
    needs = [getattr(resources, kind) for kind, _, _ in _KINDS]
    rows = [
        *resources.rows(),
        (f"{board.device} ({board.name}) has", "", *map(str, limits)),
        ("share", "", *(f"{n / m:.0%}" if m else "-" for n, m in zip(needs, limits, strict=True))),
    ]
    return "\n".join(
        [
            f"build {resources.build} on {board.device}: estimated, not synthesised",
            table(rows),
            "",
            resources.reasons(),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Print the table of a build on a board; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pynq_bbs.resources", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--build", help="name or JSON file of a build (default: the board's)")
    parser.add_argument("--board", default="Pynq-Z2", help="board by name (default: Pynq-Z2)")
    args = parser.parse_args(argv)
    try:
        board = load_board(args.board)
        build = load_build(args.build or board.build)
        print(_printed(estimate(build, board.family), board), flush=True)
        check_fits(build, board)
    except BbsError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
