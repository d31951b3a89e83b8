# SPDX-License-Identifier: Apache-2.0
"""What `submit` gains over `run` where a model needs the host between its programs.

    python benchmarks/pipelined.py [--rounds N] [--device standin|emulated-pynq] [--sleep MS]

Two programs with a LayerNormalization between and behind them, batches of 32 samples of 64 x 128.
In every round both take the same batches; who begins changes. The gain is at most what the shorter
of the two, host and device, takes of the time of `run`. The
emulator needs a processor of its own for it; with `--sleep` every run of the engine takes so many
milliseconds more without one, as a board's does.
"""

from __future__ import annotations

import argparse
import statistics
from time import perf_counter, sleep

import numpy as np

from pynq_bbs import Accelerator
from pynq_bbs.builds import load_build
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.device.emulated_ip import Engine
from pynq_bbs.device.emulator import load_engine
from pynq_bbs.device.session import open_device
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput
from pynq_bbs.operators.call import Call
from pynq_bbs.operators.node import HostNode
from pynq_bbs.pack.pipeline import Border, Pipeline, Segment
from pynq_bbs.pack.program import Program
from pynq_bbs.report import table

BUILD = load_build("8x32")
TOKENS, WIDTH, SAMPLES, BATCHES = 64, 128, 32, 8


def layer(name: str, source: str, result: str) -> Segment:
    """A dense layer of each token, floats in and out."""
    rng = np.random.default_rng(len(name))
    made = QuantLayer(
        name,
        "x",
        "y",
        rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8),
        np.zeros(WIDTH, np.int32),
        0,
        np.full(WIDTH, 2.0**-10, np.float32),
    )
    x = QuantInput(source, "x", (WIDTH,), "float32", np.float32(1 / 32), 0)
    y = QuantOutput(result, "y", (WIDTH,), "float32", np.full(1, 1 / 8, np.float32))
    program = compile_model(QuantModel(name, [x], [made], [y]), build=BUILD.name)
    assert isinstance(program, Program)
    return Segment(program, 1, TOKENS)


def normalised(source: str, result: str) -> HostNode:
    call = Call(17, {"axis": -1, "epsilon": 1e-5}, 1)
    return HostNode(result, "LayerNormalization", (source, "gain", "offset"), (result,), call)


def pipeline() -> Pipeline:
    shape = (TOKENS, WIDTH)
    return Pipeline(
        "two programs",
        BUILD,
        [Border("in", shape, "float32")],
        [Border("out", shape, "float32")],
        [
            layer("first", "in", "a"),
            normalised("a", "b"),
            layer("second", "b", "c"),
            normalised("c", "out"),
        ],
        {"gain": np.ones(WIDTH, np.float32), "offset": np.zeros(WIDTH, np.float32)},
    )


class Longer:
    """An engine that sleeps after it has computed."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds

    def run(self, *arguments: int) -> dict[str, int]:
        results = self._engine.run(*arguments)
        if arguments[-1]:  # without commands it only says what it is
            sleep(self._seconds)
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="standin", choices=("standin", "emulated-pynq"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sleep", type=float, default=0.0, metavar="MS")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(SAMPLES, TOKENS, WIDTH)).astype(np.float32) for _ in range(BATCHES)]
    times: dict[str, list[float]] = {"run": [], "submit": []}
    made = pipeline()
    engine = Longer(load_engine(BUILD), args.sleep / 1e3)
    with (
        open_device(args.device, BUILD, engine=engine) as session,
        Accelerator(made, session=session) as one,
        Accelerator(made, session=session) as two,
    ):
        expected = [one.run(x) for x in batches]
        for future in [two.submit(x) for x in batches]:
            future.result()
        before = dict(one.report().seconds)
        for turn in range(args.rounds):
            for way in ("run", "submit") if turn % 2 else ("submit", "run"):
                start = perf_counter()
                if way == "run":
                    results = [one.run(x) for x in batches]
                else:
                    results = [future.result() for future in [two.submit(x) for x in batches]]
                times[way].append(perf_counter() - start)
                assert all(map(np.array_equal, results, expected))
        spent = {part: s - before[part] for part, s in one.report().seconds.items()}
    device = spent["device"] / sum(times["run"])
    gains = [a / b for a, b in zip(times["run"], times["submit"], strict=True)]
    rows = [("way", "ms a batch, median", "least")]
    rows += [
        (way, f"{1e3 * statistics.median(s) / BATCHES:.2f}", f"{1e3 * min(s) / BATCHES:.2f}")
        for way, s in times.items()
    ]
    longer = f", {args.sleep:g} ms longer" if args.sleep else ""
    print(
        f"{args.device}{longer}, {SAMPLES} samples a batch; the device takes {device:.0%} of run's "
        "time"
    )
    print(table(rows))
    print(f"run over submit: median {statistics.median(gains):.2f}, of one round each")


if __name__ == "__main__":
    main()
