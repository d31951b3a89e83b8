# SPDX-License-Identifier: Apache-2.0
"""The emulated board itself: memory, caches, registers; through pynq and without."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_fixtures import (
    BUILD,
    EMULATED,
    DoublingEngine,
    arena,
    engine,
    require_pynq,
    run,
    session,
)
from pynq_bbs.boards import load_board
from pynq_bbs.device.arena import PAGE, POISON, Arena
from pynq_bbs.device.driver import CONTROL
from pynq_bbs.device.emulated_ip import EmulatedIp
from pynq_bbs.device.session import Session, describe, open_device
from pynq_bbs.errors import BuildError, DeviceError, DeviceMemoryError, InputError
from pynq_bbs.interface import COMMAND_WORDS, PORTS, REGISTERS

__all__ = ["engine", "session"]  # fixtures

BASE = 0x1000_0000


# Memory


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5 * PAGE)), max_size=60))
def test_blocks_never_overlap_and_all_come_back(steps: list[tuple[bool, int]]) -> None:
    memory = Arena(32 * PAGE, BASE, strict=False)
    blocks: list[tuple[int, int]] = []
    for take, size in steps:
        if take or not blocks:
            try:
                offset = memory.allocate(size)
            except DeviceMemoryError:
                taken = sorted([*blocks, (memory.size, 0)])
                ends = [0, *(offset + length for offset, length in taken)]
                gaps = [offset - end for (offset, _), end in zip(taken, ends, strict=False)]
                assert max(gaps) < max(size, PAGE)
                continue
            assert offset % PAGE == 0 and offset + size <= memory.size
            assert all(offset + size <= o or o + s <= offset for o, s in blocks)
            blocks.append((offset, max(-(-size // PAGE), 1) * PAGE))
        else:
            memory.release(blocks.pop(size % len(blocks))[0])
        assert memory.used == sum(s for _, s in blocks)
    for offset, _ in blocks:
        memory.release(offset)
    assert memory.allocate(32 * PAGE) == 0  # in one piece again


def test_no_room_says_what_there_is(session: Session) -> None:
    kept = session.allocate((1 << 20) // 16)
    with pytest.raises(DeviceMemoryError, match=r"no room for 1048576 bytes.*524288 of 1048576"):
        session.allocate((1 << 20) // 8)
    session.free(kept)
    session.allocate((1 << 20) // 8)


def test_more_memory_than_there_is(engine: DoublingEngine) -> None:
    with pytest.raises(DeviceMemoryError, match="smaller memory_bytes"):
        open_device("standin", BUILD, memory_bytes=1 << 60, engine=engine)
    with pytest.raises(InputError, match="memory_bytes"):
        open_device("standin", BUILD, memory_bytes=0, engine=engine)


def test_memory_that_an_engine_works_in_is_not_given_away() -> None:
    memory = Arena(PAGE, BASE, strict=False)
    block = memory.allocate(8)
    memory.claim(block)
    memory.release(block)
    with pytest.raises(DeviceMemoryError):
        memory.allocate(8)
    memory.unclaim(block)
    assert memory.allocate(8) == block


def test_buffers_return_when_they_are_dropped(session: Session) -> None:
    driver: Any = session.driver
    buffer = driver.new_buffer(64)
    view = buffer[8:]
    del buffer
    gc.collect()
    assert arena(session).used == PAGE, "a view keeps its buffer"
    assert view.device_address == BASE + 64
    del view
    gc.collect()
    assert arena(session).used == 0


# Caches


def test_flush_and_invalidate_are_both_needed(session: Session) -> None:
    buffer = session.allocate(64)
    buffer[:] = 8
    buffer.flush()
    run(session, buffer)
    assert (np.asarray(buffer) == 8).all(), "not invalidated: the host sees its old bytes"
    buffer.invalidate()
    assert (np.asarray(buffer) == 16).all()

    buffer[:] = 100
    run(session, buffer)  # not flushed: the engine sees its old bytes
    buffer.invalidate()
    assert (np.asarray(buffer) == 32).all()


def test_a_new_buffer_is_garbage_to_the_device(session: Session) -> None:
    buffer = session.allocate(8)
    buffer[:] = 0
    buffer.invalidate()  # instead of flush
    assert (np.asarray(buffer).view(np.uint8) == POISON).all()


def test_a_view_synchronises_its_own_range(session: Session) -> None:
    buffer = session.allocate(16)
    buffer[:] = 1
    buffer.flush()
    buffer[:] = 2
    buffer[4:8].flush()
    buffer.invalidate()
    assert np.asarray(buffer).tolist() == [1] * 4 + [2] * 4 + [1] * 8


def test_without_strict_mode_memory_is_shared(engine: DoublingEngine) -> None:
    with open_device("standin", BUILD, strict=False, engine=engine) as session:
        buffer = session.allocate(COMMAND_WORDS)
        buffer[:] = 5
        run(session, buffer)
        assert (np.asarray(buffer) == 10).all()


@pytest.mark.parametrize(("value", "strict"), [("1", True), ("0", False), (None, False)])
def test_strict_from_the_environment(
    engine: DoublingEngine, monkeypatch: pytest.MonkeyPatch, value: str | None, strict: bool
) -> None:
    monkeypatch.delenv("BBS_STRICT", raising=False)
    if value:
        monkeypatch.setenv("BBS_STRICT", value)
    with open_device("standin", BUILD, engine=engine) as session:
        assert arena(session).strict is strict
    monkeypatch.setenv("BBS_STRICT", "yes")
    with pytest.raises(InputError, match="BBS_STRICT is 'yes'"):
        open_device("standin", BUILD, engine=engine)


def test_use_after_free(session: Session) -> None:
    buffer = session.allocate(8)
    session.free(buffer)
    for method in (buffer.flush, buffer.invalidate):
        with pytest.raises(DeviceError, match="not allocated"):
            method()


# Registers


def bare_ip(engine: DoublingEngine) -> tuple[EmulatedIp, int]:
    memory = Arena(1 << 16, BASE, strict=False)
    return EmulatedIp(engine, memory), BASE + memory.allocate(512)


def write_inputs(ip: EmulatedIp, address: int, count: int = 1) -> None:
    for port in PORTS:
        ip.write(REGISTERS[port][0], address)
    ip.write(REGISTERS["memory_words"][0], 64)
    ip.write(REGISTERS["command_count"][0], count)


def finish(ip: EmulatedIp) -> int:
    while not (control := ip.read(CONTROL)) & 4:
        pass
    return control


def test_control_register(engine: DoublingEngine) -> None:
    ip, address = bare_ip(engine)
    write_inputs(ip, address)
    lanes = REGISTERS["lanes"][0]
    assert ip.read(CONTROL) == 4 and ip.read(lanes) == 0, "nothing reported before the first run"
    engine.may_finish.clear()
    ip.write(CONTROL, 1)
    assert ip.read(CONTROL) == 1 and ip.read(lanes) == 0
    ip.write(CONTROL, 1)  # no second start
    engine.may_finish.set()
    assert finish(ip) == 2 | 4 | 8
    assert ip.read(CONTROL) == 4, "done and ready are cleared by reading"
    assert ip.read(lanes) == BUILD.lanes
    assert len(engine.calls) == 1
    ip.write(lanes, 7)
    assert ip.read(lanes) == BUILD.lanes, "read-only"
    ip.close()


def test_interrupt_registers(engine: DoublingEngine) -> None:
    ip, address = bare_ip(engine)
    write_inputs(ip, address)
    ip.write(0x08, 1)
    ip.write(CONTROL, 1)
    finish(ip)
    assert ip.read(0x0C) == 1
    ip.write(0x0C, 3)  # writing a one toggles
    assert ip.read(0x0C) == 2
    ip.close()


def test_what_a_board_would_hang_on_is_refused(engine: DoublingEngine) -> None:
    ip, address = bare_ip(engine)
    write_inputs(ip, address + PAGE)
    with pytest.raises(DeviceError, match=r"not allocated\. A board would hang"):
        ip.write(CONTROL, 1)
    write_inputs(ip, address)
    ip.write(REGISTERS["results"][0], address + 8)
    with pytest.raises(DeviceError, match="different addresses"):
        ip.write(CONTROL, 1)
    with pytest.raises(DeviceError, match="auto-restart"):
        ip.write(CONTROL, 0x81)
    assert finish(ip) == 4 and not engine.calls
    write_inputs(ip, 0, count=0)  # touches no memory
    ip.write(CONTROL, 1)
    assert finish(ip) & 2
    ip.close()
    with pytest.raises(DeviceError, match="closed"):
        ip.write(CONTROL, 1)


def test_an_engine_that_fails(session: Session, engine: DoublingEngine) -> None:
    buffer = session.allocate(COMMAND_WORDS)
    engine.error = OSError("no library")
    with pytest.raises(DeviceError, match="no library"):
        run(session, buffer)
    with pytest.raises(DeviceError, match="no library"):
        session.driver.identify()
    engine.error = None
    run(session, buffer)
    session.free(buffer)
    assert arena(session).used == 0


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "bbs-engine"}


# pynq's globals keep the last device, so that one has to be closed.
@pytest.mark.parametrize(
    ("kind", "how"), [("standin", "close"), ("standin", "drop"), ("emulated-pynq", "close")]
)
def test_nothing_stays_alive(kind: str, how: str, engine: DoublingEngine) -> None:
    if kind == "emulated-pynq":
        require_pynq()
    before = engine_threads()  # those of tests before may still be on their way out
    session = open_device(kind, BUILD, memory_bytes=1 << 20, strict=True, engine=engine)
    session.allocate(64)
    memory = weakref.ref(arena(session)._device.base)
    (thread,) = engine_threads() - before
    assert memory() is not None and thread.is_alive()
    if how == "close":
        session.close()
    del session
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    assert memory() is None


@pytest.mark.parametrize("kinds", list(itertools.product(EMULATED, repeat=2)), ids="+".join)
def test_two_boards_at_once(kinds: tuple[str, str], engine: DoublingEngine) -> None:
    if "emulated-pynq" in kinds:
        require_pynq()
    other = DoublingEngine()
    with (
        open_device(kinds[0], BUILD, strict=True, engine=engine) as first,
        open_device(kinds[1], BUILD, strict=True, engine=other) as second,
    ):
        one, two = first.allocate(64), second.allocate(64)
        one[:], two[:] = 1, 10
        one.flush(), two.flush()
        engine.may_finish.clear()
        first.driver.start(one.device_address, 64, 0, 1)
        run(second, two)  # while the first is busy
        two.invalidate()
        assert (np.asarray(two) == 20).all()
        engine.may_finish.set()
        first.driver.wait(10)
        one.invalidate()
        assert (np.asarray(one) == 2).all()


# Opening


def test_unknown_kind() -> None:
    with pytest.raises(InputError, match=r"unknown device 'fpga'.*emulated"):
        open_device("fpga", BUILD)


@pytest.mark.parametrize("kind", ["auto", "emulated"])
def test_the_kind_is_chosen_and_said(
    kind: str, engine: DoublingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XILINX_XRT", raising=False)
    pynq = next(entry for entry in describe() if entry.kind == "emulated-pynq")
    with open_device(kind, BUILD, engine=engine) as session:
        assert session.kind == ("emulated-pynq" if pynq.available else "standin")
        assert session.reason and "emulated" in session.name
        assert session.clock_mhz == 142.857 and "Pynq-Z2" in session.name
    with open_device(kind, BUILD, board="zcu104", engine=engine) as session:
        assert session.clock_mhz == load_board("ZCU104").clock_mhz


def test_no_board_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XILINX_XRT", raising=False)
    with pytest.raises(DeviceError, match=r"XILINX_XRT is not set.*device='emulated'"):
        open_device("board", BUILD)
    monkeypatch.setenv("XILINX_XRT", "/usr")
    with pytest.raises(DeviceError, match="finds no embedded device"):
        open_device("board", BUILD)


def test_another_build_is_refused_and_nothing_leaks(engine: DoublingEngine) -> None:
    before = engine_threads()
    engine.build = replace(BUILD, lanes=4)
    with pytest.raises(BuildError, match="lanes=4, wanted lanes=8"):
        open_device("emulated", BUILD, engine=engine)
    gc.collect()
    for thread in engine_threads() - before:
        thread.join(10)
    assert not engine_threads() - before


def test_a_broken_pynq_is_reported(tmp_path: Path) -> None:
    (tmp_path / "pynq").mkdir()
    (tmp_path / "pynq" / "__init__.py").write_text("import no_such_pkg_resources\n")
    script = (
        "from pynq_bbs.device.session import describe, _choose\n"
        "print([e.reason for e in describe() if e.kind == 'emulated-pynq'][0])\n"
        "print(_choose('emulated')[0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("XILINX_XRT", None)
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    reason, kind = result.stdout.splitlines()
    assert "ModuleNotFoundError" in reason and "no_such_pkg_resources" in reason
    assert kind == "standin"


def test_the_compiled_engine_answers() -> None:
    with open_device("emulated", BUILD, memory_bytes=1 << 20, strict=True) as session:
        buffer = session.allocate(64)
        buffer[:] = 0
        buffer.flush()
        with pytest.raises(DeviceError, match="bad_signature"):
            run(session, buffer)
        session.driver.check_build(BUILD)
