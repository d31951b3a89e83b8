# SPDX-License-Identifier: Apache-2.0
"""`bbs bench`: what it measures, its peers, its reports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench_records import a_record, an_entry
from layers import a_network, alone, images, model_of, random_layer, random_window_layer
from oracle import onnxruntime_is_exact, shared_file
from pynq_bbs.accelerator import Accelerator
from pynq_bbs.bench import contestants, machine
from pynq_bbs.bench.chain import chain_of
from pynq_bbs.bench.dense import dense_program
from pynq_bbs.bench.layers import Cost, clocks
from pynq_bbs.bench.machine import facts
from pynq_bbs.bench.options import Options
from pynq_bbs.bench.peers import (
    FLOAT,
    SAME,
    Form,
    Rounding,
    Verdict,
    check,
    competing,
    judge,
    judge_form,
    judge_own,
    library_forms,
)
from pynq_bbs.bench.power import MeterFile, Rapl, find_meter
from pynq_bbs.bench.record import Record
from pynq_bbs.bench.report_html import html_report
from pynq_bbs.bench.report_text import interval_text, seconds_text, text_report
from pynq_bbs.bench.run import benchmark
from pynq_bbs.bench.subject import Subject, load_subject, samples_for
from pynq_bbs.builds import load_build
from pynq_bbs.cli import main
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.errors import InputError
from pynq_bbs.model.graph import QuantInput, QuantModel, QuantOutput, Window
from pynq_bbs.model.recurrent import RecurrentLayer, quantise_gru, quantise_lstm
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.pipeline import Border
from pynq_bbs.pack.program import Program
from test_pipeline import TOKENS, WIDTH, a_pipeline

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((40, 64), np.float32)


@pytest.fixture(scope="module")
def digits(pixels: NDArray[np.float32]) -> Program:
    return compile_model(DIGITS, layers={"*": {"sparsity": 0.75}}, calibration=pixels)


def cpu_outputs(program: Program, x: Any) -> Any:
    with Accelerator(program, "cpu") as accelerator:
        return accelerator.run(x)


def a_convolution(weight_bits: int) -> QuantModel:
    """Layers of 20 channels, which fill no bank of 8, then one over all pixels."""
    rng = np.random.default_rng(1)
    first = random_window_layer(rng, Window(20, 6, 5, (3, 2), pads=(1, 0, 1, 1)), 24, 1, "table")
    second = random_layer(rng, 40, 24 * 6 * 5, 1, 1)
    second.weights = rng.integers(-8, 8, second.weights.shape).astype(np.int8)
    second.weights, second.window = second.weights.reshape(40, 24, 6, 5), Window(24, 6, 5, (6, 5))
    first.weights = rng.integers(-8, 8, first.weights.shape).astype(np.int8)
    first.output = second.input = "between"
    second.name = "second"
    layers = [replace(layer, weight_bits=weight_bits) for layer in (first, second)]
    model = model_of(layers, (20, 6, 5))
    sizes = {"between": 24 * 6 * 5, "y": 40}
    model.outputs = [replace(o, shape=(sizes[o.tensor],)) for o in model.outputs]
    return model


@pytest.mark.parametrize("build", ["8x32", "16x32-zu3eg"])
@pytest.mark.parametrize("weight_bits", [8, 4])
def test_dense_mode_of_convolutions(build: str, weight_bits: int) -> None:
    """Packed as `compile` packs what is not pruned, with the integers of the sparse program."""
    model = a_convolution(weight_bits)
    options: dict[str, Any] = {"build": build, "weight_bits": weight_bits}
    sparse = compile_model(model, sparsity=0.75, bank_size=8, **options)
    dense, never = dense_program(sparse), compile_model(model, **options)
    assert [la.keep < la.bank_size for la in sparse.layers] == [True, True]
    for ours, theirs in zip(dense.layers, never.layers, strict=True):
        offsets = {k: getattr(theirs, k) for k in ("weights", "indices", "parameters", "table")}
        assert replace(ours, **offsets) == theirs
    x = images(np.random.default_rng(2), Window(20, 6, 5, (1, 1)), 5)
    expected, found = cpu_outputs(sparse, x), cpu_outputs(dense, x)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_what_is_not_pruned_stays() -> None:
    """Of all kinds of layers the first one is pruned."""
    program = pack(a_network(), {"first": (4, 1)}, load_build("8x32"))
    program.outputs = [replace(program.outputs[-1], shape=(10,))]
    dense = dense_program(program)
    changed = [a != b for a, b in zip(program.layers, dense.layers, strict=True)]
    assert changed == [True] + [False] * (len(changed) - 1)
    x = images(np.random.default_rng(3), Window(4, 9, 7, (1, 1)), 3)
    np.testing.assert_array_equal(cpu_outputs(dense, x), cpu_outputs(program, x))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_dense_mode_of_recurrent_layers(kind: str) -> None:
    rng, build = np.random.default_rng(4), "32x4x1"
    gates = {"lstm": 4, "gru": 3}[kind]
    w, r = (rng.uniform(-0.3, 0.3, (gates * 24, n)).astype(np.float32) for n in (40, 24))
    scale = np.float32(1 / 64)
    # A GRU whose reset gate comes before its matrix has a second one.
    quantised = (
        quantise_lstm(w, r, None, scale)
        if kind == "lstm"
        else quantise_gru(w, r, None, scale, linear_before_reset=False)
    )
    layer = RecurrentLayer(kind, "x", "y", quantised)
    x = QuantInput("x", "x", (3, 40), "int8", scale, 0, steps=3)
    model = QuantModel(kind, [x], [layer], [QuantOutput("y", "y", (3, 24), "int8", steps=3)])
    sparse = compile_model(model, sparsity=0.75, bank_size=8, build=build)
    dense, never = dense_program(sparse), compile_model(model, build=build)
    assert dense.weight_bytes == never.weight_bytes > sparse.weight_bytes
    values = rng.integers(-128, 128, (5, 3, 40)).astype(np.int8)
    expected = cpu_outputs(sparse, values)
    np.testing.assert_array_equal(cpu_outputs(dense, values), expected)
    assert np.any(cpu_outputs(never, values) != expected)


def test_dense_mode_of_matrices(digits: Program, pixels: NDArray[np.float32]) -> None:
    dense, never = dense_program(digits), compile_model(DIGITS, calibration=pixels)
    assert dense.weight_bytes == never.weight_bytes == 84480
    assert dense.sparsity == 0
    np.testing.assert_array_equal(cpu_outputs(dense, pixels), cpu_outputs(digits, pixels))
    with Accelerator(dense, "standin", verify=True) as accelerator:
        np.testing.assert_array_equal(accelerator.run(pixels), cpu_outputs(digits, pixels))


@pytest.mark.parametrize("library", ["onnxruntime", "scipy", "numpy", "torch"])
def test_peers_on_digits(library: str, digits: Program, pixels: NDArray[np.float32]) -> None:
    pytest.importorskip(library)
    ours = cpu_outputs(digits, pixels)
    chain = chain_of(digits)
    model = None
    if library == "onnxruntime":
        chain, model = chain_of(compile_model(DIGITS, calibration=pixels)), str(DIGITS)
        ours = cpu_outputs(compile_model(DIGITS, calibration=pixels), pixels)
    forms = library_forms(library, chain, "", model, threads=1)
    for form in forms:
        for x in (pixels, {"pixels": pixels}, pixels[:1]):
            found = check(
                ours[: len(next(iter(x.values())) if isinstance(x, dict) else x)], form.run(x)
            )
            # What is not our arithmetic is as far from ours as quantisation is.
            assert found.rms < 0.03, form.label
    names = [form.name for form in forms]
    if library == "onnxruntime":
        integers = ["QDQ", "QDQ uint8", "MatMulInteger", "MatMulInteger uint8"]
        assert names == ["model as it is", *integers, "DynamicQuantizeLinear"]
    assert competing(forms, ours, pixels)[0][0] in forms


def test_the_fastest_form_competes_and_a_right_one() -> None:
    ours = np.arange(4.0)

    def form(name: str, y: NDArray[np.float64], seconds: float) -> Form:
        return Form("lib", name, SAME, lambda x: time.sleep(seconds) or y)

    forms = [form("slow", ours, 0.02), form("right", ours, 0.01), form("wrong", 2 * ours, 0)]
    found = competing(forms, ours, None)
    assert [(f.name, v.wrong) for f, v in found] == [("wrong", True), ("right", False)]
    assert [f.name for f, _ in competing(forms[:2], ours, None)] == ["right"]
    assert [f.name for f, _ in competing(forms[2:], ours, None)] == ["wrong"]


@pytest.mark.parametrize("kind", ["plain", "table", "sums"])
def test_integer_forms_are_our_integers(kind: str) -> None:
    """With weights so small that no kernel saturates."""
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(5)
    layer = random_layer(rng, 33, 70, 1, 1, kind=kind, weight_bits=4)
    layer.multiplier = None if kind == "sums" else rng.uniform(0.01, 0.2, 33).astype(np.float32)
    layer.weight_bits, layer.table = 8, None
    if kind == "table":  # a clamp
        layer.table = np.clip(np.arange(-128, 128), -100, 50).astype(np.int8)
    x = rng.integers(-128, 128, (9, 70)).astype(np.int8)
    forms = _integer_forms(layer, x)
    expected = {"MatMulInteger"} if kind == "sums" else {"QDQ", "MatMulInteger"}
    assert set(forms) == {f"{name}{kind}" for name in expected for kind in ("", " uint8")}
    if kind != "sums":
        layer.bias[:] = 0
        assert set(_integer_forms(layer, x)) == {*forms, "QLinearMatMul", "QLinearMatMul uint8"}


def _integer_forms(layer: Any, x: NDArray[np.int8]) -> dict[str, Form]:
    """Those of our integers, each compared with the cpu device."""
    model = alone(layer)
    model.outputs = [replace(o, shape=(len(layer.weights),)) for o in model.outputs]
    program = pack(model, {}, load_build("8x32"))
    ours = cpu_outputs(program, x)
    forms = library_forms("onnxruntime", chain_of(program), "", None, threads=1)
    same = {form.name: form for form in forms if form.arithmetic == SAME}
    for name, form in same.items():
        y = form.run(x)
        assert y.dtype == ours.dtype
        assert check(ours, y).differ == 0, name
    return same


def test_what_is_no_chain_is_said() -> None:
    program = pack(a_convolution(8), {}, load_build("8x32"))
    with pytest.raises(InputError, match="several inputs or outputs"):
        chain_of(program)
    program.outputs = program.outputs[1:]
    with pytest.raises(InputError, match="layer 'layer' is no fully connected layer"):
        chain_of(program)
    with pytest.raises(InputError, match="fully connected layers only, and so it is"):
        library_forms("scipy", None, "so it is", None, 1)
    layer = random_layer(np.random.default_rng(0), 8, 16, 1, 1, kind="table")
    with pytest.raises(InputError, match="does more than limit values"):
        chain_of(pack(alone(layer), {}, load_build("8x32")))


def test_a_saturating_peer_is_flagged() -> None:
    ours = np.array([[100.0, -50.0], [7.0, 20.0]], np.float32)
    found = check(ours, np.clip(ours, -30, 30))
    assert (found.outputs, found.differ, found.most) == (4, 2, 70)
    assert found.rms == pytest.approx(np.sqrt((70**2 + 20**2) / 4) / 100)
    assert judge(SAME, found).words.startswith("WRONG: 2 of 4 outputs differ")
    assert judge(SAME, found).wrong and judge(SAME, found, Rounding(20)).wrong
    assert judge(FLOAT, found).words.startswith("float32: 2 of 4")
    assert not judge(FLOAT, found).wrong
    rounded = judge(SAME, check(ours, ours + np.float32([[1, 0], [0, 0]])), Rounding(1))
    assert (rounded.same, rounded.wrong) == (False, False)
    assert rounded.words == "1 of 4 outputs differ, by one unit: it rounds otherwise at ties"
    slightly = check(ours, ours + np.float32([[1.5, 0], [0, 0]]))
    assert [judge(SAME, slightly, Rounding(1, deep)).wrong for deep in (False, True)] == [1, 0]
    assert judge(SAME, found, Rounding(1, deep=True)).wrong
    assert judge(SAME, check(ours, ours)) == Verdict(True, False, "same outputs")
    assert judge_own(check(ours, ours)).same
    assert judge_own(found).wrong and "--verify" in judge_own(found).words
    assert check(ours, np.where(ours == 7, np.nan, ours)).differ == 1
    assert check(ours, ours[:1]).differ == 4
    assert check({"a": ours, "b": ours}, {"b": ours, "a": ours}).differ == 0


def test_dynamic_form_against_its_own_arithmetic(
    digits: Program, pixels: NDArray[np.float32]
) -> None:
    """Weights of 4 bits do not saturate; if large ones do, on this processor, that is said."""
    pytest.importorskip("onnxruntime")
    model = compile_model(DIGITS, weight_bits=4, calibration=pixels)
    forms = library_forms("onnxruntime", chain_of(model), "", None, threads=1)
    (form,) = (f for f in forms if f.name == "DynamicQuantizeLinear")
    assert form.exact is not None
    assert check(form.exact(pixels), form.run(pixels)).rms < 1e-3
    assert not judge_form(form, cpu_outputs(model, pixels), pixels).wrong
    saturated = replace(form, run=lambda x: np.clip(form.run(x), -1e-3, 1e-3))
    found = judge_form(saturated, cpu_outputs(model, pixels), pixels)
    assert found.wrong and found.words.startswith("WRONG, its sums saturate")


def test_samples_go_round_and_random_ones_use_the_range(digits: Program) -> None:
    given = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    (x,) = samples_for(digits, given, 7).values()
    np.testing.assert_array_equal(x, given[[0, 1, 2, 0, 1, 2, 0]])
    (x,) = samples_for(digits, None, 50).values()
    spec = digits.inputs[0]
    q = np.rint(x / spec.scale) + spec.zero_point
    assert (q.min(), q.max()) == (-128, 127)
    with pytest.raises(InputError, match="the model takes: pixels"):
        samples_for(digits, {"wrong": given}, 2)


def test_rapl_counts_over_its_range(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, value in {"name": "package-0", "max_energy_range_uj": 1000, "energy_uj": 900}.items():
        (zone / name).write_text(f"{value}\n")
    meter = Rapl(tmp_path)
    meter.sample()
    (zone / "energy_uj").write_text("100\n")
    meter.sample()
    assert meter._joules == pytest.approx([0, 200e-6])
    assert meter.between(*meter._times) == pytest.approx(200e-6)
    assert meter.between(0, 1) is None


def test_a_meters_file(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    path.write_text("seconds,watts\n100,2\n102,4\n103,4\n")
    meter, name = find_meter(path)
    assert meter is not None and name == "meter: meter.csv"
    assert meter.between(100, 103) == pytest.approx(10)
    assert meter.between(102, 102.5) == pytest.approx(2)
    assert meter.between(99, 101) is None
    for text in ("", "a,b\n1,2\n", "seconds,watts\n1,x\n", "seconds,watts\n2,1\n1,1\n"):
        path.write_text(text)
        with pytest.raises(InputError):
            MeterFile(path).between(0, 1)


def test_facts_of_this_machine() -> None:
    known = facts()
    assert {"processor", "architecture", "processors", "python", "numpy", "pynq-bbs"} <= set(known)
    assert known["numpy"] == np.__version__


def test_facts_of_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel of a 64-bit arm tells them."""
    texts = {
        "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd crc32\nCPU implementer\t: 0x41\n"
        "CPU part\t: 0xd03\n\nprocessor\t: 1\nCPU part\t: 0xd99\n",
        "/proc/device-tree/model": "xlnx,zynqmp",
    }
    monkeypatch.setattr(machine, "_text", lambda path: texts.get(str(path), ""))
    known = facts()
    assert known["processor"] == "arm core 0xd03 of maker 0x41"
    assert known["instruction sets"] == "asimd"
    assert known["board"] == "xlnx,zynqmp"
    assert "clock" not in known and "virtual machine" not in known


def test_cost_of_a_run_is_a_median(digits: Program, pixels: NDArray[np.float32]) -> None:
    with Accelerator(digits, "standin") as accelerator:
        accelerator.run(pixels)
        before, once = deepcopy(accelerator.report()), accelerator.report().cycles
        accelerator.run(pixels)
        accelerator.run(pixels)
        report = accelerator.report()
        parts = len(report.seconds)
        # Of three runs the last two are measured behind each other: medians of 2, 4 and 9 seconds.
        first = clocks(before)
        step = np.array([1, *[1.0] * parts, *[0.5] * len(report.layers)])
        seconds = [first, first + step * 2, first + step * 6, first + step * 15]
        for run, stamp in enumerate(seconds):
            stamp[0] = first[0] + run
        cost = Cost.between(before, report, seconds[1:])
    assert cost.parts == dict.fromkeys(report.seconds, pytest.approx(4.0))
    assert [la.seconds for la in cost.layers] == [pytest.approx(2.0)] * 3
    assert 0 < sum(la.cycles for la in cost.layers) <= once
    figures = cost.figures(digits, 40, cpu=False)
    assert [f.macs for f in figures] == [40 * 4096, 40 * 16384, 40 * 640]
    assert [f.dense_macs for f in figures] == [4 * f.macs for f in figures]
    assert all(f.seconds is None and f.cycles and f.bytes > 0 for f in figures)
    cpu = cost.figures(digits, 40, cpu=True)
    # INT8 weights with INT32 places, INT8 inputs and outputs, INT32 sums at the end.
    assert [f.bytes for f in cpu] == [
        5 * 4096 + 40 * (64 + 256),
        5 * 16384 + 40 * (256 + 256),
        5 * 640 + 40 * (256 + 4 * 10),
    ]


def test_html_needs_nothing_else() -> None:
    entries = [
        an_entry("cpu", [[1e-3, 2e-3]] * 8),
        an_entry("cpu dense", [[2e-3]] * 3, role="dense"),
        an_entry("emulated", [[1.0]], modelled=1e-3),
        replace(an_entry("a < peer & more", [[5e-4]] * 9, role="peer"), same=False, wrong=True),
    ]
    text = html_report(a_record(entries))
    page = ET.fromstring(text.split("\n", 1)[1])
    for forbidden in ("http", "src=", "<link", "<script", "@import", "nan", "inf "):
        assert forbidden not in text, forbidden
    assert "net &lt;&amp;&gt;" in text and "a &lt; peer &amp; more" in text
    # Patterns, bars, a roofline for each of our devices, parts of a run.
    assert len(list(page.iter("svg"))) == 1 + 1 + 3 + 1
    # What is modelled is hatched and says so, and nothing else is.
    marked = [rect for rect in page.iter("rect") if "modelled" in rect.get("class", "")]
    assert [rect.find("title").text for rect in marked] == ["emulated: ~1 ms modelled"]  # type: ignore[union-attr]
    (bad,) = (row for row in page.iter("tr") if row.get("class") == "bad")
    assert bad[0].text == "a < peer & more"
    assert [text.text for text in page.iter("text") if text.get("class") == "peer bad"] == [
        "a < peer & more", "500 us"
    ]  # fmt: skip
    roofs = [line.get("class") for line in page.iter("polyline")]
    assert roofs == ["roof measured", "roof measured", "roof modelled"]
    for row in page.iter("tr"):
        cells = ["".join(cell.itertext()) for cell in row.iter("td")]
        assert any(c.startswith("~") for c in cells) == (row.get("class") == "modelled"), cells


def test_text_marks_what_is_modelled() -> None:
    entries = [an_entry("cpu", [[1e-3]] * 8), an_entry("emulated", [[1.0]], modelled=4e-3)]
    lines = text_report(a_record(entries)).splitlines()
    assert lines[3].split()[:6] == ["cpu", "1", "ms", "+0.0%", "+0.0%", "1"]
    assert lines[4].split()[:4] == ["emulated", "~4", "ms", "modelled"]
    assert (lines[3].split()[-2], lines[4].split()[-2]) == ("1.00", "~1.00")
    assert "torch: not installed" in "\n".join(lines) and "energy: unknown" in "\n".join(lines)
    assert [seconds_text(s) for s in (2.0, 0.5, 1.5e-6, 3e-10)] == [
        "2 s",
        "500 ms",
        "1.5 us",
        "0.3 ns",
    ]
    assert interval_text(1.0, -np.inf, np.inf) == "unknown"


def test_command(
    pixels: NDArray[np.float32], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, old, new, page = (str(tmp_path / n) for n in ("x.npy", "a.json", "b.json", "r.html"))
    np.save(x, pixels)
    arguments = ["bench", str(DIGITS), "--sparsity", "0.75", "--calibration", x, "--input", x]
    arguments += ["--device", "cpu,emulated,board", "--against", "numpy,scipy,onnxruntime,torch"]
    arguments += ["--seconds", "1", "--samples", "8", "--report", page, "--json"]
    assert main([*arguments, old]) == 0
    printed = capsys.readouterr().out
    assert "cpu dense" in printed and "~" in printed and "left out: board:" in printed
    record = Record.load(old)
    assert [e.name for e in record.entries[:4]] == [
        "cpu", "cpu dense", "emulated", "emulated dense"
    ]  # fmt: skip
    assert all(e.same for e in record.entries[:4])
    assert {e.scenario: e.samples for e in record.entries} == {"single-stream": 1, "offline": 8}
    for entry in record.entries:
        assert all(s > 0 for turn in entry.turns for s in turn)
        assert (entry.modelled is not None) == entry.emulated == entry.name.startswith("emulated")
        if entry.name.startswith("cpu"):
            assert all(la.seconds and la.seconds > 0 for la in entry.layers)
            assert set(entry.parts) == {"quantise", "device", "output"}
    sparse, dense = (sum(la.macs for la in e.layers) for e in record.entries[:2])
    assert (sparse, dense) == (35328, 84480)
    ET.fromstring(Path(page).read_text().split("\n", 1)[1])
    stored = json.loads(Path(old).read_text())
    for path, seconds in ((old, 1e-3), (new, 5e-4)):  # as if everything had been twice as fast
        for entry in stored["entries"]:
            entry["turns"] = [[seconds * (1 + i / 1000)] for i in range(20)]
        Path(path).write_text(json.dumps(stored))
    assert main(["bench", "compare", old, new, "--fail-slower", "5"]) == 0
    assert "-50.0%" in capsys.readouterr().out
    assert main(["bench", "compare", new, old]) == 0
    assert main(["bench", "compare", new, old, "--fail-slower", "5"]) == 13
    assert "slower by more than 5 %" in capsys.readouterr().err


def test_a_program_file_and_random_numbers(
    digits: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "d.bbs.npz")
    digits.save(path)
    power, stored = tmp_path / "power.csv", str(tmp_path / "r.json")
    power.write_text(f"seconds,watts\n{time.time() - 9},5\n{time.time() + 999},5\n")
    arguments = ["bench", path, "--seconds", "0.1", "--samples", "3", "--against", "onnxruntime"]
    more = ["--scenario", "offline", "--power-csv", str(power), "--json", stored]
    assert main([*arguments, *more]) == 0
    printed = capsys.readouterr().out
    assert "offline, 3 samples" in printed and "single-stream" not in printed
    assert "energy: meter: power.csv" in printed
    for entry in Record.load(stored).entries:
        runs = np.concatenate([np.array(turn) for turn in entry.turns])
        assert entry.joules is not None and entry.joules >= 5 * runs.mean() * (1 - 1e-3)
    assert main([*arguments, "--sparsity", "0.5"]) == 3
    assert "is compiled already" in capsys.readouterr().err
    assert "calibrated on random numbers" in " ".join(load_subject(DIGITS).notes)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([str(DIGITS), "--device", "gpu"], 3, "unknown device 'gpu'; known: cpu, emulated, board"),
        ([str(DIGITS), "--against", "tvm"], 3, "unknown peer 'tvm'"),
        ([str(DIGITS), "--scenario", "server"], 3, "unknown scenario"),
        ([str(DIGITS), "--seconds", "nan"], 3, "more than zero"),
        ([str(DIGITS), "--threads", "0"], 3, "more than zero"),
        ([str(DIGITS), "--device", ","], 3, "nothing to measure"),
        ([str(DIGITS), "--board", "Nexys"], 7, "Nexys"),
        ([str(DIGITS), "--device", "board"], 9, "there is no board"),
        ([str(DIGITS), str(DIGITS)], 3, "2 models given"),
        (["missing.bbs.npz"], 6, "no program file"),
        (["compare", "a.json"], 3, "takes two files"),
        (["compare", "a.json", "b.json"], 3, "a.json cannot be read"),
    ],
)
def test_wrong_usage(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == code
    assert text in capsys.readouterr().err


def test_who_fails_is_left_out(
    digits: Program, pixels: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(x: Any) -> Any:
        raise RuntimeError("no kernel\nand more")

    def forms(library: str, *_: Any) -> list[Form]:
        if library == "scipy":
            raise ImportError("No module named 'scipy'")
        return [Form(library, "odd", FLOAT, broken), Form(library, "fine", FLOAT, lambda x: ours)]

    ours = cpu_outputs(digits, pixels[:2])
    monkeypatch.setattr(contestants, "library_forms", forms)
    options = Options(against=("numpy", "scipy"), scenarios=("offline",), seconds=0.01, samples=2)
    subject = Subject(digits, "digits", None)
    record = benchmark(subject, {"pixels": pixels[:2]}, options)
    assert [entry.name for entry in record.entries] == ["cpu", "numpy fine"]
    assert record.entries[1].same
    assert record.missing == {
        "numpy odd": "cannot run this model: no kernel",
        "scipy": "not installed (No module named 'scipy')",
    }


@pytest.mark.parametrize(("name", "shape"), [("ad_int8", (640,)), ("ic_int8", (32, 32, 3))])
def test_a_quantised_file_is_our_integers(name: str, shape: tuple[int, ...]) -> None:
    """Made by others: onnxruntime runs it as it is, but for ties and saturation."""
    pytest.importorskip("onnxruntime")
    subject = load_subject(shared_file("models", "mlperf-tiny", f"{name}.onnx"))
    assert subject.quantised and subject.dense is None
    x = samples_for(subject.program, None, 4)
    assert next(iter(x.values())).shape == (4, *shape)
    options = Options(against=("onnxruntime", "dense"), scenarios=("offline",), seconds=0.01)
    record = benchmark(subject, x, options)
    assert "our dense mode" in record.missing["dense"]
    file = next(e for e in record.entries if e.name == "onnxruntime model as it is")
    exact = file.same or "ties are rounded otherwise" in file.verdict
    assert exact or (file.wrong and not onnxruntime_is_exact())


def test_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its dense form, its programs and the host's nodes one by one, as text, JSON and HTML."""
    made = a_pipeline()
    made.save(tmp_path / "p.bbs.npz")
    old, page = str(tmp_path / "a.json"), tmp_path / "r.html"
    arguments = ["bench", str(tmp_path / "p.bbs.npz"), "--device", "cpu,emulated", "--seconds"]
    arguments += ["0.05", "--samples", "4", "--against", "numpy", "--json", old]
    assert main([*arguments, "--report", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "left out: numpy: " in printed and "the host between its programs" in printed
    record = Record.load(old)
    assert {e.name for e in record.entries} == {
        "cpu", "cpu dense", "emulated", "emulated dense"
    }  # fmt: skip
    assert record.model["layers"] == "2"
    names = ["1 program windows", "2 Div n_b", "3 Tanh n_c", "4 Flatten n_d", "5 program windows",
             "6 ConstantOfShape n_unused", "7 Shape n_shape"]  # fmt: skip
    for entry in record.entries:
        assert entry.same and list(entry.stages) == names
        assert all(seconds > 0 for seconds in entry.stages.values())
        assert entry.dense_macs == entry.samples * (TOKENS * 24 * WIDTH + 10 * 24 * TOKENS)
        half = entry.role == "device"  # banks keep 4 of 8
        assert sum(la.macs for la in entry.layers) == entry.dense_macs / (2 if half else 1)
    text = page.read_text()
    assert all(name in printed and name in text for name in names)


def test_a_float_file_that_needs_the_host(tmp_path: Path) -> None:
    """Calibrated on random numbers, as many as the file's batch allows."""
    onnx = pytest.importorskip("onnx")
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[3, 8] x) => (float[3, 4] y) { a = MatMul (x, v)  b = Softmax (a)
        y = MatMul (b, w) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("v", (8, 6)), ("w", (6, 4))):
        array = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    subject = load_subject(tmp_path / "m.onnx")
    assert any("calibrated on random numbers" in note for note in subject.notes)
    options = Options(against=("onnxruntime",), scenarios=("offline",), seconds=0.01, samples=3)
    record = benchmark(subject, samples_for(subject.program, None, 3), options)
    assert record.entries[0].dense_macs == 3 * (8 * 6 + 6 * 4)
    assert any("Softmax" in name for name in record.entries[0].stages)


def test_a_pipeline_of_a_fixed_batch() -> None:
    """A single stream has as few samples as the file allows; the dense form gives our integers."""
    subject = Subject(a_pipeline(batch=2), "fixed", None)
    options = Options(scenarios=("single-stream",), seconds=0.01, samples=4)
    record = benchmark(subject, samples_for(subject.program, None, 4), options)
    assert [entry.samples for entry in record.entries] == [2]
    with pytest.raises(InputError, match="batch of 2"):
        samples_for(subject.program, None, 3)
    opened = replace(subject.program, batch=None, inputs=[Border("in", (-1, WIDTH), "float32")])
    with pytest.raises(InputError, match="--input"):
        samples_for(opened, None, 3)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_a_sequence_model(op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its steps come before its samples, its last samples are shorter; with and without samples."""
    onnx = pytest.importorskip("onnx")
    from test_onnx_recurrent import Cell

    cell = Cell(op, steps=4, samples=6, inputs=3, units=5, initial=True, lengths=True)
    onnx.save(cell.graph(), tmp_path / "cell.onnx")
    np.savez(tmp_path / "x.npz", **cell.given())
    arguments = ["bench", str(tmp_path / "cell.onnx"), "--device", "cpu,emulated", "--seconds"]
    arguments += ["0.05", "--samples", "9", "--build", "32x4x1", "--json", str(tmp_path / "a.json")]
    given = ["--input", str(tmp_path / "x.npz"), "--calibration", str(tmp_path / "x.npz")]
    for more in ([], given):
        assert main([*arguments, *more]) == 0
        record = Record.load(tmp_path / "a.json")
        assert {(e.name, e.scenario): e.samples for e in record.entries} == {
            (name, scenario): samples
            for name in ("cpu", "emulated")
            for scenario, samples in (("single-stream", 1), ("offline", 9))
        }
        assert all(e.same for e in record.entries)
    x = samples_for(load_subject(tmp_path / "cell.onnx", build="32x4x1").program, cell.given(), 9)
    around = np.arange(9) % 6
    np.testing.assert_array_equal(x["x"], cell.given()["x"][:, around])
    np.testing.assert_array_equal(x["n"], cell.given()["n"][around])


def test_nothing_to_measure(tmp_path: Path) -> None:
    x = QuantInput("x", "x", (8,), "int8", np.float32(1), 0)
    nothing = QuantModel("nothing", [x], [], [QuantOutput("y", "x", (8,), "int8")])
    pack(nothing, {}, load_build("8x32")).save(tmp_path / "p.npz")
    with pytest.raises(InputError, match="has no layers"):
        load_subject(tmp_path / "p.npz")


def test_options_are_checked_before_anything_runs() -> None:
    with pytest.raises(InputError, match="0 samples"):
        Options(samples=0)


HEAVY = ("onnx", "onnxruntime", "scipy", "torch", "tqdm", "threadpoolctl", "psutil")


def test_nothing_heavy_is_imported() -> None:
    """The command line starts without numpy."""
    code = (
        "import sys, pynq_bbs.cli; assert 'numpy' not in sys.modules\n"
        "import pynq_bbs.bench.run, pynq_bbs.bench.report_html, pynq_bbs.bench.compare\n"
        f"found = {{*{HEAVY}, 'pynq'}} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_board_has_numpy_only(digits: Program, tmp_path: Path) -> None:
    digits.save(tmp_path / "d.bbs.npz")
    arguments = ["bench", str(tmp_path / "d.bbs.npz"), "--device", "cpu,emulated", "--against"]
    arguments += ["onnxruntime,torch,scipy,numpy", "--seconds", "0.1", "--samples", "4"]
    arguments += ["--report", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json")]
    code = (
        "import sys\n"
        f"for name in {HEAVY}: sys.modules[name] = None\n"
        f"from pynq_bbs.cli import main; sys.exit(main({arguments}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    record = Record.load(tmp_path / "r.json")
    assert {e.name for e in record.entries if e.role == "peer"} == {"numpy float32"}
    assert [record.missing[name][:13] for name in ("onnxruntime", "torch", "scipy")] == [
        "not installed"
    ] * 3
    assert record.settings["threads of numpy's BLAS"] == "1 by OMP_NUM_THREADS"
