# SPDX-License-Identifier: Apache-2.0
"""Several programs with host operators between them: files, runs, verification, errors."""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import damage
from layers import alone, random_layer
from oracle import oracle_layer
from pynq_bbs import Accelerator, Program
from pynq_bbs.builds import load_build
from pynq_bbs.device.engine import EngineProgram
from pynq_bbs.device.session import Session
from pynq_bbs.errors import DeviceError, InputError, ProgramError, VerificationError
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantOutput
from pynq_bbs.operators.call import Call
from pynq_bbs.operators.node import HostNode
from pynq_bbs.pack.cycles import LayerCycles
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.pipeline import Border, Pipeline, Segment, load_any

BUILD = load_build("8x32")
TOKENS, WIDTH = 5, 16


def layer(seed: int, rows: int, features: int) -> QuantLayer:
    return random_layer(np.random.default_rng(seed), rows, features, 8, 4)


FIRST, SECOND = layer(1, 24, WIDTH), layer(2, 10, 24 * TOKENS)
SECOND.name = "second"


def segment(
    made: QuantLayer, source: str, result: str, folded: int = 0, places: int = 1
) -> Segment:
    """A layer of floats of scale 1/16 (in) and 1 (out)."""
    program = pack(alone(made), {made.name: (8, 4)}, BUILD)
    zero_point = made.input_zero_point
    program.inputs = [
        QuantInput(source, "x", made.weights.shape[1:], "float32", np.float32(1 / 16), zero_point)
    ]
    scale = np.ones(1, np.float32)
    program.outputs = [
        QuantOutput(result, "y", (len(made.weights),), "float32", scale, made.zero_point)
    ]
    return Segment(program, folded, places)


def a_pipeline(batch: int | None = None) -> Pipeline:
    """(N, tokens, width) -> a layer for each token -> tanh(y / 32), flattened -> another layer."""

    def node(op: str, inputs: tuple[str, ...], output: str, **attributes: object) -> HostNode:
        return HostNode(f"n_{output}", op, inputs, (output,), Call(17, attributes, 1))

    return Pipeline(
        "two programs",
        BUILD,
        [Border("in", (TOKENS, WIDTH), "float32")],
        [Border("out", (10,), "float32"), Border("shape", (), "int64")],
        [
            segment(FIRST, "in", "a", 1, TOKENS),
            node("Div", ("a", "by"), "b"),
            node("Tanh", ("b",), "c"),
            node("Flatten", ("c",), "d", axis=1),
            segment(SECOND, "d", "out"),
            node("ConstantOfShape", ("one",), "unused", value=np.int64([7])),
            node("Shape", ("in",), "shape"),
        ],
        {"by": np.array(32, np.float32), "one": np.array([1])},
        batch,
    )


def expected(x: np.ndarray) -> np.ndarray:
    """The same in plain numpy."""

    def applied(made: QuantLayer, values: np.ndarray) -> np.ndarray:
        q = np.clip(np.rint(values * 16) + made.input_zero_point, -128, 127).astype(np.int8)
        y = oracle_layer(made, q)[1]
        assert y is not None
        return y.astype(np.float32) - made.zero_point

    tokens = applied(FIRST, x.reshape(-1, WIDTH)).reshape(len(x), -1)
    return applied(SECOND, np.tanh(tokens / np.float32(32)))


def batch(samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(scale=3, size=(samples, TOKENS, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("device", ["cpu", "standin"])
@pytest.mark.parametrize("samples", [1, 7, 40])
def test_run(device: str, samples: int) -> None:
    x = batch(samples)
    with Accelerator(a_pipeline(), device, verify=device != "cpu") as accelerator:
        assert accelerator.inputs == {"in": ((TOKENS, WIDTH), "float32")}
        assert accelerator.outputs == {"out": ((10,), "float32"), "shape": ((), "int64")}
        for _ in range(2):
            y = accelerator.run(x)
            np.testing.assert_array_equal(y["out"], expected(x))
            np.testing.assert_array_equal(y["shape"], x.shape)
        report = accelerator.report()
    assert (report.columns, report.runs) == (2 * samples, 2)
    assert report.verified_columns == (0 if device == "cpu" else 2 * samples)
    assert [la.name for la in report.layers] == ["layer", "second"]
    assert [la.pixels for la in report.layers] == [TOKENS, 1]
    assert report.seconds["host"] > 0
    assert (report.cycles > 0) == (device != "cpu")
    assert "two programs" in str(report)


def test_programs_share_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights stay in the memory of one device: the second run allocates nothing."""
    allocated: list[Session] = []
    allocate = Session.allocate
    monkeypatch.setattr(
        Session,
        "allocate",
        lambda self, *sizes: (allocated.append(self), allocate(self, *sizes))[1],
    )
    with Accelerator(a_pipeline(), "standin") as accelerator:
        accelerator.run(batch(3))
        first = len(allocated)
        accelerator.run(batch(3, seed=1))
    assert first >= 2 and len(allocated) == first
    assert all(session is allocated[0] for session in allocated)


@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_batches_in_the_background(device: str) -> None:
    """In their order; a batch that fails does so alone."""
    accelerator = Accelerator(a_pipeline(), device)
    with accelerator:
        batches = [batch(n, seed=n) for n in (3, 1, 8)]
        futures = [accelerator.submit(x) for x in batches]
        wrong = accelerator.submit(batches[0][:, 1:])
        last = accelerator.submit(batches[0])
        for future, x in zip([*futures, last], [*batches, batches[0]], strict=True):
            np.testing.assert_array_equal(future.result()["out"], expected(x))
        with pytest.raises(InputError, match="must be"):
            wrong.result()
        pending = accelerator.submit(batches[1])
    np.testing.assert_array_equal(pending.result()["out"], expected(batches[1]))
    accelerator.close()


def test_host_and_device_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second program of one batch ends only when the next batch is at the node before it."""
    met = Event()
    nodes: list[str] = []
    execute, run_node = EngineProgram.execute, HostNode.run

    def executed(self: EngineProgram, bank: int = 0) -> list[LayerCycles]:
        if self._program.layers[0].name == "second":
            assert met.wait(30)
        return execute(self, bank)

    def ran(self: HostNode, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        nodes.append(self.op)
        if nodes.count("Tanh") == 2:
            met.set()
        return run_node(self, tensors)

    monkeypatch.setattr(EngineProgram, "execute", executed)
    monkeypatch.setattr(HostNode, "run", ran)
    with Accelerator(a_pipeline(), "standin") as accelerator:
        batches = [batch(3, seed) for seed in range(4)]
        done: list[int] = []
        futures = [accelerator.submit(x) for x in batches]
        for index, future in enumerate(futures):
            future.add_done_callback(lambda _, index=index: done.append(index))
        for future, x in zip(futures, batches, strict=True):
            np.testing.assert_array_equal(future.result(60)["out"], expected(x))
        report = accelerator.report()
    assert done == [0, 1, 2, 3]
    assert (report.columns, report.runs) == (12, 4)


def test_a_short_batch_does_not_overtake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails at once is done only after the one before it; one that has not begun can
    be cancelled, and close waits for those that have."""
    begun, go = Event(), Event()
    execute = EngineProgram.execute

    def executed(self: EngineProgram, bank: int = 0) -> list[LayerCycles]:
        begun.set()
        assert go.wait(30)
        return execute(self, bank)

    monkeypatch.setattr(EngineProgram, "execute", executed)
    accelerator = Accelerator(a_pipeline(), "standin")
    first = accelerator.submit(batch(2))
    wrong = accelerator.submit(batch(2)[:, 1:])
    waiting = accelerator.submit(batch(2))
    assert begun.wait(30)
    with pytest.raises(FutureTimeoutError):
        wrong.result(0.1)
    assert waiting.cancel()
    last = accelerator.submit(batch(1))
    go.set()
    accelerator.close()
    np.testing.assert_array_equal(first.result(0)["out"], expected(batch(2)))
    with pytest.raises(InputError, match="must be"):
        wrong.result(0)
    np.testing.assert_array_equal(last.result(0)["out"], expected(batch(1)))
    with pytest.raises(DeviceError, match="closed"):
        accelerator.submit(batch(1))


def test_fixed_batch() -> None:
    """Of a file with a batch of 2, samples come in twos."""
    fixed = a_pipeline(batch=2)
    x = batch(6)
    with Accelerator(a_pipeline(batch=10), "cpu") as accelerator:
        assert accelerator.step == 70
    with Accelerator(fixed, "cpu") as accelerator:
        assert accelerator.step == 64
        y = accelerator.run(x)
        np.testing.assert_array_equal(y["out"], expected(x))
        np.testing.assert_array_equal(y["shape"], [2, TOKENS, WIDTH] * 3)
        with pytest.raises(InputError, match="batch of 2"):
            accelerator.run(batch(3))


def test_a_wrong_integer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    second = a_pipeline().programs[1].layers[0]
    damage(monkeypatch, second.parameters, 1 << 12)  # of the first program too: its weights
    with Accelerator(a_pipeline(), "standin", verify=True) as accelerator:
        with pytest.raises(VerificationError, match=r"layer '(layer|second)', row"):
            accelerator.run(batch(4))


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.zeros((2, TOKENS, WIDTH + 1), np.float32), r"must be \(N, 5, 16\)"),
        (np.zeros((0, TOKENS, WIDTH), np.float32), "at least one sample"),
        (np.zeros((TOKENS, WIDTH), np.float32), r"must be \(N, 5, 16\)"),
        (np.full((1, TOKENS, WIDTH), np.nan, np.float32), "'in' holds NaN"),
        (np.full((1, TOKENS, WIDTH), "a"), "must be float32"),
        ({"other": np.zeros((1, TOKENS, WIDTH))}, "takes exactly: in"),
        ([[1], [2, 3]], "not an array"),
    ],
)
def test_bad_input(x: object, reason: str) -> None:
    with Accelerator(a_pipeline(), "cpu") as accelerator:
        with pytest.raises(InputError, match=reason):
            accelerator.run(x)
        np.testing.assert_array_equal(accelerator.run(batch(1))["out"], expected(batch(1)))


def test_round_trip(tmp_path: Path) -> None:
    pipeline = a_pipeline(batch=3)
    pipeline.save(tmp_path / "p.bbs.npz")
    loaded = Pipeline.load(tmp_path / "p.bbs.npz")
    assert (loaded.name, loaded.batch) == (pipeline.name, 3)
    assert (loaded.inputs, loaded.outputs) == (pipeline.inputs, pipeline.outputs)
    assert loaded.constants.keys() == pipeline.constants.keys()
    for name, array in pipeline.constants.items():
        assert loaded.constants[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.constants[name], array)
    for ours, theirs in zip(loaded.stages, pipeline.stages, strict=True):
        if isinstance(ours, Segment):
            assert isinstance(theirs, Segment) and ours.folded == theirs.folded
            assert ours.program.layers == theirs.program.layers
            np.testing.assert_array_equal(ours.program.image, theirs.program.image)
        else:
            assert str(ours) == str(theirs)
    x = batch(3)
    with Accelerator(tmp_path / "p.bbs.npz", "cpu") as accelerator:
        np.testing.assert_array_equal(accelerator.run(x)["out"], expected(x))


def test_either_kind_of_file(tmp_path: Path) -> None:
    """Each reader refuses the other's file and says what it is."""
    a_pipeline().save(tmp_path / "several")
    a_pipeline().programs[0].save(tmp_path / "one")
    assert isinstance(load_any(tmp_path / "several"), Pipeline)
    assert isinstance(load_any(tmp_path / "one"), Program)
    with pytest.raises(ProgramError, match="pipeline of several programs"):
        Program.load(tmp_path / "several")
    with pytest.raises(ProgramError, match="single program"):
        Pipeline.load(tmp_path / "one")


@given(data=st.data())
def test_any_damaged_byte_is_noticed(data: st.DataObject, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("damage") / "p"
    a_pipeline().save(path)
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
    try:
        loaded = load_any(path)
    except ProgramError:
        return
    # Dates and names in the archive's own tables are not ours to guard: the contents are.
    assert str(loaded) == str(a_pipeline())


def test_any_damaged_byte_of_an_arrays_header(tmp_path: Path) -> None:
    """numpy parses it as Python, which has errors and warnings of its own."""
    path = tmp_path / "p"
    a_pipeline().save(path)
    good = path.read_bytes()
    start = good.index(b"{'descr'")
    for place in range(start - 10, start + 80):
        path.write_bytes(good[:place] + bytes([good[place] ^ 8]) + good[place + 1 :])
        with pytest.raises(ProgramError, match="damaged"):
            load_any(path)
        with pytest.raises(ProgramError, match="damaged"):
            Accelerator(path, "cpu")


@given(length=st.integers(0, 20000))
def test_truncated(length: int, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("truncated") / "p"
    a_pipeline().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: min(length, len(content) - 1)])
    with pytest.raises(ProgramError, match="damaged"):
        load_any(path)
    with pytest.raises(ProgramError, match="damaged"):
        Accelerator(path, "cpu")


def test_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pynq_bbs.pack.pipeline.FORMAT", 99)
    a_pipeline().save(tmp_path / "p")
    monkeypatch.undo()
    with pytest.raises(ProgramError, match="format 99"):
        load_any(tmp_path / "p")
    newer = a_pipeline()
    assert isinstance(newer.stages[2], HostNode)
    newer.stages[2] = replace(newer.stages[2], op="Tanh2")
    newer.save(tmp_path / "p")
    with pytest.raises(ProgramError, match="Tanh2 is not supported by this release"):
        load_any(tmp_path / "p")
