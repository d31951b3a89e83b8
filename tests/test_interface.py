# SPDX-License-Identifier: Apache-2.0
"""One table, three languages: commands and registers mean the same everywhere."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynq_bbs.codegen import kept_files, load_interface
from pynq_bbs.interface import COMMAND_WORDS, REGISTERS, Command
from pynq_bbs.paths import hls_dir
from pynq_bbs.toolchain import find_compiler

FIELDS = load_interface()["command"]

#: Every field has a value of its own; bytes as they lie in memory.
GOLDEN = Command(
    op=1, layer=0x1234, flags=0x55AA7E02, input=0x11111111, output=0x22222222, weights=0x33333333,
    indices=0x44444444, parameters=0x55555555, table=0x66666666, residual=0x88889999,
    features=0x777777, rows=0x888888, tiles=0x999999, tiles_per_block=0xAA, bank_size=64, keep=8,
    index_bits=6, zero_point=-3, groups=0xBBBB, groups_per_pass=0xCCCC, rows_per_block=0xDDDD,
    pace=0xEEEE, input_stride=0x121212, last_columns=0x20, output_stride=0x343434, pad_value=-5,
    height=0x5656, width=0x7878, out_height=0x9A9A, out_width=0xBCBC, kernel_height=3,
    kernel_width=5, stride_y=2, stride_x=4, dilation_y=7, dilation_x=9, pad_top=11, pad_left=13,
    channels=0xDEDE, load_pace=0xF1F1, image_base=0x0A0A, image_words=0x0B0B, a_zero=-7, b_zero=17,
    out_zero=-19, shift=37, a_scale=-0x123456, low=-101, b_scale=0x654321, high=99,
    block_base=0x0C0C, cell_base=0x0D0D, state=0x77778888, state_words=0x565656,
    tile_groups=0x787878, blocks=0x9A9A9A, passes=0xBCBC, channel_blocks=0xDEDE,
    parts=0x0E0E, part_channels=0x0F0F, part_rows=0x424242,
)  # fmt: skip
GOLDEN_BYTES = (
    "01341200027eaa5511111111222222223333333344444444555555556666666699998888"
    "7777770088888800999999aa401018fdbbbbccccddddeeee12121220343434fb56567878"
    "9a9abcbc534297dbdedef1f10a0a0b0bf911ed25aacbed9b214365630c0c0d0d88887777"
    "56565600787878009a9a9a00bcbcdede0e0e0f0f4242420042425332"
)


def command_bytes(command: Command) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in command.encode())


def test_golden_bytes() -> None:
    assert command_bytes(GOLDEN).hex() == GOLDEN_BYTES


def test_golden_bytes_in_cpp(tmp_path: Path) -> None:
    """The engine's decoder reads every field of the same bytes."""
    checks = "\n".join(
        f"if ((int64_t)c.{f['name']} != {getattr(GOLDEN, f['name'])}LL) return {i + 1};"
        for i, f in enumerate(FIELDS)
    )
    words = ", ".join(f"{word:#x}ull" for word in GOLDEN.encode())
    source = tmp_path / "decode.cpp"
    source.write_text(
        f'#include "command.hpp"\nint main() {{\n  const uint64_t words[] = {{{words}}};\n'
        f"  const bbs::Command c = bbs::decode_command(words);\n{checks}\nreturn 0; }}\n"
    )
    program = tmp_path / "decode"
    flags = ["-std=c++14", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    subprocess.run(
        [*find_compiler(), *flags, f"-I{hls_dir()}", str(source), "-o", str(program)], check=True
    )
    assert subprocess.run([str(program)], check=False).returncode == 0


@given(st.data())
def test_encode_decode(data: st.DataObject) -> None:
    command = Command()
    for field in FIELDS:
        bits = field["bits"]
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if field.get("signed") else (
            0,
            (1 << bits) - 1,
        )  # fmt: skip
        setattr(command, field["name"], data.draw(st.integers(low, high)))
    assert Command.decode(command.encode()) == command


def test_field_out_of_range() -> None:
    with pytest.raises(ValueError, match="command field keep is 512, must be 0 to 511"):
        Command(keep=512).encode()


def test_fields_do_not_overlap() -> None:
    taken: set[int] = set()
    for field in FIELDS:
        bits = {32 * field["word"] + field["lsb"] + i for i in range(field["bits"])}
        assert not taken & bits, field["name"]
        assert field["lsb"] + field["bits"] <= 32, "a field stays inside its 32-bit word"
        taken |= bits
    assert max(taken) < 64 * COMMAND_WORDS


def test_registers_leave_room_for_each_other() -> None:
    """A 64-bit pointer takes 12 bytes, an output 8 with its valid bit (hls-flow: UG1399)."""
    spans = sorted(
        (r["offset"], r["offset"] + (12 if r["bits"] == 64 else 8))
        for r in load_interface()["registers"]
    )
    assert spans[0][0] == 0x10
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("path", kept_files(), ids=lambda p: p.name)
def test_kept_files_are_fresh(path: Path) -> None:
    assert path.read_text() == kept_files()[path], "run: python -m pynq_bbs.codegen"


def test_top_function_has_the_registers() -> None:
    """Every register is an argument of the top function, in the order of the table."""
    header = (hls_dir() / "engine.hpp").read_text()
    arguments = re.findall(r"(\w+)[,)]", header[header.index("bbs_engine(") :])
    assert arguments == list(REGISTERS)
