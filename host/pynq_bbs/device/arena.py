# SPDX-License-Identifier: Apache-2.0
"""The memory of an emulated board: one address range, an allocator, and caches that can be stale.

In strict mode there are two copies, the host's and the device's, and only `flush` and
`invalidate` carry bytes between them, as with the caches of a board: whoever forgets one gets
wrong numbers here too.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import numpy.typing as npt

from ..errors import DeviceError, DeviceMemoryError

PAGE = 4096
#: Fills the device's copy of a new buffer in strict mode, so that even zeros must be flushed.
POISON = 0xA5

Bytes = npt.NDArray[np.uint8]


def _pages(size: int) -> Bytes:
    """`size` zero bytes on a page boundary; the system commits them when they are touched."""
    try:
        raw = np.zeros(size + PAGE, np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than an address space
        raise DeviceMemoryError(
            f"this machine has no {size >> 20} MiB for the emulated board's memory; "
            "open the device with a smaller memory_bytes."
        ) from None
    start = -raw.ctypes.data % PAGE
    return raw[start : start + size]


class Arena:
    """`size` bytes of device memory at device address `base`; blocks are aligned to pages."""

    def __init__(self, size: int, base: int, strict: bool) -> None:
        self.size = -(-size // PAGE) * PAGE
        self.base = base
        self.strict = strict
        self._host = _pages(self.size)
        self._device = _pages(self.size) if strict else self._host
        self.host_address = int(self._host.ctypes.data)
        self._free: list[tuple[int, int]] = [(0, self.size)]  # (offset, bytes), ascending
        self._live: dict[int, int] = {}  # offset -> bytes
        self._claimed: list[int] = []
        # The garbage collector may free a buffer in the middle of allocate(), so releasing
        # takes no lock and changes no list: it leaves a note.
        self._released: deque[int] = deque()
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes that are allocated now."""
        with self._lock:
            self._drain()
            return sum(self._live.values())

    def allocate(self, nbytes: int) -> int:
        """Offset of a new block of at least `nbytes` bytes; DeviceMemoryError if there is none."""
        wanted = max(-(-nbytes // PAGE), 1) * PAGE
        with self._lock:
            self._drain()
            position = next((i for i, (_, size) in enumerate(self._free) if size >= wanted), None)
            if position is None:
                raise self._full(wanted)
            offset, size = self._free[position]
            rest = [(offset + wanted, size - wanted)] if size > wanted else []
            self._free[position : position + 1] = rest
            self._live[offset] = wanted
        if self.strict:
            self._device[offset : offset + wanted] = POISON
        return offset

    def release(self, offset: int) -> None:
        """Give the block at `offset` back; it becomes free when no engine works in it."""
        self._released.append(offset)

    def host(self, offset: int, nbytes: int) -> Bytes:
        """The host's copy of these bytes."""
        return self._host[offset : offset + nbytes]

    def flush(self, offset: int, nbytes: int) -> None:
        """Carry these bytes to the device's copy; DeviceError if they are not allocated."""
        self._block(offset, nbytes)
        if self.strict:
            self._device[offset : offset + nbytes] = self._host[offset : offset + nbytes]

    def invalidate(self, offset: int, nbytes: int) -> None:
        """Carry these bytes to the host's copy; DeviceError if they are not allocated."""
        self._block(offset, nbytes)
        if self.strict:
            self._host[offset : offset + nbytes] = self._device[offset : offset + nbytes]

    def locate(self, address: int, nbytes: int) -> tuple[int, Bytes]:
        """The block around a device address, and the device's copy of the bytes from there.

        Raises:
            DeviceError: the range is not inside one allocated block.
        """
        offset = address - self.base
        block = self._block(offset, nbytes)
        return block, self._device[offset : offset + nbytes]

    def claim(self, block: int) -> None:
        """An engine works in `block`: releasing it has no effect until `unclaim`."""
        self._claimed.append(block)

    def unclaim(self, block: int) -> None:
        """The engine that claimed `block` has finished."""
        self._claimed.remove(block)

    def close(self) -> None:
        """Let go of the memory; what still looks into it keeps it alive, but out of use."""
        with self._lock:
            self._host = self._device = self._host[:0].copy()
            self._free, self._live = [], {}
            self.size = 0

    def _full(self, wanted: int) -> DeviceError:
        if not self.size:
            return DeviceError("the device was closed; open it again.")
        free = [size for _, size in self._free]
        return DeviceMemoryError(
            f"no room for {wanted} bytes of device memory: {sum(free)} of {self.size} are free, "
            f"{max(free, default=0)} in one piece. Use a smaller batch, free other buffers, or "
            "open the device with a larger memory_bytes."
        )

    def _block(self, offset: int, nbytes: int) -> int:
        with self._lock:
            self._drain()
            for start, size in self._live.items():
                if start <= offset and offset + nbytes <= start + size:
                    return start
        address = self.base + offset
        raise DeviceError(
            f"device memory {address:#x} to {address + nbytes:#x} is not allocated. A board "
            "would hang or damage other memory; use the address of a buffer that was not freed."
        )

    def _drain(self) -> None:
        for _ in range(len(self._released)):
            offset = self._released.popleft()
            if offset in self._claimed:
                self._released.append(offset)
                continue
            size = self._live.pop(offset, 0)
            if size:
                self._free.append((offset, size))
                self._merge()

    def _merge(self) -> None:
        merged: list[tuple[int, int]] = []
        for offset, size in sorted(self._free):
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((offset, size))
        self._free = merged
