# SPDX-License-Identifier: Apache-2.0
"""A record as tables of text."""

from __future__ import annotations

from collections.abc import Sequence

from ..report import stages_table, table
from .record import Entry, Record

_SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (0.0, "ns"))


def text_report(record: Record) -> str:
    """What `bbs bench` prints: a table for each scenario, and what must be known beside it."""
    parts = []
    for scenario, entries in record.scenarios().items():
        rows = [HEAD, *(row(entry, entries) for entry in entries)]
        parts.append(f"{scenario}, {query_text(entries[0])}:\n{table(rows)}\n{_outputs(entries)}")
        parts += [
            f"{e.name}, measured{', the emulator for the engine' * e.emulated}:\n"
            f"{stages_table(e.stages)}"
            for e in entries
            if e.stages
        ]
    parts.append(
        "~ is modelled, not measured: the engine alone on a board, without the host; all else is "
        "measured on this machine.\nGOPS are dense-equivalent, 2 x products over the time as if no "
        "weight were zero; times are as long as the first one's, or the first ~."
    )
    facts = [f"left out: {name}: {reason}" for name, reason in record.missing.items()]
    facts += [f"note: {note}" for note in record.notes]
    machine, settings = record.machine, record.settings
    facts.append(
        f"machine: {machine.get('processor', 'unknown processor')} "
        f"({machine.get('instruction sets', '-')}), threads: "
        f"{settings['threads']}, load {machine.get('load before', '?')} to "
        f"{machine.get('load after', '?')}; at most {1e-9 * record.bytes_per_second:.1f} GB/s and "
        f"{1e-9 * record.macs_per_second:.1f} GMAC/s, measured"
    )
    facts.append(f"energy: {machine['energy']}")
    return "\n\n".join([*parts, "\n".join(facts)])


def _outputs(entries: Sequence[Entry]) -> str:
    """Whose outputs are those of the first, and how the others differ."""
    same = [e.name for e in entries[1:] if e.same]
    lines = [f"same outputs as {entries[0].name}: {', '.join(same)}"] if same else []
    return "\n".join(lines + [f"{e.name}: {e.verdict}" for e in entries[1:] if not e.same])


HEAD = ("candidate", "median", "95 % interval", "p95", "p99", "least", "runs", "samples/s",
        "GOPS", "times", "joules")  # fmt: skip


def row(entry: Entry, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Of a candidate; `times` is how many times as long it takes as the first of the `entries` that
    is measured, or modelled, as it is."""
    rate, gops = entry.samples / entry.seconds, entry.dense_gops
    times = entry.seconds / next(e for e in entries if e.emulated == entry.emulated).seconds
    if entry.emulated:
        shown = (f"~{seconds_text(entry.seconds)}", *["modelled"] + ["-"] * 4)
        return (entry.name, *shown, f"~{rate:.0f}", f"~{gops:.2f}", f"~{times:.2f}", "-")
    s = entry.summary
    shown = (
        seconds_text(s.median),
        interval_text(s.median, s.low, s.high),
        *(seconds_text(v) for v in (s.p95, s.p99, s.least)),
        str(s.runs),
    )
    energy = "unknown" if entry.joules is None else f"{entry.joules:.3g}"
    return (entry.name, *shown, f"{rate:.0f}", f"{gops:.2f}", f"{times:.2f}", energy)


def query_text(entry: Entry) -> str:
    return f"{entry.samples} sample{'s' * (entry.samples > 1)} a query"


def seconds_text(seconds: float) -> str:
    """In the unit that leaves one digit before the point at least."""
    scale, unit = next((s, u) for s, u in _SCALES if seconds >= s)
    return f"{seconds / (scale or 1e-9):.3g} {unit}"


def interval_text(median: float, low: float, high: float) -> str:
    """How far the interval reaches to both sides, as shares of the median."""
    if not low > 0:  # there are too few turns for any
        return "unknown"
    return f"{low / median - 1:+.1%} {high / median - 1:+.1%}"
