# SPDX-License-Identifier: Apache-2.0
"""`bbs study`: its figures, what it leaves out, and that no run is lost or run twice."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from onnx_build import FLOAT, model, node, onnx, sample
from pynq_bbs import Accelerator, compile, load_onnx
from pynq_bbs.cli import main
from pynq_bbs.compress.activations import run_float
from pynq_bbs.compress.patterns import Blocks, mask_of
from pynq_bbs.errors import InputError
from pynq_bbs.pack.cycles import RUN_CYCLES
from pynq_bbs.study import DoesNotFitError, Run, Study, runs_of
from test_choices import X, network

FEATURES, CLASSES = 64, 8


def scattered() -> np.ndarray:
    """(FEATURES, FEATURES): in every row and in every block of 4 x 4, a quarter of the weights is
    large, so that only a pattern of scattered zeros can keep them all."""
    small = 0.01 * sample(FEATURES, FEATURES, seed=1)
    row, column = np.indices(small.shape)
    return np.where((row + column) % 4 == 0, sample(FEATURES, FEATURES, seed=2) + 4, small)


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Path]:
    """Three layers, of which the second is pruned; labels are what the float model says."""
    nodes = [
        node("Gemm", "x first", "a", transB=1), node("Relu", "a", "b"),
        node("Gemm", "b middle", "c", transB=1), node("Relu", "c", "d"),
        node("Gemm", "d last", "y", transB=1),
    ]  # fmt: skip
    first, last = np.eye(FEATURES, dtype=np.float32), sample(CLASSES, FEATURES, seed=3)
    first = first + 0.01 * sample(FEATURES, FEATURES, seed=5)
    middle = scattered().astype(np.float32)
    proto = model(
        nodes, {"x": (FEATURES,)}, {"y": FLOAT}, first=first, middle=middle, last=last
    )  # fmt: skip
    paths = {name: tmp_path / f"{name}.npy" for name in ("x", "labels")}
    paths |= {"model": tmp_path / "m.onnx", "out": tmp_path / "out"}
    onnx.save(proto, paths["model"])
    x = sample(200, FEATURES, seed=4)
    np.save(paths["x"], x)
    np.save(paths["labels"], run_float(load_onnx(proto), x)["y"].argmax(axis=1))
    return paths


def study(case: dict[str, Path], *more: str, patterns: str = "dense,unstructured,block:4x4") -> int:
    return main(
        ["study", str(case["model"]), "--calibration", str(case["x"]), "--patterns", patterns,
         "--sparsities", "0.75", "--seconds", "0.001", "-o", str(case["out"]), *more]
    )  # fmt: skip


def lines(case: dict[str, Path]) -> list[str]:
    return (case["out"] / "study.csv").read_text().splitlines()


def test_of_all_runs(case: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    patterns = "dense,unstructured,2:4,banks:16,banks:row/4,block:4x4,block:4x128"
    assert study(case, "--labels", str(case["labels"]), patterns=patterns) == 0
    printed = capsys.readouterr().out
    assert "left out: 2:4 at 0.75: pattern 2:4 has sparsity 0.5" in printed
    assert "left out: block:4x128 at 0.75: fits no layer" in printed
    rows = {row.split(",")[0]: row.split(",") for row in lines(case)[2:]}
    assert list(rows) == ["dense", "unstructured", "banks:16", "banks:row/4", "block:4x4"]
    right = {name: float(row[3]) for name, row in rows.items()}
    assert right["dense"] > 0.9
    assert right["unstructured"] == pytest.approx(right["dense"], abs=0.05)
    assert right["unstructured"] > right["block:4x4"] + 0.2
    assert right["banks:16"] > right["block:4x4"] + 0.2
    assert all(float(row[2]) == 0.75 for name, row in rows.items() if name != "dense")
    cycles = {name: float(row[4]) for name, row in rows.items()}
    assert cycles["banks:16"] < cycles["dense"]
    assert all(float(row[6]) > 0 and float(row[7]) > 0 for row in rows.values())
    page = ElementTree.parse(case["out"] / "study.html").getroot()
    assert sum(element.tag == "svg" for element in page.iter()) == 2
    assert sum(element.tag == "circle" for element in page.iter()) == 2 * (5 + 5)
    texts = [element.text or "" for element in page.iter("td")]
    assert {"banks:16", "block:4x128"} <= set(texts)


def test_figures_are_those_of_the_masked_model(case: dict[str, Path]) -> None:
    """Masked by hand, compiled and run as users do."""
    x = np.load(case["x"])
    found = Study(case["model"], x, seconds=0.001).measure(Run("block:4x4", 0.75))
    masked = load_onnx(case["model"])
    middle = masked.layers[1]
    middle.weights = middle.weights * mask_of(Blocks(4, 4, 0.75), middle.weights)
    wanted = run_float(load_onnx(case["model"]), x)["y"].argmax(axis=1)
    program = compile(masked, calibration=x)
    with Accelerator(program, "cpu") as cpu:
        assert found.right == np.mean(cpu.run(x).argmax(axis=1) == wanted)
    assert found.weight_bytes == program.weight_bytes
    with Accelerator(program, "standin") as standin:
        standin.run(x[:1])
        report = standin.report()
    assert found.cycles == pytest.approx(report.cycles + RUN_CYCLES)


def test_of_convolutions(tmp_path: Path) -> None:
    """First and last layers, depthwise ones, and those of too few channels keep their weights."""
    onnx.save(network(), tmp_path / "m.onnx")
    convolutions = Study(tmp_path / "m.onnx", X, seconds=0.001)
    assert convolutions.pruned_layers == ["conv2", "conv3"]
    row = convolutions.measure(Run("banks:32", 0.75))
    assert row.left_dense == "conv2"
    assert row.sparsity == 0.75 * 32 * 32 / (32 * 32 + 32 * 16 * 9)
    with pytest.raises(DoesNotFitError, match=r"conv2: its rows of 16 .*; conv3: its rows of 32 "):
        convolutions.measure(Run("banks:64", 0.75))


def test_resumes(case: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    measure = Study.measure

    def counted(self: Study, run: Run):
        measured.append(run.pattern)
        return measure(self, run)

    monkeypatch.setattr(Study, "measure", counted)
    assert study(case, patterns="dense,unstructured") == 0
    before = lines(case)
    assert study(case) == 0
    assert measured == ["dense", "unstructured", "block:4x4"]
    assert lines(case)[:4] == before
    assert study(case) == 0
    assert len(measured) == 3
    path = case["out"] / "study.csv"
    path.write_bytes(path.read_bytes()[:-5])  # as if power had failed
    assert study(case) == 0
    assert measured[3:] == ["block:4x4"]
    assert len(lines(case)) == 5 and lines(case)[:4] == before
    path.write_bytes(path.read_bytes()[:30])
    assert study(case, patterns="dense") == 0
    assert len(lines(case)) == 3


@pytest.mark.parametrize("changed", ["model", "x", "labels", "bits"])
def test_nothing_is_mixed(
    case: dict[str, Path], changed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["--labels", str(case["labels"])]
    assert study(case, *labels, patterns="dense") == 0
    before = lines(case)
    path = case["out"] / "study.csv"
    if changed == "model":
        proto = onnx.load(case["model"])
        array = onnx.numpy_helper.to_array(proto.graph.initializer[1]) * np.float32(1.01)
        proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(array, "middle"))
        onnx.save(proto, case["model"])
    elif changed == "bits":
        labels += ["--weight-bits", "4"]
    else:
        array = np.load(case[changed])
        array[0] = 1 - array[0] if changed == "x" else (array[0] + 1) % CLASSES
        np.save(case[changed], array)
    assert study(case, *labels, patterns="dense") == InputError.exit_code
    assert "--restart" in capsys.readouterr().err
    assert lines(case) == before
    assert study(case, *labels, "--restart", patterns="dense") == 0
    assert len(lines(case)) == 3 and lines(case)[0] != before[0]
    path.write_text("\n".join(before[:2]) + "\n")  # no row that could be lost
    assert study(case, *labels, patterns="dense") == 0


def test_damaged_and_foreign_files_stay(
    case: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(case, patterns="dense") == 0
    path = case["out"] / "study.csv"
    for text, words in (
        (path.read_text() + "dense,much\n", "line 4: not a row"),
        ("mine,not yours\n", "no file of `bbs study`"),
    ):
        path.write_text(text)
        assert study(case, patterns="dense") == InputError.exit_code
        assert words in capsys.readouterr().err
        assert path.read_text() == text


def test_what_is_refused(case: dict[str, Path]) -> None:
    x, labels = np.load(case["x"]), np.load(case["labels"])
    with pytest.raises(InputError, match="pattern is 'circle'"):
        runs_of(["circle"], [0.5])
    with pytest.raises(InputError, match="cannot keep 5"):
        runs_of(["5:4"], [0.5])
    with pytest.raises(InputError, match=r"sparsity is 1\.5"):
        runs_of(["unstructured"], [1.5])
    with pytest.raises(InputError, match=r"must be integers \(200,\)"):
        Study(case["model"], x, labels=labels[1:])
    with pytest.raises(InputError, match="must be 0 to 7"):
        Study(case["model"], x, labels=labels + 1)
    with pytest.raises(InputError, match="at least one sample"):
        Study(case["model"], x, x[:0])
