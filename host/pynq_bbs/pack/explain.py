# SPDX-License-Identifier: Apache-2.0
"""Why a plan is as it is: what bounds every command, where its tensors are, what else would fit."""

from __future__ import annotations

from collections.abc import Sequence

from ..builds import Build
from ..interface import (
    FLAG_FROM_CHAIN,
    FLAG_IMAGE,
    FLAG_RESIDENT_INPUT,
    FLAG_RESIDENT_WEIGHTS,
    FLAG_TO_CHAIN,
    FLAG_TO_MEMORY,
    Command,
)
from .cycles import LayerCycles, Memory, layer_cycles, run_cycles, trip_counts
from .fillings import Layer
from .gathering import is_whole
from .schedule import possible_cuts

HEAD = ("layer", "input -> output", "image", "tiles", "rows", "weights", "cycles", "MACs busy",
        "bound by", "next best")  # fmt: skip
#: Below this share no stage is to blame: a command takes as long as it takes to go through all.
_BUSY = 0.6


def explained(
    names: Sequence[str], commands: Sequence[Command], build: Build, memory: Memory
) -> list[tuple[str, ...]]:
    """A row of `HEAD` for each command; the cycles are modelled, those that it adds to the commands
    before it."""
    rows: list[tuple[str, ...]] = []
    costs = run_cycles(commands, build, memory)
    for name, c, cost in zip(names, commands, costs, strict=True):
        parts = f" in {c.parts} parts" if c.parts > 1 else ""
        rows.append(
            (
                name,
                _route(c),
                _image(c, build),
                f"{c.tiles_per_block} of {c.tiles}",
                f"{min(c.rows_per_block, c.part_rows)} of {c.rows}{parts}",
                _weights(c, build),
                f"{cost.total:.0f}",
                f"{cost.utilisation:.0%}",
                _bound(c, cost, build, memory),
                _next_best(c, build, memory),
            )
        )
    return rows


def stage_cycles(c: Command, build: Build, memory: Memory) -> dict[str, float]:
    """Cycles for which every stage works on a command, and the memory for all its words."""
    cost = layer_cycles(c, build, memory)
    stages: dict[str, float] = {
        "multiply": cost.multiply,
        "memory": cost.bytes / memory.bytes_per_cycle,
    }
    for loop, trips in trip_counts(c, build).items():
        stage = loop.split(".", 1)[0]
        if stage not in ("memory", "multiply", "engine"):
            stages[stage] = max(stages.get(stage, 0), trips)
    return stages


def _bound(c: Command, cost: LayerCycles, build: Build, memory: Memory) -> str:
    stages = stage_cycles(c, build, memory)
    stage = max(stages, key=lambda name: stages[name])
    share = min(stages[stage] / cost.total, 1.0)  # some of it may be beside the command before
    return f"{stage} {share:.0%}" if share >= _BUSY else "latency"


def _next_best(c: Command, build: Build, memory: Memory) -> str:
    """The best of the other numbers of tiles that a weight block could meet, of the command by
    itself, as the scheduler sees it."""
    own = layer_cycles(c, build, memory).total
    others = [
        (layer_cycles(cut, build, memory).total / own - 1, cut.tiles_per_block)
        for cut in possible_cuts(c, build)
        if cut.tiles_per_block != c.tiles_per_block
    ]
    if not others:
        return "nothing else fits"
    more, tiles = min(others)
    return f"{tiles} tile{'s' * (tiles > 1)}: {more:+.1%}"


def _route(c: Command) -> str:
    source = "chain" if c.flags & FLAG_FROM_CHAIN else "memory"
    if c.flags & FLAG_RESIDENT_INPUT:
        source = "on chip"
    targets = {FLAG_TO_CHAIN: "chain", FLAG_TO_MEMORY: "memory"}
    return f"{source} -> {' + '.join(text for flag, text in targets.items() if c.flags & flag)}"


def _image(c: Command, build: Build) -> str:
    """How much of the image is on chip at a time."""
    if not c.flags & FLAG_IMAGE:
        return "-"
    if is_whole(c, build):
        return "whole"
    return f"bands of {c.image_words * build.banks // c.width} rows"


def _weights(c: Command, build: Build) -> str:
    """How often the weights come from memory."""
    if c.flags & FLAG_RESIDENT_WEIGHTS:
        return "on chip"
    layer = Layer(c, build)
    times = layer.groups if layer.last.fetched else 1
    return f"fetched {times} times" if times > 1 else "fetched once"
