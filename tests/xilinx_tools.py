# SPDX-License-Identifier: Apache-2.0
"""Stands in for Vitis HLS and Vivado: their scripts run, and every tool command is recorded."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

# Plays the tool: every command that Tcl does not have is written down and answered. The last word
# is the answer where a script goes on with what it asked for (`get_bd_pins x` is x).
RECORDER = r"""
set log [open $::env(BBS_TEST_LOG) w]
rename exit leave
proc record {words} { puts -nonewline $::log "[join $words \x1f]\x1e" }
proc exit {{status 0}} { record [list exit $status]; close $::log; leave $status }
proc unknown args {
    record $args
    switch -- [lindex $args 0] {
        get_ipdefs { return [string map {* 1.2} [list [lindex $args end]]] }
        version { return 2023.2 }
        make_wrapper {
            set name $::env(BBS_NAME)
            set folder project/$name.gen/sources_1/bd/$name/hw_handoff
            file mkdir $folder
            close [open $folder/$name.hwh w]
            return wrapper.v
        }
        report_utilization { file copy -force $::env(BBS_TEST_REPORT) [lindex $args end] }
        write_bitstream { close [open [lindex $args end] w] }
        get_board_parts { if {[info exists ::env(BBS_TEST_NO_BOARD)]} { return {} } }
        get_property {
            set key [lindex $args 1]
            if {[info exists ::env(BBS_TEST_$key)]} { return $::env(BBS_TEST_$key) }
            return [dict get {PROGRESS 100% SLACK 0.125 CONFIG.FREQ_HZ 142857132} $key]
        }
    }
    return [lindex $args end]
}
if {[catch {source $::env(BBS_TEST_SCRIPT)} message]} {
    puts stderr $message
    close $log
    leave 70
}
exit 0
"""

# tkinter's Tcl has no exit of its own.
TKINTER = """
import os, sys, tkinter
tcl = tkinter.Tcl()
tcl.createcommand("exit", lambda status="0": os._exit(int(status)))
tcl.evalfile(sys.argv[1])
"""

UTILISATION_REPORT = """\
| Tool Version : Vivado v.2023.2
| Site Type                  |  Used | Fixed | Prohibited | Available | Util% |
| Slice LUTs*                | 24310 |     0 |          0 |     53200 | 45.70 |
|   LUT as Logic             | 21000 |     0 |          0 |     53200 | 39.47 |
| Slice Registers            | 31002 |     0 |          0 |    106400 | 29.14 |
| Block RAM Tile |  71.5 |     0 |          0 |       140 | 51.07 |
|   RAMB36/FIFO* |    70 |     0 |          0 |       140 | 50.00 |
| DSPs           |   152 |     0 |          0 |       220 | 69.09 |
"""

# Every tool command that the scripts may use, with the options each takes (UG1399, UG835).
TOOL_COMMANDS: dict[str, set[str]] = {
    "open_project": {"-reset"},
    "set_top": set(),
    "add_files": {"-cflags", "-norecurse"},
    "open_solution": {"-reset", "-flow_target"},
    "set_part": set(),
    "create_clock": {"-period", "-name"},
    "config_interface": {"-m_axi_addr64=true", "-m_axi_max_widen_bitwidth"},
    "config_compile": {"-pipeline_style"},
    "config_rtl": {"-reset"},
    "config_dataflow": {"-strict_mode"},
    "config_export": {
        "-format",
        "-rtl",
        "-vendor",
        "-library",
        "-ipname",
        "-version",
        "-display_name",
    },
    "csynth_design": set(),
    "export_design": {"-format"},
    "get_ipdefs": {"-quiet"},
    "get_board_parts": {"-quiet"},
    "create_project": {"-force", "-part"},
    "current_project": set(),
    "current_fileset": set(),
    "set_property": {"-dict"},
    "get_property": set(),
    "update_ip_catalog": set(),
    "create_bd_design": set(),
    "create_bd_cell": {"-type", "-vlnv"},
    "apply_bd_automation": {"-rule", "-config"},
    "get_bd_cells": set(),
    "get_bd_pins": set(),
    "get_bd_intf_pins": set(),
    "get_bd_addr_spaces": set(),
    "get_bd_addr_segs": set(),
    "connect_bd_net": set(),
    "connect_bd_intf_net": set(),
    "assign_bd_address": {"-offset", "-range", "-force", "-target_address_space"},
    "validate_bd_design": set(),
    "save_bd_design": set(),
    "get_files": set(),
    "make_wrapper": {"-files", "-top"},
    "update_compile_order": {"-fileset"},
    "launch_runs": {"-jobs"},
    "wait_on_run": set(),
    "get_runs": set(),
    "open_run": set(),
    "report_utilization": {"-file"},
    "report_timing_summary": {"-file"},
    "get_timing_paths": {"-delay_type"},
    "write_bitstream": {"-force"},
    "version": {"-short"},
    "exit": set(),
}


def tcl_command() -> list[str] | None:
    """What runs a Tcl script here: tclsh, or the Tcl inside tkinter."""
    tclsh = shutil.which("tclsh")
    if tclsh:
        return [tclsh]
    if importlib.util.find_spec("_tkinter"):
        return [sys.executable, "-c", TKINTER]
    return None


needs_tcl = pytest.mark.skipif(
    tcl_command() is None, reason="neither tclsh nor tkinter here (apt-get install tcl)"
)


class Recording:
    """What a script did: its exit status, messages and tool commands in order."""

    def __init__(self, log: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.messages = done.returncode, done.stderr
        self.calls = read_log(log)
        self.names = [call[0] for call in self.calls]

    def all(self, *start: str) -> list[list[str]]:
        return [call for call in self.calls if tuple(call[: len(start)]) == start]

    def one(self, *start: str) -> list[str]:
        found = self.all(*start)
        assert len(found) == 1, f"{start}: {found}"
        return found[0]

    def option(self, command: str, option: str) -> str:
        call = self.one(command)
        return call[call.index(option) + 1]

    def settings(self, cell: str) -> dict[str, str]:
        """The properties set on a cell, as Tcl lists of names and values without blanks."""
        words = [c[2].split() for c in self.calls if c[:2] == ["set_property", "-dict"]
                 and c[3] == cell]  # fmt: skip
        flat = [word for group in words for word in group]
        return dict(zip(flat[::2], flat[1::2], strict=True))


def read_log(log: Path) -> list[list[str]]:
    return [line.split("\x1f") for line in log.read_text().split("\x1e") if line]


def play(folder: Path, script: Path, environment: dict[str, str]) -> Recording:
    """Runs `script` in `folder` under the recorder."""
    (folder / "recorder.tcl").write_text(RECORDER)
    (folder / "report.txt").write_text(UTILISATION_REPORT)
    log = folder / "log"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BBS_")}
    kept |= {
        "BBS_TEST_LOG": str(log),
        "BBS_TEST_REPORT": str(folder / "report.txt"),
        "BBS_TEST_SCRIPT": str(script),
    }
    command = [*(tcl_command() or []), str(folder / "recorder.tcl")]
    done = subprocess.run(
        command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False
    )
    return Recording(log, done)


def only_known_commands(recording: Recording) -> None:
    for name, *words in recording.calls:
        assert name in TOOL_COMMANDS, f"{name} is no command of the tools"
        options = {w for w in words if re.match("-[a-z]", w) and not w.startswith("-std=")}
        assert options <= TOOL_COMMANDS[name], f"{name} takes no {options - TOOL_COMMANDS[name]}"


def in_order(names: list[str], wanted: str) -> None:
    """`wanted` is a subsequence of `names`."""
    rest = iter(names)
    missing = [name for name in wanted.split() if name not in rest]
    assert not missing, f"{missing} out of order in {names}"


def install_fakes(folder: Path, names: list[str], failing: str = "") -> Path:
    """Programs that stand for the Xilinx tools: each plays its script under the recorder."""
    folder.mkdir()
    (folder / "recorder.tcl").write_text(RECORDER)
    (folder / "report.txt").write_text(UTILISATION_REPORT)
    for name in names:
        lines = [
            "#!/bin/sh",
            f'case "$*" in *ersion*) echo "{name} v2023.1 (64-bit)"; exit 0;; esac',
            f"export BBS_TEST_LOG='{folder}/{name}.log' BBS_TEST_REPORT='{folder}/report.txt'",
            'for BBS_TEST_SCRIPT in "$@"; do :; done; export BBS_TEST_SCRIPT',
            "exit 3" if name == failing else "",
            " ".join(f"'{word}'" for word in tcl_command() or []) + f" '{folder}/recorder.tcl'",
        ]
        (folder / name).write_text("\n".join(lines) + "\n")
        (folder / name).chmod(stat.S_IRWXU)
    return folder
