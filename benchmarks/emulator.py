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
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput, Window
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.plan import make_plan
from pynq_bbs.report import table

BUILD = load_build("8x32")
MEMORY = Memory(142.857e6, 1.5e9)
#: rows, features, columns, bank size, keep
LAYERS = [(4096, 1024, 128, 64, 8), (4096, 1024, 128, 1, 1), (4096, 1024, 1, 64, 8)]
#: rows, channels, size, kernel, stride
CONVOLUTIONS = [(64, 64, 56, 3, 1), (128, 128, 28, 3, 1), (128, 64, 56, 1, 1), (16, 16, 32, 3, 1)]


def measure(
    layer: QuantLayer, bank: tuple[int, int], shape: tuple[int, ...], samples: int, repeats: int
) -> tuple[float, float]:
    """Executed GMAC/s, median and best; columns padded to whole tiles are counted as work."""
    source = QuantInput("x", "x", shape, "int8", np.float32(1), 3)
    output = QuantOutput("y", "y", (), "int8")
    program = pack(QuantModel("bench", [source], [layer], [output]), {"layer": bank}, BUILD)
    plan = make_plan(program, samples, MEMORY)
    rng = np.random.default_rng(0)
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
    command = plan.commands[0]
    macs = command.rows * command.features * bank[1] / bank[0] * command.tiles * BUILD.cols
    return (
        macs / statistics.median(seconds[1:]) / 1e9,
        macs / min(seconds[1:]) / 1e9,
    )


def random_layer(shape: tuple[int, ...], window: Window | None = None) -> QuantLayer:
    """A layer with random weights of this shape."""
    weights = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    rows = shape[0]
    return QuantLayer(
        "layer",
        "x",
        "y",
        weights,
        np.zeros(rows, np.int32),
        3,
        np.full(rows, 1e-4, np.float32),
        window=window,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--floor", type=float, default=0.0, help="fail below this, GMAC/s")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    rows = [("layer", "columns", "keep/bank", "GMAC/s median", "best")]
    medians = []
    for m, k, n, size, keep in LAYERS:
        layer = random_layer((m, k))
        layer.weights = bank_prune(layer.weights, size, keep)
        median, best = measure(layer, (size, keep), (k,), n, args.repeats)
        medians.append(median)
        rows.append((f"{m} x {k}", str(n), f"{keep}/{size}", f"{median:.2f}", f"{best:.2f}"))
    for m, c, size, kernel, stride in CONVOLUTIONS:
        pad = (kernel - 1) // 2
        window = Window(c, size, size, (kernel, kernel), (stride, stride), pads=(pad,) * 4)
        layer = random_layer((m, c, kernel, kernel), window)
        median, best = measure(layer, (1, 1), (c, size, size), 1, args.repeats)
        name = f"{m} x {c}, {kernel} x {kernel}"
        pixels = str(window.out_height * window.out_width)
        rows.append((name, pixels, "dense", f"{median:.2f}", f"{best:.2f}"))
    print(f"emulated engine, build {BUILD.name}, one thread, executed products:")
    print(table(rows))
    return int(medians[0] < args.floor)


if __name__ == "__main__":
    sys.exit(main())
