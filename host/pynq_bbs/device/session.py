# SPDX-License-Identifier: Apache-2.0
"""Opening a device: a board, the emulated board as a PYNQ device, or its stand-in without pynq."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

from ..boards import DEFAULT_BOARD, Board, load_board
from ..builds import Build
from ..errors import BuildError, DeviceError, InputError
from .attach import check_loaded
from .driver import VLNV, EngineDriver
from .emulated_ip import Engine
from .hwh import write_overlay
from .standin import StandIn

#: What `open_device` takes. "emulated" is through pynq where that works, "auto" a board if any.
KINDS = ("auto", "board", "emulated", "emulated-pynq", "standin")


@dataclass
class Session:
    """An open device whose engine is known to be `build`. A context manager.

    Attributes:
        driver: starts programs and waits for them.
        kind: "board", "emulated-pynq" or "standin".
        name: for people.
        clock_mhz: clock of the engine, on an emulated board that of the board it stands for.
        reason: why this kind was chosen.
        owner: whose weights lie in the engine's block buffer, if anybody's.
        lock: held by whoever starts the engine, allocates or frees.
    """

    driver: EngineDriver = field(repr=False)
    build: Build = field(repr=False)
    kind: str
    name: str
    clock_mhz: float
    reason: str
    _reload: Callable[[], None] = field(repr=False)
    _cleanup: ExitStack = field(repr=False)
    owner: Any = field(default=None, repr=False, compare=False)
    lock: RLock = field(default_factory=RLock, repr=False, compare=False)

    def allocate(self, nwords: int) -> Any:
        """As `EngineDriver.allocate`."""
        return self.driver.allocate(nwords)

    def free(self, buffer: Any) -> None:
        """As `EngineDriver.free`."""
        self.driver.free(buffer)

    def check_program(self, build: Build) -> None:
        """Raises a BuildError unless programs for `build` run on this device."""
        if build.parameters != self.build.parameters:
            raise BuildError(
                f"the program is for build {build.name!r}, the open device is build "
                f"{self.build.name!r}: compile it for that build, or open another device"
            )

    def reload(self) -> None:
        """Load the overlay again: the only cure for an engine stuck on the bus.

        On an emulated board buffers keep their addresses and contents. On a board that depends
        on XRT and was never tried: load the program anew.

        Raises:
            BuildError: the engine is not `build` any more.
        """
        self.owner = None
        self._reload()
        self.driver.reset()
        self.driver.check_build(self.build)

    def close(self) -> None:
        """Free all buffers and let go of the device. May be called again."""
        self._cleanup.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_device(
    kind: str,
    build: Build,
    *,
    board: str = DEFAULT_BOARD,
    memory_bytes: int | None = None,
    strict: bool | None = None,
    bitfile: str | Path | None = None,
    attach: bool = False,
    engine: Engine | None = None,
) -> Session:
    """Open a device and make sure that its engine is `build`.

    Args:
        kind: one of `KINDS`.
        board: name of the board that an emulated one stands for; its clock and its addresses.
        memory_bytes: memory of an emulated board; None is as much as the board's image keeps for
            buffers (`cma_mb`).
        strict: whether an emulated board has caches that go stale, see `arena`; None asks the
            environment variable BBS_STRICT (1 or 0), which is off where not set.
        bitfile: the overlay's `.bit` for a board, its `.hwh` beside it.
        attach: the board has that overlay loaded already, and it is not loaded again: programs of
            other processes keep their buffers.
        engine: run by an emulated board instead of the one compiled from `hls/`.

    Raises:
        InputError: unknown kind or option value.
        BuildError: the engine is not `build`, a board has no bitstream, or another one than it is
            to attach to, or unknown board.
        ToolchainError: the emulated engine cannot be compiled.
        DeviceError: there is no such device here; DeviceMemoryError, DeviceTimeoutError.
    """
    row = load_board(board)
    kind, reason = _choose(kind)
    memory_bytes = row.cma_bytes if memory_bytes is None else memory_bytes
    if memory_bytes < 1:
        raise InputError(f"memory_bytes is {memory_bytes}, wanted at least 1.")
    if attach and kind != "board":
        raise InputError(
            f"attach is for a board whose overlay is loaded; this is an emulated one ({reason}), "
            "which begins without any. Leave attach out"
        )
    strict = _strict() if strict is None else strict
    load = _loader(engine)
    with ExitStack() as cleanup:
        if kind == "board":
            session = _open_board(build, bitfile, attach, reason, cleanup)
        elif kind == "emulated-pynq":
            session = _open_emulated(build, row, memory_bytes, strict, load, reason, cleanup)
        else:
            session = _open_standin(build, row, memory_bytes, strict, load, reason, cleanup)
        session.driver.check_build(build)
        session._cleanup = cleanup.pop_all()
    return session


@dataclass(frozen=True)
class Availability:
    """Whether a kind of device can be opened here, and why or why not."""

    kind: str
    available: bool
    reason: str


def describe() -> list[Availability]:
    """What `open_device` could open on this machine; the first available one is "auto"."""
    board, pynq = _board_problem(), _pynq_problem()
    return [
        Availability("board", board is None, board or "PYNQ reports an embedded device"),
        Availability("emulated-pynq", pynq is None, pynq or f"pynq {_pynq_version()}"),
        Availability("standin", True, "needs no pynq"),
    ]


def _choose(kind: str) -> tuple[str, str]:
    if kind not in KINDS:
        raise InputError(f"unknown device {kind!r}; known devices: {', '.join(KINDS)}.")
    if kind == "standin":
        return kind, "asked for"
    if kind in ("auto", "board"):
        problem = _board_problem()
        if problem is None:
            return "board", "there is a board"
        if kind == "board":
            raise DeviceError(f"there is no board: {problem}. Use device='emulated'.")
    problem = _pynq_problem()
    if problem is None:
        return "emulated-pynq", f"pynq {_pynq_version()} works here"
    if kind == "emulated-pynq":
        raise DeviceError(f"pynq cannot be used here: {problem}. Use device='emulated'.")
    return "standin", problem


def _strict() -> bool:
    value = os.environ.get("BBS_STRICT", "0")
    if value not in ("0", "1"):
        raise InputError(f"BBS_STRICT is {value!r}; set it to 1 or 0.")
    return value == "1"


def _loader(engine: Engine | None) -> Callable[[Build], Engine]:
    if engine is not None:
        return lambda build: engine
    from .emulator import load_engine

    return load_engine


@cache
def _pynq_problem() -> str | None:
    """Why the emulated PYNQ device cannot be had; None if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pynq's own, about pkg_resources
            from . import pynq_device  # noqa: F401
    # Half-installed pynqs fail in many ways: no pkg_resources, another pycparser, numpy 2, ...
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "pynq":
            return "pynq is not installed"
        return f"importing pynq failed ({type(error).__name__}: {error})"
    return None


def _pynq_version() -> str:
    import pynq

    return str(pynq.__version__)


def _board_problem() -> str | None:
    if not os.environ.get("XILINX_XRT"):
        return "XILINX_XRT is not set, so this is no PYNQ board or its environment is not sourced"
    try:
        _board_device()
    # The same, and on a board also whatever XRT says.
    except Exception as error:
        return f"PYNQ finds no embedded device ({type(error).__name__}: {error})"
    return None


def _board_device() -> Any:
    from pynq.pl_server.device import Device
    from pynq.pl_server.embedded_device import EmbeddedDevice

    for device in Device.devices:
        if isinstance(device, EmbeddedDevice):
            return device
    raise DeviceError("none of pynq's devices is an EmbeddedDevice")


def _open_board(
    build: Build, bitfile: str | Path | None, attach: bool, reason: str, cleanup: ExitStack
) -> Session:
    if bitfile is None:
        raise BuildError(
            f"a board needs the bitstream of build {build.name!r}: give the path of its .bit, "
            "with the .hwh beside it. Without one, use device='emulated'."
        )
    path = Path(bitfile).resolve()
    for needed in (path, path.with_suffix(".hwh")):
        if not needed.is_file():
            raise BuildError(f"there is no {needed}; a bitstream is a .bit and its .hwh.")
    device = _board_device()
    if attach:
        check_loaded(device, path)
    driver, reload = _open_overlay(path, device, cleanup, download=not attach)
    from pynq import Clocks

    clock = float(Clocks.fclk0_mhz)
    return Session(driver, build, "board", str(device.name), clock, reason, reload, cleanup)


def _open_emulated(
    build: Build,
    board: Board,
    memory_bytes: int,
    strict: bool,
    load: Callable[[Build], Engine],
    reason: str,
    cleanup: ExitStack,
) -> Session:
    from .pynq_device import EmulatedDevice

    folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="bbs-"))
    device = EmulatedDevice(board, memory_bytes, strict, load)
    cleanup.callback(device.close)
    bitfile = write_overlay(build, board, Path(folder))
    driver, reload = _open_overlay(bitfile, device, cleanup)
    name, clock = f"emulated {board.name}, pynq {_pynq_version()}", device.clock_mhz
    return Session(driver, build, "emulated-pynq", name, clock, reason, reload, cleanup)


def _open_standin(
    build: Build,
    board: Board,
    memory_bytes: int,
    strict: bool,
    load: Callable[[Build], Engine],
    reason: str,
    cleanup: ExitStack,
) -> Session:
    driver = StandIn(load(build), memory_bytes, strict)
    cleanup.callback(driver.close)
    cleanup.callback(driver.free_all)
    name = f"emulated {board.name}, without pynq"
    return Session(driver, build, "standin", name, board.clock_mhz, reason, driver.reload, cleanup)


def _open_overlay(
    bitfile: Path, device: Any, cleanup: ExitStack, *, download: bool = True
) -> tuple[EngineDriver, Callable[[], None]]:
    """The driver of an overlay, newly loaded where it is to `download`, and what loads it again."""
    from pynq import Overlay

    # Also registered as an entry point, but only where the package is installed.
    from . import pynq_driver  # noqa: F401

    overlay = Overlay(str(bitfile), device=device, download=download)
    driver = _find_driver(overlay, bitfile)
    cleanup.callback(driver.free_all)
    return driver, overlay.download


def _find_driver(overlay: Any, bitfile: Path) -> EngineDriver:
    types = {name: str(details["type"]) for name, details in overlay.ip_dict.items()}
    for name, vlnv in types.items():
        if vlnv == VLNV:
            ip = overlay
            for part in name.split("/"):
                ip = getattr(ip, part)
            if isinstance(ip, EngineDriver):
                return ip
    raise BuildError(
        f"{bitfile} has no {VLNV} for this package's driver; it has "
        f"{', '.join(sorted(set(types.values()))) or 'no IP'}. Load one of our bitstreams."
    )
