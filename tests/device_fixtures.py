# SPDX-License-Identifier: Apache-2.0
"""Engines for the tests of the device, and sessions on every emulated board there is here."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pynq_bbs.builds import Build, load_build
from pynq_bbs.device import session as devices
from pynq_bbs.interface import VERSION

BUILD = load_build("8x32")
EMULATED = ("standin", "emulated-pynq")


class DoublingEngine:
    """Doubles every word of the block in device memory; `status` and `error` come out as set."""

    def __init__(self, build: Build = BUILD) -> None:
        self.build = build
        self.status = 0
        self.failing = 0
        self.error: Exception | None = None
        self.may_finish = threading.Event()
        self.may_finish.set()
        self.calls: list[tuple[int, int, int, int]] = []

    def run(
        self, host_pointer: int, memory_words: int, first_command: int, command_count: int
    ) -> dict[str, int]:
        self.calls.append((host_pointer, memory_words, first_command, command_count))
        self.may_finish.wait(30)
        if self.error is not None:
            raise self.error
        if command_count:
            words = (ctypes.c_uint64 * memory_words).from_address(host_pointer)
            np.frombuffer(words, np.uint64)[:] *= 2
        completed = self.failing if self.status and command_count else command_count
        status = self.status if command_count else 0
        return {
            "status": status,
            "completed": completed,
            "version": VERSION,
            **self.build.parameters,
        }


def require_pynq() -> None:
    """Skip the test where the emulated PYNQ device cannot be had, saying why."""
    for entry in devices.describe():
        if entry.kind == "emulated-pynq" and not entry.available:
            pytest.skip(entry.reason)


@pytest.fixture
def engine() -> Iterator[DoublingEngine]:
    engine = DoublingEngine()
    yield engine
    engine.may_finish.set()


@pytest.fixture(params=EMULATED)
def session(request: pytest.FixtureRequest, engine: DoublingEngine) -> Iterator[devices.Session]:
    """A strict emulated board of 1 MiB around `engine`."""
    if request.param == "emulated-pynq":
        require_pynq()
    with devices.open_device(
        request.param, BUILD, memory_bytes=1 << 20, strict=True, engine=engine
    ) as session:
        yield session


def arena(session: devices.Session) -> Any:
    """The memory behind an emulated session."""
    driver: Any = session.driver
    return driver.arena if session.kind == "standin" else driver.device.arena


def run(session: devices.Session, buffer: Any, timeout: float = 10.0) -> None:
    """One command over the whole of `buffer`."""
    session.driver.run(buffer.device_address, len(buffer), 0, 1, timeout=timeout)
