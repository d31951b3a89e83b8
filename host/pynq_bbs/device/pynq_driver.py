# SPDX-License-Identifier: Apache-2.0
"""Binds the driver to the IP in any overlay: PYNQ imports this module in every `Overlay()`.

So it imports only what PYNQ has loaded anyway, and the driver.
"""

from __future__ import annotations

from typing import Any

from pynq import DefaultIP, allocate

from ..errors import BuildError, DeviceError, DeviceMemoryError
from ..interface import REGISTERS
from .driver import VLNV, EngineDriver


class BbsEngine(EngineDriver, DefaultIP):  # type: ignore[misc]
    """The engine in an overlay, on a board or emulated.

    Raises:
        BuildError: the `.hwh` has the registers at other offsets than this package.
    """

    bindto = [VLNV]  # noqa: RUF012  PYNQ reads a list

    def __init__(self, description: dict[str, Any]) -> None:
        DefaultIP.__init__(self, description)
        EngineDriver.__init__(self)
        self._loaded = self.device.timestamp
        _check_offsets(description.get("registers", {}))

    def check_loaded(self) -> None:
        if self.device.timestamp != self._loaded:
            raise DeviceError(
                "another overlay was loaded on this board since; close this session and open "
                "the device again."
            )

    def reset(self) -> None:
        super().reset()
        self._loaded = self.device.timestamp

    def new_buffer(self, nwords: int) -> Any:
        try:
            return allocate((nwords,), "u8", target=self.device)
        except RuntimeError as error:  # what pynq raises on a board
            raise DeviceMemoryError(
                f"no room for {8 * nwords} bytes of contiguous memory on the board: {error}. "
                "Use a smaller batch, free other buffers, or restart other notebooks' kernels."
            ) from error


def _check_offsets(registers: dict[str, Any]) -> None:
    for name, (offset, bits) in REGISTERS.items():
        found = registers.get(name if bits == 32 else f"{name}_1")
        if found is not None and int(found["address_offset"]) != offset:
            raise BuildError(
                f"the overlay has register {name!r} at {int(found['address_offset']):#x}, this "
                f"package at {offset:#x}. Load a bitstream made for this version of the package."
            )
