# SPDX-License-Identifier: Apache-2.0
"""Single layers on the cpu device's kernel, against onnxruntime's INT8 and scipy's sparse product.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --quick --threads 2

Ours goes from INT8 to INT8, bias and requantisation included, as onnxruntime's forms do; of those
the fastest counts, of those that give our integers. scipy multiplies CSR float32.
All take turns; times are medians, and a ratio is the peer's time over ours.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynq_bbs.bench.chain import Chain, IntegerLayer
from pynq_bbs.bench.machine import facts
from pynq_bbs.bench.measure import Candidate, interleave
from pynq_bbs.bench.peers import Form, scipy_forms
from pynq_bbs.bench.peers_onnx import onnxruntime_forms
from pynq_bbs.compress.prune import bank_prune
from pynq_bbs.cpu.linear import LinearOp, linear
from pynq_bbs.model.graph import QuantInput, QuantOutput

SHAPES = ((4096, 1024), (6000, 2944), (3072, 768), (768, 3072), (1024, 1024), (512, 512))
QUICK = ((1024, 1024), (512, 512))
SAMPLES = (1, 16, 128)
BANK, KEEP = 64, 8
SCIPY = "CSR float32"


def layer_of(rows: int, features: int, keep: int) -> IntegerLayer:
    """Random weights, of which `keep` in a bank stay; outputs use most of the INT8 range.

    The bias is an input's zero point alone, which every form of onnxruntime can express. Weights
    are within -64..63: without VNNI the sums of its UINT8 kernels saturate beyond.
    """
    rng = np.random.default_rng(0)
    weights = rng.integers(-64, 64, (rows, features)).astype(np.int8)
    if keep < BANK:
        weights = bank_prune(weights, BANK, keep)
    bias = (-3 * weights.sum(axis=1, dtype=np.int64)).astype(np.int32)
    multiplier = np.full(rows, 40 / (37 * 74 * np.sqrt(features * keep / BANK)), np.float32)
    return IntegerLayer("layer", weights, bias, multiplier, -10, -128, 127)


def op_of(layer: IntegerLayer, keep: int) -> LinearOp:
    """Our layer: dense, or the nonzeros of each row and where they are."""
    columns, values = None, layer.weights
    if keep < BANK:
        most = int(np.count_nonzero(layer.weights, axis=1).max())
        kept = np.sort(np.argsort(layer.weights == 0, axis=1, kind="stable")[:, :most])
        columns = kept.astype(np.int32)
        values = np.take_along_axis(layer.weights, kept, axis=1)
    return LinearOp(values, columns, layer.bias, layer.multiplier, layer.zero_point)


def measure(chain: Chain, op: LinearOp, samples: int, threads: int, seconds: float) -> str:
    """A row of the table."""
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, (samples, op.features)).astype(np.int8)
    want, _ = linear(op, x, threads=threads)
    forms = [f for f in onnxruntime_forms(chain, "", None, threads) if _same(f, x, want)]
    if not forms:
        raise SystemExit("no form of onnxruntime gives our integers on this processor")
    candidates = [Candidate("ours", lambda _: linear(op, x, threads=threads))]
    for form in [*forms, *scipy_forms(chain, threads)]:
        candidates.append(Candidate(form.name, partial(_run, form, x)))
    turns = interleave(candidates, seconds)
    times = {name: t.summary().median for name, t in turns.items()}
    ours, csr = times.pop("ours"), times.pop(SCIPY)
    best = min(times, key=lambda name: times[name])
    return (
        f"{ours * 1e6:9.0f} {times[best] * 1e6:9.0f} {csr * 1e6:9.0f}"
        f" {times[best] / ours:7.2f} {csr / ours:7.2f}  {best}"
    )


def _run(form: Form, x: NDArray[np.int8], _: int) -> object:
    return form.run(x)


def _same(form: Form, x: NDArray[np.int8], want: Any) -> bool:
    """Forms may round once more on the way, hence one step off at ties."""
    got = np.asarray(form.run(x))
    return got.dtype == np.int8 and bool((np.abs(got.astype(int) - want) <= 1).all())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two small shapes")
    parser.add_argument("--threads", type=int, default=1, help="of ours and of onnxruntime")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each row")
    args = parser.parse_args()
    machine = facts()
    for name in ("processor", "instruction sets", "processors", "load before"):
        print(f"{name}: {machine.get(name, 'not known')}")
    print(f"threads: {args.threads} (scipy: 1); {1 - KEEP / BANK:.1%} sparse in banks of {BANK}")
    print("  rows  features        N   ours µs    ort µs  scipy µs   ort/o scipy/o  fastest of ort")
    for rows, features in QUICK if args.quick else SHAPES:
        for keep in (KEEP, BANK):
            layer = layer_of(rows, features, keep)
            x = QuantInput("x", "x", (features,), "int8", np.float32(1), 0)
            y = QuantOutput("y", "y", (rows,), "int8", np.ones(1, np.float32), 0)
            chain, op = Chain(x, [layer], y), op_of(layer, keep)
            for samples in SAMPLES:
                row = measure(chain, op, samples, args.threads, args.seconds)
                kind = "dense" if keep == BANK else "sparse"
                print(f"{rows:6} {features:9} {kind} {samples:4} {row}", flush=True)


if __name__ == "__main__":
    main()
