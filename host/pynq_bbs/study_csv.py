# SPDX-License-Identifier: Apache-2.0
"""A study's rows in a CSV file, each written when its run has finished."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path

from .errors import InputError
from .study import Row

_MARK = b"# bbs study "
_TYPES = {"str": str, "float": float, "int": int}


class Rows:
    """The file of one study. Of a line that was cut off nothing is left; all others are kept."""

    def __init__(self, path: Path, key: str, *, restart: bool = False) -> None:
        """
        Args:
            key: of the study (`Study.key`), in the file's first line.
            restart: forget the rows of the study that the file is of, whichever that is.

        Raises:
            InputError: the file is of another study, or damaged, or cannot be read or written.
        """
        self._path = path
        self._head = _MARK + key.encode() + b"\n" + _line([field.name for field in fields(Row)])
        self.rows: list[Row] = []
        try:
            found = path.read_bytes() if path.exists() else b""
            if self._is_new(found, restart):
                path.write_bytes(self._head)
                return
            whole = found[: found.rfind(b"\n") + 1]
            if len(whole) < len(found):
                os.truncate(path, len(whole))
        except OSError as error:
            raise InputError(f"cannot read and write {path}: {error.strerror}") from None
        lines = whole[len(self._head) :].decode(errors="replace")
        for number, cells in enumerate(csv.reader(io.StringIO(lines)), 3):
            self.rows.append(self._row(number, cells))

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns."""
        try:
            with open(self._path, "ab") as file:
                file.write(_line(astuple(row)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from None
        self.rows.append(row)

    def _is_new(self, found: bytes, restart: bool) -> bool:
        if self._head.startswith(found):  # cut off in its head, or not there yet
            return True
        if not found.startswith(_MARK):
            raise InputError(f"{self._path} is no file of `bbs study`; name another -o")
        if found.count(b"\n") <= self._head.count(b"\n"):  # no row that could be lost
            return not found.startswith(self._head)
        if not restart and not found.startswith(self._head):
            raise InputError(
                f"{self._path} is of another model, other data or other options than these: "
                "name another -o to keep it, or start anew with --restart"
            )
        return restart

    def _row(self, number: int, cells: list[str]) -> Row:
        try:
            pairs = zip(fields(Row), cells, strict=True)
            return Row(*(_TYPES[str(field.type)](cell) for field, cell in pairs))
        except ValueError:
            raise InputError(
                f"{self._path}, line {number}: not a row of a study; delete the line, and its run "
                "is run again"
            ) from None


def _line(cells: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
