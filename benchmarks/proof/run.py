# SPDX-License-Identifier: Apache-2.0
"""Train, prune and fine-tune the networks of docs/accuracy.md.

    python benchmarks/proof/run.py mnist spoken --minutes 30

Every finished run is a line of results.jsonl beside this script; those that are there are not run
again. A run prunes the dense network of its seed at once and fine-tunes it with fixed masks, all
patterns (and "dense", which is not pruned) for the same number of epochs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tasks import TASKS, Task
from torch import nn
from torch.nn import functional

from pynq_bbs.compress.patterns import parse_pattern
from pynq_bbs.errors import InputError
from pynq_bbs.train import CubicSchedule, Pruning, load_checkpoint, save_checkpoint

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
PATTERNS = ("unstructured", "banks:16", "banks:32", "banks:64", "banks:row/64", "block:4x4")
SPARSITIES = (0.875, 0.75, 0.9375, 0.5)
SEEDS = (0, 1, 2)


def queue() -> Iterator[tuple[str, float, int]]:
    """Pattern, sparsity and seed of all runs, the telling ones first."""
    for sparsities in (SPARSITIES[:1], SPARSITIES[1:]):
        for seed in SEEDS:
            yield "dense", 0.0, seed
            yield from ((pattern, s, seed) for s in sparsities for pattern in PATTERNS)
    yield from (("2:4", 0.5, seed) for seed in SEEDS)


def finished() -> dict[tuple[str, str, float, int], dict[str, Any]]:
    """Results by task, pattern, sparsity and seed; a line that was cut off counts as not run."""
    made = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        made[row["task"], row["pattern"], row["sparsity"], row["seed"]] = row
    return made


def train(
    model: nn.Module, task: Task, epochs: int, rate: float, seed: int, pruned: Any = None
) -> None:
    """Adam with a rate that falls to zero as a cosine; `pruned` makes patterns of a sparsity."""
    torch.manual_seed(seed)
    x, y = task.data()[:2]
    steps = epochs * (len(x) // task.batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pruning = None
    if pruned:
        names = dict(model.named_parameters())
        weights = {n: p for n, p in names.items() if p.ndim > 1 and not n.startswith("scores")}
        pruning = Pruning(weights, pruned[0], optimizer, CubicSchedule(pruned[1]))
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: len(x) // task.batch * task.batch].split(task.batch):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay.step()
            if pruning:
                pruning.on_step_end()


def accuracy(model: nn.Module, task: Task) -> float:
    """Percent of the test set."""
    x, y = task.data()[2:]
    right = 0
    with torch.no_grad():
        for inputs, labels in zip(x.split(1000), y.split(1000), strict=True):
            right += int((model(inputs).argmax(1) == labels).sum())
    return 100 * right / len(y)


def checkpoint(name: str, pattern: str, sparsity: float, seed: int) -> Path:
    """Where the fine-tuned network of a run lies."""
    file = f"{name}-{pattern}-{sparsity}-{seed}.pt".replace(":", "-").replace("/", "-")
    return HERE / "checkpoints" / file


def dense(name: str, task: Task, seed: int) -> nn.Module:
    """The dense network of a seed, trained where its checkpoint is not there."""
    path = HERE / "checkpoints" / f"{name}-{seed}.pt"
    path.parent.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    model = task.network()
    if not load_checkpoint(path, model=model):
        train(model, task, task.dense_epochs, task.rate, seed)
        save_checkpoint(path, model=model)
    return model


def run(name: str, pattern: str, sparsity: float, seed: int) -> dict[str, Any]:
    task, start = TASKS[name], time.perf_counter()
    row: dict[str, Any] = {"task": name, "pattern": pattern, "sparsity": sparsity, "seed": seed}
    model = dense(name, task, seed)
    before = accuracy(model, task)
    pruned = None if pattern == "dense" else (lambda s: parse_pattern(pattern, s), sparsity)
    try:
        train(model, task, task.tuning_epochs, task.rate / 2, seed + 1000, pruned)
    except InputError as error:
        return row | {"impossible": str(error)}
    weights = [p for n, p in model.named_parameters() if p.ndim > 1 and not n.startswith("scores")]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    save_checkpoint(checkpoint(name, pattern, sparsity, seed), model=model)
    seconds = round(time.perf_counter() - start, 1)
    return row | {
        "before": before, "accuracy": accuracy(model, task), "zeros": round(zeros, 5),
        "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("tasks", nargs="+", choices=sorted(TASKS))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * arguments.minutes
    for name in arguments.tasks:
        for pattern, sparsity, seed in queue():
            if (name, pattern, sparsity, seed) in finished() or time.monotonic() > end:
                continue
            row = run(name, pattern, sparsity, seed)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
