# SPDX-License-Identifier: Apache-2.0
"""The HLS pragmas that we use, as Vitis HLS 2022.1 to 2024.2 take them (UG1399).

A compiler ignores a pragma that it does not know, and so does Vitis HLS with an option that it
does not know: a slip of the pen costs an order of magnitude and no warning that anybody reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

#: what the value of an option may be, besides one of a set of words
NUMBER = "a number or a constant"
NAME = "a name"

Kind = str | frozenset[str]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True)
class Form:
    """One pragma: its bare words, its options, and what it cannot go without."""

    flags: frozenset[str] = frozenset()
    options: dict[str, Kind] = field(default_factory=dict)
    #: each entry: at least one of these words must be there
    required: tuple[frozenset[str], ...] = ()


_VARIABLE = (frozenset({"variable"}),)
_SHAPES = _words("complete block cyclic")
_ARRAY = Form(
    _SHAPES,
    {"variable": NAME, "type": _SHAPES, "factor": NUMBER, "dim": NUMBER},
    (*_VARIABLE, _SHAPES | {"type"}),
)
_MEMORIES = _words("ram_1p ram_1wnr ram_2p ram_s2p ram_t2p rom_1p rom_2p rom_np fifo")
_OPERATIONS = _words("mul add sub fadd fsub fmul fdiv dadd dsub dmul")
_DEPENDENCE_TYPES = _words("inter intra")
_TRUTH = _words("true false")

FORMS: dict[str, Form] = {
    "INTERFACE m_axi": Form(
        _words("m_axi"),
        {
            "port": NAME,
            "bundle": NAME,
            "offset": _words("slave direct off"),
            "depth": NUMBER,
            "latency": NUMBER,
            "max_read_burst_length": NUMBER,
            "max_write_burst_length": NUMBER,
            "num_read_outstanding": NUMBER,
            "num_write_outstanding": NUMBER,
            "max_widen_bitwidth": NUMBER,
        },
        tuple(frozenset({o}) for o in "port bundle offset depth max_widen_bitwidth".split()),
    ),
    "INTERFACE s_axilite": Form(
        _words("s_axilite"),
        {"port": NAME, "bundle": NAME, "offset": NUMBER},
        (frozenset({"port"}), frozenset({"bundle"})),
    ),
    "PIPELINE": Form(
        _words("off rewind"), {"II": NUMBER, "style": _words("stp frp flp")}, (_words("II off"),)
    ),
    "UNROLL": Form(_words("skip_exit_check"), {"factor": NUMBER, "off": _TRUTH}),
    "DATAFLOW": Form(_words("disable_start_propagation")),
    "INLINE": Form(_words("off recursive")),
    "STREAM": Form(
        options={"variable": NAME, "depth": NUMBER, "type": _words("fifo pipo shared unsync")},
        required=_VARIABLE,
    ),
    "ARRAY_PARTITION": _ARRAY,
    "ARRAY_RESHAPE": _ARRAY,
    "AGGREGATE": Form(
        options={"variable": NAME, "compact": _words("bit byte none auto")}, required=_VARIABLE
    ),
    "DISAGGREGATE": Form(options={"variable": NAME}, required=_VARIABLE),
    "BIND_STORAGE": Form(
        options={
            "variable": NAME,
            "type": _MEMORIES,
            "impl": _words("auto bram lutram memory srl uram"),
            "latency": NUMBER,
        },
        required=(*_VARIABLE, _words("type")),
    ),
    "BIND_OP": Form(
        options={
            "variable": NAME,
            "op": _OPERATIONS,
            "impl": _words("dsp fabric fulldsp maxdsp meddsp primitivedsp"),
            "latency": NUMBER,
        },
        required=(*_VARIABLE, _words("op")),
    ),
    "DEPENDENCE": Form(
        _DEPENDENCE_TYPES | _TRUTH | _words("array pointer RAW WAR WAW"),
        {
            "variable": NAME,
            "class": _words("array pointer"),
            "type": _DEPENDENCE_TYPES,
            "direction": _words("RAW WAR WAW"),
            "distance": NUMBER,
            "dependent": _TRUTH,
        },
        (*_VARIABLE, _DEPENDENCE_TYPES | {"type"}, _TRUTH | {"dependent", "distance"}),
    ),
    "LOOP_TRIPCOUNT": Form(
        options={"min": NUMBER, "max": NUMBER, "avg": NUMBER}, required=(_words("max"),)
    ),
    "LOOP_FLATTEN": Form(_words("off")),
    "LOOP_MERGE": Form(_words("force")),
    "LATENCY": Form(options={"min": NUMBER, "max": NUMBER}, required=(_words("min max"),)),
    "ALLOCATION": Form(
        _words("function operation"),
        {"instances": NAME, "limit": NUMBER},
        (_words("instances"), _words("limit")),
    ),
    "RESET": Form(_words("off"), {"variable": NAME}, _VARIABLE),
    "STABLE": Form(options={"variable": NAME}, required=_VARIABLE),
    "FUNCTION_INSTANTIATE": Form(options={"variable": NAME}, required=_VARIABLE),
}

#: pragmas that act on the loop they stand in
IN_LOOPS = {"UNROLL", "LOOP_TRIPCOUNT", "LOOP_FLATTEN"}


@dataclass(frozen=True)
class Pragma:
    """A pragma of a source file; `line` is where it begins."""

    file: str
    line: int
    name: str
    flags: tuple[str, ...]
    options: dict[str, str]

    @property
    def form(self) -> Form | None:
        if self.name != "INTERFACE":
            return FORMS.get(self.name)
        return FORMS.get(f"INTERFACE {self.flags[0]}") if self.flags else None

    @property
    def target(self) -> str | None:
        """The variable or port that it speaks of."""
        return self.options.get("variable") or self.options.get("port")

    def number(self, option: str) -> int:
        return int(self.options[option], 0)


def find_pragmas(file: str, text: str) -> Iterator[Pragma]:
    """Every `#pragma HLS` of a source text, continued lines joined."""
    lines = text.split("\n")
    index = 0
    while index < len(lines):
        start, line = index, lines[index]
        while line.endswith("\\") and index + 1 < len(lines):
            index += 1
            line = line[:-1] + lines[index]
        index += 1
        found = re.match(r"\s*#\s*pragma\s+HLS\b(.*)", line, re.IGNORECASE)
        if found:
            text_of_it = re.sub(r"//.*|/\*.*?\*/", "", found[1])
            words = re.sub(r"\s*=\s*", "=", text_of_it).split()
            yield _pragma(file, start + 1, words)


def _pragma(file: str, line: int, words: list[str]) -> Pragma:
    name = words[0].upper() if words else ""
    options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    # mode=m_axi and m_axi alone are the same
    flags = [word for word in words[1:] if "=" not in word]
    if name == "INTERFACE" and "mode" in options:
        flags.insert(0, options.pop("mode"))
    return Pragma(file, line, name, tuple(flags), options)


def pragma_problems(pragma: Pragma, constants: set[str]) -> Iterator[str]:
    """What is wrong with a pragma by itself; `constants` are names that count as numbers."""
    form = pragma.form
    if form is None:
        what = " ".join([pragma.name, *pragma.flags[:1]])
        yield f"unknown pragma {what!r}"
        return
    for flag in pragma.flags:
        if flag not in form.flags:
            yield f"{pragma.name} takes no {flag!r}"
    for option, value in pragma.options.items():
        kind = form.options.get(option)
        if kind is None:
            yield f"{pragma.name} takes no option {option!r}"
        elif not _fits(value, kind, constants):
            wanted = kind if isinstance(kind, str) else "one of " + ", ".join(sorted(kind))
            yield f"{pragma.name}: {option} is {value!r}, wanted {wanted}"
    given = {*pragma.flags, *pragma.options}
    for choice in form.required:
        if not choice & given:
            yield f"{pragma.name} lacks {' or '.join(sorted(choice))}"


def _fits(value: str, kind: Kind, constants: set[str]) -> bool:
    if isinstance(kind, frozenset):
        return value in kind
    if kind == NAME:
        return re.fullmatch(r"[A-Za-z_]\w*", value) is not None
    return re.fullmatch(r"\d+|0[xX][0-9a-fA-F]+", value) is not None or value in constants
