# SPDX-License-Identifier: Apache-2.0
"""What a run cost: modelled cycles by layer, measured host time by part. Prints itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

#: The parts of a run on the host, in the order in which they happen.
PARTS = ("quantise", "layout", "to device", "device", "from device", "output", "host", "verify")


@dataclass
class LayerReport:
    """One layer over all batches since the accelerator was opened; cycles are modelled, seconds
    measured, by the cpu device only."""

    name: str
    rows: int
    features: int
    bank_size: int
    keep: int
    pixels: int = 1  # or steps
    weights: int = 0  # of the model, those that are not stored included
    cycles: float = 0.0
    multiply_cycles: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def utilisation(self) -> float:
        """Share of the cycles in which the multipliers work, 0 to 1."""
        return self.multiply_cycles / self.cycles if self.cycles else 0.0


@dataclass
class Report:
    """Totals since the accelerator was opened.

    `cycles`, `utilisation` and `modelled_seconds` come from the cycle model of the build at the
    board's clock and memory rate; `seconds` are measured on the host, by part. Of a pipeline
    `stages` has those of each of its programs and of the host's nodes, in their order; what a batch
    waits for the one before it is among a program's.
    """

    program: str
    build: str
    device: str
    clock_mhz: float
    gigabytes_per_second: float
    layers: list[LayerReport]
    memory: str = ""  # what is in the device's memory, in words
    columns: int = 0
    runs: int = 0
    verified_columns: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def cycles(self) -> float:
        return sum(layer.cycles for layer in self.layers)

    @property
    def utilisation(self) -> float:
        cycles = self.cycles
        return sum(layer.multiply_cycles for layer in self.layers) / cycles if cycles else 0.0

    @property
    def modelled_seconds(self) -> float:
        return self.cycles / (self.clock_mhz * 1e6)

    @property
    def dense_equivalent_gops(self) -> float:
        """2 x weights x pixels x columns over the modelled time, as if no weight were zero."""
        macs = sum(la.weights * la.pixels for la in self.layers) * self.columns
        return 2e-9 * macs / self.modelled_seconds if self.cycles else 0.0

    def __str__(self) -> str:
        parts = [
            f"{self.program} on {self.device}: {self.columns} columns in {self.runs} runs, "
            f"{self.verified_columns} verified bit-exact"
        ]
        if self.cycles:  # the cpu device has no cycles to model
            parts += [self._modelled(), table(self._layer_rows())]
        parts += [self.memory] if self.memory else []
        if self.stages and self.runs:
            parts.append(stages_table({n: s / self.runs for n, s in self.stages.items()}))
        measured = ", ".join(f"{part} {1e6 * s:.0f}" for part, s in self.seconds.items() if s)
        return "\n".join([*parts, f"measured on this host, microseconds: {measured or 'nothing'}"])

    def _modelled(self) -> str:
        return (
            f"modelled for build {self.build} at {self.clock_mhz:.1f} MHz and "
            f"{self.gigabytes_per_second:.1f} GB/s: {self.cycles:.0f} cycles, "
            f"{1e3 * self.modelled_seconds:.3f} ms, {100 * self.utilisation:.1f} % of multipliers "
            f"busy, {self.dense_equivalent_gops:.1f} dense-equivalent GOPS"
        )

    def _layer_rows(self) -> Sequence[tuple[str, ...]]:
        rows = [("layer", "rows x features", "keep/bank", "cycles", "busy %", "kB moved")]
        rows += [
            (
                layer.name,
                f"{layer.rows} x {layer.features}",
                f"{layer.keep}/{layer.bank_size}",
                f"{layer.cycles:.0f}",
                f"{100 * layer.utilisation:.1f}",
                f"{layer.bytes / 1e3:.1f}",
            )
            for layer in self.layers
        ]
        return rows

    __repr__ = __str__


#: Characters of a name in a table; tf2onnx joins the names of all that it fused.
_MOST_NAME = 48


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of text as aligned columns, the first one to the left; the first row is the head.

    Of names in the first column that are longer than a terminal has room for, the end is shown.
    """
    rows = [(shortened(row[0]), *row[1:]) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def stages_table(seconds: dict[str, float]) -> str:
    """The programs and the host's nodes of a pipeline, with what each takes of a run."""
    whole = sum(seconds.values()) or 1.0
    rows = [(name, f"{1e6 * s:.0f}", f"{s / whole:.1%}") for name, s in seconds.items()]
    return table([("program, or node on the host", "microseconds", "share"), *rows])


def shortened(name: str) -> str:
    """The end of a name that is longer than there is room for."""
    return name if len(name) <= _MOST_NAME else "..." + name[3 - _MOST_NAME :]
