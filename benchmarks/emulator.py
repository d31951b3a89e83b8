# SPDX-License-Identifier: Apache-2.0
"""Speed of the whole emulated engine, one thread: executed GMAC/s.

    python benchmarks/emulator.py [--floor GMACS]

Everything from command fetch to store, without the driver. With `--floor` the exit code says
whether the first layer's median reaches it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

from pynq_bbs.builds import load_build
from pynq_bbs.compress.prune import bank_prune
from pynq_bbs.device.emulator import load_engine
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.plan import make_plan
from pynq_bbs.report import table

BUILD = load_build("8x32")
MEMORY = Memory(142.857e6, 1.5e9)
#: rows, features, columns, bank size, keep
LAYERS = [(4096, 1024, 128, 64, 8), (4096, 1024, 128, 2, 2), (4096, 1024, 1, 64, 8)]


def measure(
    rows: int, features: int, columns: int, bank_size: int, keep: int, repeats: int
) -> tuple[float, float]:
    """Executed GMAC/s, median and best; columns padded to whole tiles are counted as work."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (rows, features)).astype(np.int8)
    layer = QuantLayer(
        "layer",
        "x",
        "y",
        bank_prune(weights, bank_size, keep),
        np.zeros(rows, np.int32),
        3,
        np.full(rows, 1e-4, np.float32),
    )
    source = QuantInput("x", "x", (features,), "int8", np.float32(1), 3)
    program = pack(QuantModel("bench", [source], [layer], []), {"layer": (bank_size, keep)}, BUILD)
    plan = make_plan(program, columns, MEMORY)
    block = rng.integers(0, 2**64, plan.memory_words, dtype=np.uint64)  # random activations
    block[: len(program.image)] = program.image
    block[plan.first_command :][: len(plan.words())] = plan.words()
    engine = load_engine(BUILD)
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        result = engine.run(
            block.ctypes.data, plan.memory_words, plan.first_command, len(plan.commands)
        )
        seconds.append(time.perf_counter() - start)
        assert result["status"] == 0, result
    macs = rows * features * keep / bank_size * plan.tiles * BUILD.cols
    return (
        macs / statistics.median(seconds[1:]) / 1e9,
        macs / min(seconds[1:]) / 1e9,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--floor", type=float, default=0.0, help="fail below this, GMAC/s")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    rows = [("rows x features", "columns", "keep/bank", "GMAC/s median", "best")]
    medians = []
    for layer in LAYERS:
        median, best = measure(*layer, repeats=args.repeats)
        medians.append(median)
        m, k, n, bank_size, keep = layer
        rows.append((f"{m} x {k}", str(n), f"{keep}/{bank_size}", f"{median:.2f}", f"{best:.2f}"))
    print(f"emulated engine, build {BUILD.name}, one thread, executed products:")
    print(table(rows))
    return int(medians[0] < args.floor)


if __name__ == "__main__":
    sys.exit(main())
