# SPDX-License-Identifier: Apache-2.0
"""Weights pruned and packed a second.

    python benchmarks/pack.py

A float32 matrix of 4096 x 1024 is pruned, rounded to INT8 and packed; each part is timed alone
and together, and against numpy's own full sort of the same banks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from pynq_bbs.compress.prune import bank_prune
from pynq_bbs.pack.csb import csb_shape, pack_csb
from pynq_bbs.report import table

ROWS, FEATURES = 4096, 1024


def median_seconds(work: Callable[[], object], repeats: int = 9) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    weights = np.random.default_rng(0).normal(size=(ROWS, FEATURES)).astype(np.float32)
    count = weights.size / 1e6
    rows = [("banks", "prune M/s", "pack M/s", "prune + pack M/s", "x numpy sort")]
    for bank_size, keep in ((4, 2), (16, 2), (64, 8), (256, 32)):
        shape = csb_shape(ROWS, FEATURES, bank_size, keep, 8, 512)
        pruned = bank_prune(weights, bank_size, keep)
        integers = np.rint(pruned * 30).astype(np.int8)
        prune = median_seconds(lambda s=bank_size, k=keep: bank_prune(weights, s, k))  # type: ignore[misc]
        pack = median_seconds(lambda i=integers, s=shape: pack_csb(i, s))  # type: ignore[misc]
        banks = np.abs(weights).reshape(-1, bank_size)
        sort = median_seconds(lambda b=banks: np.argsort(-b, axis=1, kind="stable"), 3)  # type: ignore[misc]
        both = prune + pack
        rows.append(
            (
                f"keep {keep} of {bank_size}",
                f"{count / prune:.0f}",
                f"{count / pack:.0f}",
                f"{count / both:.0f}",
                f"{sort / both:.1f}",
            )
        )
    print(f"{ROWS} x {FEATURES}, million weights a second (median):")
    print(table(rows))


if __name__ == "__main__":
    main()
