# SPDX-License-Identifier: Apache-2.0
"""Boards: one row each in `overlay/boards.json`.

The clock of an UltraScale+ board is a goal that its PLLs make exactly (1500 MHz / 6 or
1000 MHz / 4); no build has met timing on any board yet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .errors import BuildError
from .paths import overlay_dir

#: The board that is meant where none is named.
DEFAULT_BOARD = "Pynq-Z2"
#: Share of the DDR's peak rate that long bursts reach, refresh and direction changes taken off.
USABLE_DDR = 0.75

_TABLES: dict[str, dict[str, type]] = {
    "families": {
        "processing_system": str,
        "memory_ports": int,
        "port_bits": int,
        "control_base": str,
    },
    "devices": {"family": str, "luts": int, "dsps": int, "bram36": int, "uram": int},
    "boards": {
        "name": str,
        "device": str,
        "part": str,
        "board_part": str,
        "clock_mhz": float,
        "ddr_gb_per_s": float,
        "cma_mb": int,
        "build": str,
        "verified_on_hardware": bool,
    },
}


@dataclass(frozen=True)
class Board:
    """A board, its device, and how the engine is wired on it."""

    #: as PYNQ calls it (the environment variable BOARD of its images, but for variants)
    name: str
    device: str
    #: full part number, for Vitis HLS and Vivado
    part: str
    #: name of the board files that hold the processing system's preset
    board_part: str
    #: default clock of the engine
    clock_mhz: float
    #: peak of the processing system's memory, for everything that uses it together
    ddr_gb_per_s: float
    #: MiB that the board's Linux image keeps for contiguous buffers, all programs' together
    cma_mb: int
    #: name of the build that fits the board
    build: str
    #: a bitstream of this package has been run on this board
    verified_on_hardware: bool
    family: str
    #: name of the processing system's IP
    processing_system: str
    #: HP ports, and the width each is configured for
    memory_ports: int
    port_bits: int
    #: address of the engine's registers
    control_base: int
    luts: int
    dsps: int
    bram36: int
    uram: int

    @property
    def usable_ddr_gb_per_s(self) -> float:
        """What the engine may count on: `USABLE_DDR` of the peak."""
        return USABLE_DDR * self.ddr_gb_per_s

    @property
    def cma_bytes(self) -> int:
        """What programs on the board can have of its memory at most."""
        return self.cma_mb << 20


def load_boards() -> tuple[Board, ...]:
    """All boards, in the order of `overlay/boards.json`.

    Raises:
        BuildError: the file is damaged.
    """
    return _read(overlay_dir() / "boards.json")


def load_board(name: str) -> Board:
    """The board called `name`; upper and lower case are the same.

    Raises:
        BuildError: no such board.
    """
    boards = load_boards()
    for board in boards:
        if board.name.lower() == name.lower():
            return board
    raise BuildError(
        f"unknown board {name!r}; known boards: {', '.join(b.name for b in boards)}. "
        "Name one of them, or add a row to overlay/boards.json."
    )


@cache
def _read(path: Path) -> tuple[Board, ...]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        for table, columns in _TABLES.items():
            rows = data[table]
            for row in rows if isinstance(rows, list) else rows.values():
                _check_row(table, row, columns)
        boards = tuple(_join(row, data) for row in data["boards"])
        names = [board.name.lower() for board in boards]
        if len(set(names)) != len(names):
            raise ValueError("two boards have the same name")
    except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise BuildError(
            f"{path}: not a table of boards: {error}. It comes with the package: "
            "correct it, or install the package again."
        ) from None
    return boards


def _check_row(table: str, row: dict[str, Any], columns: dict[str, type]) -> None:
    if set(row) != set(columns):
        missing, unknown = sorted(set(columns) - set(row)), sorted(set(row) - set(columns))
        raise ValueError(f"a row of {table} has missing {missing}, unknown {unknown}")
    for key, kind in columns.items():
        if type(row[key]) is not kind:
            raise ValueError(f"{key} in {table} is {row[key]!r}, wanted {kind.__name__}")
        if (kind in (int, float) and row[key] < 0) or (kind is str and not row[key]):
            raise ValueError(f"{key} in {table} is {row[key]!r}")


def _join(row: dict[str, Any], data: dict[str, Any]) -> Board:
    device = data["devices"][row["device"]]
    family = dict(data["families"][device["family"]])
    family["control_base"] = int(family["control_base"], 16)
    return Board(**row, **device, **family)
