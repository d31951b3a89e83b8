# SPDX-License-Identifier: Apache-2.0
"""The emulated board as PYNQ sees it: Overlay, MMIO, register_map, allocate, the files."""

from __future__ import annotations

import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from device_fixtures import BUILD, DoublingEngine, engine, require_pynq
from pynq_bbs.boards import Board, load_board, load_boards
from pynq_bbs.device import hwh
from pynq_bbs.device import session as devices
from pynq_bbs.device.driver import VLNV, EngineDriver
from pynq_bbs.errors import BuildError, DeviceError
from pynq_bbs.interface import REGISTERS

__all__ = ["engine"]  # fixture
Z2 = load_board("Pynq-Z2")


# The files, which need no pynq


def registers(text: str) -> dict[str, int]:
    root = ET.fromstring(text)
    return {
        str(register.get("NAME")): int(str(p.get("VALUE")))
        for register in root.iter("REGISTER")
        for p in register.findall("PROPERTY")
        if p.get("NAME") == "ADDRESS_OFFSET"
    }


@pytest.mark.parametrize("board", load_boards(), ids=lambda board: board.name)
def test_hwh_and_driver_agree(board: Board) -> None:
    found = registers(hwh.hardware_handoff(BUILD, board))
    assert found["CTRL"] == 0
    for name, (offset, bits) in REGISTERS.items():
        if bits == 32:
            assert found[name] == offset
        else:
            assert (found[f"{name}_1"], found[f"{name}_2"]) == (offset, offset + 4)


def test_the_build_travels_in_the_hwh() -> None:
    found = hwh.parse_build(hwh.build_parameters(BUILD))
    assert (found.name, found.parameters) == (BUILD.name, BUILD.parameters)
    with pytest.raises(BuildError, match="does not tell"):
        hwh.parse_build({"BUILD": "8x32", "LANES": "8"})


def test_bit_file_is_well_formed() -> None:
    data = hwh.bitstream("bbs_8x32", "xc7z020clg400-1")
    position, fields = 13, {}
    assert data[:13] == bytes.fromhex("00090ff00ff00ff00ff0000001")
    while (key := data[position : position + 1]) != b"e":
        length = int.from_bytes(data[position + 1 : position + 3], "big")
        fields[key] = data[position + 3 : position + 3 + length]
        position += 3 + length
    assert set(fields) == {b"a", b"b", b"c", b"d"} and all(f[-1] == 0 for f in fields.values())
    assert int.from_bytes(data[position + 1 : position + 5], "big") == len(data) - position - 5 == 4


# The device


@pytest.fixture
def board(engine: DoublingEngine) -> Iterator[Any]:
    require_pynq()
    from pynq_bbs.device.pynq_device import EmulatedDevice

    device = EmulatedDevice(Z2, 1 << 20, True, lambda build: engine)
    yield device
    device.close()


@pytest.fixture
def overlay(board: Any, tmp_path: Path) -> Any:
    import pynq

    return pynq.Overlay(str(hwh.write_overlay(BUILD, Z2, tmp_path)), device=board)


def test_overlay_finds_the_driver_by_vlnv(overlay: Any) -> None:
    details = overlay.ip_dict["bbs_engine_0"]
    assert details["type"] == VLNV
    assert details["parameters"]["LANES"] == "8"
    ip = overlay.bbs_engine_0
    assert isinstance(ip, EngineDriver) and type(ip).__name__ == "BbsEngine"
    ip.check_build(BUILD)
    assert overlay.PSDDR.size == 1 << 20


def test_the_entry_point_is_enough(tmp_path: Path) -> None:
    """A user's own overlay gets the driver without importing this package."""
    require_pynq()
    bit = hwh.write_overlay(BUILD, Z2, tmp_path)
    script = (
        "import sys, pynq.overlay\n"
        "assert not any(name.startswith('pynq_bbs') for name in sys.modules)\n"
        "pynq.overlay.Overlay._register_drivers(None)\n"
        f"print(pynq.overlay._ip_drivers[{VLNV!r}].__name__)\n"
        "print([n for n in ('onnx', 'pynq_bbs.toolchain') if n in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=bit.parent,
    )
    assert result.stdout.splitlines() == ["BbsEngine", "[]"]


def test_ultrascale_hwh_loads(board: Any, tmp_path: Path) -> None:
    import pynq

    bit = hwh.write_overlay(BUILD, load_board("Ultra96-V2"), tmp_path)
    overlay = pynq.Overlay(str(bit), device=board)
    assert overlay.ip_dict["bbs_engine_0"]["phys_addr"] == 0xA000_0000
    overlay.bbs_engine_0.check_build(BUILD)


def test_pynq_accepts_the_bit_file() -> None:
    require_pynq()
    from pynq.pl_server.embedded_device import parse_bit_header

    header = parse_bit_header(hwh.bitstream("bbs_8x32", "xc7z020clg400-1"))
    assert header["design"] == "bbs_8x32" and header["part"] == "xc7z020clg400-1"


def test_register_map(overlay: Any, engine: DoublingEngine) -> None:
    ip = overlay.bbs_engine_0
    registers = ip.register_map
    assert int(registers.lanes) == 0, "before the first run"
    assert registers.CTRL.AP_IDLE == 1
    registers.command_count = 0
    registers.CTRL.AP_START = 1
    ip.settle(10)
    while not registers.CTRL.AP_IDLE:
        pass
    assert int(registers.lanes) == BUILD.lanes
    registers.program_1[15:0] = 0xBEEF
    assert ip.read(REGISTERS["program"][0]) == 0xBEEF
    assert "lanes" in repr(registers)


def test_register_array(overlay: Any) -> None:
    array = overlay.bbs_engine_0.mmio.array
    assert array.shape == (0x10000 // 4,) == (len(array),)
    array[4], array[5] = 0x89ABCDEF, np.uint32(7)
    assert array.view("u8")[2] == 0x7_89AB_CDEF
    assert array[4:6][1] == 7 and len(array[4:6]) == 2
    array.view("u8")[2] = 1 << 40
    assert (array[4], array[5]) == (0, 1 << 8)
    with pytest.raises(IndexError):
        array[len(array)]


def test_numpy_integers_reach_the_registers(overlay: Any) -> None:
    ip = overlay.bbs_engine_0
    buffer = ip.allocate(np.int32(64))
    buffer[:] = 21
    buffer.flush()
    address = np.uint64(buffer.device_address)
    ip.run(address, np.uint32(64), np.int64(0), np.uint8(1), timeout=np.float32(10))
    buffer.invalidate()
    assert (np.asarray(buffer) == 42).all()


def test_allocate_as_pynq_does(board: Any, overlay: Any) -> None:
    import pynq

    with pynq.allocate((3, 5), "i2", target=board, cacheable=1) as buffer:
        assert (buffer.shape, buffer.dtype) == ((3, 5), np.int16)
        assert buffer.device_address % 4096 == 0
        assert buffer[1].device_address == buffer.device_address + 10
        assert board.arena.used == 4096
    del buffer  # a second free, by the collector
    assert board.arena.used == 0
    scalar = pynq.allocate(7, target=board)
    assert scalar.shape == (7,)
    scalar.freebuffer()
    scalar.freebuffer()
    assert board.arena.used == 0


def test_second_overlay_on_a_device(overlay: Any, board: Any, tmp_path: Path) -> None:
    import pynq

    old = overlay.bbs_engine_0
    buffer = old.allocate(64)
    other = tmp_path / "other"
    other.mkdir()
    newer = pynq.Overlay(str(hwh.write_overlay(BUILD, Z2, other)), device=board)
    with pytest.raises(RuntimeError, match="not currently loaded"):
        _ = overlay.bbs_engine_0
    with pytest.raises(DeviceError, match="another overlay was loaded"):
        old.run(buffer.device_address, 64, 0, 1, timeout=1)
    newer.bbs_engine_0.check_build(BUILD)


def test_without_download_nothing_answers(board: Any, tmp_path: Path) -> None:
    import pynq

    bit = hwh.write_overlay(BUILD, Z2, tmp_path)
    overlay = pynq.Overlay(str(bit), device=board, download=False)
    with pytest.raises(DeviceError, match=r"nothing answers.*download=True"):
        overlay.bbs_engine_0.identify()


def test_partial_bitstreams_are_refused(board: Any, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="partial"):
        board.get_bitfile_metadata(str(hwh.write_overlay(BUILD, Z2, tmp_path)), partial=True)


def test_other_register_offsets_are_refused(board: Any, tmp_path: Path) -> None:
    import pynq

    bit = hwh.write_overlay(BUILD, Z2, tmp_path)
    text = bit.with_suffix(".hwh").read_text()
    here = REGISTERS["status"][0]
    old, new = (f'VALUE="{offset}"' for offset in (here, 0x200))
    bit.with_suffix(".hwh").write_text(text.replace(old, new))
    with pytest.raises(BuildError, match=f"'status' at 0x200, this package at {here:#x}"):
        _ = pynq.Overlay(str(bit), device=board).bbs_engine_0


def test_another_vlnv_version_is_refused(board: Any, tmp_path: Path) -> None:
    bit = hwh.write_overlay(BUILD, Z2, tmp_path)
    text = bit.with_suffix(".hwh").read_text()
    bit.with_suffix(".hwh").write_text(text.replace(VLNV, VLNV[:-3] + "9.9"))
    with warnings.catch_warnings(), pytest.raises(BuildError, match=r"bbs_engine:9\.9"):
        warnings.simplefilter("ignore")
        devices._open_overlay(bit, board, devices.ExitStack())


def test_board_path_on_the_emulated_board(
    board: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What opens a board, with the emulated device in its place."""
    import pynq

    monkeypatch.setenv("XILINX_XRT", "/usr")
    monkeypatch.setattr(devices, "_board_device", lambda: board)
    monkeypatch.setattr(pynq, "Clocks", SimpleNamespace(fclk0_mhz=100.0))
    with pytest.raises(BuildError, match="needs the bitstream"):
        devices.open_device("auto", BUILD)
    with pytest.raises(BuildError, match=r"there is no .*missing\.bit"):
        devices.open_device("board", BUILD, bitfile=tmp_path / "missing.bit")
    bit = hwh.write_overlay(BUILD, Z2, tmp_path)
    with devices.open_device("auto", BUILD, bitfile=bit) as session:
        assert (session.kind, session.name, session.clock_mhz) == ("board", "Pynq-Z2", 100.0)
        session.allocate(64)
        session.reload()
    assert board.arena.used == 0


def test_pynq_errors_become_ours(overlay: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pynq_bbs.device import pynq_driver
    from pynq_bbs.errors import DeviceMemoryError

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("BO allocation failed")

    ip = overlay.bbs_engine_0
    monkeypatch.setattr(pynq_driver, "allocate", fail)
    with pytest.raises(DeviceMemoryError, match=r"800 bytes.*BO allocation failed"):
        ip.allocate(100)


_PROCESS = """
import os, sys
written = []
def audit(event, arguments):
    if event != "open" or not isinstance(arguments[0], str):
        return
    path, mode, flags = arguments
    if "site-packages" in path and "__pycache__" not in path:
        if set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR):
            written.append(path)
sys.addaudithook(audit)
from device_fixtures import BUILD, DoublingEngine, run
from pynq_bbs.device.session import open_device
for _ in range(5):
    with open_device("emulated-pynq", BUILD, strict=True, engine=DoublingEngine()) as session:
        buffer = session.allocate(64)
        buffer[:] = 4
        buffer.flush()
        run(session, buffer)
        buffer.invalidate()
        assert (buffer == 8).all()
assert not written, written
print("done")
"""


def test_several_processes_at_once_write_nothing_into_pynq() -> None:
    require_pynq()
    command = [sys.executable, "-W", "ignore", "-c", _PROCESS]
    folder = Path(__file__).parent
    processes = [
        subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert out.strip() == "done", err
