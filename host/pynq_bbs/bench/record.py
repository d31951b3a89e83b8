# SPDX-License-Identifier: Apache-2.0
"""What a benchmark found, as it is stored in JSON and as all reports are made from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from .measure import Summary, Turns

#: Raised whenever an older reader would misread a record.
FORMAT = 1
_KIND = "bbs bench"


@dataclass(frozen=True)
class LayerFigures:
    """One layer in one query. `macs` are executed products, `dense_macs` those of a model without
    zeros; `seconds` are measured, `cycles` modelled, and what is not known is None."""

    name: str
    macs: float
    dense_macs: float
    bytes: float
    seconds: float | None
    cycles: float | None
    busy: float | None


@dataclass(frozen=True)
class Modelled:
    """What the cycle model says of one query: the engine alone, without the host.

    The peaks are those of the build at the board's clock, and of the board's memory.
    """

    target: str
    cycles: float
    seconds: float
    macs_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Entry:
    """One candidate in one scenario; all figures are of one query.

    Attributes:
        role: "device", "dense" (a device, with no zero left out) or "peer".
        turns: measured seconds of every run, by turn.
        verdict: its outputs, compared with ours, in words.
        same: they are ours, within what float32 rounds.
        wrong: they should have been ours and are not.
        dense_macs: products if no weight were zero.
        joules: of all that the machine did meanwhile; None is unknown.
        emulated: the time is an emulator's, which says nothing about a board.
        parts, layers, modelled: of our own devices; measured seconds of the parts of a run.
        stages: the same of the programs and the host's nodes of a pipeline.
    """

    name: str
    role: str
    scenario: str
    samples: int
    turns: list[list[float]]
    verdict: str
    same: bool
    wrong: bool
    dense_macs: float
    joules: float | None = None
    emulated: bool = False
    parts: dict[str, float] = field(default_factory=dict)
    layers: list[LayerFigures] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    modelled: Modelled | None = None

    @property
    def summary(self) -> Summary:
        """What the turns say."""
        return Turns(self.turns).summary()

    @property
    def seconds(self) -> float:
        """Of a query: modelled where the device is an emulated one, else the measured median."""
        return self.modelled.seconds if self.emulated and self.modelled else self.summary.median

    @property
    def dense_gops(self) -> float:
        """Dense-equivalent: 2 x products over the time, as if no weight were zero."""
        return 2e-9 * self.dense_macs / self.seconds

    @property
    def executed_gops(self) -> float | None:
        """2 x products that were made over the time; None of peers, where they are unknown."""
        return 2e-9 * sum(la.macs for la in self.layers) / self.seconds if self.layers else None


@dataclass
class Record:
    """One run of `bbs bench`."""

    created: str
    model: dict[str, str]
    machine: dict[str, str]
    settings: dict[str, str]
    bytes_per_second: float
    macs_per_second: float
    entries: list[Entry]
    missing: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def scenarios(self) -> dict[str, list[Entry]]:
        """The entries by scenario, in their order."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.scenario, []).append(entry)
        return found

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        stored = {"kind": _KIND, "format": FORMAT, **asdict(self)}
        text = json.dumps(stored, indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read JSON.

        Raises:
            InputError: missing, damaged, not a record, or of another version.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a benchmark's JSON: {error}") from None
        if not isinstance(stored, dict) or stored.get("kind") != _KIND:
            raise InputError(f"{path} is no record of 'bbs bench'; --json writes them")
        if stored.get("format") != FORMAT:
            raise InputError(
                f"{path} has format {stored.get('format')}, this release reads {FORMAT}: "
                "measure again"
            )
        try:
            return _restored({k: v for k, v in stored.items() if k not in ("kind", "format")})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}): measure again") from None


def _restored(stored: dict[str, Any]) -> Record:
    entries = []
    for entry in stored["entries"]:
        turns = entry["turns"]
        if not turns or not all(t and all(s > 0 and math.isfinite(s) for s in t) for t in turns):
            raise ValueError(f"{entry['name']!r} has turns without times")
        modelled = Modelled(**entry["modelled"]) if entry["modelled"] else None
        layers = [LayerFigures(**layer) for layer in entry["layers"]]
        entries.append(Entry(**{**entry, "layers": layers, "modelled": modelled}))
    return Record(**{**stored, "entries": entries})
