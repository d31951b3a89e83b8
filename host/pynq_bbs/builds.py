# SPDX-License-Identifier: Apache-2.0
"""Builds: named sets of the engine's parameters, one JSON file each in `overlay/builds`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from .errors import BuildError
from .paths import overlay_dir

#: Bytes of a word of the engine's memory ports.
PORT_BYTES = 8
#: Words of a table: an entry for each INT8.
TABLE_WORDS = 256 // PORT_BYTES
#: What a memory may be made of, where a build has a choice.
MEMORIES = ("bram", "uram")


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
    #: "bram" or "uram"; no register tells, because nothing depends on it but the part
    block_memory: str = "bram"
    sum_memory: str = "bram"

    @property
    def memories(self) -> dict[str, str]:
        """Where the memories lie for which a build has a choice, by parameter name."""
        return {k: v for k, v in asdict(self).items() if k.endswith("_memory")}

    @property
    def parameters(self) -> dict[str, int]:
        """What the engine reports through its registers, by register name."""
        return {k: v for k, v in asdict(self).items() if isinstance(v, int)}

    @property
    def pack(self) -> int:
        """Features of a column tile that share an activation word."""
        return max(1, PORT_BYTES // self.cols)

    def takes_bank(self, bank_size: int) -> bool:
        """Whether banks of that size fill whole activation words, or words fill whole banks."""
        nested = bank_size % self.pack == 0 or self.pack % bank_size == 0
        return nested and bank_size <= self.largest_bank

    @property
    def largest_bank(self) -> int:
        """The most weights that a bank can have."""
        return 1 << self.index_bits

    def bank_space(self, bank_size: int) -> int:
        """Features that a bank takes in the vector buffer."""
        return max(bank_size, self.pack)

    @property
    def row_step(self) -> int:
        """Output features come in multiples of this."""
        return max(self.rows, self.pack)

    @property
    def banks(self) -> int:
        """Pixels of a word of the image memory (`kBanks` in `hls/types.hpp`)."""
        return self.cols + 8

    @property
    def placed(self) -> int:
        """Columns that are placed in a cycle (`kPlaced` in `hls/columns.hpp`)."""
        return min(self.cols, 2)

    def padded(self, features: int) -> int:
        """Features that a tensor takes in memory."""
        return -(-features // self.row_step) * self.row_step

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
            if key.endswith("_memory") and data[key] not in MEMORIES:
                raise ValueError(f"{key} is {data[key]!r}, wanted one of {', '.join(MEMORIES)}")
        build = Build(**data)
        broken = [text for holds, text in _relations(build) if not holds]
        if broken:
            raise ValueError("; ".join(broken))
    except ValueError as error:
        raise BuildError(f"{path}: not a build file: {error}") from None
    return build


def _relations(build: Build) -> Iterator[tuple[bool, str]]:
    """What `hls/types.hpp` asserts about the parameters: whether it holds, and what it says."""
    rows, cols, lanes = build.rows, build.cols, build.lanes
    if min(rows, cols, lanes) < 1:
        yield False, "lanes, rows and cols are at least 1"
        return
    wide = rows * cols
    yield rows * lanes % PORT_BYTES == 0, "rows x lanes is a multiple of 8"
    yield lanes % 2 == 0, "lanes is even"
    yield cols % PORT_BYTES == 0 or cols in (1, 2, 4), "cols is 1, 2, 4 or a multiple of 8"
    yield (
        rows & (rows - 1) == 0 or cols >= PORT_BYTES,
        "rows is a power of two where cols is below 8",
    )
    yield cols <= 120, "cols is at most 120"
    yield wide >= 2, "rows x cols is at least 2"
    units = build.requant_units
    packs = units >= 1 and PORT_BYTES % units == 0 and wide % units == 0
    yield packs, "requant_units divides 8 and rows x cols"
    power = build.vector_words >= 256 and build.vector_words & (build.vector_words - 1) == 0
    yield power, "vector_words is a power of two, 256 at least"
    yield build.block_words >= build.vector_words, "block_words is at least vector_words"
    yield build.block_words < 1 << 16, "block_words is below 65536"
    yield build.block_rows * rows < 1 << 16, "block_rows x rows is below 65536"
    yield build.queue_words >= 1, "queue_words is at least 1"
    yield build.sum_words >= 1 and build.block_rows >= 1, "sum_words and block_rows are at least 1"
    yield 1 <= build.taps <= min(lanes, 8), "taps is 1 to 8, lanes at most"
    packed = build.taps >= build.pack and lanes % build.pack == 0
    yield packed, "taps is at least the features of a word, 8 / cols, which divide lanes"
    yield build.image_words == 0 or cols >= PORT_BYTES, "image_words is 0 where cols is below 8"
    yield build.image_words & (build.image_words - 1) == 0, "image_words is 0 or a power of two"
    fabric = build.fabric_lanes <= lanes and build.fabric_lanes % 2 == 0
    yield fabric, "fabric_lanes is even, lanes at most"
    yield build.index_bits in (4, 6, 8), "index_bits is 4, 6 or 8"
