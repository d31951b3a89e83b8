# SPDX-License-Identifier: Apache-2.0
"""Batches in the background, and several programs on one device: the integers of `run`, always."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_fixtures import arena, require_pynq
from layers import model_of, random_layer, random_window_layer
from pynq_bbs import Accelerator, Program, open_device
from pynq_bbs import compile as compile_model
from pynq_bbs.builds import load_build
from pynq_bbs.device import session as devices
from pynq_bbs.device.engine import EngineProgram
from pynq_bbs.device.hwh import write_overlay
from pynq_bbs.device.session import Session
from pynq_bbs.errors import BuildError, DeviceError, InputError, VerificationError
from pynq_bbs.model.graph import QuantModel, QuantOutput, Window

BUILD = load_build("8x32")


def shown(model: QuantModel, features: int) -> Program:
    return compile_model(replace(model, outputs=[QuantOutput("y", "y", (features,), "int8")]))


def flat(seed: int = 0) -> Program:
    rng = np.random.default_rng(seed)
    return shown(model_of([random_layer(rng, 24, 64, 1, 1)], (64,)), 24)


def convolution(seed: int = 1) -> Program:
    rng = np.random.default_rng(seed)
    window = Window(3, 9, 11, (3, 3), pads=(1, 1, 1, 1))
    layer = random_window_layer(rng, window, 6, 1, "plain")
    return shown(model_of([layer], (3, 9, 11)), 6 * 9 * 11)


@pytest.fixture(scope="module")
def programs() -> list[Program]:
    return [flat(), convolution()]


def batch(program: Program, samples: int, seed: int = 0) -> np.ndarray:
    shape = (samples, *program.inputs[0].shape)
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def expected(program: Program, x: np.ndarray) -> np.ndarray:
    with Accelerator(program, "cpu") as cpu:
        result: np.ndarray = cpu.run(x)
        return result


@settings(max_examples=25)
@given(
    which=st.integers(0, 1),
    sizes=st.lists(st.sampled_from([1, 2, 33, 70, 600]), min_size=1, max_size=6),
    verify=st.booleans(),
)
def test_futures_have_the_results_of_run(
    programs: list[Program], which: int, sizes: list[int], verify: bool
) -> None:
    """Of any sizes, in pieces too, some of which need another plan than those before."""
    program = programs[which]
    sizes = [min(size, 70) if which else size for size in sizes]
    batches = [batch(program, size, seed) for seed, size in enumerate(sizes)]
    with Accelerator(program, "standin", verify=verify) as accelerator:
        futures = [accelerator.submit(x) for x in batches]
        for future, x in zip(futures, batches, strict=True):
            y = future.result(60)
            np.testing.assert_array_equal(y, expected(program, x))
        last = accelerator.run(batches[0])
        np.testing.assert_array_equal(last, expected(program, batches[0]))
        report = accelerator.report()
    assert report.columns == sum(sizes) + sizes[0]
    assert report.verified_columns == (report.columns if verify else 0)
    assert report.runs == len(sizes) + 1


def test_the_next_input_is_put_while_the_device_runs(
    programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is held in the first run until the second batch is in its memory."""
    program, put = programs[0], threading.Event()
    true_put, true_execute = EngineProgram.put, EngineProgram.execute
    puts: list[int] = []

    def seen_put(self: EngineProgram, *arguments: Any) -> None:
        true_put(self, *arguments)
        puts.append(arguments[-1])
        if len(puts) == 2:
            put.set()

    def held(self: EngineProgram, bank: int = 0) -> Any:
        assert put.wait(30), "the second batch waits for the first one"
        return true_execute(self, bank)

    monkeypatch.setattr(EngineProgram, "put", seen_put)
    monkeypatch.setattr(EngineProgram, "execute", held)
    x = [batch(program, 5, seed) for seed in range(3)]
    with Accelerator(program, "standin") as accelerator:
        for future, own in zip([accelerator.submit(own) for own in x], x, strict=True):
            np.testing.assert_array_equal(future.result(60), expected(program, own))
    assert len(set(puts[:2])) == 2, "banks of their own"


@pytest.mark.parametrize("device", ["standin", "cpu"])
def test_an_error_is_in_its_own_future(programs: list[Program], device: str) -> None:
    program = programs[0]
    good = batch(program, 3)
    with Accelerator(program, device) as accelerator:
        futures = [accelerator.submit(x) for x in (good, good[:, :5], good, {"y": good}, good)]
        for future in futures[1::2]:
            with pytest.raises(InputError):
                future.result(60)
        for future in futures[::2]:
            np.testing.assert_array_equal(future.result(60), expected(program, good))


def test_a_failing_device_and_a_mismatch_are_in_the_future(
    programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = programs[0]
    x = batch(program, 3)
    with Accelerator(program, "standin", verify=True) as accelerator:
        true_run = accelerator._engine._session.driver.run  # type: ignore[union-attr]

        def failing(*arguments: Any, **more: Any) -> None:
            monkeypatch.undo()
            raise DeviceError("the engine refused command 0")

        driver = accelerator._engine._session.driver  # type: ignore[union-attr]
        monkeypatch.setattr(driver, "run", failing)
        first, second = accelerator.submit(x), accelerator.submit(x)
        with pytest.raises(DeviceError, match="refused command 0"):
            first.result(60)
        np.testing.assert_array_equal(second.result(60), expected(program, x))
        assert true_run == driver.run
        true_get = EngineProgram.get

        def wrong(*arguments: Any) -> Any:
            results = true_get(*arguments)
            if "y" in results:
                results["y"][0, 0] ^= 1
            return results

        monkeypatch.setattr(EngineProgram, "get", wrong)
        with pytest.raises(VerificationError, match="row 0, column 0"):
            accelerator.submit(x).result(60)


class Held:
    """Keeps the device in its run until told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        true = EngineProgram.execute

        def execute(engine: EngineProgram, bank: int = 0) -> Any:
            self.begun.set()
            assert self.go.wait(30)
            return true(engine, bank)

        monkeypatch.setattr(EngineProgram, "execute", execute)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.go.set()


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("bbs-put", "bbs-run"))]


def test_close_waits_for_all(programs: list[Program]) -> None:
    program = programs[1]
    x = batch(program, 4)
    with Accelerator(program, "standin") as accelerator:
        futures = [accelerator.submit(x) for _ in range(8)]
    for future in futures:
        assert future.done()
        np.testing.assert_array_equal(future.result(), expected(program, x))
    assert not threads()
    for method in (accelerator.run, accelerator.submit):
        with pytest.raises(DeviceError, match="was closed"):
            method(x)


def closed(how: Callable[[Accelerator], None], program: Program, held: Held) -> None:
    """Of ten batches those that have begun end, the others are cancelled; memory is free again."""
    x = batch(program, 4)
    with open_device("standin", BUILD) as session:
        futures: list[Future[Any]] = []
        try:
            with Accelerator(program, session=session) as accelerator:
                futures += [accelerator.submit(x) for _ in range(10)]
                assert held.begun.wait(30)
                threading.Timer(0.3, held.go.set).start()
                how(accelerator)
        except KeyboardInterrupt:
            pass
        assert wait(futures, 60).not_done == set()
        cancelled = [future.cancelled() for future in futures]
        assert not cancelled[0] and all(cancelled[4:])
        np.testing.assert_array_equal(futures[0].result(), expected(program, x))
        with pytest.raises(CancelledError):
            futures[-1].result()
        assert arena(session).used == 0
    assert not threads()


def test_close_can_cancel(programs: list[Program], held: Held) -> None:
    closed(lambda accelerator: accelerator.close(cancel=True), programs[0], held)


def test_ctrl_c_cancels_and_frees(programs: list[Program], held: Held) -> None:
    def interrupted(accelerator: Accelerator) -> None:
        raise KeyboardInterrupt

    closed(interrupted, programs[0], held)


# Several programs on one device


@pytest.mark.parametrize("kind", ["standin", "emulated-pynq"])
def test_programs_take_turns_on_one_device(programs: list[Program], kind: str) -> None:
    """Their weights fit the block buffer, so each has to bring its own again after another."""
    if kind == "emulated-pynq":
        require_pynq()
    with open_device(kind, BUILD, strict=True) as session:
        opened = [Accelerator(p, session=session, verify=True) for p in (*programs, flat(5))]
        for turn in range(3):
            for accelerator in [*opened, *opened[::-1]]:
                program = accelerator._program
                x = batch(program, 3, turn)
                y = accelerator.run(x)
                np.testing.assert_array_equal(y, expected(program, x))
        opened.pop().close()
        x = batch(programs[0], 3)
        np.testing.assert_array_equal(opened[0].run(x), expected(programs[0], x))
        for accelerator in opened:
            accelerator.close()
        assert arena(session).used == 0


def test_programs_submit_side_by_side(programs: list[Program]) -> None:
    with open_device("standin", BUILD, strict=True) as session:
        with Accelerator(programs[0], session=session) as one:
            with Accelerator(programs[1], session=session) as other:
                made = []
                for seed in range(12):
                    accelerator = (one, other)[seed % 2]
                    x = batch(accelerator._program, 1 + seed, seed)
                    made.append((accelerator._program, x, accelerator.submit(x)))
                for program, x, future in made:
                    y = future.result(60)
                    np.testing.assert_array_equal(y, expected(program, x))
        assert arena(session).used == 0


def test_changing_program_plans_nothing(
    programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes less than a millisecond more than not changing."""
    with (
        open_device("standin", BUILD, strict=False) as session,
        Accelerator(programs[0], session=session) as one,
        Accelerator(programs[1], session=session) as other,
    ):
        x, y = (batch(program, 1) for program in programs)
        for _ in range(2):  # each has run with its weights in the block buffer, and without
            one.run(x), one.run(x), other.run(y), other.run(y)
        monkeypatch.setattr("pynq_bbs.device.engine.make_plan", None)

        def run(accelerators: list[tuple[Accelerator, np.ndarray]]) -> float:
            start = time.perf_counter()
            for accelerator, own in accelerators:
                accelerator.run(own)
            return time.perf_counter() - start

        same = min(run([(one, x)] * 10 + [(other, y)] * 10) for _ in range(20))
        turns = min(run([(one, x), (other, y)] * 10) for _ in range(20))
        assert turns - same < 20e-3, "twenty runs, all after a change"


def test_a_program_of_another_build_is_refused(programs: list[Program]) -> None:
    with (
        open_device("standin", load_build("16x32")) as session,
        pytest.raises(BuildError, match=r"for build '8x32', the open device is build '16x32'"),
    ):
        Accelerator(programs[0], session=session)


# A board whose overlay is loaded


@pytest.fixture
def board(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An emulated PYNQ device that is taken for a board; its `bitfile` is nowhere loaded yet."""
    require_pynq()
    import pynq

    from pynq_bbs.boards import load_board
    from pynq_bbs.device.emulator import load_engine
    from pynq_bbs.device.pynq_device import EmulatedDevice

    row = load_board("Pynq-Z2")
    device = EmulatedDevice(row, 1 << 20, True, load_engine)
    device.bitfile = write_overlay(BUILD, row, tmp_path)
    device.downloads = 0
    true = device.download

    def download(*arguments: Any, **more: Any) -> None:
        device.downloads += 1
        true(*arguments, **more)

    device.download = download
    monkeypatch.setattr(devices, "_board_problem", lambda: None)
    monkeypatch.setattr(devices, "_board_device", lambda: device)
    monkeypatch.setattr(pynq, "Clocks", type("Clocks", (), {"fclk0_mhz": row.clock_mhz}))
    yield device
    device.close()


def test_attach_takes_what_is_loaded(programs: list[Program], board: Any) -> None:
    program = programs[0]
    x = batch(program, 3)
    with Accelerator(program, "board", bitfile=board.bitfile) as first:
        before = first.run(x)
        assert board.downloads == 1
        with Accelerator(program, "board", bitfile=board.bitfile, attach=True) as second:
            np.testing.assert_array_equal(second.run(x), before)
        assert board.downloads == 1
        np.testing.assert_array_equal(first.run(x), before)  # its overlay is still the loaded one


def test_attach_to_what_another_process_loaded(
    programs: list[Program], board: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynq keeps a record for all processes; this one's device has loaded nothing it knows of."""
    from pynq.pl_server import global_state

    record = type("GlobalState", (), {"bitfile_name": str(board.bitfile)})
    with open_device("board", BUILD, bitfile=board.bitfile):
        board.bitfile_name = None
        for name, gives in (
            ("initial_global_state_file_boot_check", None),
            ("global_state_file_exists", True),
            ("load_global_state", record),
        ):
            monkeypatch.setattr(global_state, name, lambda gives=gives: gives)
        with Accelerator(programs[0], "board", bitfile=board.bitfile, attach=True) as attached:
            x = batch(programs[0], 3)
            np.testing.assert_array_equal(attached.run(x), expected(programs[0], x))
    assert board.downloads == 1


def test_attach_refuses_what_is_not_loaded(board: Any, tmp_path: Any) -> None:
    def attach(bitfile: Any, build: str = "8x32") -> Session:
        return open_device("board", load_build(build), bitfile=bitfile, attach=True)

    with pytest.raises(DeviceError, match="knows of no overlay on this board"):
        attach(board.bitfile)
    with open_device("board", BUILD, bitfile=board.bitfile):
        pass
    (tmp_path / "other").mkdir()
    other = write_overlay(load_build("16x32"), devices.load_board("Pynq-Z2"), tmp_path / "other")
    with pytest.raises(BuildError, match=r"attach: the board has .* loaded, not .*other"):
        attach(other)
    with pytest.raises(BuildError, match=r"is build '8x32', not the wanted build '16x32'"):
        attach(board.bitfile, "16x32")
    attach(board.bitfile).close()
    assert board.downloads == 1


def test_attach_is_for_boards() -> None:
    with pytest.raises(InputError, match="attach is for a board"):
        open_device("standin", BUILD, attach=True)
