# SPDX-License-Identifier: Apache-2.0
"""Whole networks, their weights random: emulated engine and cpu device give the same integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models import NETWORKS, lstm
from pynq_bbs.accelerator import Accelerator
from pynq_bbs.builds import Build, load_build
from pynq_bbs.codegen import build_header
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.device.emulator import Engine
from pynq_bbs.device.engine import EngineProgram
from pynq_bbs.device.session import open_device
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.program import Program
from pynq_bbs.paths import hls_dir
from pynq_bbs.report import PARTS
from pynq_bbs.toolchain import shared_library

MEMORY = Memory(142.857e6, 1.5e9)


def packed(name: str, sparsity: float, build: Build) -> Program:
    return compile_model(NETWORKS[name](), sparsity=sparsity, build=build)


def samples(program: Program, count: int) -> NDArray[np.int8]:
    rng = np.random.default_rng(1)
    return rng.integers(-128, 128, (count, program.tensors["x"].size)).astype(np.int8)


@pytest.mark.parametrize("every", [True, False], ids=["stored", "on chip"])
@pytest.mark.parametrize("sparsity", [0, 0.75])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, sparsity: float, every: bool) -> None:
    program = packed(name, sparsity, load_build("8x32"))
    x = samples(program, 2)
    expected = CpuDevice(program).run({"x": x})
    with open_device("standin", program.build, strict=True) as session:
        engine = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0), every=every)
        last = program.outputs[0].tensor
        names = [layer.output for layer in program.layers] if every else [last]
        for _ in range(2):  # the second time weights may be resident
            outputs = engine.run({"x": x}, names)[0]
            for tensor, values in outputs.items():
                np.testing.assert_array_equal(values, expected[tensor], err_msg=tensor)
        engine.close()
    assert len(np.unique(expected[last])) > 1


@pytest.mark.parametrize("columns", [1, 5])
def test_autoencoder_with_resident_weights(columns: int) -> None:
    """Batch 1 on the build that works on four rows at a time; weights are loaded once."""
    program = packed("autoencoder", 0, load_build("32x4x1"))
    x = samples(program, columns)
    last = program.outputs[0].tensor
    expected = CpuDevice(program).run({"x": x})[last]
    with open_device("standin", program.build, strict=True) as session:
        engine = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0), every=False)
        cycles = []
        for _ in range(3):
            outputs, layers = engine.run({"x": x}, [last])
            np.testing.assert_array_equal(outputs[last], expected)
            cycles.append(sum(layer.total for layer in layers))
        engine.close()
    assert cycles[0] > 3 * cycles[1] == 3 * cycles[2]  # memory is not waited for any more


class ThreadedEngine(Engine):
    """Every process a thread, every stream as deep as it is in hardware."""

    def __init__(self, build: Build) -> None:
        sources = hls_dir()
        library = shared_library(
            f"bbs_threaded_{build.name}",
            [sources / "engine.cpp", Path(__file__).with_name("watchdog.cpp")],
            headers={"build.hpp": build_header(build)},
            include_dirs=[sources],
            depends=sorted(sources.glob("*.hpp")),
            flags=["-std=c++14", "-DBBS_THREADED", "-pthread"],
        )
        super().__init__(str(library))
        self._ffi.cdef("const char* bbs_blocked();")

    def run(self, *arguments: int) -> dict[str, Any]:
        outputs = super().run(*arguments)
        blocked = self._ffi.string(self._library.bbs_blocked()).decode()
        assert not blocked, blocked
        return outputs


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn"])
def test_network_through_bounded_streams(name: str) -> None:
    program = packed(name, 0, load_build("8x32"))
    x = samples(program, 1)
    last = program.outputs[0].tensor
    expected = CpuDevice(program).run({"x": x})[last]
    engine = ThreadedEngine(program.build)
    with open_device("standin", program.build, strict=True, engine=engine) as session:
        runner = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0), every=False)
        runner._most = 1
        outputs = runner.run({"x": x}, [last])[0]
        runner.close()
    np.testing.assert_array_equal(outputs[last], expected)


def test_cells_through_bounded_streams() -> None:
    program = compile_model(lstm(64, 3), sparsity=0.75, build="32x4x1")
    x = np.random.default_rng(2).integers(-128, 128, (2, 3 * 64)).astype(np.int8)
    expected = CpuDevice(program).run({"x": x})["y"]
    engine = ThreadedEngine(program.build)
    with open_device("standin", program.build, strict=True, engine=engine) as session:
        runner = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0), every=False)
        outputs = runner.run({"x": x}, ["y"])[0]
        runner.close()
    np.testing.assert_array_equal(outputs["y"], expected)


def test_compiled_at_75_percent() -> None:
    """`compile` prunes convolutions along their channels; first and last layers stay dense."""
    program = packed("resnet8", 0.75, load_build("8x32"))
    kept = {layer.name: layer.keep / layer.bank_size for layer in program.layers}
    assert kept["conv0"] == kept["dense10"] == 1 and kept["conv1"] == kept["conv8"] == 0.25
    x = samples(program, 1)
    expected = CpuDevice(program).run({"x": x})
    with Accelerator(program, device="standin", verify=True) as accelerator:
        y = accelerator.run(x.reshape(1, 3, 32, 32))
    np.testing.assert_array_equal(y.reshape(1, -1), expected[program.outputs[0].tensor])
