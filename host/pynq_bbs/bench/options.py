# SPDX-License-Identifier: Apache-2.0
"""What `bbs bench` can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

SCENARIOS = ("single-stream", "offline")
EMULATED = "emulated"
DEVICES = ("cpu", EMULATED, "board")
PEERS = ("onnxruntime", "torch", "scipy", "numpy", "dense")


@dataclass(frozen=True)
class Options:
    """What `bbs bench` is asked for; `seconds` are of each scenario."""

    devices: Sequence[str] = ("cpu",)
    against: Sequence[str] = ()
    scenarios: Sequence[str] = SCENARIOS
    threads: int = 1
    samples: int = 64
    seconds: float = 10.0
    board: str = "Pynq-Z2"
    bitfile: Path | None = None
    power: Path | None = None

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("device", self.devices, DEVICES),
            ("peer", self.against, PEERS),
            ("scenario", self.scenarios, SCENARIOS),
        ):
            for name in given:
                if name not in known:
                    raise InputError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
        if not self.devices or not self.scenarios:
            raise InputError("nothing to measure: name a device and a scenario at least")
        if self.threads < 1 or self.samples < 1 or not self.seconds > 0:
            raise InputError(
                f"{self.threads} threads, {self.samples} samples and {self.seconds} seconds: "
                "all must be more than zero"
            )
