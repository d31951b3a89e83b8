# SPDX-License-Identifier: Apache-2.0
"""A record as one HTML file that needs nothing else: no network, no script, inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ..report import shortened
from .record import Entry, LayerFigures, Record
from .report_text import HEAD, query_text, row, seconds_text
from .svg import PATTERNS, Bar, Point, bars, roofline, stacked

#: The class of a table's row, and its cells; a number is a share, drawn as a bar.
Row = tuple[str, list[str | float]]

_STYLE = """
:root { --ground: #fff; --ink: #1d232b; --soft: #667080; --rule: #d9dee5; --own: #2468c8;
  --dense: #8db4e8; --peer: #9aa3ae; --modelled: #b4540a; --bad: #c01c28; --hatch: #f6dcc4; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --ink: #e4e8ee; --soft: #98a2b0;
  --rule: #343c46; --own: #5b9bf0; --dense: #35588a; --peer: #67707c; --modelled: #f0a35c;
  --bad: #ff7b7b; --hatch: #4a3420; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0; }
h2 { margin-top: 2em; border-bottom: 1px solid var(--rule); }
p.soft, .soft { color: var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 8px; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 500; }
table.facts td { text-align: left; white-space: normal; }
tr.modelled td, .modelled-words { color: var(--modelled); font-style: italic; }
tr.bad td { color: var(--bad); }
svg { width: 100%; height: auto; } svg text { font-size: 13px; fill: var(--ink); }
svg text.modelled { fill: var(--modelled); font-style: italic; }
svg text.bad { fill: var(--bad); }
rect.own, .part3 { fill: var(--own); } rect.dense { fill: var(--dense); }
rect.peer { fill: var(--peer); }
rect.modelled { fill: url(#hatch); stroke: var(--modelled); stroke-dasharray: 4 2; }
.hatch-ground { fill: var(--hatch); } .hatch-line { fill: var(--modelled); }
line.mark { stroke: var(--ink); stroke-width: 1.5; } line.grid { stroke: var(--rule); }
polyline.roof { fill: none; stroke: var(--ink); stroke-width: 2; }
polyline.roof.modelled { stroke: var(--modelled); stroke-dasharray: 7 4; }
circle.measured { fill: var(--own); fill-opacity: .55; } circle.measured.whole { fill-opacity: 1; }
circle.modelled { fill: var(--hatch); stroke: var(--modelled); stroke-dasharray: 3 2; }
circle.modelled.whole { stroke-width: 2.5; }
.part0 { fill: #7a5195; } .part1 { fill: #bc5090; } .part2 { fill: #ef5675; }
.part4 { fill: #ffa600; } .part5 { fill: #2f9e6e; } .part6 { fill: #9aa3ae; }
.part7 { fill: #3f6f8f; }
polyline.curve { fill: none; stroke: var(--soft); stroke-width: 1.5; }
div.share { display: inline-block; height: 9px; background: var(--own); }
tr.modelled div.share { background: repeating-linear-gradient(45deg, var(--modelled) 0 2px,
  var(--hatch) 2px 5px); }
"""


def html_report(record: Record) -> str:
    """The page; it is well-formed XML as well."""
    name = record.model["file"]
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">bbs bench, {escape(record.created)}. {escape(_summary(record))}</p>',
        "<p>Filled bars and upright figures are <b>measured</b> on this machine. "
        '<span class="modelled-words">Hatched, dashed and in italics with a ~ is modelled</span>: '
        "what the cycle model says of the engine alone on a board, without the host.</p>",
    ]
    for scenario, entries in record.scenarios().items():
        parts += _scenario(scenario, entries)
    for scenario, entries in record.scenarios().items():
        for entry in entries:
            if entry.layers:
                parts += _layers(record, scenario, entry)
    parts += _host(record)
    parts += _about(record)
    return page(f"{name}, bbs bench", PATTERNS, *parts)


def page(title: str, *parts: str) -> str:
    """One HTML file of these parts, which is well-formed XML if they are."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width"/>'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{body}\n</body></html>\n"
    )


def _summary(record: Record) -> str:
    model, machine = record.model, record.machine
    return (
        f"{model['layers']} layers, {model['sparsity']} sparse, build {model['build']}; "
        f"{machine.get('processor', 'unknown processor')}, threads: {record.settings['threads']}."
    )


def _role(entry: Entry) -> str:
    if entry.emulated:
        return "modelled"
    return {"device": "own"}.get(entry.role, entry.role) + " bad" * entry.wrong


def _scenario(scenario: str, entries: Sequence[Entry]) -> list[str]:
    chart = []
    for entry in entries:
        if entry.emulated:
            text = f"~{seconds_text(entry.seconds)} modelled"
            chart.append(Bar(entry.name, entry.seconds, text, "modelled"))
            continue
        s = entry.summary
        known = s.low > 0
        chart.append(
            Bar(
                entry.name,
                s.median,
                seconds_text(s.median),
                _role(entry),
                s.low if known else None,
                s.high if known else None,
                s.p95,
            )
        )
    rows: list[Row] = [
        (_classes(entry), [*row(entry, entries), _executed(entry)]) for entry in entries
    ]
    return [
        f"<h2>{escape(scenario.capitalize())}</h2>",
        f"<p>{escape(query_text(entries[0]))}. Bars are the time of a query: the shorter the "
        "better. The line over a bar's end is the 95 % interval of the median, the tick the 95th "
        "percentile, where it is not far out.</p>",
        bars(f"time of a query, {scenario}", chart),
        html_table([*HEAD, "executed GOPS"], rows),
        '<p class="soft">GOPS are dense-equivalent where nothing else is said; what peers execute '
        "is not known. times: as long as the first one measured, or modelled. joules: of all that "
        "the machine did during a query.</p>",
        "<p>Outputs, compared with the first one's:</p>",
        _facts({entry.name: entry.verdict for entry in entries[1:]}),
    ]


def _executed(entry: Entry) -> str:
    gops = entry.executed_gops
    return "-" if gops is None else f"{'~' * entry.emulated}{gops:.2f}"


def _classes(entry: Entry) -> str:
    return "modelled" if entry.emulated else "bad" if entry.wrong else ""


def _layers(record: Record, scenario: str, entry: Entry) -> list[str]:
    """Table and roofline of one of our devices."""
    modelled = entry.modelled is not None
    per_second = (entry.modelled.cycles / entry.modelled.seconds) if entry.modelled else 1.0
    figures = [(la, (la.cycles or 0) / per_second if modelled else la.seconds or 0.0)
               for la in entry.layers]  # fmt: skip
    whole = sum(seconds for _, seconds in figures) or 1.0
    rows: list[Row] = []
    for la, seconds in figures:
        share = seconds / whole
        rows.append(
            (
                "modelled" if modelled else "",
                [
                    shortened(la.name),
                    f"~{la.cycles:.0f}" if la.cycles is not None else seconds_text(seconds),
                    f"{share:.1%}",
                    share,
                    f"{la.macs:.0f}",
                    f"{la.bytes:.0f}",
                    *_rates(la, seconds, "~" * modelled),
                    f"{la.busy:.0%}" if la.busy is not None else "-",
                ],
            )
        )
    head = ["layer", "cycles" if modelled else "time", "share", "", "products", "bytes",
            "executed GOPS", "dense-eq. GOPS", "busy"]  # fmt: skip
    words = "modelled" if modelled else "measured"
    title = f"{entry.name}, {scenario}, by layer"
    if entry.modelled:
        limits = (entry.modelled.macs_per_second, entry.modelled.bytes_per_second)
        words += f" for {entry.modelled.target}"
    else:
        limits = (record.macs_per_second, record.bytes_per_second)
        words += "; the roof is what this machine reached in plain loops in the same run"
    points = _points(figures)
    chart = roofline(f"roofline of {title}", points, *limits, modelled=modelled) if points else ""
    shown = "" if entry.role == "dense" else ' open="open"'
    style = "modelled-words" if modelled else ""
    return [
        f"<details{shown}><summary><b>{escape(title)}</b>, "
        f'<span class="{style}">{escape(words)}</span></summary>',
        html_table(head, rows),
        chart,
        "</details>",
    ]


def _rates(layer: LayerFigures, seconds: float, sign: str) -> list[str]:
    """Executed and dense-equivalent GOPS."""
    if not seconds or not layer.dense_macs:
        return ["-", "-"]
    return [f"{sign}{2e-9 * macs / seconds:.2f}" for macs in (layer.macs, layer.dense_macs)]


def _points(figures: Sequence[tuple[LayerFigures, float]]) -> list[Point]:
    """Every layer that multiplies, and all of them together."""
    used = [(la, s) for la, s in figures if la.macs and la.bytes and s]
    points = [Point(la.name, la.macs / la.bytes, la.macs / s) for la, s in used]
    if points:
        macs, size, seconds = (
            sum(v) for v in zip(*((la.macs, la.bytes, s) for la, s in used), strict=True)
        )
        points.append(Point("all layers", macs / size, macs / seconds, whole=True))
    return points


def _host(record: Record) -> list[str]:
    """Where the time of a run goes, device and host apart."""
    own = [entry for entry in record.entries if entry.parts]
    names = list(dict.fromkeys(part for entry in own for part in entry.parts))
    rows: list[Row] = []
    chart = []
    for entry in own:
        label = f"{entry.name}, {entry.scenario}"
        values = [entry.parts.get(name, 0.0) for name in names]
        cells = [seconds_text(v) if v else "-" for v in values]
        if entry.emulated and "device" in names:
            cells[names.index("device")] += " (emulator)"
        else:
            chart.append((label, list(zip(names, values, strict=True))))
        rows.append(("", [label, *cells]))
    words = (
        "Measured, medians of all runs. Of an emulated board the device's part is the emulator's "
        "own time, which says nothing about a board, so it is in the table only."
    )
    return [
        "<h2>Host and device apart</h2>",
        f"<p>{words}</p>",
        stacked("parts of a run", chart) if chart else "",
        html_table(["candidate", *names], rows),
        *_stages(own),
    ]


def _stages(own: Sequence[Entry]) -> list[str]:
    """The programs and the host's nodes of a pipeline."""
    own = [entry for entry in own if entry.stages]
    if not own:
        return []
    head = ["program, or node on the host", *(f"{e.name}, {e.scenario}" for e in own)]
    rows: list[Row] = [
        ("", [shortened(name), *(seconds_text(e.stages[name]) for e in own)])
        for name in own[0].stages
    ]
    return ["<p>The same by program and by node between them:</p>", html_table(head, rows)]


def _about(record: Record) -> list[str]:
    parts = ["<h2>What was measured, and where</h2>"]
    reached = {
        "memory, read": f"{1e-9 * record.bytes_per_second:.2f} GB/s, measured",
        "INT8 products": f"{1e-9 * record.macs_per_second:.1f} GMAC/s, measured",
    }
    for title, facts in (
        ("Model", record.model),
        ("Machine", record.machine | reached),
        ("Settings", record.settings),
        ("Left out", record.missing),
    ):
        if facts:
            parts += [f"<h3>{title}</h3>", _facts(facts)]
    notes = "".join(f"<li>{escape(note)}</li>" for note in record.notes)
    return [*parts, f"<h3>Notes</h3><ul>{notes}</ul>" if notes else ""]


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts.items()
    )
    return f'<table class="facts">{rows}</table>'


def html_table(head: Sequence[str], rows: Iterable[Row]) -> str:
    """A table that scrolls where it is too wide."""
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = []
    for kind, cells in rows:
        drawn = "".join(f"<td>{_cell(cell)}</td>" for cell in cells)
        lines.append(f'<tr class="{kind}">{drawn}</tr>')
    return f'<div class="scroll"><table><tr>{titles}</tr>{"".join(lines)}</table></div>'


def _cell(cell: str | float) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return f'<div class="share" style="width:{120 * cell:.0f}px"></div>'
