# SPDX-License-Identifier: Apache-2.0
"""What Vitis HLS would say only where it is installed, or not at all.

Checks pragmas, the canonical form of dataflow regions, loops and forbidden constructs in the
engine's sources as the synthesiser sees them. It cannot see II, timing or area.
`python tests/hls_lint.py` prints the findings.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clang.cindex import Cursor, CursorKind, Diagnostic, StorageClass, Type, TypeKind

from hls_pragmas import IN_LOOPS, Pragma, pragma_problems
from hls_source import Call, Function, Loop, Source, file_of, read_call, unwrap

_FORBIDDEN = {
    CursorKind.CXX_NEW_EXPR: "new",
    CursorKind.CXX_DELETE_EXPR: "delete",
    CursorKind.CXX_TRY_STMT: "try",
    CursorKind.CXX_THROW_EXPR: "throw",
    CursorKind.LAMBDA_EXPR: "a lambda",
    CursorKind.CXX_DYNAMIC_CAST_EXPR: "dynamic_cast",
    CursorKind.CXX_TYPEID_EXPR: "typeid",
    CursorKind.GOTO_STMT: "goto",
    CursorKind.CXX_FOR_RANGE_STMT: "a range-based for",
}
#: Lines of a function.
MOST_LINES = 60
_FORBIDDEN_WORDS = {"double", "volatile", "virtual", "std", "printf", "__VITIS_HLS__"}


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong."""

    file: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.text}"


Problems = Iterator[tuple[str, int, str]]


def lint(path: Path, generated: dict[str, str], interface: dict[str, Any] | None = None) -> list[
    Finding
]:  # fmt: skip
    """Everything wrong with a source and the headers of its folder that it includes.

    Args:
        generated: headers that are not in the folder, name -> text.
        interface: the table of registers, to hold the top function's ports against.
    """
    source = Source(path, generated)
    findings = [Finding(*problem) for problem in _parse_problems(source)]
    if findings:  # what clang cannot read, the rules below cannot judge
        return findings
    for rule, check in RULES.items():
        findings += [Finding(file, line, rule, text) for file, line, text in check(source)]
    if interface is not None:
        ports = _interface_problems(source, interface)
        findings += [Finding(file, line, "interface", text) for file, line, text in ports]
    return sorted(set(findings))


def _parse_problems(source: Source) -> Iterator[tuple[str, int, str, str]]:
    for found in source.unit.diagnostics:
        if found.severity >= Diagnostic.Error:
            place = found.location
            name = Path(place.file.name).name if place.file else ""
            yield name, place.line, "parse", found.spelling


def check_pragmas(source: Source) -> Problems:
    """Known pragmas with known options, in a place where they act."""
    for pragma in source.pragmas:
        for text in pragma_problems(pragma, source.constants):
            yield pragma.file, pragma.line, text
    placed = {id(p) for f in source.functions for p in f.pragmas}
    placed |= {id(p) for f in source.functions for one in f.loops for p in one.pragmas}
    for pragma in source.pragmas:
        if id(pragma) not in placed:
            yield pragma.file, pragma.line, f"{pragma.name} stands outside any function"
    for function in source.functions:
        for pragma in function.pragmas:
            if pragma.name in IN_LOOPS:
                yield pragma.file, pragma.line, f"{pragma.name} stands outside any loop"
        for loop in function.loops:
            for pragma in loop.pragmas:
                if pragma.name in ("INTERFACE", "INLINE"):
                    yield pragma.file, pragma.line, f"{pragma.name} stands inside a loop"


def check_variables(source: Source) -> Problems:
    """`variable=` names something that the function has, declared before the pragma."""
    for function in source.functions:
        for pragma in [*function.pragmas, *(p for one in function.loops for p in one.pragmas)]:
            target = pragma.target
            if target is None or target == "return":
                continue
            if "port" in pragma.options:
                if target not in function.parameters:
                    yield pragma.file, pragma.line, f"{function.name} has no parameter {target!r}"
            elif target in function.locals:
                if function.locals[target].location.line > pragma.line:
                    yield pragma.file, pragma.line, f"{target!r} is declared after its pragma"
            elif target not in function.parameters:
                yield pragma.file, pragma.line, f"{function.name} has no variable {target!r}"


def check_claims(source: Source) -> Problems:
    """A pragma that asserts something has a comment right above that says why it is true."""
    for pragma in source.pragmas:
        if pragma.name != "DEPENDENCE":
            continue
        above = source.texts[pragma.file].split("\n")[pragma.line - 2]
        if not above.strip().startswith("//"):
            yield pragma.file, pragma.line, "DEPENDENCE without a comment above that justifies it"


def check_loops(source: Source) -> Problems:
    """Every loop has a label and an end."""
    for function in source.functions:
        for loop in function.loops:
            if loop.label is None:
                yield function.file, loop.line, f"a loop of {function.name} has no label"
            if loop.cursor.kind == CursorKind.FOR_STMT:
                endless = len(loop.head) < 2 or not loop.head[1]
            else:
                endless = loop.head[0] in (["true"], ["1"])
            if endless:
                yield function.file, loop.line, f"a loop of {function.name} has no bound"


def _constant(words: list[str], source: Source) -> bool:
    """No name among the words but constants (and casts to plain types)."""
    types = {"int", "uint32_t", "int32_t", "uint64_t", "unsigned", "sizeof"}
    names = [w for w in words if re.match(r"[A-Za-z_]", w)]
    return all(name in source.constants | types for name in names)


def _unrollable(loop: Loop, source: Source) -> bool:
    """A for loop whose bound is known when the hardware is made."""
    if loop.cursor.kind != CursorKind.FOR_STMT or len(loop.head) < 2:
        return False
    start, bound = loop.head[0], loop.head[1]
    counter = start[start.index("=") - 1] if "=" in start else ""
    first = start[start.index("=") + 1 :] if "=" in start else []
    return _constant([w for w in bound if w != counter], source) and _constant(first, source)


def _pipelined(source: Source) -> Iterator[tuple[Function, Cursor, str]]:
    """Every piece of code that runs in a pipeline: (function, piece, whose pipeline)."""
    starts: list[tuple[Function, Cursor, str]] = []
    for function in source.functions:
        if function.has("PIPELINE"):
            starts.append((function, function.body, function.name))
        starts += [
            (function, loop.body, f"loop {loop.label} of {function.name}")
            for loop in function.loops
            if loop.has("PIPELINE")
        ]
    for function, piece, owner in starts:
        yield function, piece, owner
        seen: set[str] = set()
        names = [call.name for call in function.calls if _within(call.cursor, piece)]
        while names:
            callee = source.function_named(names.pop())
            if callee and callee.name not in seen:
                seen.add(callee.name)
                yield callee, callee.body, owner
                names += [call.name for call in callee.calls]


def _within(inner: Cursor, outer: Cursor) -> bool:
    a, b = inner.extent, outer.extent
    return bool(
        file_of(inner) == file_of(outer)
        and b.start.offset <= a.start.offset
        and a.end.offset <= b.end.offset
    )


def check_pipelines(source: Source) -> Problems:
    """Below a PIPELINE every loop is unrolled; an unrolled loop has a constant bound."""
    for function, piece, owner in _pipelined(source):
        for loop in function.loops:
            if _within(loop.cursor, piece) and not loop.has("UNROLL"):
                text = f"loop {loop.label} lies in the pipeline of {owner} and is not unrolled"
                yield function.file, loop.line, text
    for function in source.functions:
        for loop in function.loops:
            if loop.has("UNROLL") and not _unrollable(loop, source):
                text = f"loop {loop.label} is unrolled, but its bound is not constant"
                yield function.file, loop.line, text


def check_divisions(source: Source) -> Problems:
    """No division by a variable: a divider of tens of stages each. Commands hold quotients."""
    for function in source.functions:
        tokens = [t.spelling for t in function.body.get_tokens()]
        for i, word in enumerate(tokens[:-1]):
            if word in ("/", "%", "/=", "%=") and not _constant(tokens[i + 1 : i + 2], source):
                text = f"{word} by {tokens[i + 1]!r} in {function.name}"
                yield function.file, function.line, text


def check_constructs(source: Source) -> Problems:
    """Nothing that Vitis HLS refuses or that has no meaning in hardware."""
    for cursor in source.unit.cursor.walk_preorder():
        file, line = file_of(cursor), cursor.location.line
        if file not in source.texts:
            continue
        if cursor.kind in _FORBIDDEN:
            yield file, line, f"{_FORBIDDEN[cursor.kind]} cannot be synthesised"
        if cursor.kind == CursorKind.VAR_DECL and cursor.storage_class == StorageClass.STATIC:
            if not _is_lasting_memory(cursor):
                yield file, line, f"static variable {cursor.spelling!r} outlives a command"
    for path in source.paths:
        active = source.active(path)
        extent = source.unit.get_extent(str(path), ((1, 1), (10**6, 1)))
        for token in source.unit.get_tokens(extent=extent):
            if token.spelling in _FORBIDDEN_WORDS and token.location.line in active:
                yield path.name, token.location.line, f"{token.spelling} has no place in hardware"


def _is_lasting_memory(variable: Cursor) -> bool:
    """A memory of the top function: what is meant to outlive a command is handed to a region.

    Memories alone: a static scalar would be state that nobody sees in a signature.
    """
    inside = variable.semantic_parent
    array = variable.type.get_canonical().kind == TypeKind.CONSTANTARRAY
    return array and inside is not None and inside.spelling == "bbs_engine"


def check_recursion(source: Source) -> Problems:
    """No function calls itself, directly or through others."""
    calls = {f.name: {call.name for call in f.calls} for f in source.functions}
    for function in source.functions:
        reached: set[str] = set()
        names = set(calls[function.name])
        while names:
            name = names.pop()
            if name not in reached:
                reached.add(name)
                names |= calls.get(name, set())
        if function.name in reached:
            yield function.file, function.line, f"{function.name} calls itself"


def _plain_name(argument: Cursor) -> str | None:
    """The variable that an argument is, if it is nothing more."""
    inner = unwrap(argument)
    while inner.kind == CursorKind.CALL_EXPR and _copies(inner):  # a struct passed by value
        inner = unwrap(next(iter(inner.get_children())))
    return str(inner.spelling) if inner.kind == CursorKind.DECL_REF_EXPR else None


def _copies(call: Cursor) -> bool:
    target = call.referenced
    constructs = target is not None and target.kind == CursorKind.CONSTRUCTOR
    return constructs and len(list(call.get_children())) == 1


@dataclass
class Region:
    """The body of a dataflow region."""

    function: Function
    body: Cursor
    loop: Loop | None


def _regions(source: Source) -> Iterator[Region]:
    for function in source.functions:
        if function.has("DATAFLOW"):
            yield Region(function, function.body, None)
        for loop in function.loops:
            if loop.has("DATAFLOW"):
                yield Region(function, loop.body, loop)


def _statements(region: Region) -> tuple[list[Cursor], list[Call], list[tuple[Cursor, str]]]:
    """Channels, processes, and what is neither, of a region."""
    channels: list[Cursor] = []
    processes: list[Call] = []
    others: list[tuple[Cursor, str]] = []
    for statement in region.body.get_children():
        inner = unwrap(statement)
        if inner.kind == CursorKind.NULL_STMT:
            continue
        if inner.kind == CursorKind.DECL_STMT:
            if processes:
                others.append((inner, "a declaration after the first process"))
            if any(token.spelling == "=" for token in inner.get_tokens()):
                others.append((inner, "a declaration with an initialiser"))
            channels += [c for c in inner.get_children() if c.kind == CursorKind.VAR_DECL]
        elif inner.kind == CursorKind.CALL_EXPR:
            if inner.type.kind != TypeKind.VOID:
                others.append((inner, "a call that returns something"))
            processes.append(read_call(inner))
        else:
            what = inner.kind.name.lower().replace("_", " ")
            others.append((inner, f"a {what}"))
    return channels, processes, others


def check_dataflow(source: Source) -> Problems:
    """A region is declarations, then calls of void functions with plain names as arguments."""
    for region in _regions(source):
        _, processes, others = _statements(region)
        file, name = region.function.file, region.function.name
        for cursor, what in others:
            yield file, cursor.location.line, f"{what} in the dataflow region of {name}"
        for call in processes:
            callee = source.function_named(call.name)
            if callee is None or callee.has("INLINE"):
                text = f"{call.name} is no process: wants a body here and no INLINE"
                yield file, call.cursor.location.line, text
            for argument in call.arguments:
                if _plain_name(argument) is None:
                    words = " ".join(t.spelling for t in argument.get_tokens())
                    text = f"expression {words!r} as an argument of process {call.name}"
                    yield file, call.cursor.location.line, text
            if region.loop is not None:
                for argument in call.arguments:
                    if argument.type.get_canonical().spelling == "const unsigned long *":
                        text = f"memory port in the overlapping region of loop {region.loop.label}"
                        yield file, call.cursor.location.line, text


def _is_constant_data(declared: Type) -> bool:
    """Whether what a pointer, reference or array leads to is const, at any level of arrays."""
    data = declared.get_canonical()
    while data.kind in (TypeKind.POINTER, TypeKind.LVALUEREFERENCE):
        data = data.get_pointee()
    while data.kind == TypeKind.CONSTANTARRAY and not data.is_const_qualified():
        data = data.element_type
    return bool(data.is_const_qualified())


def directions(source: Source, name: str, parameter: int) -> set[str]:
    """What a function does with a parameter: "read", "write", both, or nothing."""
    function = source.function_named(name)
    if function is None or parameter >= len(function.parameters):
        return set()
    wanted = list(function.parameters)[parameter]
    declared = function.parameters[wanted].type
    if "stream<" not in declared.get_canonical().spelling and "Stream<" not in declared.spelling:
        return {"read"} if _is_constant_data(declared) else {"write"}
    words = [t.spelling for t in function.body.get_tokens()]
    found = {
        words[i + 2]
        for i in range(len(words) - 2)
        if words[i] == wanted and words[i + 1] == "." and words[i + 2] in ("read", "write")
    }
    for call in function.calls:
        for place, argument in enumerate(call.arguments):
            if _plain_name(argument) == wanted:
                found |= directions(source, call.name, place)
    return found


def check_channels(source: Source) -> Problems:
    """A channel has one writer and one reader, the writer comes first, and it has a depth."""
    for region in _regions(source):
        channels, processes, _ = _statements(region)
        file = region.function.file
        for channel in channels:
            uses: list[tuple[str, str]] = []
            for call in processes:
                for place, argument in enumerate(call.arguments):
                    if _plain_name(argument) == channel.spelling:
                        found = sorted(directions(source, call.name, place))
                        uses += [(direction, call.name) for direction in found]
            if [direction for direction, _ in uses] != ["write", "read"]:
                told = ", ".join(f"{d} by {n}" for d, n in uses) or "unused"
                text = f"channel {channel.spelling} wants one writer, then one reader: {told}"
                yield file, channel.location.line, text
            kind = channel.type.get_canonical().spelling
            if kind.startswith("hls::stream<") and not re.search(r", [1-9]\d*>$", kind):
                deep = {p.target for p in region.function.pragmas if p.name == "STREAM"}
                if channel.spelling not in deep:
                    text = f"channel {channel.spelling} has no depth: the default is 2"
                    yield file, channel.location.line, text


def check_lasting(source: Source) -> Problems:
    """What a region is handed and outlives it has one owner.

    A memory belongs to one process: two would be a race, or a copy. A stream that comes from
    outside may be read and written in one region (feedback from command to command), by one
    process each, in any order, since nobody waits for what the same command writes.
    """
    for region in _regions(source):
        if region.loop is not None:
            continue
        _, processes, _ = _statements(region)
        for name, cursor in region.function.parameters.items():
            users = [
                (call.name, place)
                for call in processes
                for place, argument in enumerate(call.arguments)
                if _plain_name(argument) == name
            ]
            told = ", ".join(user for user, _ in users) or "none"
            where = region.function.file, cursor.location.line
            if "stream<" in cursor.type.get_canonical().spelling:
                uses = sorted(d for user in users for d in directions(source, *user))
                if uses != ["read", "write"]:
                    text = f"stream {name} wants one reader and one writer: {told}"
                    yield *where, text
            elif _is_memory(cursor.type) and len(users) != 1:
                yield *where, f"memory {name} wants one process: {told}"


def _is_memory(declared: Type) -> bool:
    """An array parameter; a pointer to words is a port (`check_ports`)."""
    return declared.get_canonical().kind in (TypeKind.CONSTANTARRAY, TypeKind.INCOMPLETEARRAY)


def check_length(source: Source) -> Problems:
    """No function is longer than a screen, but a list: a dataflow region, the command's fields."""
    for function in source.functions:
        extent = function.cursor.extent
        lines = extent.end.line - extent.start.line + 1
        is_list = function.has("DATAFLOW") or function.name == "decode_command"
        if lines > MOST_LINES and not is_list:
            yield function.file, function.line, f"{function.name} has {lines} lines"


def check_ports(source: Source) -> Problems:
    """Each memory port is used by one process of a region, so that it bursts."""
    for region in _regions(source):
        _, processes, _ = _statements(region)
        for name, cursor in region.function.parameters.items():
            if cursor.type.get_canonical().spelling.removeprefix("const ") != "unsigned long *":
                continue
            users = [
                call.name for call in processes for a in call.arguments if _plain_name(a) == name
            ]
            if len(users) != 1:
                text = f"memory port {name} has {len(users)} processes: {', '.join(users)}"
                yield region.function.file, cursor.location.line, text


RULES: dict[str, Callable[[Source], Problems]] = {
    "pragma": check_pragmas,
    "variable": check_variables,
    "claim": check_claims,
    "loop": check_loops,
    "pipeline": check_pipelines,
    "division": check_divisions,
    "construct": check_constructs,
    "recursion": check_recursion,
    "dataflow": check_dataflow,
    "channel": check_channels,
    "lasting": check_lasting,
    "port": check_ports,
    "length": check_length,
}


def _interface_problems(source: Source, interface: dict[str, Any]) -> Problems:
    """The ports of bbs_engine are the registers of hls/interface.json, at their offsets."""
    top = source.function_named("bbs_engine")
    if top is None:
        yield source.paths[0].name, 1, "there is no function bbs_engine"
        return
    wanted = {register["name"]: register for register in interface["registers"]}
    if set(wanted) != set(top.parameters):
        difference = sorted(set(wanted) ^ set(top.parameters))
        yield top.file, top.line, f"not both register and parameter: {', '.join(difference)}"
    slaves = {p.target: p for p in top.pragmas if p.name == "INTERFACE" and "s_axilite" in p.flags}
    masters = {p.target: p for p in top.pragmas if p.name == "INTERFACE" and "m_axi" in p.flags}
    if "return" not in slaves:
        yield top.file, top.line, "no s_axilite for return: no start, done and idle"
    for name in set(wanted) & set(top.parameters):
        register, slave = wanted[name], slaves.get(name)
        if slave is None or slave.options.get("offset") is None:
            yield top.file, top.line, f"{name} has no s_axilite with an offset"
        elif slave.number("offset") != register["offset"]:
            yield slave.file, slave.line, f"{name} wants offset {register['offset']:#x}"
        if bool(register.get("port")) != (name in masters):
            yield top.file, top.line, f"m_axi or not: {name} differs from the table"
    if len({p.options.get("bundle") for p in slaves.values()}) > 1:
        yield top.file, top.line, "the registers lie in more than one bundle"
    for name, master in masters.items():
        if name in top.parameters:
            yield from _master_problems(name or "", master, top)
    yield from _overlaps(top, interface["registers"])


def _master_problems(name: str, master: Pragma, top: Function) -> Problems:
    reads = top.parameters[name].type.get_pointee().is_const_qualified()
    kind = "read" if reads else "write"
    for option in (f"max_{kind}_burst_length", f"num_{kind}_outstanding"):
        if option not in master.options:
            yield master.file, master.line, f"{name} lacks {option}"
    expected = {"bundle": name, "offset": "slave", "max_widen_bitwidth": "0"}
    for option, value in expected.items():
        if master.options.get(option, value) != value:
            yield master.file, master.line, f"{name} wants {option}={value}"


def _overlaps(top: Function, registers: list[dict[str, Any]]) -> Problems:
    """A register takes its data words and one more; the first four words are ap_ctrl_hs."""
    end = 0x10
    for register in sorted(registers, key=lambda r: int(r["offset"])):
        if register["offset"] < end or register["offset"] % 4:
            yield top.file, top.line, f"register {register['name']} lies over its neighbour"
        end = register["offset"] + 4 * (register["bits"] // 32 + 1)


def engine_findings() -> list[Finding]:
    """The findings of the engine itself, for its first build."""
    from pynq_bbs.builds import load_build
    from pynq_bbs.codegen import build_header
    from pynq_bbs.paths import hls_dir

    interface = json.loads((hls_dir() / "interface.json").read_text(encoding="utf-8"))
    generated = {"build.hpp": build_header(load_build("8x32"))}
    return lint(hls_dir() / "engine.cpp", generated, interface)


if __name__ == "__main__":
    findings = engine_findings()
    print(*findings, sep="\n")
    sys.exit(bool(findings))
