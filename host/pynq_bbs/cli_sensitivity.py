# SPDX-License-Identifier: Apache-2.0
"""`bbs sensitivity`: what quantisation and pruning cost each layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from .cli_files import (
    add_method,
    add_weight_bits,
    arrays_of,
    load_arrays,
    progress,
    writing,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Run every layer in integers on what the float model gives it, and print how much of its\n"
        "output is signal, how much noise, in dB (20 dB: 1 % of the power is noise): quantised,\n"
        "and pruned and quantised. The last row is of the model's outputs, all layers together."
    )
    parser.add_argument("model", type=Path, help="ONNX file, float")
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        type=Path,
        required=True,
        help="typical inputs, .npy (N, ...) or .npz by input name; scales are chosen and noise is "
        "measured on them",
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        nargs="*",
        default=[0.5, 0.75],
        help="shares of the weights to remove, each tried on every layer (default: 0.5 0.75)",
    )
    parser.add_argument("--bank-size", type=int, default=64, help="largest bank (default: 64)")
    add_weight_bits(parser)
    add_method(parser)
    parser.add_argument("--build", default="8x32", help="engine to compile for (default: 8x32)")
    parser.add_argument(
        "--sort",
        default="model",
        choices=("model", "worst"),
        help="the model's order, or the noisiest layer first (default: model)",
    )
    parser.add_argument(
        "--least",
        type=float,
        default=10.0,
        metavar="DB",
        help="what -o asks of every layer (default: 10)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="write a TOML file for `bbs compile --layers`: for each layer the largest sparsity "
        "that leaves it as many dB",
    )


def run(args: argparse.Namespace) -> None:
    """Print the table, and write what it suggests."""
    from .choices import layers_text
    from .noise import sensitivity

    samples = load_arrays(args.calibration)
    total = (2 + len(args.sparsity)) * len(next(iter(arrays_of(samples))))
    with progress("measure", total) as advance:
        found = sensitivity(
            args.model,
            samples,
            sparsities=args.sparsity,
            bank_size=args.bank_size,
            weight_bits=args.weight_bits,
            method=args.method,
            build=args.build,
            progress=advance,
        )
    print(found.text(worst_first=args.sort == "worst"))
    if args.output is not None:
        text = layers_text(found.suggested(args.least))
        writing(args.output, lambda: args.output.write_text(text, "utf-8"))
        print(f"{args.output}: sparsity of each layer that leaves it {args.least:g} dB")
