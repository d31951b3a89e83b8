# SPDX-License-Identifier: Apache-2.0
"""Where the hardware sources, the board data and the build cache lie."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _resource(name: str) -> Path:
    """`name` inside the installed package, else beside `host/` in a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name


def hls_dir() -> Path:
    """The engine's C++ sources and `interface.json`."""
    return _resource("hls")


def overlay_dir() -> Path:
    """`builds/*.json`, `boards.json` and the overlay scripts."""
    return _resource("overlay")


def cache_dir() -> Path:
    """Compiled libraries and generated files; `BBS_CACHE` overrides the place."""
    root = os.environ.get("BBS_CACHE")
    if root:
        return Path(root)
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "pynq_bbs"
