# SPDX-License-Identifier: Apache-2.0
"""The table of boards: complete, consistent, and clear about what it does not know."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pynq_bbs import boards
from pynq_bbs.boards import Board, load_board, load_boards
from pynq_bbs.builds import load_build
from pynq_bbs.errors import BuildError
from pynq_bbs.paths import overlay_dir

ALL = load_boards()
by_name = pytest.mark.parametrize("board", ALL, ids=lambda board: board.name)


def test_boards_of_the_readme_are_there() -> None:
    names = {board.name for board in ALL}
    assert {"Pynq-Z1", "Pynq-Z2", "ZCU104", "KV260", "KR260", "Ultra96-V2", "AUP-ZU3"} <= names


@by_name
def test_part_names_the_device(board: Board) -> None:
    assert board.device.lower().removeprefix("xc") in board.part
    assert re.fullmatch(r"[\w.]+:[\w-]+:part0:\d+\.\d+", board.board_part)


@by_name
def test_family_decides_the_wiring(board: Board) -> None:
    seven_series = board.part.startswith("xc7")
    assert board.family == ("zynq-7000" if seven_series else "zynq-ultrascale+")
    assert board.port_bits == (64 if seven_series else 128)
    assert board.control_base == (0x4000_0000 if seven_series else 0xA000_0000)
    assert board.memory_ports == 4


@by_name
def test_clock_is_one_that_the_board_makes(board: Board) -> None:
    """PL clocks are a PLL's 1000 (7-series) or 1500 MHz (UltraScale+ presets) over an integer."""
    pll = 1000.0 if board.part.startswith("xc7") else 1500.0
    divisor = pll / board.clock_mhz
    assert divisor == pytest.approx(round(divisor), abs=1e-4)


@by_name
def test_default_build_exists_and_may_fit(board: Board) -> None:
    build = load_build(board.build)
    # two products share a multiplier
    assert build.products_per_cycle / 2 <= board.dsps


@by_name
def test_usable_rate_is_three_quarters(board: Board) -> None:
    assert board.usable_ddr_gb_per_s == pytest.approx(0.75 * board.ddr_gb_per_s)


@by_name
def test_verified_boards_have_a_bitstream(board: Board) -> None:
    """Nobody may call a board verified without the bitstream that was run on it."""
    folder = overlay_dir().parent / "bitstreams" / board.name / board.build
    assert not board.verified_on_hardware or (folder / "manifest.json").is_file()


def test_name_in_any_case() -> None:
    assert load_board("pynq-z2") is load_board("PYNQ-Z2")
    assert load_board("pynq-z2").name == "Pynq-Z2"


def test_unknown_board_lists_the_known_ones() -> None:
    with pytest.raises(BuildError, match=r"unknown board 'zedboard'; known boards: Pynq-Z1, .*"):
        load_board("zedboard")


def _damage(how: str, data: dict[str, Any]) -> str:
    first = data["boards"][0]
    if how == "not json":
        return "{"
    if how == "missing":
        del first["part"]
    elif how == "unknown":
        first["colour"] = "pink"
    elif how == "type":
        first["clock_mhz"] = "142.857"
    elif how == "negative":
        first["ddr_gb_per_s"] = -2.1
    elif how == "device":
        first["device"] = "XC7Z999"
    elif how == "twice":
        data["boards"].append(dict(first, name=first["name"].upper()))
    elif how == "list":
        return "[]"
    return json.dumps(data)


@pytest.mark.parametrize(
    "how", ["not json", "missing", "unknown", "type", "negative", "device", "twice", "list"]
)
def test_damaged_table_is_refused(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads((overlay_dir() / "boards.json").read_text(encoding="utf-8"))
    (tmp_path / "boards.json").write_text(_damage(how, data), encoding="utf-8")
    monkeypatch.setattr(boards, "overlay_dir", lambda: tmp_path)
    with pytest.raises(BuildError, match="not a table of boards"):
        load_boards()


def test_absent_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "overlay_dir", lambda: tmp_path)
    with pytest.raises(BuildError, match="not a table of boards"):
        load_boards()
