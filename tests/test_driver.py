# SPDX-License-Identifier: Apache-2.0
"""The driver, on both emulated boards and on a bare register file."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from device_fixtures import BUILD, DoublingEngine, arena, engine, run, session
from pynq_bbs.device import driver as driver_module
from pynq_bbs.device.driver import CONTROL, EngineDriver
from pynq_bbs.device.session import Session
from pynq_bbs.errors import BuildError, DeviceError, DeviceTimeoutError, InputError
from pynq_bbs.interface import (
    BUILD_REGISTERS,
    COMMAND_WORDS,
    PORTS,
    REGISTERS,
    STATUS,
    VERSION,
)

__all__ = ["engine", "session"]  # fixtures

#: A buffer that some whole commands fill.
WORDS = 8 * COMMAND_WORDS


class Registers(EngineDriver):
    """A driver over a dictionary; the engine in it is always idle."""

    def __init__(self, **values: int) -> None:
        super().__init__()
        self.values = {CONTROL: 4} | {REGISTERS[name][0]: v for name, v in values.items()}
        self.written: list[tuple[int, int]] = []

    def read(self, offset: int) -> int:
        return self.values.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        assert type(offset) is int and type(value) is int  # MMIO takes nothing else
        self.written.append((offset, value))

    def new_buffer(self, nwords: int) -> Any:
        return Block()


class Block:
    """A buffer that only knows whether it was freed."""

    device_address = np.uint64(0x8_7654_3000)

    def __init__(self) -> None:
        self.freed = False

    def freebuffer(self) -> None:
        self.freed = True


def test_start_writes_every_register_as_python_integers() -> None:
    driver = Registers(completed=3)
    buffer = driver.allocate(np.int64(100))
    driver.start(buffer.device_address, np.uint32(100), np.uint16(8), np.int8(3))  # type: ignore[arg-type]
    written = dict(driver.written)
    for port in PORTS:
        assert written[REGISTERS[port][0]] == 0x7654_3000
        assert written[REGISTERS[port][0] + 4] == 0x8
    assert written[REGISTERS["memory_words"][0]] == 100
    assert written[REGISTERS["first_command"][0]] == 8
    assert written[REGISTERS["command_count"][0]] == 3
    assert driver.written[-1] == (CONTROL, 1)
    driver.wait(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": 4}, "aligned"),
        ({"address": -8}, "address is"),
        ({"address": 1 << 20}, "inside one buffer"),
        ({"memory_words": WORDS + 1}, "inside one buffer"),
        ({"memory_words": 0}, "memory_words is 0"),
        ({"memory_words": 8.0}, "wanted an integer"),
        ({"memory_words": 1 << 32}, "memory_words is 4294967296"),
        ({"first_command": -1}, "first_command is -1"),
        (
            {"command_count": WORDS // COMMAND_WORDS + 1},
            f"commands at word 0 end at word {WORDS + COMMAND_WORDS}, beyond",
        ),
        (
            {"first_command": 1, "command_count": WORDS // COMMAND_WORDS},
            f"commands at word 1 end at word {WORDS + 1}, beyond",
        ),
    ],
)
def test_start_refuses_what_lies_outside(
    session: Session, change: dict[str, Any], message: str
) -> None:
    buffer = session.allocate(WORDS)
    wanted = {"address": 0, "memory_words": WORDS, "first_command": 0, "command_count": 1} | change
    wanted["address"] += buffer.device_address
    if change.get("address", 0) < 0:
        wanted["address"] = -8
    with pytest.raises(InputError, match=message):
        session.driver.start(**wanted)
    assert not session.driver.running


def test_start_refuses_a_freed_buffer(session: Session) -> None:
    buffer = session.allocate(64)
    session.free(buffer)
    session.free(buffer)  # a second time does nothing
    with pytest.raises(InputError, match="inside one buffer"):
        session.driver.start(buffer.device_address, 64, 0, 1)


@pytest.mark.parametrize("nwords", [0, -1, 1.5, "8", 1 << 32])
def test_allocate_refuses(session: Session, nwords: Any) -> None:
    with pytest.raises(InputError, match="nwords"):
        session.allocate(nwords)


def test_part_of_a_buffer(session: Session) -> None:
    buffer = session.allocate(1024)
    buffer[:] = 3
    buffer.flush()
    session.driver.run(buffer.device_address + 512, 64, 0, 1, timeout=10)
    buffer.invalidate()
    assert np.asarray(buffer).sum() == 3 * 1024 + 3 * 64
    assert (np.asarray(buffer)[64:128] == 6).all()


def test_identify_reads_after_a_run(session: Session) -> None:
    found = session.driver.identify()
    assert found == {"version": VERSION, **BUILD.parameters}


def test_another_build_is_named(session: Session, engine: DoublingEngine) -> None:
    engine.build = replace(BUILD, lanes=16)
    with pytest.raises(BuildError) as caught:
        session.driver.check_build(BUILD)
    text = str(caught.value)
    assert "lanes=16" in text and "lanes=8" in text and "cols" not in text
    assert "does not know" in text and "'8x32'" in text


def test_a_known_build_is_called_by_its_name(session: Session) -> None:
    with pytest.raises(BuildError, match="is build '8x32', not the wanted build 'mine'"):
        session.driver.check_build(replace(BUILD, name="mine", cols=8))


def test_silence_is_no_build() -> None:
    with pytest.raises(BuildError, match="silent"):
        Registers().check_build(BUILD)


def test_another_interface_is_refused() -> None:
    values = {name: getattr(BUILD, name) for name in BUILD_REGISTERS}
    other = VERSION + 1
    with pytest.raises(BuildError, match=f"version={other}, wanted version={VERSION}"):
        Registers(version=other, **values).check_build(BUILD)


@pytest.mark.parametrize("code", [*(code for code in STATUS if code), 99])
def test_refused_command(session: Session, engine: DoublingEngine, code: int) -> None:
    buffer = session.allocate(WORDS)
    engine.status, engine.failing = code, 2
    with pytest.raises(DeviceError) as caught:
        session.driver.run(
            buffer.device_address, WORDS, 0, 5, timeout=10, layer_name=lambda i: f"fc{i}"
        )
    name = STATUS[code][0] if code in STATUS else "unknown"
    text = str(caught.value)
    assert f"status {code} ({name})" in text and "command 2 of 5" in text and "'fc2'" in text
    engine.status = 0
    run(session, buffer)


def test_success_of_too_few_commands() -> None:
    driver = Registers(completed=1)
    driver.allocate(64)
    driver.start(0x8_7654_3000, 64, 0, 2)
    with pytest.raises(DeviceError, match="success after 1 of 2"):
        driver.wait(1)


def test_timeout_then_reload(session: Session, engine: DoublingEngine) -> None:
    buffer, other = session.allocate(64), session.allocate(64)
    engine.may_finish.clear()
    begin = time.monotonic()
    with pytest.raises(DeviceTimeoutError, match=r"0\.05 s.*cannot be aborted.*reload"):
        run(session, buffer, timeout=0.05)
    assert 0.05 <= time.monotonic() - begin < 2
    with pytest.raises(DeviceError, match="still runs"):
        run(session, other)
    begin = time.monotonic()
    session.free(buffer)  # kept aside: the engine may still write there
    assert time.monotonic() - begin < 1
    assert arena(session).used == 8192

    stuck, engine.may_finish = engine.may_finish, threading.Event()
    engine.may_finish.set()
    session.reload()
    run(session, other)
    assert arena(session).used == 8192, "the old engine still works in its block"
    stuck.set()
    deadline = time.monotonic() + 10
    while arena(session).used != 4096 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert arena(session).used == 4096


def test_late_end_after_timeout(session: Session, engine: DoublingEngine) -> None:
    buffer = session.allocate(64)
    engine.may_finish.clear()
    with pytest.raises(DeviceTimeoutError):
        run(session, buffer, timeout=0.01)
    engine.may_finish.set()
    session.driver.wait(10)
    run(session, buffer)


def test_start_after_an_end_nobody_waited_for(session: Session, engine: DoublingEngine) -> None:
    buffer = session.allocate(64)
    engine.may_finish.clear()
    with pytest.raises(DeviceTimeoutError):
        run(session, buffer, timeout=0.01)
    engine.may_finish.set()
    while not session.driver.settle(0.0):
        time.sleep(0.001)
    run(session, buffer)


def test_done_read_by_somebody_else(session: Session) -> None:
    buffer = session.allocate(64)
    session.driver.start(buffer.device_address, 64, 0, 1)
    while not session.driver.read(CONTROL) & 2:
        pass
    assert session.driver.read(CONTROL) == 4  # idle, no longer done
    session.driver.wait(1)


def test_wait_without_start(session: Session) -> None:
    with pytest.raises(DeviceError, match="without a started program"):
        session.driver.wait(1)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_timeout_must_be_positive(session: Session, timeout: float) -> None:
    buffer = session.allocate(64)
    with pytest.raises(InputError, match="timeout"):
        run(session, buffer, timeout=timeout)


def interrupt_in(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_interrupt_lets_the_engine_finish(session: Session, engine: DoublingEngine) -> None:
    buffer = session.allocate(64)
    buffer[:] = 1
    buffer.flush()
    engine.may_finish.clear()
    interrupt = interrupt_in(0.05)
    threading.Timer(0.2, engine.may_finish.set).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(session, buffer, timeout=20)
    interrupt.join()
    assert 0.15 < time.monotonic() - begin < 10
    assert not session.driver.running
    buffer.invalidate()
    assert (np.asarray(buffer) == 2).all()
    run(session, buffer)
    session.free(buffer)
    assert arena(session).used == 0


def test_interrupt_of_a_stuck_engine(
    session: Session, engine: DoublingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "GRACE_S", 0.1)
    buffer = session.allocate(64)
    engine.may_finish.clear()
    interrupt = interrupt_in(0.05)
    with pytest.raises(KeyboardInterrupt):
        run(session, buffer, timeout=20)
    interrupt.join()
    assert session.driver.running
    session.free(buffer)
    assert arena(session).used == 4096
    engine.may_finish.set()
    session.reload()
    deadline = time.monotonic() + 10
    while arena(session).used and time.monotonic() < deadline:
        time.sleep(0.001)
    assert arena(session).used == 0


def test_a_stuck_engine_keeps_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a board nothing else stands between a freed buffer and an engine that still writes."""
    monkeypatch.setattr(driver_module, "GRACE_S", 0.05)
    driver = Registers()
    buffer = driver.allocate(64)
    alive = weakref.ref(buffer)
    driver.start(buffer.device_address, 64, 0, 1)
    driver.values[CONTROL] = 1
    driver.free_all()
    assert not buffer.freed
    del driver, buffer
    gc.collect()
    assert alive() is not None, "dropped, pynq would free it"


def test_reset_gives_back_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "GRACE_S", 0.05)
    driver = Registers()
    buffer = driver.allocate(64)
    driver.start(buffer.device_address, 64, 0, 1)
    driver.values[CONTROL] = 1
    driver.free(buffer)
    driver.reset()
    assert buffer.freed
    driver.values[CONTROL] = 4
    driver.free(driver.allocate(64))
    alive = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert alive() is None


def test_close_frees_everything(session: Session) -> None:
    for _ in range(3):
        session.allocate(100)
    memory = arena(session)
    assert memory.used == 3 * 4096
    session.driver.free_all()
    assert memory.used == 0
    session.close()
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.allocate(1)
