# SPDX-License-Identifier: Apache-2.0
"""Files of a header and arrays: written whole or not at all, refused whole when damaged.

An uncompressed .npz without pickles: a header in JSON, arrays by name, and a checksum of both.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ProgramError

#: What reading what is no such file raises; numpy parses an array's header as Python.
_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, TypeError, SyntaxError, RecursionError, TokenError,
    zipfile.BadZipFile,
)  # fmt: skip

Arrays = Mapping[str, NDArray[Any]]


def write(path: str | Path, header: dict[str, Any], arrays: Arrays) -> None:
    """Write a file, in place of one of that name only once all of it is on disk."""
    target = Path(path)
    text = json.dumps(header).encode()
    stored = io.BytesIO()
    np.savez(
        stored,
        header=np.frombuffer(text, np.uint8),
        sha256=np.frombuffer(_digest(text, arrays), np.uint8),
        **arrays,
    )
    handle, temporary = tempfile.mkstemp(dir=target.parent or Path("."), suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(stored.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays of a file.

    Raises:
        ProgramError: missing, damaged, or not such a file.
    """
    try:
        text, arrays, digest = _read(Path(path))
    except FileNotFoundError:
        raise ProgramError(f"no program file {str(path)!r}: check the path") from None
    except _DAMAGED as error:
        raise ProgramError(
            f"{path} is not a program file or is damaged ({error}); compile the model again"
        ) from None
    if digest != _digest(text, arrays):
        raise ProgramError(
            f"{path} is damaged: its checksum does not match; compile the model again"
        )
    return json.loads(text), arrays


def kind(path: str | Path) -> str:
    """What a file says it holds; nothing where it cannot be read, which its reader then says."""
    try:
        _check_stored(path)
        with np.load(path, allow_pickle=False) as stored:
            return str(json.loads(stored["header"].tobytes()).get("kind", "program"))
    except (*_DAMAGED, AttributeError):
        return ""


def _check_stored(path: str | Path) -> None:
    """Arrays that are stored as they are, so that none is larger than the file."""
    with zipfile.ZipFile(path) as archive:
        if any(i.file_size != i.compress_size for i in archive.infolist()):
            raise ValueError("its arrays are compressed")


def _read(path: Path) -> tuple[bytes, dict[str, NDArray[Any]], bytes]:
    _check_stored(path)
    with zipfile.ZipFile(path) as archive:  # before numpy makes anything of it
        if archive.testzip() is not None:
            raise ValueError("a checksum of the archive does not match")
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    header, digest = arrays.pop("header"), arrays.pop("sha256")
    return header.tobytes(), arrays, digest.tobytes()


def _digest(header: bytes, arrays: Arrays) -> bytes:
    digest = hashlib.sha256(header)
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.digest()
