# SPDX-License-Identifier: Apache-2.0
"""One exception class per cause; the command line exits with the class's `exit_code`.

Every message says what was given, what is accepted, and what to do.
"""

from __future__ import annotations


class BbsError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class InputError(BbsError):
    """Data handed in by the caller: wrong shape, dtype, range, NaN, bad option value."""

    exit_code = 3


class ModelError(BbsError):
    """The model file is missing, damaged, or not a valid ONNX model."""

    exit_code = 4


class UnsupportedModelError(ModelError):
    """The model is valid but has nodes the engine cannot run; all are listed at once."""

    exit_code = 5

    def __init__(self, message: str, nodes: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message)
        #: (node name, reason) of every node that stands in the way
        self.nodes = nodes or []


class ProgramError(BbsError):
    """A program file is missing, damaged, or of another version."""

    exit_code = 6


class BuildError(BbsError):
    """Unknown build or board, or a bitstream whose parameters are not the program's."""

    exit_code = 7


class ToolchainError(BbsError):
    """No C++ compiler, or the compiler refused a source."""

    exit_code = 8


class DeviceError(BbsError):
    """The device refused a command or is not in a state to run one."""

    exit_code = 9


class DeviceTimeoutError(DeviceError):
    """The engine did not finish in time."""

    exit_code = 10


class DeviceMemoryError(DeviceError):
    """The device has no room for the program or the batch."""

    exit_code = 11


class VerificationError(BbsError):
    """The device's integers differ from the cpu device's."""

    exit_code = 12
