# SPDX-License-Identifier: Apache-2.0
"""The register file of the emulated engine, as `ap_ctrl_hs` behaves behind AXI-Lite.

The engine itself, compiled from `hls/`, runs on a thread of its own, so that timeouts and
Ctrl-C are as real as on a board.
"""

from __future__ import annotations

import threading
import weakref
from queue import SimpleQueue
from typing import Protocol

from ..builds import PORT_BYTES
from ..errors import DeviceError
from ..interface import PORTS, REGISTERS
from .arena import Arena
from .driver import AP_AUTO_RESTART, AP_DONE, AP_IDLE, AP_READY, AP_START, CONTROL

_GLOBAL_ENABLE, _ENABLE, _PENDING = 0x04, 0x08, 0x0C
#: A read of a busy control register waits this long: it stands for the time on the bus, and
#: leaves the interpreter to the thread that runs the engine.
_BUS_S = 100e-6

_INPUTS = (*PORTS, "memory_words", "first_command", "command_count")
_WRITABLE = frozenset(
    REGISTERS[name][0] + 4 * word for name in _INPUTS for word in range(REGISTERS[name][1] // 32)
) | {_GLOBAL_ENABLE, _ENABLE}


class Engine(Protocol):
    """What runs commands: see `emulator.load_engine`."""

    def run(
        self, host_pointer: int, memory_words: int, first_command: int, command_count: int
    ) -> dict[str, int]:
        """Run the commands of the block at `host_pointer`; every read-only register by name."""
        ...


class _Run:
    """One start of the engine, from the write of the start bit to its end."""

    def __init__(self, engine: Engine, arena: Arena, inputs: dict[str, int]) -> None:
        self._engine = engine
        self._arena = arena
        self._first, self._count = inputs["first_command"], inputs["command_count"]
        self._block: int | None = None
        if self._count:  # zero commands touch no memory
            nbytes = PORT_BYTES * inputs["memory_words"]
            # The array keeps the memory alive, should the board be closed under the engine.
            self._block, self._memory = arena.locate(inputs["program"], nbytes)
        self.outputs: dict[str, int] = {}
        self.error: Exception | None = None
        self._ended = False
        self._running = threading.Lock()  # an Event costs twice as much, several times a run
        self._running.acquire()

    def finished(self, timeout: float) -> bool:
        """Whether it has ended, within `timeout` seconds."""
        if not self._ended:
            self._running.acquire(timeout=timeout)
        return self._ended

    def execute(self) -> None:
        try:
            if self._block is None:
                self.outputs = self._engine.run(0, 0, self._first, 0)
            else:
                self.outputs = self._run_in(self._block)
        except Exception as error:  # whatever it is, it belongs to the thread that waits
            self.error = error
        finally:
            self._ended = True
            self._running.release()

    def _run_in(self, block: int) -> dict[str, int]:
        self._arena.claim(block)
        try:
            pointer, words = int(self._memory.ctypes.data), self._memory.size // PORT_BYTES
            return self._engine.run(pointer, words, self._first, self._count)
        finally:
            self._arena.unclaim(block)


def _serve(runs: SimpleQueue[_Run | None]) -> None:
    while (run := runs.get()) is not None:
        run.execute()
        del run  # it holds the memory of the board


class EmulatedIp:
    """The engine's registers; offsets in bytes, values 32 bit."""

    def __init__(self, engine: Engine, arena: Arena) -> None:
        self._engine = engine
        self._arena = arena
        self._registers: dict[int, int] = {}
        self._control = AP_IDLE
        self._run: _Run | None = None
        self._runs: SimpleQueue[_Run | None] = SimpleQueue()
        self._worker: threading.Thread | None = None
        self._stop = weakref.finalize(self, self._runs.put, None)

    def close(self) -> None:
        """Let the engine's thread end, after the run it may be in."""
        self._stop()

    def read(self, offset: int) -> int:
        """One register; reading the control register clears done and ready.

        Raises:
            DeviceError: the emulated engine itself failed in the run that has just ended.
        """
        run = self._run
        if run is not None:
            if run.finished(_BUS_S if offset == CONTROL else 0):
                self._latch(run)
            elif offset == CONTROL:
                return AP_START
        if offset == CONTROL:
            value, self._control = self._control, AP_IDLE
            return value
        return self._registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """One register; writing the start bit to the control register starts the engine.

        Raises:
            DeviceError: the run would reach outside the allocated memory, or wants what is not
                emulated; a board would hang or go wrong silently.
        """
        if offset == CONTROL:
            if value & AP_AUTO_RESTART:
                raise DeviceError("auto-restart is not emulated; start every run by itself.")
            if value & AP_START and self._run is None:
                self._start()
        elif offset == _PENDING:
            self._registers[_PENDING] = self._registers.get(_PENDING, 0) ^ (value & 3)
        elif offset in _WRITABLE:
            self._registers[offset] = value & 0xFFFFFFFF

    def _input(self, name: str) -> int:
        offset, bits = REGISTERS[name]
        words = range(bits // 32)
        return sum(self._registers.get(offset + 4 * i, 0) << (32 * i) for i in words)

    def _start(self) -> None:
        if not self._stop.alive:
            raise DeviceError("this emulated engine was closed or replaced; open the device again.")
        inputs = {name: self._input(name) for name in _INPUTS}
        addresses = {inputs[port] for port in PORTS}
        if inputs["command_count"] and len(addresses) > 1:
            raise DeviceError(
                "the port registers hold different addresses "
                f"({', '.join(f'{a:#x}' for a in sorted(addresses))}); write the address of the "
                "memory block to each of them."
            )
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(
                target=_serve, args=(self._runs,), name="bbs-engine", daemon=True
            )
            self._worker.start()
        run = _Run(self._engine, self._arena, inputs)
        self._run = run
        self._runs.put(run)

    def _latch(self, run: _Run) -> None:
        # Ctrl-C may come between any two lines: until the last one, this runs again.
        self._registers.update({REGISTERS[k][0]: int(v) for k, v in run.outputs.items()})
        self._control = AP_DONE | AP_IDLE | AP_READY
        enabled = self._registers.get(_ENABLE, 0) & 3
        self._registers[_PENDING] = self._registers.get(_PENDING, 0) | enabled
        self._run = None
        if run.error is not None:
            raise DeviceError(f"the emulated engine failed: {run.error!r}") from run.error
