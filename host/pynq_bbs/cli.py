# SPDX-License-Identifier: Apache-2.0
"""The `bbs` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BbsError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .pack.program import PackedLayer, Tensor

#: Columns of one step of the progress bar.
_STEP = 2048

_EXAMPLES = """\
examples:
  bbs check model.onnx
  bbs compile model.onnx --sparsity 0.875 --bank-size 64 --calibration x.npy -o model.bbs.npz
  bbs run model.bbs.npz --input x.npy --verify
  bbs info model.bbs.npz

exit codes: 0 done, 2 wrong usage, 3 bad input, 4 bad model, 5 model has nodes that cannot run,
6 bad program file, 7 wrong build, 8 no compiler, 9 to 11 device trouble, 12 results differ.
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
    _command(commands, "boards", _boards, "list the boards and what is known of them")
    _command(commands, "doctor", _doctor, "say what works on this machine, and why not the rest")
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
    check.add_argument("model", type=Path, help="ONNX file")


def _add_compile(commands: Any) -> None:
    compile_ = _command(
        commands, "compile", _compile, "prune, quantise and pack a model into a program file"
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
        "--calibration",
        metavar="FILE",
        type=Path,
        help="typical inputs, .npy (N, ...) or .npz by input name; a float model needs them",
    )
    compile_.add_argument(
        "--method",
        default="minmax",
        choices=("minmax", "percentile", "entropy", "mse"),
        help="how the range of each activation is chosen (default: minmax)",
    )
    compile_.add_argument("--build", default="8x32", help="engine to pack for (default: 8x32)")
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
    run.add_argument("--threads", type=int, default=0, help="of the cpu device (default: all)")


def _add_info(commands: Any) -> None:
    info = _command(commands, "info", _info, "describe a program file")
    info.add_argument("program", type=Path, help="program file")


def _add_plan(commands: Any) -> None:
    plan = _command(commands, "plan", _plan, "say how a program will run on a board, and why so")
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
    from .errors import UnsupportedModelError
    from .model.onnx_import import check_onnx
    from .report import table

    nodes = check_onnx(args.model)
    rows = [("node", "operator", "runs on", "why")]
    rows += [(n.name, n.op, n.runs, n.reason) for n in nodes]
    print(table(rows))
    bad = [n for n in nodes if n.runs == "unsupported"]
    if bad:
        raise UnsupportedModelError(
            f"{len(bad)} of {len(nodes)} nodes of {args.model} cannot run; see the list above"
        )


def _compile(args: argparse.Namespace) -> None:
    from .compiler import compile as compile_model

    samples = None if args.calibration is None else _load_arrays(args.calibration)
    total = None if samples is None else len(next(iter(_arrays(samples))))
    with _progress("calibrate", total) as advance:
        program = compile_model(
            args.model,
            sparsity=args.sparsity,
            bank_size=args.bank_size,
            weight_bits=args.weight_bits,
            calibration=samples,
            method=args.method,
            build=args.build,
            progress=advance,
        )
    output = args.output or args.model.with_suffix(".bbs.npz")
    _writing(output, lambda: program.save(output))
    print(
        f"{output}: {len(program.layers)} layers, {100 * program.sparsity:.1f} % sparse, "
        f"{program.weight_bytes} bytes of weights and indices, build {program.build.name}"
    )


def _run(args: argparse.Namespace) -> None:
    import numpy as np

    from .accelerator import Accelerator

    x = _load_arrays(args.input)
    total = len(next(iter(_arrays(x))))
    parts: list[Any] = []
    with (
        Accelerator(
            args.program,
            args.device,
            verify=args.verify,
            board=args.board,
            bitfile=args.bitfile,
            threads=args.threads,
        ) as accelerator,
        _progress("run", total) as advance,
    ):
        for start in range(0, max(total, 1), _STEP):
            piece = slice(start, start + _STEP)
            part = x[piece] if not isinstance(x, dict) else {n: a[piece] for n, a in x.items()}
            parts.append(accelerator.run(part))
            advance(min(start + _STEP, total))
        names = list(accelerator.outputs)
        print(accelerator.report())
    if args.output is None:
        return
    if len(names) == 1:
        joined = {names[0]: np.concatenate(parts)}
    else:
        joined = {name: np.concatenate([p[name] for p in parts]) for name in names}
    _writing(args.output, lambda: _save_arrays(args.output, joined))
    print(f"{args.output}: " + ", ".join(f"{n} {a.dtype} {a.shape}" for n, a in joined.items()))


def _info(args: argparse.Namespace) -> None:
    from .pack.program import Program
    from .report import table

    program = Program.load(args.program)
    print(
        f"{program.name}: build {program.build.name}, {100 * program.sparsity:.1f} % sparse, "
        f"{program.weight_bytes} bytes of weights and indices"
    )
    for i in program.inputs:
        print(f"input {i.name}: {i.dtype} (N, {', '.join(map(str, i.shape))})")
    if program.lengths:
        print(f"input {program.lengths}: integers (N,), the steps of each sample")
    for o in program.outputs:
        print(f"output {o.name}: {o.dtype} (N, {', '.join(map(str, o.shape))})")
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


def _plan(args: argparse.Namespace) -> None:
    from .boards import load_board
    from .errors import InputError
    from .pack.cycles import RUN_CYCLES, Memory, run_cycles
    from .pack.explain import HEAD, explained
    from .pack.plan import make_plan
    from .pack.program import Program
    from .report import table

    if args.samples < 1:
        raise InputError(f"--samples {args.samples}: a run has 1 or more")
    program, board = Program.load(args.program), load_board(args.board)
    memory = Memory.of(board)
    plan = make_plan(program, args.samples, memory)
    names = [program.layers[command.layer].name for command in plan.commands]
    print(table([HEAD, *explained(names, plan.commands, program.build, memory)]))
    cycles = sum(x.total for x in run_cycles(plan.commands, program.build, memory))
    total = RUN_CYCLES + plan.runs * cycles
    print(
        f"modelled for build {program.build.name} on {board.name}: {total:.0f} cycles, "
        f"{1e3 * total / memory.clock_hz:.3f} ms for {args.samples} samples; "
        f"{8 * plan.memory_words} bytes of memory"
    )


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


def _boards(args: argparse.Namespace) -> None:
    from .boards import load_boards
    from .report import table

    rows = [("board", "device", "clock MHz", "DDR GB/s", "build", "verified on hardware")]
    rows += [
        (
            b.name,
            b.device,
            f"{b.clock_mhz:.1f}",
            f"{b.ddr_gb_per_s:.1f}",
            b.build,
            "yes" if b.verified_on_hardware else "not yet",
        )
        for b in load_boards()
    ]
    print(table(rows))


def _doctor(args: argparse.Namespace) -> None:
    from .doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok' if finding.good else '--':3} {finding.name}: {finding.text}")
    if any(finding.needed and not finding.good for finding in findings):
        raise BbsError("something that every command needs is missing; see above")


def _arrays(x: NDArray[Any] | dict[str, NDArray[Any]]) -> Iterator[NDArray[Any]]:
    yield from x.values() if isinstance(x, dict) else (x,)


def _load_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of an .npy file, mapped and not read, or the arrays of an .npz file by name."""
    import numpy as np

    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        else:
            arrays = {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    except FileNotFoundError:
        raise InputError(f"no file {str(path)!r}: check the path") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} is not an .npy or .npz file of numbers ({error}); numpy.save writes them"
        ) from None
    if not arrays or any(a.ndim == 0 for a in arrays.values()):
        raise InputError(f"{path} holds no batch: wanted arrays of shape (N, ...)")
    return arrays[""] if "" in arrays else arrays


def _save_arrays(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    import numpy as np

    with open(path, "wb") as file:
        if path.suffix == ".npz":
            np.savez(file, allow_pickle=False, **arrays)
        elif len(arrays) == 1:
            np.save(file, next(iter(arrays.values())))
        else:
            raise InputError(
                f"{path} can hold one array, the model has the outputs {', '.join(arrays)}: "
                "name an .npz file"
            )


def _writing(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def _progress(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, where tqdm is installed; takes how much is done so far."""
    try:
        from tqdm import tqdm
    except ImportError:  # a board carries no tqdm
        yield lambda done: None
        return
    with tqdm(total=total, desc=text, disable=None, leave=False, delay=0.5) as bar:
        yield lambda done: bar.update(done - bar.n)


if __name__ == "__main__":
    sys.exit(main())
