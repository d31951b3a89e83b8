# SPDX-License-Identifier: Apache-2.0
"""What is only shown: programs, how they will run, boards, and what works on this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .errors import BbsError

if TYPE_CHECKING:
    from .model.graph import QuantInput, QuantOutput
    from .pack.cycles import Memory
    from .pack.pipeline import Border
    from .pack.program import PackedLayer, Program, Tensor


def info(args: argparse.Namespace) -> None:
    from .operators.node import HostNode
    from .pack.fits import least_use
    from .pack.pipeline import Pipeline, load_any

    program = load_any(args.program)
    print(
        f"{program.name}: build {program.build.name}, {100 * program.sparsity:.1f} % sparse, "
        f"{program.weight_bytes} bytes of weights and indices"
    )
    for part in program.programs if isinstance(program, Pipeline) else [program]:
        print(f"the least that runs at once takes {least_use(part)}, and its commands")
    for i in program.inputs:
        print(f"input {i.name}: {i.dtype} {_shape_text(i)}")
    if not isinstance(program, Pipeline):
        if program.lengths:
            print(f"input {program.lengths}: integers (N,), the steps of each sample")
    for o in program.outputs if isinstance(program, Pipeline) else program.shown_outputs:
        print(f"output {o.name}: {o.dtype} {_shape_text(o)}")
    if not isinstance(program, Pipeline):
        _print_layers(program)
        return
    for stage in program.stages:
        if isinstance(stage, HostNode):
            print(f"host {stage.op} {stage.name}: {', '.join(stage.outputs)}")
            continue
        places = f", {stage.places} samples of its own for each" if stage.places > 1 else ""
        print(f"program {', '.join(stage.inputs)} -> {', '.join(stage.outputs)}{places}:")
        _print_layers(stage.program)


def _shape_text(spec: QuantInput | QuantOutput | Border) -> str:
    """A shape whose -1 is not known before."""
    sizes = ["?" if n < 0 else str(n) for n in spec.shape]
    return f"({', '.join([*sizes[: spec.batch_axis], 'N', *sizes[spec.batch_axis :]])})"


def _print_layers(program: Program) -> None:
    from .report import table

    head = ("layer", "rows x features", "keep/bank", "weight bits", "index bits", "passes")
    rows = [(*head, "window", "pixels", "output")]
    for layer in program.layers:
        shape = layer.csb(program.build)
        rows.append(
            (
                layer.name,
                f"{layer.rows} x {layer.features}",
                f"{layer.keep}/{layer.bank_size}",
                str(layer.weight_bits),
                str(shape.index_bits),
                str(len(shape.passes)),
                _window_text(layer),
                _pixels_text(program.tensors[layer.output]),
                _output_text(layer),
            )
        )
    print(table(rows))


def plan(args: argparse.Namespace) -> None:
    from .boards import load_board
    from .errors import InputError
    from .pack.cycles import Memory
    from .pack.pipeline import Pipeline, Segment, load_any

    if args.samples < 1:
        raise InputError(f"--samples {args.samples}: a run has 1 or more")
    program, board = load_any(args.program), load_board(args.board)
    memory = Memory.of(board)
    if isinstance(program, Pipeline):
        segments = [stage for stage in program.stages if isinstance(stage, Segment)]
        plans = [(s.program, args.samples * s.places) for s in segments]
    else:
        plans = [(program, args.samples)]
    total = sum(_print_plan(part, samples, memory) for part, samples in plans)
    print(
        f"modelled for build {program.build.name} on {board.name}: {total:.0f} cycles, "
        f"{1e3 * total / memory.clock_hz:.3f} ms for {args.samples} samples"
    )


def _print_plan(program: Program, samples: int, memory: Memory) -> float:
    """Prints a table of the program's commands and what memory it takes; gives its cycles."""
    from .pack.cycles import RUN_CYCLES, run_cycles
    from .pack.explain import HEAD, explained
    from .pack.fits import MemoryUse
    from .pack.plan import make_plan
    from .report import table

    plan = make_plan(program, samples, memory)
    names = [program.layers[command.layer].name for command in plan.commands]
    print(table([HEAD, *explained(names, plan.commands, program.build, memory)]))
    cycles = sum(x.total for x in run_cycles(plan.commands, program.build, memory))
    print(MemoryUse.of_plan(program, plan))
    return RUN_CYCLES + plan.runs * cycles


def _window_text(layer: PackedLayer) -> str:
    """What a layer adds up: taps of a window, all columns, or the features alone."""
    window = layer.window
    if window is None:
        return "all pixels" if layer.sum_columns else "-"
    kind = " max" if layer.maximum else ""
    stride = "/".join(map(str, dict.fromkeys(window.strides)))
    spread = "/".join(map(str, dict.fromkeys(window.dilations)))
    dilation = f" dilation {spread}" if spread != "1" else ""
    parts = f" in {layer.parts} parts" if layer.parts > 1 else ""
    return f"{window.kernel[0]} x {window.kernel[1]}{kind} stride {stride}{dilation}{parts}"


def _pixels_text(tensor: Tensor) -> str:
    if tensor.steps > 1:
        return f"{tensor.steps} steps"
    return f"{tensor.height} x {tensor.width}" if tensor.pixels > 1 else "-"


def _output_text(layer: PackedLayer) -> str:
    if layer.cell:
        return f"INT8, {layer.cell.kind.upper()}{' reversed' * layer.cell.reverse}"
    text = "INT32 sums" if layer.sums_out else "INT8, table" if layer.table >= 0 else "INT8"
    if layer.combination is None:
        return text
    return f"{text} {'x' if layer.combination.product else '+'} {layer.combination.tensor}"


def boards(args: argparse.Namespace) -> None:
    from .boards import load_boards
    from .report import table

    rows = [
        ("board", "device", "clock MHz", "DDR GB/s", "CMA MiB", "build", "verified on hardware")
    ]
    rows += [
        (
            b.name,
            b.device,
            f"{b.clock_mhz:.1f}",
            f"{b.ddr_gb_per_s:.1f}",
            str(b.cma_mb),
            b.build,
            "yes" if b.verified_on_hardware else "not yet",
        )
        for b in load_boards()
    ]
    print(table(rows))


def doctor(args: argparse.Namespace) -> None:
    from .doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok' if finding.good else '--':3} {finding.name}: {finding.text}")
    if any(finding.needed and not finding.good for finding in findings):
        raise BbsError("something that every command needs is missing; see above")
