# SPDX-License-Identifier: Apache-2.0
"""The machine's limits, measured: what a roofline is drawn from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cffi
import numpy as np

from ..toolchain import shared_library

_DECLARATION = """
size_t bbs_peak_products(void);
uint64_t bbs_peak_read(const uint64_t *words, size_t count, int threads);
int64_t bbs_peak_int16(size_t repeats, int threads);
int64_t bbs_peak_uint8(size_t repeats, int threads);
int64_t bbs_peak_int8(size_t repeats, int threads);
"""
#: Larger than the last-level caches of most machines; a board has no more to spare.
_READ_BYTES = 128 << 20
_REPEATS = 2000
_ROUNDS = 5


@dataclass(frozen=True)
class Peaks:
    """The best of some rounds, each at the benchmark's number of threads."""

    bytes_per_second: float
    macs_per_second: float


def measure_peaks(threads: int) -> Peaks:
    """Read memory, and multiply INT8 values in the first-level cache.

    The products are those of plain dot products as this machine's compiler makes them, of bytes, or
    of bytes widened to INT16, whichever is faster: not what the data sheet says.

    Raises:
        ToolchainError: there is no compiler.
    """
    library = _library()
    words = np.ones(_READ_BYTES // 8, np.uint64)
    read = _best(lambda: library.bbs_peak_read(_pointer(words), len(words), threads))
    products = library.bbs_peak_products() * _REPEATS * threads
    kinds = (library.bbs_peak_int16, library.bbs_peak_uint8, library.bbs_peak_int8)
    macs = min(_best(partial(kind, _REPEATS, threads)) for kind in kinds)
    return Peaks(_READ_BYTES / read, products / macs)


def _best(run: Callable[[], Any]) -> float:
    """The least seconds of some runs."""
    least = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
    return least


def _pointer(words: np.ndarray[Any, Any]) -> Any:
    return cffi.FFI().from_buffer("uint64_t[]", words)


def _library() -> Any:
    source = Path(__file__).resolve().with_name("peaks.cpp")
    ffi = cffi.FFI()
    ffi.cdef(_DECLARATION)
    return ffi.dlopen(str(shared_library("peaks", [source], flags=["-pthread"])))
