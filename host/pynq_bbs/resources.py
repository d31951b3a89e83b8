# SPDX-License-Identifier: Apache-2.0
"""The resource model: whether a build fits a part. Estimated, not synthesised.

`python -m pynq_bbs.resources [--build 8x32] [--board Pynq-Z2]` prints the table, term by term; what
a term is and what it rests on is in `resource_terms.py`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from .boards import Board, load_board
from .builds import Build, load_build
from .errors import BbsError, BuildError
from .report import table
from .resource_terms import FAMILIES, Term, engine_terms

#: (attribute of Term and Resources, attribute of Board, name in tables and messages)
_KINDS = (
    ("dsp", "dsps", "DSP"),
    ("bram36", "bram36", "BRAM36"),
    ("uram", "uram", "URAM"),
    ("lut", "luts", "LUT"),
)


@dataclass(frozen=True)
class Resources:
    """What a build takes of a device family, as a list of terms. Prints itself."""

    build: str
    family: str
    terms: tuple[Term, ...]

    @property
    def dsp(self) -> int:
        return sum(term.dsp for term in self.terms)

    @property
    def bram36(self) -> float:
        return sum(term.bram36 for term in self.terms)

    @property
    def uram(self) -> int:
        return sum(term.uram for term in self.terms)

    @property
    def lut(self) -> int:
        return sum(term.lut for term in self.terms)

    def rows(self) -> list[tuple[str, ...]]:
        """Head, terms and sum, as `report.table` takes them."""
        head = ("term", "basis", *(name for _, _, name in _KINDS))
        terms = [
            (t.name, t.basis, *(f"{getattr(t, kind):.7g}" for kind, _, _ in _KINDS))
            for t in self.terms
        ]
        return [head, *terms, ("sum", "", *(f"{getattr(self, kind):.7g}" for kind, _, _ in _KINDS))]

    def reasons(self) -> str:
        """The formula of each term, one a line."""
        return "\n".join(f"{term.name}: {term.reason}" for term in self.terms)

    def __str__(self) -> str:
        return f"{table(self.rows())}\n\n{self.reasons()}"


def estimate(build: Build, device_family: str) -> Resources:
    """What `build` takes of a part of `device_family`, engine and bus adapters together.

    Raises:
        BuildError: a device family other than those of `overlay/boards.json`.
    """
    if device_family not in FAMILIES:
        raise BuildError(
            f"unknown device family {device_family!r}; known: {', '.join(FAMILIES)}. "
            "Take the family of a board in overlay/boards.json."
        )
    terms = tuple(engine_terms(build, device_family))
    return Resources(build.name, device_family, terms)


def check_fits(build: Build, board: Board) -> None:
    """Return if the estimate of `build` is within the device of `board`.

    Raises:
        BuildError: it is not; names each resource that is short and the largest terms of it.
    """
    resources = estimate(build, board.family)
    short = []
    for kind, limit_name, name in _KINDS:
        need, limit = getattr(resources, kind), getattr(board, limit_name)
        if need <= limit:
            continue
        largest = sorted(resources.terms, key=lambda t: -getattr(t, kind))[:3]
        parts = ", ".join(f"{t.name} {getattr(t, kind):.7g}" for t in largest if getattr(t, kind))
        short.append(f"{name}: needs {need:.7g}, the part has {limit} (largest: {parts})")
    if short:
        raise BuildError(
            f"build {build.name} is estimated not to fit the {board.device} of {board.name}: "
            f"{'; '.join(short)}. Make these parameters of the build smaller, or take a board "
            "with a larger part."
        )


def _printed(resources: Resources, board: Board) -> str:
    limits = [getattr(board, limit) for _, limit, _ in _KINDS]
    needs = [getattr(resources, kind) for kind, _, _ in _KINDS]
    rows = [
        *resources.rows(),
        (f"{board.device} ({board.name}) has", "", *map(str, limits)),
        ("share", "", *(f"{n / m:.0%}" if m else "-" for n, m in zip(needs, limits, strict=True))),
    ]
    return "\n".join(
        [
            f"build {resources.build} on {board.device}: estimated, not synthesised",
            table(rows),
            "",
            resources.reasons(),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Print the table of a build on a board; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pynq_bbs.resources", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--build", help="name or JSON file of a build (default: the board's)")
    parser.add_argument("--board", default="Pynq-Z2", help="board by name (default: Pynq-Z2)")
    args = parser.parse_args(argv)
    try:
        board = load_board(args.board)
        build = load_build(args.build or board.build)
        print(_printed(estimate(build, board.family), board), flush=True)
        check_fits(build, board)
    except BbsError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
