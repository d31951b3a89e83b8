# SPDX-License-Identifier: Apache-2.0
"""The engine with streams as shallow as can be: what still comes to its end needs no depth."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pynq_bbs.paths import hls_dir


def shallow_copy(folder: Path) -> Path:
    """The engine's sources with one place in every stream of a threaded run but two: the chain
    holds a tensor from one command to the next, `next_words` a command until its turn."""
    for source in (*hls_dir().glob("*.hpp"), hls_dir() / "engine.cpp"):
        shutil.copy(source, folder)
    dataflow = folder / "dataflow.hpp"
    names = 'std::string(name_) == "chain" || std::string(name_) == "next_words"'
    one_place = f"({names} ? static_cast<size_t>(kDepth) : 1)"
    text, places = re.subn(r"static_cast<size_t>\(kDepth\)", one_place, dataflow.read_text())
    assert places == 1, "dataflow.hpp compares with kDepth in another way than this test knows"
    dataflow.write_text(text)
    return folder
