# SPDX-License-Identifier: Apache-2.0
"""The engine of `hls/`, compiled by the host's C++ compiler: the emulator is that very source."""

from __future__ import annotations

from functools import cache
from typing import Any

import cffi

from ..builds import Build
from ..codegen import build_header
from ..interface import BUILD_REGISTERS
from ..paths import hls_dir
from ..toolchain import is_gcc, shared_library

_OUTPUTS = ("status", "completed", "version", *BUILD_REGISTERS)
#: GCC unrolls loops over lanes and columns whole before it vectorises, and then no longer
#: recognises them; kept as loops, the emulator runs 1.1 to 1.6 times as fast.
_GCC_FLAGS = ("-fno-tree-slp-vectorize", "--param=max-completely-peel-times=3")
_CDEF = f"""
void bbs_engine(const uint64_t* program, const uint64_t* weights, const uint64_t* indices,
                const uint64_t* activations, const uint64_t* residuals, uint64_t* results,
                uint32_t memory_words, uint32_t first_command, uint32_t command_count,
                {", ".join(f"uint32_t* {name}" for name in _OUTPUTS)});
"""


class Engine:
    """One build's engine as a function of this process."""

    def __init__(self, library: str) -> None:
        self._ffi = cffi.FFI()
        self._ffi.cdef(_CDEF)
        self._library: Any = self._ffi.dlopen(library)

    def run(
        self, host_pointer: int, memory_words: int, first_command: int, command_count: int
    ) -> dict[str, int]:
        """Run commands over the memory block at `host_pointer`; every output register by name.

        `memory_words` must be true: the engine refuses commands that reach beyond it. Releases
        the interpreter lock; any number of threads may run over different blocks.
        """
        block = self._ffi.cast("uint64_t *", host_pointer)
        outputs = [self._ffi.new("uint32_t *") for _ in _OUTPUTS]
        self._library.bbs_engine(
            block, block, block, block, block, block,
            memory_words, first_command, command_count, *outputs,
        )  # fmt: skip
        return {name: int(out[0]) for name, out in zip(_OUTPUTS, outputs, strict=True)}


@cache
def load_engine(build: Build) -> Engine:
    """The engine of `build`, compiled on first use and cached on disk.

    Raises:
        ToolchainError: no C++ compiler, or it refused the source.
    """
    sources = hls_dir()
    library = shared_library(
        f"bbs_engine_{build.name}",
        [sources / "engine.cpp"],
        headers={"build.hpp": build_header(build)},
        include_dirs=[sources],
        depends=sorted(sources.glob("*.hpp")),
        flags=["-std=c++14", *(_GCC_FLAGS if is_gcc() else ())],
    )
    return Engine(str(library))
