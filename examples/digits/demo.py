# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits, dense and bank-balanced, on the emulated board; every result verified.

    python examples/digits/demo.py

Compiles `digits.onnx` (made by `train.py`) in five variants and runs the test digits through the
driver, on the engine compiled from `hls/`. Cycles are modelled for a Pynq-Z2, not measured.
"""

from __future__ import annotations

import time

import numpy as np

import pynq_bbs as bbs
from pynq_bbs.compress.prune import bank_mask, choose_bank
from pynq_bbs.model.onnx_import import load_onnx
from pynq_bbs.report import table
from train import MODEL, accuracy, from_onnx, load_data, to_onnx, train

LANES = bbs.load_build("8x32").lanes


def main() -> None:
    start = time.perf_counter()
    x, y, x_test, y_test = load_data()
    weights, biases = from_onnx(MODEL)
    print(f"{MODEL.name}: float accuracy {accuracy(weights, biases, x_test, y_test):.1%}")

    print("fine-tuning at 87.5 % with fixed bank masks, 15 epochs ...")
    masks = [bank_mask(w, *choose_bank(w.shape[1], 0.875, 64, LANES)) for w in weights]
    tuned = to_onnx(*train(weights, biases, x, y, masks, epochs=15))

    model = load_onnx(MODEL)
    variants = [
        ("dense", model, 0.0, 64),
        ("2:4", model, 0.5, 4),
        ("75 % in banks", model, 0.75, 64),
        ("87.5 % in banks", model, 0.875, 64),
        ("87.5 % fine-tuned", load_onnx(tuned), 0.875, 64),
    ]
    rows = [("variant", "accuracy", "weight bytes", "modelled cycles", "busy", "columns bit-exact")]
    for name, source, sparsity, bank_size in variants:
        print(f"{name}: compile, run, verify ...")
        # Of three layers, compile would leave the first and the last dense.
        everywhere = {"*": {"sparsity": sparsity, "bank_size": bank_size}}
        program = bbs.compile(source, layers=everywhere, calibration=x)
        with bbs.Accelerator(program, device="emulated", verify=True) as accelerator:
            scores = accelerator.run(x_test)
            report = accelerator.report()
        rows.append(
            (
                name,
                f"{np.mean(scores.argmax(axis=1) == y_test):.1%}",
                str(program.weight_bytes),
                f"{report.cycles:.0f}",
                f"{report.utilisation:.0%}",
                f"{report.verified_columns} of {len(x_test)}",
            )
        )
    print()
    print(table(rows))
    print(
        f"\n{report.device}; cycles modelled for build {report.build} at "
        f"{report.clock_mhz:.1f} MHz and {report.gigabytes_per_second:.2f} GB/s; "
        f"{time.perf_counter() - start:.0f} s in all"
    )


if __name__ == "__main__":
    main()
