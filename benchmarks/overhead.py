# SPDX-License-Identifier: Apache-2.0
"""What one `Accelerator.run` of a tiny layer costs on the host, by part.

    python benchmarks/overhead.py [--device standin|emulated-pynq]

A layer of 16 x 64 and one column: the engine has next to nothing to do, the rest is ours.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from pynq_bbs.accelerator import Accelerator
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput
from pynq_bbs.report import table

RUNS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="standin", choices=("standin", "emulated-pynq"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    layer = QuantLayer(
        "tiny",
        "x",
        "y",
        rng.integers(-127, 128, (16, 64)).astype(np.int8),
        np.zeros(16, np.int32),
        0,
        np.full(16, 0.01, np.float32),
    )
    model = QuantModel(
        "tiny",
        [QuantInput("in", "x", (64,), "float32", np.float32(0.1), 0)],
        [layer],
        [QuantOutput("out", "y", (16,), "float32")],
    )
    x = rng.normal(size=(1, 64)).astype(np.float32)
    with Accelerator(compile_model(model), args.device, strict=False) as accelerator:
        for _ in range(50):
            accelerator.run(x)
        before = dict(accelerator.report().seconds)
        start = time.perf_counter()
        for _ in range(RUNS):
            accelerator.run(x)
        whole = (time.perf_counter() - start) / RUNS
        after = accelerator.report().seconds
    parts = {part: (after[part] - before[part]) / RUNS for part in after}
    rows = [("part", "microseconds")]
    rows += [(part, f"{1e6 * seconds:.1f}") for part, seconds in parts.items() if seconds]
    rows += [("the rest", f"{1e6 * (whole - sum(parts.values())):.1f}")]
    rows += [("one run", f"{1e6 * whole:.1f}")]
    print(f"16 x 64, one column, {args.device}, mean of {RUNS} runs:")
    print(table(rows))


if __name__ == "__main__":
    main()
