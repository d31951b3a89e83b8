# SPDX-License-Identifier: Apache-2.0
"""What one `Accelerator.run` of one sample costs on the host, by part.

    python benchmarks/overhead.py [FILE] [--device standin|emulated-pynq] [--runs N] [--sleep US]

Of a program file or an ONNX file that needs no calibration; else of a layer of 16 x 64, with which
the engine has next to nothing to do. All but `device` is ours. Two programs take turns on one
device for `changing program`: what a run takes then besides the device.

With `--sleep` the emulated engine computes once and from then on sleeps for so many microseconds,
as a processor beside a real engine may: none of its work is in the host's caches then.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from pynq_bbs.accelerator import Accelerator
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.device.emulated_ip import Engine
from pynq_bbs.device.emulator import load_engine
from pynq_bbs.device.session import open_device
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput
from pynq_bbs.pack.program import Program
from pynq_bbs.report import PARTS, table


def tiny() -> Program:
    layer = QuantLayer(
        "tiny",
        "x",
        "y",
        np.random.default_rng(0).integers(-127, 128, (16, 64)).astype(np.int8),
        np.zeros(16, np.int32),
        0,
        np.full(16, 0.01, np.float32),
    )
    x = QuantInput("in", "x", (64,), "float32", np.float32(0.1), 0)
    y = QuantOutput("out", "y", (16,), "float32")
    program = compile_model(QuantModel("16 x 64", [x], [layer], [y]))
    assert isinstance(program, Program)
    return program


def sample(program: Program) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        i.name: rng.normal(size=(1, *i.shape)).astype(np.float32)
        if i.dtype == "float32"
        else rng.integers(0, 128, (1, *i.shape)).astype(i.dtype)
        for i in program.inputs
    }


class Sleeping:
    """An engine that computes what it is given for the first time, and then only takes time."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds
        self._known: dict[tuple[int, ...], dict[str, int]] = {}

    def run(self, *arguments: int) -> dict[str, int]:
        if arguments not in self._known:
            self._known[arguments] = self._engine.run(*arguments)
        elif self._seconds:
            sleep(self._seconds)
        return self._known[arguments]


def measured(accelerators: Sequence[Accelerator], inputs: Any, runs: int) -> dict[str, float]:
    """Median microseconds of each part of a run, of all of it, and of all but the device."""
    every: list[dict[str, float]] = []
    for index in range(runs):
        accelerator = accelerators[index % len(accelerators)]
        before = dict(accelerator.report().seconds)
        start = perf_counter()
        accelerator.run(inputs)
        whole = perf_counter() - start
        parts = {p: s - before[p] for p, s in accelerator.report().seconds.items()}
        parts["the rest"] = whole - sum(parts.values())
        every.append(parts | {"one run": whole, "all but device": whole - parts["device"]})
    warm = every[runs // 10 :]
    return {part: 1e6 * statistics.median(run[part] for run in warm) for part in every[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--device", default="standin", choices=("standin", "emulated-pynq"))
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--sleep", type=float, metavar="US")
    args = parser.parse_args()
    program = tiny()
    if args.file:
        load = compile_model if args.file.suffix == ".onnx" else Program.load
        loaded = load(args.file)
        if not isinstance(loaded, Program):
            parser.error(f"{args.file} is no single program")
        program = loaded
    x = sample(program)
    engine: Engine | None = None
    if args.sleep is not None:
        engine = Sleeping(load_engine(program.build), args.sleep / 1e6)
    with (
        open_device(args.device, program.build, strict=False, engine=engine) as session,
        Accelerator(program, session=session) as one,
        Accelerator(program, session=session) as other,
    ):
        parts = measured([one], x, args.runs)
        changing = measured([one, other], x, args.runs)["all but device"]
    rows = [("part", "microseconds")]
    shown = [*PARTS, "the rest", "one run", "all but device"]
    rows += [(part, f"{parts[part]:.1f}") for part in shown if round(parts[part], 1)]
    rows += [("the same, changing program", f"{changing:.1f}")]
    engine_is = "" if args.sleep is None else f", an engine that sleeps for {args.sleep:g} us"
    print(f"{program.name}, one sample, {args.device}{engine_is}, medians of {args.runs} runs:")
    print(table(rows))


if __name__ == "__main__":
    main()
