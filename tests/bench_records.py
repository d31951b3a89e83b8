# SPDX-License-Identifier: Apache-2.0
"""Records of benchmarks that never ran."""

from __future__ import annotations

from pynq_bbs.bench.record import Entry, LayerFigures, Modelled, Record


def an_entry(
    name: str, turns: list[list[float]], modelled: float = 0.0, role: str = "device"
) -> Entry:
    """In the scenario single-stream; with `modelled` seconds of an emulated device."""
    cycles = 1e8 * modelled
    layers = [LayerFigures("fc", 1e3, 8e3, 1200, 2e-4, None, None)]
    layers.append(LayerFigures("max <&>", 0, 0, 64, 1e-5, None, None))
    if modelled:
        layers = [LayerFigures("fc", 1e3, 8e3, 1200, None, cycles, 0.5)]
    return Entry(
        name,
        role,
        "single-stream",
        1,
        turns,
        verdict="same outputs",
        same=True,
        wrong=False,
        dense_macs=8000,
        emulated=modelled > 0,
        parts={} if role == "peer" else {"quantise": 1e-5, "device": 2e-4},
        layers=[] if role == "peer" else layers,
        modelled=Modelled("build 8x32 on a board", cycles, modelled, 4e10, 1.5e9)
        if modelled
        else None,
    )


def a_record(entries: list[Entry]) -> Record:
    """With facts as a benchmark gives them."""
    return Record(
        "2026-01-01T00:00:00+00:00",
        {"file": "net <&>", "layers": "2", "sparsity": "87.5%", "build": "8x32"},
        {"processor": "a processor", "commit": "0123", "energy": "unknown (no meter)"},
        {"threads": "1"},
        1e10,
        5e10,
        entries,
        {"torch": "not installed"},
        ["a note"],
    )
