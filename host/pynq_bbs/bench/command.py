# SPDX-License-Identifier: Apache-2.0
"""`bbs bench` and `bbs bench compare`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cli_files import load_arrays, progress, writing
from ..errors import InputError

_DESCRIPTION = """\
Measure a model on our devices, beside other libraries on the same machine.

  bbs bench MODEL               an .onnx file, compiled with the options below, or a .bbs.npz
  bbs bench compare A B         two files of --json: what changed, and whether it is noise

All candidates take turns until the median of each is known to 1 % or the time is up, so a machine
that slows down slows down for all. Every library runs in the fastest form it has, with weights
prepacked and its session open before the clock starts, with as many threads and the same inputs;
its outputs are compared with ours. Beside a sparse program its dense mode is always measured: the
same integers with the zeros left in. An emulated board's own time means nothing, so what is shown
is the cycle model's figure, marked with ~: of the engine alone, without the host.

Scenarios are MLPerf's: single-stream is one sample a query, one query after the other; offline is
all samples in one query.
"""
_EPILOG = """\
examples:
  bbs bench model.bbs.npz
  bbs bench model.onnx --sparsity 0.875 --calibration x.npy --device cpu,emulated \\
      --against onnxruntime,scipy,numpy --report report.html --json new.json
  bbs bench compare old.json new.json --fail-slower 5
"""
_COMPILE = ("sparsity", "bank_size", "weight_bits", "build", "calibration")


def add_bench(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to `commands`; `command` makes it."""
    bench = command(commands, "bench", _run, "measure a model beside other libraries")
    bench.description, bench.epilog = _DESCRIPTION, _EPILOG
    bench.usage = "bbs bench MODEL [options]\n       bbs bench compare A B [--fail-slower PERCENT]"
    bench.add_argument("what", nargs="+", metavar="MODEL", help="or compare and two files")
    what = bench.add_argument_group("what is measured")
    what.add_argument(
        "--device", default="cpu", help="of cpu, emulated, board; several by commas (default: cpu)"
    )
    what.add_argument(
        "--against",
        default="",
        help="of onnxruntime, torch, scipy, numpy, dense (our own, which a sparse program is "
        "always beside); what is not installed is named and left out (default: none)",
    )
    what.add_argument(
        "--scenario", default="single-stream,offline", help="(default: single-stream,offline)"
    )
    what.add_argument(
        "--input", type=Path, help=".npy (N, ...) or .npz by input name (default: random numbers)"
    )
    how = bench.add_argument_group("how")
    how.add_argument("--threads", type=int, default=1, help="of every candidate (default: 1)")
    how.add_argument("--samples", type=int, default=64, help="of an offline query (default: 64)")
    how.add_argument(
        "--seconds", type=float, default=10.0, help="of a scenario at most (default: 10)"
    )
    how.add_argument("--board", default="Pynq-Z2", help="board that modelled figures are for")
    how.add_argument("--bitfile", type=Path, help="the overlay's .bit, for a board")
    how.add_argument(
        "--power-csv",
        type=Path,
        metavar="FILE",
        help="a meter's file, written meanwhile: columns seconds (since the epoch) and watts; else "
        "energy comes from RAPL or the board's rails, or is unknown",
    )
    build = bench.add_argument_group("how an .onnx file is compiled, as in bbs compile")
    build.add_argument("--sparsity", type=float)
    build.add_argument("--bank-size", type=int)
    build.add_argument("--weight-bits", type=int, choices=(8, 4))
    build.add_argument("--build")
    build.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="without it: random numbers, for speed only",
    )
    out = bench.add_argument_group("reports, besides the table")
    out.add_argument("--json", type=Path, metavar="FILE", help="all runs and facts, for compare")
    out.add_argument("--report", type=Path, metavar="FILE", help="one HTML file with charts")
    out.add_argument(
        "--fail-slower",
        type=float,
        metavar="PERCENT",
        help="of compare: exit with 13 where one of our devices got slower by more than this, and "
        "not by noise",
    )


def _run(args: argparse.Namespace) -> None:
    if args.what[0] == "compare":
        _compare(args)
    elif len(args.what) == 1:
        _measure(args)
    else:
        raise InputError(
            f"{len(args.what)} models given; one at a time, or: bbs bench compare A.json B.json"
        )


def _compare(args: argparse.Namespace) -> None:
    from .compare import check_slower, text_comparison
    from .record import Record

    if len(args.what) != 3:
        raise InputError("bbs bench compare takes two files that --json has written")
    before, after = (Record.load(path) for path in args.what[1:])
    print(text_comparison(before, after))
    if args.fail_slower is not None:
        check_slower(before, after, args.fail_slower)


def _measure(args: argparse.Namespace) -> None:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read when numpy or torch are imported

    from .options import Options
    from .report_html import html_report
    from .report_text import text_report
    from .run import benchmark
    from .subject import load_subject, samples_for

    options = Options(
        devices=_names(args.device),
        against=_names(args.against),
        scenarios=_names(args.scenario),
        threads=args.threads,
        samples=args.samples,
        seconds=args.seconds,
        board=args.board,
        bitfile=args.bitfile,
        power=args.power_csv,
    )
    path = Path(args.what[0])
    subject = load_subject(path, **_compiling(args, path))
    given = None if args.input is None else load_arrays(args.input)
    x = samples_for(subject.program, given, options.samples)
    with progress("bench", 100 * len(options.scenarios)) as advance:

        def told(scenario: str, share: float) -> None:
            advance(int(100 * (options.scenarios.index(scenario) + share)))

        record = benchmark(subject, x, options, told)
    print(text_report(record))
    if args.json:
        writing(args.json, lambda: record.save(args.json))
        print(f"{args.json}: all runs and facts")
    if args.report:
        text = html_report(record)
        writing(args.report, lambda: args.report.write_text(text, encoding="utf-8"))
        print(f"{args.report}: the report")


def _names(text: str) -> list[str]:
    """What stands between commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _compiling(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Options of `compile` that were given."""
    given = {name: getattr(args, name) for name in _COMPILE if getattr(args, name) is not None}
    if given and path.suffix == ".npz":
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"{names}: {path} is compiled already; give the .onnx file")
    if "calibration" in given:
        given["calibration"] = load_arrays(given["calibration"])
    return given
