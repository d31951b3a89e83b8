# SPDX-License-Identifier: Apache-2.0
"""The engine's sources as the synthesiser sees them, through libclang.

Parsed with `__SYNTHESIS__` and with no headers but the stubs below: a standard header that Vitis
HLS cannot synthesise is not found, and so becomes an error.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from clang import cindex
from clang.cindex import Cursor, CursorKind, TranslationUnit

from hls_pragmas import Pragma, find_pragmas

STUBS = {
    "cstdint": """
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
""",
    "ap_int.h": """
#pragma once
template <int kBits>
struct ap_int {
  ap_int();
  ap_int(long value);
  operator long() const;
};
template <int kBits>
struct ap_uint {
  ap_uint();
  ap_uint(unsigned long value);
  operator unsigned long() const;
};
""",
    "cstddef": "typedef unsigned long size_t;\n",
    "hls_stream.h": """
namespace hls {
template <typename T, int kDepth = 0>
class stream {
 public:
  stream();
  explicit stream(const char* name);
  T read();
  void write(const T& value);
  bool empty();
  bool full();

 private:
  stream(const stream&);
};
}  // namespace hls
""",
}

LOOPS = {
    CursorKind.FOR_STMT,
    CursorKind.WHILE_STMT,
    CursorKind.DO_STMT,
    CursorKind.CXX_FOR_RANGE_STMT,
}
_FUNCTIONS = {
    CursorKind.FUNCTION_DECL,
    CursorKind.FUNCTION_TEMPLATE,
    CursorKind.CXX_METHOD,
    CursorKind.CONSTRUCTOR,
    CursorKind.DESTRUCTOR,
}


def unwrap(cursor: Cursor) -> Cursor:
    """The cursor below implicit conversions and temporaries."""
    while cursor.kind in (CursorKind.UNEXPOSED_EXPR, CursorKind.UNEXPOSED_STMT):
        children = list(cursor.get_children())
        if len(children) != 1:
            break
        cursor = children[0]
    return cursor


def spans(cursor: Cursor, file: str, line: int) -> bool:
    extent = cursor.extent
    return file_of(cursor) == file and extent.start.line <= line <= extent.end.line


def file_of(cursor: Cursor) -> str:
    file = cursor.location.file
    return Path(file.name).name if file else ""


@dataclass
class Call:
    """A call: the name as written, and its arguments."""

    name: str
    arguments: list[Cursor]
    cursor: Cursor


@dataclass
class Loop:
    """A loop of a function; `outer` is the one around it."""

    cursor: Cursor
    label: str | None
    function: Function
    outer: Loop | None
    pragmas: list[Pragma] = field(default_factory=list)

    @property
    def body(self) -> Cursor:
        children = list(self.cursor.get_children())
        return children[0] if self.cursor.kind == CursorKind.DO_STMT else children[-1]

    @property
    def line(self) -> int:
        return int(self.cursor.extent.start.line)

    def has(self, pragma: str) -> bool:
        return any(p.name == pragma and "off" not in p.flags for p in self.pragmas)

    @cached_property
    def head(self) -> list[list[str]]:
        """The words between the parentheses, split at semicolons."""
        parts: list[list[str]] = [[]]
        depth = 0
        for token in self.cursor.get_tokens():
            word = token.spelling
            depth += (word == "(") - (word == ")")
            if depth == 0 and word == ")":
                break
            if depth == 1 and word == ";":
                parts.append([])
            elif depth > 0 and not (depth == 1 and word == "(" and parts == [[]]):
                parts[-1].append(word)
        return parts


@dataclass
class Function:
    """A function that has a body."""

    cursor: Cursor
    file: str
    body: Cursor
    parameters: dict[str, Cursor]
    locals: dict[str, Cursor] = field(default_factory=dict)
    loops: list[Loop] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    pragmas: list[Pragma] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.cursor.spelling)

    @property
    def line(self) -> int:
        return int(self.cursor.location.line)

    def has(self, pragma: str) -> bool:
        return any(p.name == pragma and "off" not in p.flags for p in self.pragmas)


class Source:
    """One translation unit and everything of it that lies in its own folder."""

    def __init__(self, path: Path, generated: dict[str, str]) -> None:
        self.folder = path.parent
        with tempfile.TemporaryDirectory() as stubs:
            for name, text in {**STUBS, **generated}.items():
                (Path(stubs) / name).write_text(text, encoding="utf-8")
            arguments = ["-std=c++14", "-D__SYNTHESIS__", "-nostdinc", "-nostdinc++"]
            self.unit = cindex.Index.create().parse(
                str(path),
                args=[*arguments, "-Wno-unknown-pragmas", f"-I{stubs}", f"-I{self.folder}"],
                options=TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD,
            )
            self._read(path)

    def _read(self, path: Path) -> None:
        included = {Path(i.include.name) for i in self.unit.get_includes()}
        self.paths = [path, *sorted(p for p in included if p.parent == self.folder)]
        self.texts = {p.name: p.read_text(encoding="utf-8") for p in self.paths}
        self.constants: set[str] = set()
        self.functions: list[Function] = []
        self._declarations(self.unit.cursor)
        self.pragmas = [p for p in self._pragmas()]

    def active(self, path: Path) -> set[int]:
        """Lines of a file that `__SYNTHESIS__` leaves in."""
        skipped = set(_skipped_lines(self.unit, path))
        count = len(self.texts[path.name].split("\n"))
        return {line for line in range(1, count + 1) if line not in skipped}

    def function_named(self, name: str) -> Function | None:
        return next((f for f in self.functions if f.name == name), None)

    def _declarations(self, cursor: Cursor) -> None:
        for child in cursor.get_children():
            kind = child.kind
            if kind in (CursorKind.VAR_DECL, CursorKind.ENUM_CONSTANT_DECL):
                self.constants.add(child.spelling)
            if kind in _FUNCTIONS and child.is_definition():
                if file_of(child) in self.texts:
                    self._function(child)
            elif kind in (
                CursorKind.NAMESPACE,
                CursorKind.LINKAGE_SPEC,
                CursorKind.UNEXPOSED_DECL,
                CursorKind.CLASS_DECL,
                CursorKind.STRUCT_DECL,
                CursorKind.CLASS_TEMPLATE,
                CursorKind.ENUM_DECL,
            ):
                self._declarations(child)

    def _function(self, cursor: Cursor) -> None:
        children = list(cursor.get_children())
        body = next((c for c in children if c.kind == CursorKind.COMPOUND_STMT), None)
        if body is None:
            return
        parameters = {c.spelling: c for c in children if c.kind == CursorKind.PARM_DECL}
        function = Function(cursor, file_of(cursor), body, parameters)
        for child in children:
            if child.kind == CursorKind.TEMPLATE_NON_TYPE_PARAMETER:
                self.constants.add(child.spelling)
        self._walk(body, function, None, None)
        self.functions.append(function)

    def _walk(
        self, cursor: Cursor, function: Function, loop: Loop | None, label: str | None
    ) -> None:
        for child in cursor.get_children():
            kind, inner, name = child.kind, loop, None
            if kind == CursorKind.LABEL_STMT:
                name = child.spelling
            elif kind in LOOPS:
                inner = Loop(child, label, function, loop)
                function.loops.append(inner)
            elif kind == CursorKind.VAR_DECL:
                function.locals[child.spelling] = child
            elif kind == CursorKind.CALL_EXPR and _is_plain_call(child):
                function.calls.append(read_call(child))
            self._walk(child, function, inner, name)

    def _pragmas(self) -> Iterator[Pragma]:
        """Active pragmas, handed to the function and loop that they stand in."""
        inside = {Path(i.include.name).name: i.location for i in self.unit.get_includes()}
        for path in self.paths:
            active = self.active(path)
            for pragma in find_pragmas(path.name, self.texts[path.name]):
                if pragma.line not in active:
                    continue
                file, line = pragma.file, pragma.line
                function = self.enclosing(file, line)
                if function is None and file in inside:
                    # a file of pragmas, included inside a function's body
                    place = inside[file]
                    file, line = Path(place.file.name).name, place.line
                    function = self.enclosing(file, line)
                if function:
                    loops = [one for one in function.loops if spans(one.body, file, line)]
                    (loops[-1] if loops else function).pragmas.append(pragma)
                yield pragma

    def enclosing(self, file: str, line: int) -> Function | None:
        found = [f for f in self.functions if spans(f.body, file, line)]
        return found[-1] if found else None


def _is_plain_call(cursor: Cursor) -> bool:
    target = cursor.referenced
    if target is not None and target.kind == CursorKind.CONSTRUCTOR:
        return False
    first = next(iter(cursor.get_children()), None)
    return first is not None


def read_call(cursor: Cursor) -> Call:
    """A call expression taken apart; also of a template, where nothing is resolved yet."""
    children = list(cursor.get_children())
    name = cursor.spelling or unwrap(children[0]).spelling
    return Call(name, children[1:], cursor)


class _Ranges(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_uint),
        ("ranges", ctypes.POINTER(cindex.SourceRange)),
    ]


def _skipped_lines(unit: TranslationUnit, path: Path) -> Iterator[int]:
    """Lines that the preprocessor left out (`clang_getSkippedRanges` has no Python binding)."""
    library = cindex.conf.lib
    library.clang_getSkippedRanges.restype = ctypes.POINTER(_Ranges)
    library.clang_getSkippedRanges.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    file = cindex.File.from_name(unit, str(path))
    found = library.clang_getSkippedRanges(unit.obj, file.obj).contents
    for index in range(found.count):
        extent = found.ranges[index]
        # from the directive that closes the taken branch to the one that opens the next
        yield from range(extent.start.line + 1, extent.end.line)
