# SPDX-License-Identifier: Apache-2.0
"""Accuracy over sparsity as SVG, a file for each network with results.

    python benchmarks/proof/plots.py docs

Writes accuracy-mnist.svg and accuracy-spoken.svg; a mark is the mean over the seeds that have run,
its bar the lowest to the highest of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from report import PATTERNS, SPARSITIES, TITLES, read

COLOURS = ("#222", "#1b6ca8", "#2a9d8f", "#7cb518", "#9b5de5", "#f4a300", "#d1495b")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 360, 60, 40, 320


def chart(task: str) -> str:
    """The SVG of one network; empty where nothing has run."""
    rows = [row for row in read("results.jsonl") if row["task"] == task and "accuracy" in row]
    if not rows:
        return ""
    low = min(row["accuracy"] for row in rows) - 0.3
    high = max(row["accuracy"] for row in rows) + 0.3

    def y(accuracy: float) -> float:
        return float(round(BOTTOM - (accuracy - low) / (high - low) * (BOTTOM - TOP), 1))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{TITLES[task]}: percent right</text>',
    ]
    for i in range(5):
        value = low + (high - low) * i / 4
        parts.append(f'<path d="M{LEFT} {y(value)}H480" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value)}" text-anchor="end">{value:.1f}</text>')
    for i, sparsity in enumerate(SPARSITIES):
        x = _x(i, 3)
        parts.append(f'<text x="{x}" y="{BOTTOM + 18}" text-anchor="middle">{sparsity:.2%}</text>')
    dense = [row["accuracy"] for row in rows if row["pattern"] == "dense"]
    if dense:
        level = y(mean(dense))
        parts.append(f'<path d="M{LEFT} {level}H480" stroke="#222" stroke-dasharray="5"/>')
        parts.append(f'<text x="492" y="{level + 4}">dense</text>')
    for number, pattern in enumerate(PATTERNS):
        own = [row for row in rows if row["pattern"] == pattern]
        marks = []
        for i, sparsity in enumerate(SPARSITIES):
            values = [row["accuracy"] for row in own if row["sparsity"] == sparsity]
            if values:
                marks.append((_x(i, number), [y(value) for value in values], y(mean(values))))
        parts += _marks(marks, COLOURS[number])
        if marks:
            place = 100 + 20 * number
            parts.append(f'<circle cx="496" cy="{place}" r="4" fill="{COLOURS[number]}"/>')
            parts.append(f'<text x="506" y="{place + 4}">{pattern}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _x(column: int, number: int) -> float:
    """Patterns stand beside each other, so that equal ones can be told apart."""
    return 120 + 100 * column + 8 * (number - 3)


def _marks(marks: list[tuple[float, list[float], float]], colour: str) -> Iterator[str]:
    line = " ".join(f"{x},{middle}" for x, _, middle in marks)
    yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="0.7"/>'
    for x, all_of_them, middle in marks:
        yield f'<path d="M{x} {min(all_of_them)}V{max(all_of_them)}" stroke="{colour}"/>'
        yield f'<circle cx="{x}" cy="{middle}" r="4" fill="{colour}"/>'


def main() -> None:
    for task in TITLES:
        if drawn := chart(task):
            (Path(sys.argv[1]) / f"accuracy-{task}.svg").write_text(drawn)


if __name__ == "__main__":
    main()
