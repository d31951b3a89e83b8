# SPDX-License-Identifier: Apache-2.0
"""Builds a bitstream: engine sources -> IP (Vitis HLS) -> overlay (Vivado) -> bitstreams/.

    python overlay/build.py --board Pynq-Z2 --dry-run

Needs this package installed, and the Xilinx tools (2022.1 to 2024.2) on the PATH. Nothing here
has yet been run under those tools.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pynq_bbs.boards import Board, load_board
from pynq_bbs.builds import Build, load_build
from pynq_bbs.device.driver import VLNV
from pynq_bbs.errors import BbsError, BuildError, InputError, ToolchainError
from pynq_bbs.interface import VERSION
from pynq_bbs.resources import check_fits

ROOT = Path(__file__).resolve().parents[1]
MANIFEST_FORMAT = 1

#: rows of Vivado's utilisation report; the first two differ by family
_UTILISATION = {
    "luts": r"(?:Slice|CLB) LUTs",
    "registers": r"(?:Slice|CLB) Registers",
    "dsps": r"DSPs",
    "bram36": r"Block RAM Tile",
    "uram": r"URAM",
}


@dataclass(frozen=True)
class Step:
    """One command: what it is for, its words, its folder, and what it gets by the environment."""

    title: str
    command: list[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        assignments = [f"{k}={shlex.quote(v)}" for k, v in self.environment.items()]
        words = " ".join([*assignments, shlex.join(self.command)])
        return f"# {self.title}\n(cd {shlex.quote(str(self.folder))} && {words})"


@dataclass(frozen=True)
class Job:
    """A build on a board at a clock, and where its files go."""

    board: Board
    build: Build
    build_source: str  # name of the build or path of its file, as codegen takes it
    clock_mhz: float
    work: Path
    jobs: int

    @property
    def name(self) -> str:
        """The design's name. New with every build and interface: PYNQ caches by file name.

        It names modules too, so it has no dash.
        """
        return re.sub(r"\W", "_", f"bbs_{self.build.name}_v{VERSION}")

    @property
    def period_ns(self) -> str:
        return f"{1000 / self.clock_mhz:.3f}"

    @property
    def generated(self) -> Path:
        return self.work / "generated"


def hls_steps(job: Job, flow: str, runner: str) -> tuple[list[Step], Path]:
    """The commands that make the IP, and the folder where it then lies.

    `flow` is "tcl" or "config"; `runner` is the program of the Tcl flow.
    """
    hls = ROOT / "hls"
    if flow == "config":
        v = ["--config", str(job.generated / "hls_config.cfg"), "--work_dir", "bbs_engine"]
        return [
            Step("C++ to RTL", ["v++", "-c", "--mode", "hls", *v], job.work),
            Step("RTL to IP", ["vitis-run", "--mode", "hls", "--package", *v], job.work),
        ], job.work / "bbs_engine" / "hls" / "impl" / "ip"
    script = str(hls / "vitis" / "run_hls.tcl")
    command = [runner, "-f", script]
    if runner == "vitis-run":
        command = [runner, "--mode", "hls", "--tcl", script]
    environment = {
        "BBS_HLS": str(hls),
        "BBS_GENERATED": str(job.generated),
        "BBS_PART": job.board.part,
        "BBS_CLOCK_NS": job.period_ns,
    }
    ip = job.work / "bbs_engine" / "solution" / "impl" / "ip"
    return [Step("C++ to IP", command, job.work, environment)], ip


def overlay_step(job: Job, ip: Path) -> Step:
    """The command that makes .bit, .hwh and reports in the work folder."""
    board = job.board
    return Step(
        "IP to bitstream",
        ["vivado", "-mode", "batch", "-source", str(ROOT / "overlay" / "block_design.tcl")],
        job.work,
        {
            "BBS_NAME": job.name,
            "BBS_PART": board.part,
            "BBS_BOARD_PART": board.board_part,
            "BBS_PROCESSING_SYSTEM": board.processing_system,
            "BBS_PORT_BITS": str(board.port_bits),
            "BBS_CONTROL_BASE": f"{board.control_base:#010x}",
            "BBS_CLOCK_MHZ": f"{job.clock_mhz:g}",
            "BBS_IP": str(ip),
            "BBS_OUT": str(job.work),
            "BBS_JOBS": str(job.jobs),
        },
    )


def plan(job: Job, flow: str, runner: str) -> list[Step]:
    """Every command of the job, in order."""
    generate = [sys.executable, "-m", "pynq_bbs.codegen", "--build", job.build_source]
    steps, ip = hls_steps(job, flow, runner)
    return [
        Step("the build's parameters as a header", [*generate, "--out", str(job.generated)], ROOT),
        *steps,
        overlay_step(job, ip),
    ]


def write_config(job: Job) -> None:
    """Fills in `hls_config.cfg` for the config flow."""
    text = (ROOT / "hls" / "vitis" / "hls_config.cfg.in").read_text(encoding="utf-8")
    values = {
        "PART": job.board.part,
        "CLOCK_NS": job.period_ns,
        "HLS": str(ROOT / "hls"),
        "GENERATED": str(job.generated),
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    job.generated.mkdir(parents=True, exist_ok=True)
    (job.generated / "hls_config.cfg").write_text(text, encoding="utf-8")


def choose_runner(flow: str) -> str:
    """The program of the Tcl flow: vitis-run where there is one.

    Raises:
        ToolchainError: a tool of the flow is not on the PATH.
    """
    runner = "vitis-run" if shutil.which("vitis-run") or flow == "config" else "vitis_hls"
    needed = ["v++", "vitis-run", "vivado"] if flow == "config" else [runner, "vivado"]
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing:
        raise ToolchainError(
            f"not on the PATH: {', '.join(missing)} (for Vitis HLS either vitis-run or vitis_hls "
            "does). Install Vitis 2022.1 to 2024.2 and source its settings64.sh, or use --dry-run "
            "to see the commands."
        )
    return runner


def run(steps: list[Step]) -> None:
    """Runs the steps, each in its folder, their output on the terminal.

    Raises:
        ToolchainError: a step failed; the later ones are not started.
    """
    for step in steps:
        print(step, flush=True)
        step.folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            step.command, cwd=step.folder, env={**os.environ, **step.environment}, check=False
        )
        if done.returncode != 0:
            raise ToolchainError(
                f"{step.title}: {step.command[0]} ended with status {done.returncode}. "
                f"Its messages stand above, its logs in {step.folder}."
            )


def tool_version(command: list[str]) -> str:
    """The release, such as 2023.2, that a tool says it is."""
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"(?<!\d)20\d\d\.\d(?:\.\d)?", text)
    return found[0] if found else "unknown"


def utilisation(report: str) -> dict[str, float]:
    """What the design takes, from the text of Vivado's `report_utilization`."""
    used = {}
    for key, row in _UTILISATION.items():
        found = re.search(rf"^\|\s*{row}\*?\s*\|\s*([\d.]+)\s*\|", report, re.MULTILINE)
        used[key] = float(found[1]) if found else 0.0  # a 7-series report has no row for URAM
    return used


def collect(job: Job, hls_version: str, destination: Path) -> Path:
    """Copies .bit and .hwh to `destination`, writes manifest.json there, and returns its path.

    Raises:
        BuildError: a step left no file, or not the one that was asked for.
    """
    result_file = job.work / "result.txt"
    files = [job.work / f"{job.name}.bit", job.work / f"{job.name}.hwh"]
    for file in [*files, result_file]:
        if not file.is_file():
            raise BuildError(f"Vivado left no {file}; look into {job.work / 'vivado.log'}.")
    result = dict(line.split(None, 1) for line in result_file.read_text().splitlines())
    manifest: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "board": job.board.name,
        "build": job.build.name,
        "interface_version": VERSION,
        "vlnv": VLNV,
        "parameters": job.build.parameters,
        "clock_mhz": round(float(result["clock_hz"]) / 1e6, 3),
        "slack_ns": {kind: float(result[f"{kind}_slack_ns"]) for kind in ("setup", "hold")},
        "utilisation": utilisation((job.work / "utilisation.rpt").read_text()),
        "tools": {"hls": hls_version, "vivado": result["vivado"]},
        "files": {},
    }
    destination.mkdir(parents=True, exist_ok=True)
    for file in files:
        data = file.read_bytes()
        (destination / file.name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        manifest["files"][file.name] = {"sha256": digest, "bytes": len(data)}
    path = destination / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return path


def make_job(args: argparse.Namespace) -> Job:
    """The job that the command line describes.

    Raises:
        BuildError: unknown board or build, or a build that by the estimate cannot fit the board.
        InputError: a clock or folder that cannot be used.
    """
    board = load_board(args.board)
    source = args.build or board.build
    if source.endswith(".json"):
        source = str(Path(source).resolve())
    build = load_build(source)
    check_fits(build, board)
    clock = args.clock or board.clock_mhz
    if not 10 <= clock <= 500:
        raise InputError(
            f"--clock is {clock:g} MHz, must be 10 to 500. Leave it out for the board's."
        )
    work = (args.work or ROOT / "build" / f"{board.name}-{build.name}").absolute()
    for folder in (ROOT, work):
        if re.search(r"\s", str(folder)):
            raise InputError(
                f"{str(folder)!r} has a space in it, and the Xilinx tools split paths at spaces. "
                "Move it, or name another work folder with --work."
            )
    return Job(board, build, source, clock, work, args.jobs)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--board", required=True, help="a name of overlay/boards.json")
    parser.add_argument("--build", help="default: the board's")
    parser.add_argument("--clock", type=float, metavar="MHZ", help="default: the board's")
    parser.add_argument("--work", type=Path, help="work folder, default build/BOARD-BUILD")
    parser.add_argument("--out", type=Path, default=ROOT / "bitstreams", help="default bitstreams/")
    parser.add_argument("--flow", choices=("tcl", "config"), default="tcl", help="how HLS is run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="Vivado runs at once")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        job = make_job(args)
        if args.dry_run:
            print(*plan(job, args.flow, "vitis-run"), sep="\n")
            return 0
        runner = choose_runner(args.flow)
        if args.flow == "config":
            write_config(job)
        run(plan(job, args.flow, runner))
        version = tool_version([runner, "--version" if runner == "vitis-run" else "-version"])
        print(collect(job, version, args.out / job.board.name / job.build.name))
    except BbsError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
