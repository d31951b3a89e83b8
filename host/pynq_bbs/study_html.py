# SPDX-License-Identifier: Apache-2.0
"""A study as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from .bench.report_html import Row as TableRow
from .bench.report_html import html_table, page
from .bench.svg import curves
from .report import shortened
from .study import Row, Run

HEAD = ["pattern", "asked", "sparsity", "right", "cycles", "modelled ms", "cpu ms",
        "x dense cpu", "weight bytes", "left dense"]  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row's figures as `HEAD` names them."""
    return [
        row.pattern,
        f"{row.asked:.2%}",
        f"{row.sparsity:.2%}",
        f"{row.right:.2%}",
        f"~{row.cycles:.0f}",
        f"~{row.modelled_ms:.4g}",
        f"{row.cpu_ms:.4g}",
        f"{row.cpu_ms / row.dense_cpu_ms:.3f}",
        str(row.weight_bytes),
        ", ".join(shortened(name) for name in row.left_dense.split("; ")),
    ]


def study_page(
    name: str,
    rows: Sequence[Row],
    impossible: Mapping[Run, str],
    *,
    judged_by: str,
    engine: str,
    layers: Sequence[str],
) -> str:
    """The page; it is well-formed XML as well.

    Args:
        rows: one or more.
        impossible: the runs that are left out, and why.
        judged_by: what `right` is the share of.
        engine: whose times are modelled.
        layers: those that are pruned.
    """
    pruned = ", ".join(map(shortened, layers))
    parts = [
        f"<h1>{escape(name)}</h1>",
        '<p class="soft">bbs study: the model\'s own weights by magnitude, nothing trained after; '
        "INT8 or INT4 as packed, in the integers of the engine.</p>",
        f"<p>Right is {escape(judged_by)}. Pruned layers: {escape(pruned)}; sparsity is "
        f"the share of zeros in these. Cycles and modelled time, with a ~, are of one sample on "
        f"{escape(engine)}, without the host. Cpu time is measured on this machine, one sample, in "
        "turns with the dense program. GPU time is not measured.</p>",
        "<h2>By sparsity</h2>",
        _curves("right by sparsity", rows, lambda row: 100 * row.sparsity, "zeros, %"),
        "<h2>By modelled time</h2>",
        _curves("right by modelled time", rows, lambda row: row.modelled_ms, "modelled ms"),
        "<h2>All runs</h2>",
        html_table(HEAD, (("", [*cells(row)]) for row in rows)),
    ]
    if impossible:
        lines: list[TableRow] = [
            ("", [run.pattern, f"{run.sparsity:.2%}", why]) for run, why in impossible.items()
        ]
        parts += ["<h2>Left out</h2>", html_table(["pattern", "asked", "why"], lines)]
    return page(f"{name}, bbs study", *parts)


def _curves(title: str, rows: Sequence[Row], x: Callable[[Row], float], label: str) -> str:
    series = []
    for pattern in dict.fromkeys(row.pattern for row in rows):
        own = sorted((row for row in rows if row.pattern == pattern), key=lambda row: row.sparsity)
        points = [
            (x(r), 100 * r.right, f"{r.pattern} {r.sparsity:.1%} zeros: {r.right:.2%} right, "
             f"~{r.modelled_ms:.4g} ms") for r in own
        ]  # fmt: skip
        series.append((pattern, points))
    return curves(title, series, label, "right, %")
