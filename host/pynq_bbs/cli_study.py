# SPDX-License-Identifier: Apache-2.0
"""`bbs study`: accuracy against sparsity and time, for the user's own model and data."""

from __future__ import annotations

import argparse
from pathlib import Path

from .cli_files import add_method, add_weight_bits, load_arrays, progress, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Remove weights of a float classifier in several patterns and shares, quantise and pack\n"
        "it, and evaluate each on the cpu device, whose integers are the engine's. Nothing is\n"
        "trained: fine-tuned weights lose less. Layers that `bbs compile` prunes by default lose\n"
        "their smallest weights; they are packed in the banks that cover the zeros. Of each run:\n"
        "the share that is right, modelled cycles and time of one sample, and its measured time\n"
        "on the cpu device in turns with the dense program. Time on GPUs is not measured yet.\n"
        "\n"
        "-o gets study.csv, a row as soon as each run has finished, and study.html. Called again,\n"
        "only runs that are missing are run; the file's first line knows model, data and options.\n"
        "\n"
        "patterns: dense; unstructured; N:M (2:4), which has one sparsity; banks:SIZE and\n"
        "banks:row/COUNT, along features, or channels of a tap; block:RxC, block:RxC:max; row;\n"
        "channel. Banks that leave lanes of the engine idle save less time: where 64 is large for\n"
        "the layers' features, try banks:32 or banks:row/8.\n"
        "What a pattern cannot be is said and left out; a layer that it does not fit stays dense\n"
        "in that run, and is named there."
    )
    parser.add_argument("model", type=Path, help="ONNX file, float, one output of class scores")
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        type=Path,
        required=True,
        help="typical inputs, .npy (N, ...) or .npz by input name, to choose scales by",
    )
    parser.add_argument(
        "--inputs",
        metavar="FILE",
        type=Path,
        help="samples to judge by, in the same form (default: those of --calibration)",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        type=Path,
        help=".npy of integers (N,), the class of each of these; without it, right is what agrees "
        "with the dense float model",
    )
    parser.add_argument(
        "--patterns",
        default="dense,unstructured,2:4,banks:64,block:4x4",
        help="with commas between (default: %(default)s)",
    )
    parser.add_argument(
        "--sparsities",
        default="0.5,0.75,0.875",
        help="shares of the weights to remove, with commas between (default: %(default)s)",
    )
    add_weight_bits(parser)
    add_method(parser)
    parser.add_argument(
        "--board", default="Pynq-Z2", help="whose clock and memory (default: Pynq-Z2)"
    )
    parser.add_argument("--build", help="engine to pack for (default: the board's)")
    parser.add_argument("--threads", type=int, default=0, help="of the cpu device (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="to measure each run for (default: 1)"
    )
    parser.add_argument(
        "--restart", action="store_true", help="forget the runs that study.csv has, and start anew"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("study"), help="folder (default: study)"
    )


def run(args: argparse.Namespace) -> None:
    """Run what is missing, print the table and write the page."""
    from .errors import InputError
    from .report import table
    from .study import DoesNotFitError, Study, runs_of
    from .study_csv import Rows
    from .study_html import HEAD, cells, study_page

    runs, impossible = runs_of(_names(args.patterns), _numbers(args.sparsities))
    labels = None if args.labels is None else load_arrays(args.labels)
    if isinstance(labels, dict):
        raise InputError(f"{args.labels} holds several arrays; labels are one .npy file")
    study = Study(
        args.model,
        load_arrays(args.calibration),
        None if args.inputs is None else load_arrays(args.inputs),
        labels,
        weight_bits=args.weight_bits,
        method=args.method,
        build=args.build,
        board=args.board,
        threads=args.threads,
        seconds=args.seconds,
    )
    writing(args.output, lambda: args.output.mkdir(parents=True, exist_ok=True))
    stored = Rows(args.output / "study.csv", study.key, restart=args.restart)
    known = {row.run for row in stored.rows}
    missing = [run for run in runs if run not in known]
    with progress("study", len(missing)) as advance:
        for done, run in enumerate(missing, 1):
            try:
                stored.add(study.measure(run))
            except DoesNotFitError as error:
                impossible[run] = str(error)
            advance(done)
    for left_out, why in impossible.items():
        print(f"left out: {left_out.pattern} at {left_out.sparsity:g}: {why}")
    if not stored.rows:
        raise InputError("no pattern is possible at any of the sparsities; see above")
    print(table([tuple(HEAD), *(tuple(cells(row)) for row in stored.rows)]))
    html = study_page(
        args.model.name,
        stored.rows,
        impossible,
        judged_by=f"the share of {study.samples} samples "
        + ("whose class is their label" if labels is not None else
           "that get the class that the dense float model gives them"),
        engine=f"{study.build.name} on {study.board.name}",
        layers=study.pruned_layers,
    )  # fmt: skip
    path = args.output / "study.html"
    writing(path, lambda: path.write_text(html, "utf-8"))
    print(f"{path}: {len(stored.rows)} runs, {len(stored.rows) - len(known)} of them new")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[float]:
    from .errors import InputError

    try:
        return [float(number) for number in _names(text)]
    except ValueError:
        raise InputError(f"--sparsities {text}: must be numbers with commas between") from None
