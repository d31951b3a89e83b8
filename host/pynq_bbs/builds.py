# SPDX-License-Identifier: Apache-2.0
"""Builds: named sets of the engine's parameters, one JSON file each in `overlay/builds`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from .errors import BuildError
from .paths import overlay_dir

#: Bytes of a word of the engine's memory ports.
PORT_BYTES = 8


@dataclass(frozen=True)
class Build:
    """The parameters of one engine; names as in `hls/interface.json`."""

    name: str
    summary: str
    lanes: int
    rows: int
    cols: int
    requant_units: int
    taps: int
    vector_words: int
    block_words: int
    queue_words: int
    block_rows: int
    sum_words: int
    image_words: int
    chain_words: int
    fabric_lanes: int
    index_bits: int
    cell_words: int

    @property
    def parameters(self) -> dict[str, int]:
        """What the engine reports through its registers, by register name."""
        return {k: v for k, v in asdict(self).items() if isinstance(v, int)}

    @property
    def products_per_cycle(self) -> int:
        return self.lanes * self.rows * self.cols


def build_names() -> list[str]:
    """Names of the builds that come with the package."""
    return sorted(p.stem for p in (overlay_dir() / "builds").glob("*.json"))


@cache
def load_build(name: str) -> Build:
    """The build called `name`, or the one in the JSON file at that path.

    Raises:
        BuildError: no such build, or its file lacks a parameter.
    """
    path = Path(name) if name.endswith(".json") else overlay_dir() / "builds" / f"{name}.json"
    if not path.is_file():
        raise BuildError(
            f"unknown build {name!r}; known builds: {', '.join(build_names())}. "
            "Name one of them, or give the path of a build's JSON file."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        wanted = {f.name: f.type for f in fields(Build)}
        if set(data) != set(wanted):
            missing, unknown = set(wanted) - set(data), set(data) - set(wanted)
            raise ValueError(f"missing {sorted(missing)}, unknown {sorted(unknown)}")
        for key, kind in wanted.items():
            if kind == "int" and (type(data[key]) is not int or not 0 <= data[key] <= 1 << 20):
                raise ValueError(f"{key} is {data[key]!r}, wanted an integer from 0 to 2**20")
    except ValueError as error:
        raise BuildError(f"{path}: not a build file: {error}") from None
    return Build(**data)
