# SPDX-License-Identifier: Apache-2.0
"""The emulated board as a real PYNQ device, for pynq 3.0.1 to 4.x.

`Overlay`, `allocate`, `MMIO`, the `.hwh` and the driver run the code that runs on a board; what
differs is that registers reach the engine compiled from `hls/`, and memory is an `Arena`.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable
from typing import Any

import numpy as np

# Overlay() imports pynq.lib, where a wrong pycparser shows: better now than then.
import pynq.lib  # noqa: F401
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device
from pynqmetadata.frontends import Metadata

try:
    from pynqmetadata.views.runtime import RuntimeMetadataParser
except ImportError:  # pynq 3
    from pynq.metadata.runtime_metadata_parser import RuntimeMetadataParser

from ..boards import Board
from ..builds import Build
from ..errors import DeviceError
from .arena import Arena
from .driver import VLNV
from .emulated_ip import EmulatedIp, Engine
from .hwh import parse_build
from .standin import MEMORY_BASE

_tags = itertools.count()


class RegArray:
    """What `MMIO.array` is on a board, a numpy array over registers; every access is seen.

    `MMIO`, `register_map` and its bit fields all go through it. Words are 4 or 8 bytes wide.
    """

    def __init__(self, device: EmulatedDevice, address: int, nbytes: int, width: int = 4) -> None:
        self._device = device
        self._address = address
        self._nbytes = nbytes
        self._width = width
        self.dtype = np.dtype(f"u{width}")
        self.shape = (nbytes // width,)

    def view(self, dtype: Any) -> RegArray:
        """The same registers in words of another size, u4 or u8."""
        return RegArray(self._device, self._address, self._nbytes, np.dtype(dtype).itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            address = self._address + start * self._width
            return RegArray(self._device, address, (stop - start) * self._width, self._width)
        ip, offset = self._locate(index)
        return sum(ip.read(offset + byte) << (8 * byte) for byte in range(0, self._width, 4))

    def __setitem__(self, index: Any, value: Any) -> None:
        ip, offset = self._locate(index)
        number = int(value)
        for byte in range(0, self._width, 4):
            ip.write(offset + byte, (number >> (8 * byte)) & 0xFFFFFFFF)

    def _locate(self, index: Any) -> tuple[EmulatedIp, int]:
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"register {index} of an array of {len(self)}")
        return self._device.ip_at(self._address + position * self._width)


class EmulatedBuffer(PynqBuffer):  # type: ignore[misc]
    """A `PynqBuffer` that can be made under numpy 2, whose arrays have a read-only `device`."""

    device = None


class EmulatedMemory:
    """The board's DDR, as `overlay.PSDDR` and `device.default_memory` give it."""

    def __init__(self, device: EmulatedDevice) -> None:
        self.device = device
        self.base_address = device.arena.base
        self.size = device.arena.size

    def allocate(self, shape: Any, dtype: Any, **_: Any) -> EmulatedBuffer:
        """An array in device memory; the keywords of boards (`cacheable`) change nothing here."""
        dimensions = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        kind = np.dtype(dtype)
        nbytes = int(np.prod(dimensions, dtype=np.int64)) * kind.itemsize
        arena = self.device.arena
        offset = arena.allocate(nbytes)
        buffer = EmulatedBuffer(
            dimensions,
            kind,
            buffer=arena.host(offset, nbytes),
            device=self.device,
            device_address=arena.base + offset,
            bo=offset,
            coherent=False,
        )
        # How pynq frees: the pointer goes back to `return_to`, once. Without `freed` a second
        # free would unmap the arena.
        buffer.memory, buffer.return_to = self, self
        buffer.pointer, buffer.freed = (offset + 1,), True
        return buffer

    def return_pointer(self, pointer: tuple[int]) -> None:
        self.device.arena.release(pointer[0] - 1)


class EmulatedDevice(Device):  # type: ignore[misc]
    """One emulated board. It is never probed, so nothing runs on it by accident.

    Args:
        board: gives its name, by which `Overlay` finds board-specific bitstreams, and its clock.
        memory_bytes: size of its memory, committed as it is touched.
        strict: whether host and device see each other's writes only after flush, invalidate.
        load_engine: gives the engine of the build that the `.hwh` of an overlay describes.
    """

    def __init__(
        self, board: Board, memory_bytes: int, strict: bool, load_engine: Callable[[Build], Engine]
    ) -> None:
        super().__init__(f"bbs-emulated-{os.getpid()}-{next(_tags)}")
        self.name = board.name
        self.arch = "armv7l"
        self.capabilities = {"MEMORY_MAPPED": True}
        self.bitfile_name = self.timestamp = None
        self.clock_mhz = board.clock_mhz
        self.arena = Arena(memory_bytes, MEMORY_BASE, strict)
        self._load_engine = load_engine
        self._ips: dict[int, tuple[int, EmulatedIp]] = {}

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        if partial:
            raise DeviceError("the emulated board does not load partial bitstreams.")
        parser = RuntimeMetadataParser(Metadata(input=os.path.splitext(bitfile_name)[0] + ".hwh"))
        # PYNQ adds the memory of the processing system on boards; no .hwh lists it.
        parser.mem_dict["PSDDR"] = {
            "used": 1,
            "base_address": self.arena.base,
            "phys_addr": self.arena.base,
            "size": self.arena.size,
            "addr_range": self.arena.size,
            "type": "DDR4",
            "raw_type": 2,
            "streaming": False,
            "idx": 0,
            "tag": "PSDDR",
            "fullpath": "PSDDR",
        }
        # pynq.Clocks is one object for all devices: it would set another board's clocks.
        parser.clock_dict = {}
        parser.refresh_hierarchy_dict()
        return parser

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """Put the engines of the `.hwh` at their addresses, in their first state."""
        parser = parser or self.get_bitfile_metadata(bitstream.bitfile_name)
        ips = {}
        for details in parser.ip_dict.values():
            if details["type"] == VLNV:
                engine = self._load_engine(parse_build(details["parameters"]))
                span = int(details["addr_range"])
                ips[int(details["phys_addr"])] = span, EmulatedIp(engine, self.arena)
        self._unload()
        self._ips = ips
        self.post_download(bitstream, parser, self.name)

    def ip_at(self, address: int) -> tuple[EmulatedIp, int]:
        """The IP that answers at a bus address, and the offset in it."""
        for base, (span, ip) in self._ips.items():
            if base <= address < base + span:
                return ip, address - base
        raise DeviceError(
            f"nothing answers at bus address {address:#x} of {self.name}; a board would hang. "
            "Load the overlay, with download=True."
        )

    def mmap(self, base: int, length: int) -> RegArray:
        return RegArray(self, base, length)

    @property
    def default_memory(self) -> EmulatedMemory:
        return EmulatedMemory(self)

    def get_memory(self, description: Any) -> EmulatedMemory:
        return EmulatedMemory(self)

    def flush(self, block: int, offset: int, _address: int, nbytes: int) -> None:
        self.arena.flush(block + offset, nbytes)

    def invalidate(self, block: int, offset: int, _address: int, nbytes: int) -> None:
        self.arena.invalidate(block + offset, nbytes)

    def close(self) -> None:
        """Stop the engines and let go of the memory: pynq's globals keep the last device."""
        self._unload()
        self.arena.close()

    def _unload(self) -> None:
        for _, ip in self._ips.values():
            ip.close()
        self._ips = {}

    # A board's way to the operating system; here is none.

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        """No state files: several processes may emulate boards at once."""

    def insert_device_tree(self, abs_dtbo: str) -> None:
        """No device tree."""

    def remove_device_tree(self, abs_dtbo: str) -> None:
        """No device tree."""

    def shutdown(self) -> None:
        """No AXI connections that would have to be closed first."""
