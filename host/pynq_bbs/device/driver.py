# SPDX-License-Identifier: Apache-2.0
"""The driver of the engine, without pynq: the same class runs a board and both emulated ones.

`EngineDriver` is completed by whoever owns the registers: `pynq_driver.BbsEngine` through MMIO,
`standin.StandIn` without pynq. All addresses are the device's, all sizes 64-bit words.
"""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..builds import PORT_BYTES, Build, build_names, load_build
from ..errors import BuildError, DeviceError, DeviceTimeoutError, InputError
from ..interface import BUILD_REGISTERS, COMMAND_WORDS, PORTS, REGISTERS, STATUS, VERSION

#: Vendor, library, name and version of the IP; `.hwh`, HLS export and driver must agree.
VLNV = "pynq-bbs:bbs:bbs_engine:1.0"

#: Bytes of the address range that the IP answers to.
SPAN = 0x10000
#: Control register of `ap_ctrl_hs` and its bits. Done is cleared by any read of the register.
CONTROL = 0x00
AP_START, AP_DONE, AP_IDLE, AP_READY, AP_AUTO_RESTART = 1, 2, 4, 8, 0x80

#: A run of zero commands takes microseconds; a loaded host may need longer to schedule it.
IDENTIFY_TIMEOUT_S = 10.0
#: How long Ctrl-C and `free` let a running engine finish.
GRACE_S = 2.0
_SPIN_S = 200e-6
_MAX_SLEEP_S = 2e-3


#: Buffers that a stuck engine may still write to outlive their driver, else Python frees them.
_KEPT: dict[int, Any] = {}


class Buffer(Protocol):
    """A one-dimensional `uint64` array in device memory; `np.asarray(buffer)` is the host's view.

    The host's writes reach the engine by `flush`, the engine's reach the host by `invalidate`.
    """

    device_address: int

    def flush(self) -> None: ...
    def invalidate(self) -> None: ...
    def freebuffer(self) -> None: ...


class EngineDriver:
    """Starts programs, waits for them, and owns the buffers they work in.

    A subclass provides `read`, `write` and `new_buffer`. Not for use by several threads at once.
    """

    if TYPE_CHECKING:  # pynq.DefaultIP stands behind this class in the resolution order

        def read(self, offset: int) -> int: ...
        def write(self, offset: int, value: int) -> None: ...

    def new_buffer(self, nwords: int) -> Any:
        """`nwords` uint64 in device memory; DeviceMemoryError where there is no room."""
        raise NotImplementedError

    def check_loaded(self) -> None:
        """DeviceError if the overlay that this driver was made for was replaced."""

    def __init__(self) -> None:
        self._buffers: dict[int, tuple[Any, int]] = {}
        self._abandoned: dict[int, Any] = {}
        self._running = False
        self._stuck = False
        self._expected = 0

    # Buffers

    def allocate(self, nwords: int) -> Any:
        """A `Buffer` of `nwords` 64-bit words, not initialised; `free` gives it back.

        Raises:
            InputError: `nwords` is not a positive integer.
            DeviceMemoryError: the device has no room for it.
        """
        nwords = _integer("nwords", nwords, 1, (1 << 32) - 1)
        buffer = self.new_buffer(nwords)
        self._buffers[int(buffer.device_address)] = (buffer, nwords)
        return buffer

    def free(self, buffer: Any) -> None:
        """Give `buffer` back; no array that looks into it may be used afterwards. Never raises.

        While the engine runs, its memory must not go to anybody else: it gets `GRACE_S` to
        finish, and if it does not, the buffer is kept aside until the overlay is reloaded.
        A buffer that was freed already is left alone.
        """
        address = int(buffer.device_address)
        entry = self._buffers.get(address)
        if entry is None or entry[0] is not buffer:
            return
        busy = not self.settle(GRACE_S)
        del self._buffers[address]
        if busy:
            self._abandoned[id(buffer)] = _KEPT[id(buffer)] = buffer
        else:
            buffer.freebuffer()

    def free_all(self) -> None:
        """`free` every buffer that is still out."""
        for buffer, _ in list(self._buffers.values()):
            self.free(buffer)

    # Running

    @property
    def running(self) -> bool:
        """Whether a program was started whose end nobody has seen."""
        return self._running

    def start(
        self, address: int, memory_words: int, first_command: int, command_count: int
    ) -> None:
        """Start `command_count` commands at word `first_command` of the memory block.

        Args:
            address: device address of the block, inside one buffer from `allocate`.
            memory_words: size of the block; commands that reach beyond are refused.

        Raises:
            InputError: the block or the commands do not lie inside one buffer. The hardware
                ignores bus errors, so this is the only check there is.
            DeviceError: the engine still runs an earlier program.
        """
        address = _integer("address", address, 0, (1 << 64) - 1)
        memory_words = _integer("memory_words", memory_words, 1, (1 << 32) - 1)
        first_command = _integer("first_command", first_command, 0, (1 << 32) - 1)
        command_count = _integer("command_count", command_count, 0, (1 << 32) - 1)
        self._check_block(address, memory_words, first_command, command_count)
        for port in PORTS:
            self._write_register(port, address)
        self._write_register("memory_words", memory_words)
        self._write_register("first_command", first_command)
        self._start(command_count)

    def wait(self, timeout: float, layer_name: Callable[[int], str] | None = None) -> None:
        """Return when the started program has ended well.

        Ctrl-C is passed on only after the engine had `GRACE_S` to finish, so that its memory is
        not given to anybody while it still writes there; a second Ctrl-C passes at once, and
        `free` then keeps the memory aside.

        Args:
            timeout: seconds from now.
            layer_name: command index -> name of its layer, for error messages.

        Raises:
            DeviceTimeoutError: it did not end in time; the engine may still be running, and
                `wait` may be called again.
            DeviceError: the engine refused a command; it stopped and can be started again.
        """
        if not self._running:
            raise DeviceError("wait() without a started program; call start() first.")
        if not timeout > 0:
            raise InputError(f"timeout is {timeout!r}, wanted a number of seconds above 0.")
        try:
            finished = self._poll(timeout)
        except KeyboardInterrupt:
            self.settle(GRACE_S)
            raise
        if not finished:
            self._stuck = True
            raise DeviceTimeoutError(
                f"the engine did not finish within {timeout:g} s. A kernel stuck on the bus "
                "cannot be aborted: reload the overlay (reload() of the session) to reset it, "
                "or call wait() again if the program may need longer."
            )
        self._check_status(layer_name)

    def run(
        self,
        address: int,
        memory_words: int,
        first_command: int,
        command_count: int,
        *,
        timeout: float,
        layer_name: Callable[[int], str] | None = None,
    ) -> None:
        """`start` and `wait`."""
        self.start(address, memory_words, first_command, command_count)
        self.wait(timeout, layer_name)

    def settle(self, seconds: float) -> bool:
        """Whether the engine is idle, giving it `seconds` to become so.

        An engine that once ran out of time is asked, but not waited for again.
        """
        if self._running:
            with contextlib.suppress(DeviceError):  # it failed, so it has ended
                self._stuck = not self._poll(0.0 if self._stuck else seconds)
        return not self._running

    def reset(self) -> None:
        """Forget the program that was running: the overlay was reloaded, the engine is new.

        Buffers kept aside by `free` are given back.
        """
        self._running = self._stuck = False
        while self._abandoned:
            key, buffer = self._abandoned.popitem()
            _KEPT.pop(key, None)
            buffer.freebuffer()

    # Which engine is this

    def identify(self) -> dict[str, int]:
        """The interface version and the build parameters that the engine reports, by register.

        Runs zero commands first: these registers hold 0 before the first run.

        Raises:
            DeviceTimeoutError, DeviceError: the engine does not answer, or is running.
        """
        self._start(0)
        self.wait(IDENTIFY_TIMEOUT_S)
        return {name: self._read_register(name) for name in ("version", *BUILD_REGISTERS)}

    def check_build(self, build: Build) -> None:
        """Make sure that the engine is `build`.

        Raises:
            BuildError: it has other parameters or another interface; both are named.
        """
        found = self.identify()
        wanted = {"version": VERSION, **{name: getattr(build, name) for name in BUILD_REGISTERS}}
        if found == wanted:
            return
        differing = [name for name in wanted if found[name] != wanted[name]]
        raise BuildError(
            f"the engine on the device is {_known_name(found)}, not the wanted build "
            f"{build.name!r}: it reports {', '.join(f'{n}={found[n]}' for n in differing)}, "
            f"wanted {', '.join(f'{n}={wanted[n]}' for n in differing)}. Load the overlay of "
            f"build {build.name!r}, or recompile the program for the build that is loaded."
        )

    # Registers

    def _start(self, command_count: int) -> None:
        self.check_loaded()
        if not self.settle(0.0):
            raise DeviceError(
                "the engine still runs an earlier program: wait() for it, or reload the overlay "
                "(reload() of the session) if it is stuck."
            )
        self._write_register("command_count", command_count)
        self._expected = command_count
        self._stuck = False
        self._running = True  # before the write: an interrupt must not find it unset
        try:
            self.write(CONTROL, AP_START)
        except DeviceError:
            self._running = False
            raise

    def _poll(self, timeout: float) -> bool:
        begin = time.monotonic()
        while True:
            try:
                control = self.read(CONTROL)
            except DeviceError:  # an emulated engine failed or is gone; a board never says so
                self._running = False
                raise
            # Somebody who read the register before us has cleared done: idle says the same.
            if control & AP_DONE or (control & AP_IDLE and not control & AP_START):
                self._running = False
                return True
            waited = time.monotonic() - begin
            if waited >= timeout:
                return False
            if waited > _SPIN_S:  # at most a twentieth of the run is spent asleep after its end
                time.sleep(min(waited / 20, _MAX_SLEEP_S, max(timeout - waited, 0.0)))

    def _check_status(self, layer_name: Callable[[int], str] | None) -> None:
        status = self._read_register("status")
        completed = self._read_register("completed")
        if status == 0 and completed == self._expected:
            return
        if status == 0:
            raise DeviceError(
                f"the engine reports success after {completed} of {self._expected} commands: "
                "it is not the engine this package describes. Reload the overlay."
            )
        layer = f", layer {layer_name(completed)!r}" if layer_name else ""
        name, meaning = STATUS.get(status, ("unknown", "This package does not know the code."))
        raise DeviceError(
            f"the engine refused command {completed} of {self._expected}{layer}: "
            f"status {status} ({name}). {meaning} Recompile the program for the loaded build; "
            "if that does not help, its memory was damaged."
        )

    def _check_block(self, address: int, words: int, first: int, count: int) -> None:
        if address % PORT_BYTES:
            raise InputError(
                f"memory block at {address:#x} is not aligned to {PORT_BYTES} bytes; "
                "hand in the device_address of a buffer."
            )
        end = address + PORT_BYTES * words
        if not any(
            start <= address and end <= start + PORT_BYTES * size
            for start, (_, size) in self._buffers.items()
        ):
            raise InputError(
                f"memory block {address:#x} to {end:#x} does not lie inside one buffer of this "
                "device; allocate() it, and start before free()."
            )
        if first + COMMAND_WORDS * count > words:
            raise InputError(
                f"{count} commands at word {first} end at word {first + COMMAND_WORDS * count}, "
                f"beyond the {words} words of the memory block."
            )

    def _read_register(self, name: str) -> int:
        return int(self.read(REGISTERS[name][0]))

    def _write_register(self, name: str, value: int) -> None:
        offset, bits = REGISTERS[name]
        for shift in range(0, bits, 32):
            self.write(offset + shift // 8, (value >> shift) & 0xFFFFFFFF)


def _integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as a Python int: MMIO takes nothing else, and numpy integers wrap silently."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}, wanted an integer.") from None
    if not low <= number <= high:
        raise InputError(f"{name} is {number}, wanted {low} to {high}.")
    return number


def _known_name(found: dict[str, int]) -> str:
    """How to call an engine that reports these registers."""
    for name in build_names():
        if all(getattr(load_build(name), key) == found[key] for key in BUILD_REGISTERS):
            return f"build {name!r}"
    return "a build this package does not know" if any(found.values()) else "silent (all zero)"
