# SPDX-License-Identifier: Apache-2.0
"""The `bbs` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli_sensitivity, cli_show, cli_study
from .bench.command import add_bench
from .cli_files import add_method, load_arrays, progress, save_arrays, writing
from .errors import BbsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .choices import LayerChoice
    from .model.graph import Model, QuantModel
    from .model.partition import Partition
    from .pack.program import Program

_EXAMPLES = """\
examples:
  bbs check model.onnx
  bbs compile model.onnx --sparsity 0.875 --bank-size 64 --calibration x.npy -o model.bbs.npz
  bbs run model.bbs.npz --input x.npy --verify
  bbs info model.bbs.npz
  bbs study model.onnx --calibration x.npy --inputs t.npy --labels y.npy -o study/
  bbs bench model.bbs.npz --device cpu,emulated --against numpy,scipy --report report.html

exit codes: 0 done, 2 wrong usage, 3 bad input, 4 bad model, 5 model has nodes that cannot run,
6 bad program file, 7 wrong build, 8 no compiler, 9 to 11 device trouble, 12 results differ,
13 slower than --fail-slower allows.
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BbsError as error:
        print(f"bbs {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"bbs {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has seen enough, as in `bbs boards | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bbs",
        description="Bank-balanced sparse INT8 inference on PYNQ boards, emulated on the host.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_check(commands)
    _add_compile(commands)
    _add_run(commands)
    _add_info(commands)
    _add_plan(commands)
    text = "say what quantisation and pruning cost each layer"
    cli_sensitivity.add_arguments(_command(commands, "sensitivity", cli_sensitivity.run, text))
    text = "draw accuracy against sparsity and time, by pattern, for a model and its data"
    cli_study.add_arguments(_command(commands, "study", cli_study.run, text))
    add_bench(commands, _command)
    _command(commands, "boards", cli_show.boards, "list the boards and what is known of them")
    _command(
        commands, "doctor", cli_show.doctor, "say what works on this machine, and why not the rest"
    )
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_check(commands: Any) -> None:
    check = _command(commands, "check", _check, "list every node of a model and where it runs")
    check.description = (
        "Show every node of an ONNX model, whether the engine or the host runs it, why, and its\n"
        "share of the products; at the end how often values cross between the two. Of a program\n"
        "file also each layer's share of the modelled time."
    )
    check.add_argument("model", type=Path, help="ONNX file, or program file")
    check.add_argument(
        "--board", default="Pynq-Z2", help="whose clock and memory (default: Pynq-Z2)"
    )


def _add_compile(commands: Any) -> None:
    compile_ = _command(
        commands, "compile", _compile, "prune, quantise and pack a model into a program file"
    )
    compile_.description = (
        "Prune, quantise and pack a model into a program file. What the engine cannot run is the\n"
        "host's: the file then holds several programs with the host's nodes in between."
    )
    compile_.add_argument("model", type=Path, help="ONNX file, float or quantised")
    compile_.add_argument(
        "--sparsity",
        type=float,
        default=0.0,
        help="share of the weights to remove from every bank, 0 to below 1 (default: 0, dense)",
    )
    compile_.add_argument(
        "--bank-size",
        type=int,
        default=64,
        help="largest bank, 1 to 256; every layer takes the size up to this that fills the lanes "
        "best (default: 64). 2:4 is --sparsity 0.5 --bank-size 4",
    )
    compile_.add_argument(
        "--weight-bits",
        type=int,
        default=8,
        choices=(8, 4),
        help="4 halves the weights' memory and costs accuracy (default: 8)",
    )
    compile_.add_argument(
        "--pruning",
        default="magnitude",
        choices=("magnitude", "wanda", "sparsegpt"),
        help="which weights go: the smallest, those of small products on the calibration samples, "
        "or those that the others, changed, can make up for (default: magnitude)",
    )
    compile_.add_argument(
        "--rounding",
        default="nearest",
        choices=("nearest", "gptq"),
        help="how weights become integers: each by itself, or so that those of a row make up for "
        "each other's errors on the calibration samples (default: nearest)",
    )
    compile_.add_argument(
        "--layers",
        metavar="FILE",
        type=Path,
        help="TOML file with a table for each layer, or pattern with * and ?, of sparsity, "
        "bank_size, weight_bits, pruning and rounding; first and last layers are not pruned "
        "unless it says so",
    )
    compile_.add_argument(
        "--calibration",
        metavar="FILE",
        type=Path,
        help="typical inputs, .npy (N, ...) or .npz by input name; a float model needs them",
    )
    add_method(compile_)
    compile_.add_argument(
        "--board", default="Pynq-Z2", help="whose memory it must fit (default: Pynq-Z2)"
    )
    compile_.add_argument("--build", help="engine to pack for (default: the board's)")
    compile_.add_argument(
        "-o", "--output", type=Path, help="program file (default: MODEL with .bbs.npz)"
    )


def _add_run(commands: Any) -> None:
    run = _command(commands, "run", _run, "run a program on a device")
    run.add_argument("program", type=Path, help="program file")
    run.add_argument(
        "--input", required=True, type=Path, help=".npy (N, ...), or .npz by input name"
    )
    run.add_argument("-o", "--output", type=Path, help="write the outputs: .npy, or .npz by name")
    run.add_argument(
        "--device",
        default="auto",
        choices=("auto", "board", "emulated", "emulated-pynq", "standin", "cpu"),
        help="auto is a board if there is one, else emulated (default: auto)",
    )
    run.add_argument(
        "--verify", action="store_true", help="compare every layer with the cpu device, bit for bit"
    )
    run.add_argument("--board", default="Pynq-Z2", help="board that modelled figures are for")
    run.add_argument("--bitfile", type=Path, help="the overlay's .bit, for a board")
    run.add_argument(
        "--attach", action="store_true", help="that overlay is loaded already: leave it as it is"
    )
    run.add_argument("--threads", type=int, default=0, help="of the cpu device (default: all)")


def _add_info(commands: Any) -> None:
    info = _command(commands, "info", cli_show.info, "describe a program file")
    info.add_argument("program", type=Path, help="program file")


def _add_plan(commands: Any) -> None:
    plan = _command(
        commands, "plan", cli_show.plan, "say how a program will run on a board, and why so"
    )
    plan.description = (
        "Show every command that the engine will run: where its input comes from and its output\n"
        "goes, how much of an image is on chip, how many column tiles a weight block meets, how\n"
        "often weights are fetched, and the modelled cycles. 'bound by' is the stage that is busy\n"
        "longest; 'next best' what the next best number of tiles would cost."
    )
    plan.add_argument("program", type=Path, help="program file")
    plan.add_argument("--samples", type=int, default=1, help="samples of a run (default: 1)")
    plan.add_argument(
        "--board", default="Pynq-Z2", help="whose clock and memory (default: Pynq-Z2)"
    )


def _check(args: argparse.Namespace) -> None:
    from .boards import load_board
    from .check import check_model, check_program
    from .errors import UnsupportedModelError
    from .pack import archive
    from .report import table

    if archive.kind(args.model):
        checked = check_program(args.model, load_board(args.board))
    else:
        checked = check_model(args.model)
    print(table(checked.rows))
    if not checked.bad and checked.model and (found := _sparsity_text(checked.model)):
        print(found)
    if checked.bad:
        raise UnsupportedModelError(
            f"{checked.bad} of {len(checked.rows) - 1} nodes of {args.model} can run neither on "
            "the engine nor on the host; see the list above"
        )
    print(checked.summary)


def _sparsity_text(model: Model | QuantModel | Partition) -> str:
    """The layers whose weights have zeros that a bank leaves out, with keep/bank."""
    from .builds import load_build
    from .choices import layers_of, without_matrix
    from .compiler import found_bank
    from .model.graph import Layer, QuantLayer

    build, found = load_build("8x32"), []
    for layer in layers_of(model):
        if isinstance(layer, (Layer, QuantLayer)) and not without_matrix(layer):
            size, keep = found_bank(layer.weights, build)
            if keep < size:
                found.append(f"{layer.name} {keep}/{size}")
    return f"zeros that the weights have, keep/bank: {', '.join(found)}" if found else ""


def _compile(args: argparse.Namespace) -> None:
    from .boards import load_board
    from .builds import load_build
    from .choices import choose, read_layers
    from .compiler import compile as compile_model
    from .model.partition import Partition, read_model
    from .pack.pipeline import Pipeline

    model = read_model(args.model)
    asked: dict[str, Any] = {
        "sparsity": args.sparsity,
        "bank_size": args.bank_size,
        "weight_bits": args.weight_bits,
        "pruning": args.pruning,
        "rounding": args.rounding,
        "layers": {} if args.layers is None else read_layers(args.layers),
    }
    build = load_build(args.build or load_board(args.board).build)
    chosen = choose(model, build, **asked)
    samples = None if args.calibration is None else load_arrays(args.calibration)
    axes: dict[str, int] = {}
    if not isinstance(model, Partition):
        axes = {spec.name: spec.batch_axis for spec in model.inputs}
    total = None if samples is None else _count(samples, axes)
    with progress("calibrate", total) as advance:
        program = compile_model(
            model,
            **asked,
            calibration=samples,
            method=args.method,
            build=args.build,
            board=args.board,
            progress=advance,
        )
    output = args.output or args.model.with_suffix(".bbs.npz")
    writing(output, lambda: program.save(output))
    programs = program.programs if isinstance(program, Pipeline) else [program]
    several = f"{len(programs)} programs, " if len(programs) > 1 else ""
    print(_banks_text(programs, chosen))
    print(
        f"{output}: {several}{sum(len(p.layers) for p in programs)} layers, "
        f"{100 * program.sparsity:.1f} % sparse, "
        f"{program.weight_bytes} bytes of weights and indices, build {program.build.name}"
    )


def _banks_text(programs: Sequence[Program], chosen: Mapping[str, LayerChoice]) -> str:
    """Every layer's bank, and which layers are not pruned although others are."""
    from .report import table

    kept = {name: choice.kept for name, choice in chosen.items() if choice.kept}
    rows = [("layer", "rows x features", "keep/bank", "weight bits", "not pruned")]
    for program in programs:
        for la in program.layers:
            shape, bank = f"{la.rows} x {la.features}", f"{la.keep}/{la.bank_size}"
            rows.append((la.name, shape, bank, str(la.weight_bits), kept.get(la.name, "")))
    if not kept:
        return table([row[:-1] for row in rows])
    return f"{table(rows)}\nwhat is not pruned is dense by default; --layers can ask for it"


def _run(args: argparse.Namespace) -> None:
    import numpy as np

    from .accelerator import Accelerator
    from .pack.pipeline import load_any

    program, x = load_any(args.program), load_arrays(args.input)
    axes = {spec.name: spec.batch_axis for spec in program.inputs}
    to_axes = {spec.name: spec.batch_axis for spec in program.outputs}
    total = _count(x, axes)
    parts: list[Any] = []
    with (
        Accelerator(
            program,
            args.device,
            verify=args.verify,
            board=args.board,
            bitfile=args.bitfile,
            attach=args.attach,
            threads=args.threads,
        ) as accelerator,
        progress("run", total) as advance,
    ):
        step = accelerator.step
        for start in range(0, max(total, 1), step):
            piece = slice(start, start + step)
            if isinstance(x, dict):
                given = {n: _taken(a, piece, axes.get(n, 0)) for n, a in x.items()}
                parts.append(accelerator.run(given))
            else:
                own = _taken(x, piece, program.inputs[0].batch_axis)
                parts.append(accelerator.run(own))
            advance(min(start + step, total))
        names = list(accelerator.outputs)
        print(accelerator.report())
    if args.output is None:
        return
    if len(names) == 1:
        parts = [{names[0]: part} for part in parts]
    joined = {name: np.concatenate([p[name] for p in parts], to_axes[name]) for name in names}
    writing(args.output, lambda: save_arrays(args.output, joined))
    print(f"{args.output}: " + ", ".join(f"{n} {a.dtype} {a.shape}" for n, a in joined.items()))


def _taken(x: NDArray[Any], piece: slice, axis: int) -> NDArray[Any]:
    """A piece of an axis; of an array that has too few, which is refused later, of its last."""
    return x[(slice(None),) * min(axis, x.ndim - 1) + (piece,)]


def _count(x: NDArray[Any] | dict[str, NDArray[Any]], axes: Mapping[str, int]) -> int:
    """Samples in arrays for inputs whose batch is that axis, or the first."""
    name, array = next(iter(x.items())) if isinstance(x, dict) else (next(iter(axes), ""), x)
    return int(array.shape[min(axes.get(name, 0), array.ndim - 1)])


if __name__ == "__main__":
    sys.exit(main())
