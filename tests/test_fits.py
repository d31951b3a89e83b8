# SPDX-License-Identifier: Apache-2.0
"""How much memory a program takes is said, and one that no board has is refused before it runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from layers import a_network, model_of, pool
from models import NETWORKS
from pynq_bbs import compile as compile_model
from pynq_bbs.boards import load_board
from pynq_bbs.builds import PORT_BYTES, load_build
from pynq_bbs.cli import main
from pynq_bbs.device.engine import EngineProgram
from pynq_bbs.device.session import open_device
from pynq_bbs.errors import DeviceMemoryError
from pynq_bbs.model.graph import QuantModel, Window
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.fits import MemoryUse, least_use
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.plan import make_plan
from pynq_bbs.report import PARTS

MEMORY = Memory(142.857e6, 1.5e9)


def huge(channels: int, pixels: int) -> QuantModel:
    """An input of so many channels and pixels each way, a 64th of that of output."""
    window = Window(channels, pixels, pixels, (8, 8), (8, 8))
    return model_of([pool(window, maximum=True)], (channels, pixels, pixels))


@pytest.mark.parametrize("samples", [1, 3])
def test_the_sum_is_what_a_plan_takes(samples: int) -> None:
    program = pack(a_network(), {"first": (4, 1)}, load_build("8x32"))
    plan = make_plan(program, samples, MEMORY)
    use = MemoryUse.of_plan(program, plan)
    assert use.total == PORT_BYTES * plan.memory_words
    least = least_use(program)
    assert (least.weights, least.activations) == (use.weights, use.activations)
    assert use.carried == samples * least.carried


def test_what_layers_leave_for_each_other_shares_memory() -> None:
    use = least_use(compile_model(NETWORKS["resnet8"]()))
    assert 0 < 1.7 * use.activations < use.unshared


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(DeviceMemoryError) as caught:
        compile_model(huge(32, 2048))
    text = str(caught.value)
    size = 32 * 2048 * 2048
    needed, available = map(int, re.findall(r"needs (\d+) bytes .* has (\d+):", text)[0])
    assert available == 128 << 20 <= size < needed < 1.1 * size
    assert "Pynq-Z2" in text and f"'x' (32 x 2048 x 2048: {size})" in text
    assert "board='KV260' (KR260 too)" in text
    program = compile_model(huge(32, 2048), board="kv260")
    assert program.build.name == load_board("KV260").build
    with pytest.raises(DeviceMemoryError, match="no board that is known has more"):
        compile_model(huge(64, 4096), board="KV260")


def test_a_program_that_just_fits_runs() -> None:
    """The memory that is said to be enough for the least is: commands and pages besides."""
    program = pack(a_network(), {"first": (4, 1)}, load_build("8x32"))
    plan = make_plan(program, 1, MEMORY)
    room = 4096 * -(-PORT_BYTES * (plan.memory_words + plan.command_words) // 4096)
    x = np.ones((2, program.tensors["x"].size), np.int8)
    with open_device("standin", program.build, memory_bytes=room) as session:
        engine = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0), every=False)
        assert list(engine.pieces(2)) == [(0, 1), (1, 2)]
        engine.put({"x": x[:1]})
        engine.execute()


def test_plan_and_info_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = compile_model(NETWORKS["resnet8"]())
    program.save(tmp_path / "p")
    plan = make_plan(program, 1, MEMORY)
    assert main(["plan", str(tmp_path / "p")]) == 0
    assert f"{PORT_BYTES * plan.memory_words} bytes of memory" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "p")]) == 0
    assert f"activations {least_use(program).activations} (" in capsys.readouterr().out
