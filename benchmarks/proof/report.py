# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/accuracy.md from results.jsonl and board.jsonl, written where they stand.

    python benchmarks/proof/report.py docs/accuracy.md

Needs no torch. A cell is the mean and the standard deviation over the seeds that have run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).resolve().parent
PATTERNS = ("unstructured", "banks:16", "banks:32", "banks:64", "banks:row/64", "2:4", "block:4x4")
SPARSITIES = (0.5, 0.75, 0.875, 0.9375)
TITLES = {"mnist": "Fully connected net, MNIST", "spoken": "2-layer LSTM, spoken digits"}
SEEDS = 3


def read(name: str) -> list[dict[str, Any]]:
    path = HERE / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trained(rows: list[dict[str, Any]], pattern: str, sparsity: float) -> str:
    """One cell: percent of the test set."""
    if pattern == "2:4" and sparsity != 0.5:
        return "-"
    rows = [row for row in rows if (row["pattern"], row["sparsity"]) == (pattern, sparsity)]
    if any("impossible" in row for row in rows):
        return "not possible"
    values = [row["accuracy"] for row in rows]
    if not values:
        return "not run yet"
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    note = f" ({len(values)} of {SEEDS} seeds)" if len(values) < SEEDS else ""
    return f"{mean(values):.2f}{spread}{note}"


def tables() -> str:
    results, board, text = read("results.jsonl"), read("board.jsonl"), []
    for task, title in TITLES.items():
        rows = [row for row in results if row["task"] == task]
        text += [
            f"### {title}",
            f"`python benchmarks/proof/run.py {task}`; percent right",
        ]
        text += [f"Dense, tuned as long: {trained(rows, 'dense', 0.0)}.", ""]
        text += ["| | " + " | ".join(f"{s:.2%}" for s in SPARSITIES) + " |", "|---" * 5 + "|"]
        for pattern in PATTERNS:
            cells = [trained(rows, pattern, sparsity) for sparsity in SPARSITIES]
            text.append(f"| {pattern} | " + " | ".join(cells) + " |")
        text.append("")
    text += ["### On the emulated board", "`python benchmarks/proof/board.py TASK --samples N`", ""]
    text += [
        "| model | pattern | sparsity | seed | samples | float | INT8 | INT4 |",
        "|---" * 8 + "|",
    ]
    for first in (row for row in board if row["bits"] == 8):
        same = {k: first[k] for k in ("task", "pattern", "sparsity", "seed", "samples")}
        fours = [r["board"] for r in board if r["bits"] == 4 and same.items() <= r.items()]
        four = f"{fours[0]:.2f}" if fours else "not run yet"
        cells = [*map(str, same.values()), f"{first['float']:.2f}", f"{first['board']:.2f}", four]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def main() -> None:
    path, marks = Path(sys.argv[1]), ("<!-- begin tables -->", "<!-- end tables -->")
    before, rest = path.read_text().split(marks[0])
    after = rest.split(marks[1])[1]
    path.write_text(f"{before}{marks[0]}\n{tables()}\n{marks[1]}{after}")


if __name__ == "__main__":
    main()
