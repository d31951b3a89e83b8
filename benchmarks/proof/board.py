# SPDX-License-Identifier: Apache-2.0
"""Accuracy of the fine-tuned networks as INT8 and INT4 on the emulated board, bit-exact.

    python benchmarks/proof/board.py mnist --samples 500 [--seed 0]
    python benchmarks/proof/board.py spoken --samples 100

Networks that run.py left are compiled as they are: `compile` finds their zeros. Every layer's
output is compared with the cpu device's while it runs. Float accuracy is of the same samples. Every
result is a line of board.jsonl; those that are there are not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import checkpoint, finished
from tasks import TASKS

from pynq_bbs import Accelerator
from pynq_bbs import compile as compile_model
from pynq_bbs.train import load_checkpoint

RESULTS = Path(__file__).resolve().parent / "board.jsonl"
CALIBRATION_SAMPLES = 256
#: Builds with cells for those that need them; else the board's own.
BUILDS = {"spoken": "32x4x1"}
KEYS = ("task", "pattern", "sparsity", "seed", "bits", "samples")


def measured() -> list[dict[str, Any]]:
    """All results so far."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def measure(name: str, pattern: str, sparsity: float, seed: int, bits: int, samples: int) -> Any:
    """One result; None where run.py left no network."""
    task = TASKS[name]
    model = task.network()
    if not load_checkpoint(checkpoint(name, pattern, sparsity, seed), model=model):
        return None
    train, _, x, y = task.data()
    # evenly spaced, so that every class and speaker is among them
    chosen = torch.linspace(0, len(x) - 1, min(samples, len(x))).long()
    x, labels = x[chosen], y[chosen].numpy()
    spread = train[torch.linspace(0, len(train) - 1, CALIBRATION_SAMPLES).long()].numpy()
    program = compile_model(
        model, x[:1], calibration=spread, weight_bits=bits, build=BUILDS.get(name)
    )
    accelerator = Accelerator(program, device="emulated", verify=True)
    scores = np.concatenate([accelerator.run(part) for part in np.array_split(x.numpy(), 4)])
    with torch.no_grad():
        own = model(x).numpy()
    values = (name, pattern, sparsity, seed, bits, len(x))
    return dict(zip(KEYS, values, strict=True)) | {
        "float": 100 * float(np.mean(own.argmax(1) == labels)),
        "board": 100 * float(np.mean(scores.argmax(1) == labels)),
        "build": program.build.name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, pattern, sparsity, seed in finished():
        for bits in (8, 4):
            values = (name, pattern, sparsity, seed, bits, arguments.samples)
            if name != arguments.task or seed != arguments.seed:
                continue
            if values in [tuple(row[key] for key in KEYS) for row in measured()]:
                continue
            row = measure(*values)
            if row:
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


if __name__ == "__main__":
    main()
