# SPDX-License-Identifier: Apache-2.0
"""The overlay files of the emulated board: what Vivado would leave beside a bitstream of a build.

PYNQ reads the `.hwh` as on a board; the `.bit` is valid but empty, its data are never loaded.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..boards import Board
from ..builds import Build
from ..codegen import load_interface
from ..errors import BuildError
from ..interface import BUILD_REGISTERS
from .driver import SPAN, VLNV

IP_NAME = "bbs_engine_0"
_CONTROL_BUS = "s_axi_control"
_AXI = "xilinx.com:interface:aximm:1.0"
_ACCESS = {"r": "read-only", "rw": "read-write"}
_PLL_MHZ = 1000

#: register, offset, [(field, bit, width, access)]
_CONTROL_REGISTERS: list[tuple[str, int, list[tuple[str, int, int, str]]]] = [
    (
        "CTRL",
        0x00,
        [
            ("AP_START", 0, 1, "rw"),
            ("AP_DONE", 1, 1, "r"),
            ("AP_IDLE", 2, 1, "r"),
            ("AP_READY", 3, 1, "r"),
            ("AUTO_RESTART", 7, 1, "rw"),
        ],
    ),
    ("GIER", 0x04, [("Enable", 0, 1, "rw")]),
    ("IP_IER", 0x08, [("CHAN0_INT_EN", 0, 1, "rw"), ("CHAN1_INT_EN", 1, 1, "rw")]),
    ("IP_ISR", 0x0C, [("CHAN0_INT_ST", 0, 1, "rw"), ("CHAN1_INT_ST", 1, 1, "rw")]),
]


#: processing system -> version of its IP, bus that reaches the engine's registers
_SYSTEMS = {
    "processing_system7": ("5.5", "M_AXI_GP0"),
    "zynq_ultra_ps_e": ("3.3", "M_AXI_HPM0_FPD"),
}


def write_overlay(build: Build, board: Board, folder: Path) -> Path:
    """Write `bbs-<build>.bit` and `.hwh` into `folder`; the path of the `.bit`."""
    bit = folder / f"bbs-{build.name}.bit"
    bit.with_suffix(".hwh").write_text(hardware_handoff(build, board), encoding="utf-8")
    bit.write_bytes(bitstream(f"bbs_{build.name}", board.part))
    return bit


def bitstream(design: str, part: str) -> bytes:
    """The least that is a `.bit` file: a header and one word of data."""
    header = b"".join(
        key + struct.pack(">H", len(text) + 1) + text.encode("ascii") + b"\0"
        for key, text in (
            (b"a", design),
            (b"b", part),
            (b"c", "2025/01/01"),
            (b"d", "00:00:00"),
        )
    )
    sync = bytes.fromhex("00090ff00ff00ff00ff0000001")
    return sync + header + b"e" + struct.pack(">I", 4) + b"\xff\xff\xff\xff"


def build_parameters(build: Build) -> dict[str, str]:
    """The parameters of the IP in the `.hwh`, from which `parse_build` makes the build again."""
    values = {**build.parameters, **build.memories}
    return {"BUILD": build.name, **{key.upper(): str(value) for key, value in values.items()}}


def parse_build(parameters: dict[str, Any]) -> Build:
    """The build that `build_parameters` described; BuildError if one is missing."""
    try:
        values: dict[str, Any] = {n: int(parameters[n.upper()]) for n in BUILD_REGISTERS}
        for field in fields(Build):
            if field.name.endswith("_memory"):
                values[field.name] = str(parameters[field.name.upper()])
        return Build(name=str(parameters["BUILD"]), summary="from the .hwh", **values)
    except (KeyError, ValueError) as error:
        raise BuildError(
            f"the .hwh does not tell which build its engine is ({error!r}); the emulated board "
            "needs one that was written for it."
        ) from None


def hardware_handoff(build: Build, board: Board) -> str:
    """The `.hwh` of an overlay with one engine of `build` on `board`, as XML."""
    root = ET.Element("EDKSYSTEM", EDWVERSION="1.2", TIMESTAMP="", VIVADOVERSION="")
    ET.SubElement(root, "SYSTEMINFO", NAME=f"bbs_{build.name}")
    ET.SubElement(root, "EXTERNALPORTS")
    modules = ET.SubElement(root, "MODULES")
    _engine_module(modules, build)
    _processor_module(modules, board)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _engine_module(modules: ET.Element, build: Build) -> None:
    module = _module(modules, IP_NAME, VLNV, is_pl=True)
    blocks = ET.SubElement(module, "ADDRESSBLOCKS")
    block = ET.SubElement(blocks, "ADDRESSBLOCK", INTERFACE=_CONTROL_BUS, USAGE="register")
    registers = ET.SubElement(block, "REGISTERS")
    for name, offset, bit_fields in _CONTROL_REGISTERS:
        element = _register(registers, name, offset, "rw", "")
        field_list = ET.SubElement(element, "FIELDS")
        for field, bit, width, access in bit_fields:
            entry = ET.SubElement(field_list, "FIELD", NAME=field)
            _property(entry, "BIT_OFFSET", bit)
            _property(entry, "BIT_WIDTH", width)
            _property(entry, "ACCESS", _ACCESS[access])
    for item in load_interface()["registers"]:
        words = item["bits"] // 32
        for word in range(words):
            # Vitis HLS calls the halves of a 64-bit argument name_1 and name_2.
            name = item["name"] if words == 1 else f"{item['name']}_{word + 1}"
            _register(registers, name, item["offset"] + 4 * word, item["access"], item["text"])
    parameters = ET.SubElement(module, "PARAMETERS")
    for key, value in build_parameters(build).items():
        ET.SubElement(parameters, "PARAMETER", NAME=key, VALUE=value)
    buses = ET.SubElement(module, "BUSINTERFACES")
    ET.SubElement(buses, "BUSINTERFACE", NAME=_CONTROL_BUS, TYPE="SLAVE", VLNV=_AXI)


def _processor_module(modules: ET.Element, board: Board) -> None:
    kind = board.processing_system
    version, bus = _SYSTEMS[kind]
    module = _module(modules, f"{kind}_0", f"xilinx.com:ip:{kind}:{version}", is_pl=False)
    parameters = ET.SubElement(module, "PARAMETERS")
    for key, value in _clocks(board).items():
        ET.SubElement(parameters, "PARAMETER", NAME=key, VALUE=value)
    buses = ET.SubElement(module, "BUSINTERFACES")
    ET.SubElement(buses, "BUSINTERFACE", NAME=bus, TYPE="MASTER", VLNV=_AXI)
    memory = ET.SubElement(module, "MEMORYMAP")
    ET.SubElement(
        memory,
        "MEMRANGE",
        INSTANCE=IP_NAME,
        BASEVALUE=f"0x{board.control_base:08X}",
        HIGHVALUE=f"0x{board.control_base + SPAN - 1:08X}",
        MEMTYPE="REGISTER",
        MASTERBUSINTERFACE=bus,
        SLAVEBUSINTERFACE=_CONTROL_BUS,
    )


def _clocks(board: Board) -> dict[str, str]:
    """The parameters of four PL clocks; only the first, the engine's, is enabled."""
    divisor = str(round(_PLL_MHZ / board.clock_mhz))
    values = {}
    for n in range(4):
        if board.processing_system == "processing_system7":
            values[f"PCW_FPGA_FCLK{n}_ENABLE"] = str(int(n == 0))
            values[f"PCW_FCLK{n}_PERIPHERAL_DIVISOR0"] = divisor
            values[f"PCW_FCLK{n}_PERIPHERAL_DIVISOR1"] = "1"
            values[f"PCW_FCLK{n}_PERIPHERAL_CLKSRC"] = "IO PLL"
        else:
            name = f"PSU__CRL_APB__PL{n}_REF_CTRL"
            values[f"PSU__FPGA_PL{n}_ENABLE"] = str(int(n == 0))
            values[f"{name}__DIVISOR0"] = divisor
            values[f"{name}__DIVISOR1"] = "1"
            values[f"{name}__SRCSEL"] = "IOPLL"
            values[f"{name}__ACT_FREQMHZ"] = f"{board.clock_mhz:.6f}"
    return values


def _module(modules: ET.Element, name: str, vlnv: str, *, is_pl: bool) -> ET.Element:
    return ET.SubElement(
        modules,
        "MODULE",
        INSTANCE=name,
        FULLNAME=f"/{name}",
        MODTYPE=vlnv.split(":")[2],
        IS_PL=str(is_pl).upper(),
        VLNV=vlnv,
    )


def _register(parent: ET.Element, name: str, offset: int, access: str, text: str) -> ET.Element:
    element = ET.SubElement(parent, "REGISTER", NAME=name)
    _property(element, "DESCRIPTION", text)
    _property(element, "ADDRESS_OFFSET", offset)
    _property(element, "SIZE", 32)
    _property(element, "ACCESS", _ACCESS[access])
    _property(element, "IS_ENABLED", "true")
    return element


def _property(parent: ET.Element, name: str, value: object) -> None:
    ET.SubElement(parent, "PROPERTY", NAME=name, VALUE=str(value))
