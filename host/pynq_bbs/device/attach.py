# SPDX-License-Identifier: Apache-2.0
"""What is loaded on a board already, so that a session can take it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BuildError, DeviceError


def check_loaded(device: Any, bitfile: Path) -> None:
    """Raises an error unless `bitfile` is what the board has loaded, as far as pynq knows. To look
    for the engine where none is would hang the board."""
    loaded = getattr(device, "bitfile_name", None) or _recorded()
    if not loaded:
        raise DeviceError(
            "attach: pynq knows of no overlay on this board. Leave attach out, and the overlay is "
            "loaded"
        )
    if Path(loaded).resolve() != bitfile:
        raise BuildError(
            f"attach: the board has {loaded} loaded, not {bitfile}. Give that bitfile, or leave "
            "attach out to load yours; programs that use the other one then fail"
        )


def _recorded() -> str | None:
    """The bitfile that any process loaded last, of which pynq keeps a record until a boot."""
    from pynq.pl_server import global_state

    try:
        global_state.initial_global_state_file_boot_check()
        if global_state.global_state_file_exists():
            return str(global_state.load_global_state().bitfile_name)
    except OSError:  # no FPGA manager, or a record that this user may not read
        pass
    return None
