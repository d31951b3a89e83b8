# SPDX-License-Identifier: Apache-2.0
"""The emulated board where pynq cannot be installed: the same driver, registers and memory."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..builds import PORT_BYTES
from .arena import Arena
from .driver import EngineDriver
from .emulated_ip import EmulatedIp, Engine

#: Device address of the memory, the same on both emulated boards.
MEMORY_BASE = 0x1000_0000


if TYPE_CHECKING:
    _Array = np.ndarray[Any, np.dtype[Any]]
else:  # a base class that every numpy takes: 1.21 has no subscripts, 2.5 makes NDArray an alias
    _Array = np.ndarray


class StandInBuffer(_Array):
    """What `pynq.allocate` returns, as far as the driver uses it. Views know their address."""

    arena: Arena
    offset: int | None = None  # of the block, on the array that owns it only

    def __array_finalize__(self, source: Any) -> None:
        if isinstance(source, StandInBuffer):
            self.arena = source.arena

    @property
    def device_address(self) -> int:
        """Where the engine finds the first element; meaningless for a copy, as in pynq."""
        return self.arena.base + self._position

    @cached_property
    def _position(self) -> int:
        return int(self.ctypes.data) - self.arena.host_address

    def flush(self) -> None:
        self.arena.flush(self._position, self.nbytes)

    def invalidate(self) -> None:
        self.arena.invalidate(self._position, self.nbytes)

    def freebuffer(self) -> None:
        if self.offset is not None:
            offset, self.offset = self.offset, None
            self.arena.release(offset)

    def __del__(self) -> None:
        self.freebuffer()


class StandIn(EngineDriver):
    """Board and driver in one: `engine` behind its registers, `memory_bytes` of memory."""

    def __init__(self, engine: Engine, memory_bytes: int, strict: bool) -> None:
        super().__init__()
        self.arena = Arena(memory_bytes, MEMORY_BASE, strict)
        self._engine = engine
        self._ip = EmulatedIp(engine, self.arena)

    def read(self, offset: int) -> int:
        return self._ip.read(offset)

    def write(self, offset: int, value: int) -> None:
        self._ip.write(offset, value)

    def new_buffer(self, nwords: int) -> StandInBuffer:
        offset = self.arena.allocate(PORT_BYTES * nwords)
        memory = self.arena.host(offset, PORT_BYTES * nwords)
        buffer = np.ndarray.__new__(StandInBuffer, (nwords,), np.uint64, memory)
        buffer.arena, buffer.offset = self.arena, offset
        return buffer

    def reload(self) -> None:
        """What loading the overlay again does on a board: a new engine in its first state."""
        self._ip.close()
        self._ip = EmulatedIp(self._engine, self.arena)
        self.reset()

    def close(self) -> None:
        """Stop the engine's thread and let go of the memory."""
        self._ip.close()
        self.arena.close()
