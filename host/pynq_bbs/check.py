# SPDX-License-Identifier: Apache-2.0
"""Where every node of a model, or every stage of a compiled one, runs, and what share it has."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from .boards import Board
from .errors import UnsupportedModelError
from .model.graph import Model, QuantModel
from .model.onnx_facts import Facts
from .model.onnx_file import read_graph
from .model.onnx_import import check_onnx
from .model.onnx_operators import ENGINE, HOST
from .model.onnx_segments import Part
from .model.partition import Partition, read_and_check
from .operators.node import HostNode
from .pack.cycles import RUN_CYCLES, Memory, run_cycles
from .pack.pipeline import Pipeline, Segment, load_any
from .pack.plan import make_plan
from .pack.program import Program

Row = tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """A table, its head first, what it comes to, and how many of its nodes cannot run; of a file
    that can be compiled also the model."""

    rows: list[Row]
    summary: str
    bad: int
    model: Model | QuantModel | Partition | None = None


def check_model(source: str | PathLike[str] | bytes) -> Checked:
    """Every node of an ONNX model.

    Raises:
        ModelError: missing, damaged or invalid file.
    """
    programs, found = 1, None
    try:
        found, checks = read_and_check(source)
        if isinstance(found, Partition):
            programs = sum(isinstance(stage, Part) for stage in found.stages)
    except UnsupportedModelError:  # its inputs; the reader says all that there is to say
        checks = check_onnx(source)
    facts = Facts(read_graph(source))
    products = {node.name: facts.macs(index) for index, node in facts.nodes.items()}
    macs = {name: count or 0 for name, count in products.items()}
    total = sum(macs.values())
    rows: list[Row] = [("node", "operator", "runs on", "MACs", "why")]
    rows += [
        (check.name, check.op, check.runs, _share(macs.get(check.name, 0), total), check.reason)
        for check in checks
    ]
    bad = sum(check.runs not in (ENGINE, HOST) for check in checks)
    engine = sum(macs.get(check.name, 0) for check in checks if check.runs == ENGINE)
    unknown = sum(count is None for count in products.values())
    summary = "" if bad else _summary(engine, total, programs, unknown)
    return Checked(rows, summary, bad, found)


def _summary(engine: int, total: int, programs: int, unknown: int) -> str:
    share = f"{100 * engine / total:.1f} % of {total} MACs on the engine" if total else "no MACs"
    if unknown:
        share += f" ({unknown} products of unknown shapes are not counted)"
    count = "1 program" if programs == 1 else f"{programs} programs"
    return f"{share}, in {count}: {2 * programs} crossings between host and engine"


def _share(part: float, total: float) -> str:
    return f"{100 * part / total:.1f} %" if part else "-"


def check_program(path: str | Path, board: Board) -> Checked:
    """Every layer and every node of the host in a program file, with its modelled time of one
    sample on a board.

    Raises:
        ProgramError: missing or damaged file.
    """
    program, memory = load_any(path), Memory.of(board)
    stages: list[Segment | HostNode] = [Segment(program)] if isinstance(program, Program) else []
    if isinstance(program, Pipeline):
        stages = program.stages
    rows: list[Row] = [("node", "operator", "runs on", "MACs", "modelled time")]
    layers = [_layers(stage, memory) for stage in stages if isinstance(stage, Segment)]
    total = sum(macs for part in layers for _, macs, _ in part)
    time = sum(cycles for part in layers for _, _, cycles in part)
    parts = iter(layers)
    for stage in stages:
        if isinstance(stage, HostNode):
            rows.append((stage.name, stage.op, HOST, "-", "-"))
            continue
        rows += [
            (name, "layer", ENGINE, _share(macs, total), _share(cycles, time))
            for name, macs, cycles in next(parts)
        ]
    programs = sum(isinstance(stage, Segment) for stage in stages)
    seconds = (time + programs * RUN_CYCLES) / memory.clock_hz
    summary = (
        f"{1e3 * seconds:.3f} ms a sample modelled for the engine on {board.name}, {total:.0f} "
        f"MACs, {programs} program(s): {2 * programs} crossings between host and engine"
    )
    return Checked(rows, summary, 0)


def _layers(segment: Segment, memory: Memory) -> list[tuple[str, int, float]]:
    """Name, MACs and modelled cycles of each layer, for one sample of the whole model."""
    program = segment.program
    plan = make_plan(program, segment.places, memory)
    cycles = [0.0] * len(program.layers)
    costs = run_cycles(plan.commands, program.build, memory)
    for command, cost in zip(plan.commands, costs, strict=True):
        cycles[command.layer] += plan.runs * cost.total
    return [
        (la.name, la.model_weights * program.tensors[la.output].pixels * segment.places, own)
        for la, own in zip(program.layers, cycles, strict=True)
    ]
