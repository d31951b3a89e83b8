# SPDX-License-Identifier: Apache-2.0
"""The Tcl scripts of the Xilinx flow, run with every tool command recorded instead of executed.

Shows syntax, order and parameters. What Vitis HLS and Vivado make of them, it cannot show.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pynq_bbs.boards import Board, load_board, load_boards
from pynq_bbs.device.driver import VLNV
from pynq_bbs.interface import PORTS, VERSION
from xilinx_tools import (
    Recording,
    in_order,
    install_fakes,
    needs_tcl,
    only_known_commands,
    play,
    read_log,
)

ROOT = Path(__file__).resolve().parents[1]
HLS_SCRIPT = ROOT / "hls" / "vitis" / "run_hls.tcl"
BLOCK_DESIGN = ROOT / "overlay" / "block_design.tcl"

BOARDS = [board.name for board in load_boards()]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """overlay/build.py as a module; it refuses a path with spaces, so it gets one without."""
    spec = importlib.util.spec_from_file_location("overlay_build", ROOT / "overlay" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    plain = tmp_path_factory.mktemp("plain") / "repository"
    plain.symlink_to(ROOT)
    module.__dict__["ROOT"] = plain
    yield module
    del sys.modules[spec.name]


def make_job(build: ModuleType, board: str, work: Path) -> Any:
    line = ["--board", board, "--work", str(work)]
    return build.make_job(build.make_parser().parse_args(line))


def play_hls(build: ModuleType, board: str, work: Path) -> Recording:
    steps, _ = build.hls_steps(make_job(build, board, work), "tcl", "vitis_hls")
    return play(work, HLS_SCRIPT, steps[0].environment)


def play_design(build: ModuleType, board: str, work: Path, **more: str) -> Recording:
    step = build.overlay_step(make_job(build, board, work), work / "ip")
    return play(work, BLOCK_DESIGN, step.environment | more)


@needs_tcl
@pytest.mark.parametrize("name", BOARDS)
def test_hls_script(name: str, build: ModuleType, tmp_path: Path) -> None:
    board = load_board(name)
    recording = play_hls(build, name, tmp_path)
    assert recording.status == 0, recording.messages
    only_known_commands(recording)
    in_order(
        recording.names,
        "open_project set_top add_files open_solution set_part create_clock config_interface "
        "config_rtl config_compile config_dataflow csynth_design config_export export_design exit",
    )
    assert recording.one("set_top")[1] == "bbs_engine"
    assert recording.one("set_part")[1] == board.part
    assert recording.option("open_solution", "-flow_target") == "vivado"
    assert float(recording.option("create_clock", "-period")) == pytest.approx(
        1000 / board.clock_mhz, abs=1e-3
    )
    assert recording.option("config_rtl", "-reset") == "state"
    assert recording.option("config_compile", "-pipeline_style") == "flp"
    assert recording.option("config_dataflow", "-strict_mode") == "error"
    assert "-m_axi_addr64=true" in recording.one("config_interface")
    source = recording.one("add_files")[1]
    assert Path(source).is_file() and Path(source).parent == build.ROOT / "hls"
    flags = recording.option("add_files", "-cflags").split()
    assert flags == ["-std=c++14", f"-I{build.ROOT / 'hls'}", f"-I{tmp_path / 'generated'}"]


@needs_tcl
def test_ip_is_the_one_that_the_driver_binds_to(build: ModuleType, tmp_path: Path) -> None:
    recording = play_hls(build, "Pynq-Z2", tmp_path)
    parts = ["-vendor", "-library", "-ipname", "-version"]
    assert ":".join(recording.option("config_export", part) for part in parts) == VLNV


def test_config_says_the_same_as_the_script(build: ModuleType, tmp_path: Path) -> None:
    job = make_job(build, "Pynq-Z2", tmp_path)
    build.write_config(job)
    lines = (job.generated / "hls_config.cfg").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    assert not any("@" in value for value in values.values())
    assert values["part"] == "xc7z020clg400-1"
    assert values["clock"] == "7.000ns"
    assert values["syn.top"] == "bbs_engine"
    assert Path(values["syn.file"]).is_file()
    script = HLS_SCRIPT.read_text()
    for key, words in {
        "flow_target": "-flow_target {}",
        "syn.rtl.reset": "-reset {}",
        "syn.compile.pipeline_style": "-pipeline_style {}",
        "syn.dataflow.strict_mode": "-strict_mode {}",
        "syn.interface.m_axi_max_widen_bitwidth": "-m_axi_max_widen_bitwidth {}",
        "package.output.format": "export_design -format {}",
    }.items():
        assert words.format(values[key]) in script, key
    assert values["syn.interface.m_axi_addr64"] == "1"
    vlnv = [values[f"package.ip.{part}"] for part in ("vendor", "library", "name", "version")]
    assert ":".join(vlnv) == VLNV


@needs_tcl
@pytest.mark.parametrize("name", BOARDS)
def test_block_design(name: str, build: ModuleType, tmp_path: Path) -> None:
    board = load_board(name)
    recording = play_design(build, name, tmp_path)
    assert recording.status == 0, recording.messages
    only_known_commands(recording)
    in_order(
        recording.names,
        "get_board_parts create_project update_ip_catalog create_bd_design create_bd_cell "
        "apply_bd_automation assign_bd_address validate_bd_design save_bd_design make_wrapper "
        "launch_runs wait_on_run open_run report_timing_summary get_timing_paths write_bitstream "
        "exit",
    )
    assert recording.option("create_project", "-part") == board.part
    assert recording.one("set_property", "board_part")[2] == board.board_part
    cells = {call[-1]: call[4] for call in recording.all("create_bd_cell")}
    ps = f"{board.processing_system}_0"
    assert cells[ps] == f"xilinx.com:ip:{board.processing_system}:1.2"
    assert not any("/" in cell for cell in cells), "PYNQ wants the PS at the top level"
    assert 'apply_board_preset "1"' in recording.option("apply_bd_automation", "-config")
    design = f"bbs_{board.build.replace('-', '_')}_v{VERSION}"
    assert (tmp_path / f"{design}.bit").is_file() and (tmp_path / f"{design}.hwh").is_file()
    _check_settings(recording.settings(ps), board)
    _check_wiring(recording, ps, board)


def _check_settings(settings: dict[str, str], board: Board) -> None:
    if board.family == "zynq-7000":
        clock, port, width = "PCW_FPGA0_PERIPHERAL_FREQMHZ", "PCW_USE_S_AXI_HP{}", "PCW_S_AXI_HP{}"
        first, suffix = 0, "_DATA_WIDTH"
    else:
        clock, port = "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ", "PSU__USE__S_AXI_GP{}"
        width, suffix, first = "PSU__SAXIGP{}", "__DATA_WIDTH", 2
    assert float(settings[f"CONFIG.{clock}"]) == board.clock_mhz
    for n in range(first, first + board.memory_ports):
        assert settings["CONFIG." + port.format(n)] == "1"
        assert settings["CONFIG." + width.format(n) + suffix] == str(board.port_bits)


def _check_wiring(recording: Recording, ps: str, board: Board) -> None:
    """Every port of the engine reaches memory through one HP port, every clock pin is driven."""
    buses = [(call[1], call[2]) for call in recording.all("connect_bd_intf_net")]
    reached = {}
    for port in PORTS:
        (bus,) = [to for start, to in buses if start == f"bbs_engine_0/m_axi_{port}"]
        (end,) = [to for start, to in buses if start == f"{bus.split('/')[0]}/M00_AXI"]
        reached[port] = end
    suffix = "" if board.family == "zynq-7000" else "_FPD"
    assert set(reached.values()) == {f"{ps}/S_AXI_HP{n}{suffix}" for n in range(4)}
    alone = [port for port, end in reached.items() if list(reached.values()).count(end) == 1]
    assert "weights" in alone
    ends = [end for pair in buses for end in pair]
    assert len(ends) == len(set(ends)), "a bus pin is connected twice"
    # Results only write, so that the reads of residuals are all there is in the other direction.
    assert reached["residuals"] == reached["results"]
    cells = {"control_bus": 1, "memory_bus_0": 2, "memory_bus_1": 1}
    cells |= {"memory_bus_2": 1, "memory_bus_3": 2}
    for cell, inputs in cells.items():
        assert recording.settings(cell)["CONFIG.NUM_SI"] == str(inputs)
        assert sum(to.startswith(f"{cell}/S0") for _, to in buses) == inputs
    nets = [call[1:] for call in recording.all("connect_bd_net")]
    wanted = {"bbs_engine_0/ap_clk", "reset_0/slowest_sync_clk"}
    wanted |= {pin for cell, inputs in cells.items() for pin in _clocks(board, cell, inputs)}
    clocked = {to for start, to in nets if start in (f"{ps}/FCLK_CLK0", f"{ps}/pl_clk0")}
    # and the five bus clocks of the PS
    assert wanted <= clocked and len(clocked) == len(wanted) + 5
    reset = {to for start, to in nets if start.startswith("reset_0/")}
    assert {_reset_of(pin) for pin in wanted if "bus" in pin} <= reset
    address = recording.all("assign_bd_address")[0]
    assert int(address[address.index("-offset") + 1], 16) == board.control_base
    assert address[-1] == "bbs_engine_0/s_axi_control/Reg"


def _clocks(board: Board, cell: str, inputs: int) -> list[str]:
    """The clock pins of a bus: SmartConnect has one, the AXI interconnect one for each side."""
    if board.family != "zynq-7000":
        return [f"{cell}/aclk"]
    sides = ["", "M00_", *(f"S0{i}_" for i in range(inputs))]
    return [f"{cell}/{side}ACLK" for side in sides]


def _reset_of(clock: str) -> str:
    return clock.replace("ACLK", "ARESETN").replace("aclk", "aresetn")


@needs_tcl
def test_negative_slack_leaves_no_bitstream(build: ModuleType, tmp_path: Path) -> None:
    recording = play_design(build, "Pynq-Z2", tmp_path, BBS_TEST_SLACK="-0.001")
    assert recording.status == 1
    assert "setup slack is '-0.001' ns: no bitstream" in recording.messages
    assert "write_bitstream" not in recording.names
    assert not list(tmp_path.glob("*.bit"))


@needs_tcl
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"BBS_TEST_NO_BOARD": "1"}, "no board files for tul.com.tw:pynq-z2"),
        ({"BBS_TEST_PROGRESS": "45%"}, "synthesis or implementation failed"),
        ({"BBS_TEST_SLACK": ""}, "setup slack is ''"),
        ({"BBS_PROCESSING_SYSTEM": "microblaze"}, "'microblaze', wanted processing_system7"),
        ({"BBS_NAME": ""}, "the environment variable BBS_NAME is not set"),
    ],
)
def test_block_design_says_what_is_wrong(
    change: dict[str, str], message: str, build: ModuleType, tmp_path: Path
) -> None:
    recording = play_design(build, "Pynq-Z2", tmp_path, **change)
    assert recording.status == 1
    assert message in recording.messages
    assert not list(tmp_path.glob("*.bit"))


@needs_tcl
def test_hls_script_says_what_is_missing(tmp_path: Path) -> None:
    recording = play(tmp_path, HLS_SCRIPT, {})
    assert recording.status == 2
    assert "the environment variable BBS_HLS is not set" in recording.messages
    assert "open_project" not in recording.names


def validate(value: Any, schema: dict[str, Any], where: str = "manifest") -> None:
    """The part of JSON Schema that manifest.schema.json uses."""
    kinds: dict[str, Any] = {"object": dict, "string": str, "integer": int, "number": (int, float)}
    known = {"$schema", "title", "description", "type", "properties", "required", "const"}
    assert set(schema) <= known | {"additionalProperties", "pattern", "minimum"}, where
    assert isinstance(value, kinds[schema["type"]]), where
    assert "const" not in schema or value == schema["const"], where
    assert "pattern" not in schema or re.search(schema["pattern"], value), where
    assert "minimum" not in schema or value >= schema["minimum"], where
    if schema["type"] == "object":
        assert set(schema.get("required", [])) <= set(value), where
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema["additionalProperties"])
            assert inner is not False, f"{where}: {key} is not in the schema"
            validate(item, inner, f"{where}.{key}")


SCHEMA = json.loads((ROOT / "bitstreams" / "manifest.schema.json").read_text())


@needs_tcl
@pytest.mark.parametrize("runner", ["vitis-run", "vitis_hls"])
def test_build_from_sources_to_manifest(
    runner: str, build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = install_fakes(tmp_path / "tools", [runner, "vivado"])
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    work, out = tmp_path / "work", tmp_path / "out"
    line = ["--board", "pynq-z2", "--work", str(work), "--out", str(out), "--jobs", "1"]
    assert build.main(line) == 0
    assert "constexpr int kLanes = 8;" in (work / "generated" / "build.hpp").read_text()
    assert read_log(tools / f"{runner}.log")[-1] == ["exit", "0"]
    folder = out / "Pynq-Z2" / "8x32"
    manifest = json.loads((folder / "manifest.json").read_text())
    validate(manifest, SCHEMA)
    assert manifest["vlnv"] == VLNV
    assert manifest["parameters"]["lanes"] == 8
    assert manifest["clock_mhz"] == 142.857
    assert manifest["slack_ns"] == {"setup": 0.125, "hold": 0.125}
    assert manifest["tools"] == {"hls": "2023.1", "vivado": "2023.2"}
    used = {"luts": 24310, "registers": 31002, "dsps": 152, "bram36": 71.5, "uram": 0}
    assert manifest["utilisation"] == used
    assert set(manifest["files"]) == {f"bbs_8x32_v{VERSION}.{kind}" for kind in ("bit", "hwh")}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_kept_manifests_follow_the_schema() -> None:
    """Every bitstream in the tree has a manifest, and it tells the truth about the files."""
    folders = {file.parent for file in (ROOT / "bitstreams").rglob("*.bit")}
    folders |= {file.parent for file in (ROOT / "bitstreams").rglob("manifest.json")}
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        validate(manifest, SCHEMA, str(folder))
        for name, entry in manifest["files"].items():
            assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("key", ["sha256", "board", "parameters"])
def test_schema_refuses_a_manifest_without(key: str) -> None:
    manifest: dict[str, Any] = {
        "format": 1,
        "board": "Pynq-Z2",
        "build": "8x32",
        "interface_version": 1,
        "vlnv": VLNV,
        "parameters": {"lanes": 8},
        "clock_mhz": 142.857,
        "slack_ns": {"setup": 0.1, "hold": 0.1},
        "utilisation": {"luts": 1, "registers": 1, "dsps": 1, "bram36": 1, "uram": 0},
        "tools": {"hls": "2023.1", "vivado": "2023.1"},
        "files": {"a.bit": {"sha256": "0" * 64, "bytes": 1}},
    }
    validate(manifest, SCHEMA)
    del (manifest["files"]["a.bit"] if key == "sha256" else manifest)[key]
    with pytest.raises(AssertionError):
        validate(manifest, SCHEMA)


def test_failing_step_stops_the_build(
    build: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tools = install_fakes(tmp_path / "tools", ["vitis-run", "vivado"], failing="vitis-run")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    line = ["--board", "KV260", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert build.main(line) == 8
    assert "C++ to IP: vitis-run ended with status 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tools / "vivado.log").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--board", "zedboard"], 7, "unknown board 'zedboard'; known boards: Pynq-Z1"),
        (["--board", "KV260", "--build", "9x9"], 7, "unknown build '9x9'; known builds: "),
        (["--board", "KV260", "--clock", "5"], 3, "--clock is 5 MHz, must be 10 to 500"),
        (["--board", "KV260", "--work", "a b"], 3, "has a space in it"),
        (["--board", "KV260"], 8, "not on the PATH: vitis_hls, vivado"),
        (["--board", "KV260", "--flow", "config"], 8, "not on the PATH: v++, vitis-run, vivado"),
    ],
)
def test_build_says_what_is_wrong(
    arguments: list[str],
    status: int,
    message: str,
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert build.main(arguments) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flow", ["tcl", "config"])
def test_dry_run_prints_the_commands_and_does_nothing(
    flow: str, build: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    line = ["--board", "ZCU104", "--flow", flow, "--work", str(work), "--dry-run"]
    assert build.main(line) == 0
    text = capsys.readouterr().out
    in_order(re.findall(r"codegen|vitis-run|vivado(?= -mode)", text), "codegen vitis-run vivado")
    assert "BBS_PART=xczu7ev-ffvc1156-2-e" in text and "vivado -mode batch" in text
    assert not work.exists()


def test_script_and_document_name_the_same_parameters(build: ModuleType, tmp_path: Path) -> None:
    """What build.py hands over is what the scripts ask for, no more and no less."""
    job = make_job(build, "Pynq-Z2", tmp_path)
    steps, ip = build.hls_steps(job, "tcl", "vitis_hls")
    for script, step in ((HLS_SCRIPT, steps[0]), (BLOCK_DESIGN, build.overlay_step(job, ip))):
        asked = set(re.findall(r"parameter (BBS_\w+)", script.read_text()))
        assert asked == set(step.environment)


def test_build_that_cannot_fit_is_refused(
    build: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any tool is started, and with what is short."""
    wide = json.loads((ROOT / "overlay" / "builds" / "8x32.json").read_text())
    wide.update(name="32x32", lanes=32)
    path = tmp_path / "32x32.json"
    path.write_text(json.dumps(wide))
    assert build.main(["--board", "Pynq-Z2", "--build", str(path), "--dry-run"]) == 7
    assert "DSP" in capsys.readouterr().err
