# SPDX-License-Identifier: Apache-2.0
"""The `bbs` command as users meet it: what it prints, writes, and exits with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from layers import a_network
from oracle import oracle_model, run_onnxruntime, shared_file
from pynq_bbs.builds import load_build
from pynq_bbs.cli import main
from pynq_bbs.model.onnx_import import load_onnx
from pynq_bbs.pack.image import pack
from test_pipeline import a_pipeline, batch, expected

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "x.npy"
    np.save(path, np.random.default_rng(0).random((300, 64), np.float32))
    return path


@pytest.fixture(scope="module")
def program(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "digits.bbs.npz"
    layers = path.with_name("layers.toml")
    layers.write_text('["*"]\nsparsity = 0.75\n', "utf-8")
    arguments = ["--layers", str(layers), "--calibration", str(samples), "-o", str(path)]
    assert main(["compile", str(DIGITS), *arguments]) == 0
    return path


@pytest.mark.parametrize("device", ["cpu", "standin"])
def test_compile_and_run(
    program: Path, samples: Path, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "y.npy"
    verify = ["--verify"] if device != "cpu" else []
    arguments = ["--input", str(samples), "--device", device, "-o", str(out), *verify]
    assert main(["run", str(program), *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"{'300' if verify else '0'} verified bit-exact" in printed
    assert "scores float32 (300, 10)" in printed
    assert np.load(out).shape == (300, 10)


def test_four_bits(samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half the bytes for the weights, and still the same integers on both devices."""
    out = tmp_path / "p.bbs.npz"
    arguments = ["--weight-bits", "4", "--calibration", str(samples), "-o", str(out)]
    assert main(["compile", str(DIGITS), *arguments]) == 0
    assert " 42240 bytes" in capsys.readouterr().out  # 84480 at 8 bits
    assert main(["run", str(out), "--input", str(samples), "--verify"]) == 0
    assert "300 verified bit-exact" in capsys.readouterr().out


def test_devices_give_the_same_file(program: Path, samples: Path, tmp_path: Path) -> None:
    for device in ("cpu", "standin"):
        out = str(tmp_path / f"{device}.npy")
        arguments = ["--input", str(samples), "--device", device, "-o", out]
        assert main(["run", str(program), *arguments]) == 0
    assert (tmp_path / "cpu.npy").read_bytes() == (tmp_path / "standin.npy").read_bytes()


def test_autoencoder_made_by_others(tmp_path: Path) -> None:
    """MLPerf Tiny's quantised autoencoder: the oracle's integers, through the command line."""
    model = shared_file("models", "mlperf-tiny", "ad_int8.onnx")
    x = np.random.default_rng(1).integers(-128, 128, (70, 640)).astype(np.int8)
    np.save(tmp_path / "x.npy", x)
    paths = [str(tmp_path / name) for name in ("p.bbs.npz", "x.npy", "y.npy")]
    assert main(["compile", str(model), "-o", paths[0]]) == 0
    assert main(["run", paths[0], "--input", paths[1], "--verify", "-o", paths[2]]) == 0
    loaded = load_onnx(model)
    expected = oracle_model(loaded, {loaded.inputs[0].name: x})[loaded.outputs[0].tensor]
    np.testing.assert_array_equal(np.load(paths[2]), expected)


def test_float_autoencoder_stays_close(tmp_path: Path) -> None:
    model = shared_file("models", "mlperf-tiny", "ad_float.onnx")
    x = np.random.default_rng(2).normal(size=(200, 640)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    paths = [str(tmp_path / name) for name in ("p.bbs.npz", "x.npy", "y.npy")]
    assert main(["compile", str(model), "--calibration", paths[1], "-o", paths[0]]) == 0
    assert main(["run", paths[0], "--input", paths[1], "--verify", "-o", paths[2]]) == 0
    (expected,) = run_onnxruntime(model, {"input_1": x})
    error = np.linalg.norm(np.load(paths[2]) - expected) / np.linalg.norm(expected)
    assert error < 0.1


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(DIGITS)]) == 0
    printed = capsys.readouterr().out
    line = printed.split("\n")[2].split()
    assert line == ["sums1", "Gemm", "engine", "19.4", "%", "linear", "layer"]
    assert "fused with the layer before it" in printed
    assert printed.endswith(
        "100.0 % of 84480 MACs on the engine, in 1 program: 2 crossings between host and engine\n"
    )


def test_check_of_a_program(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(program)]) == 0
    printed = capsys.readouterr().out
    line = printed.split("\n")[2].split()
    assert line[:5] == ["sums1", "layer", "engine", "19.4", "%"]
    assert "84480 MACs, 1 program(s): 2 crossings" in printed


def test_info(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(program)]) == 0
    printed = capsys.readouterr().out
    assert "75.0 % sparse" in printed
    assert "input pixels: float32 (N, 64)" in printed
    assert "256 x 64" in printed


def test_info_of_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a layer: what its windows are, how many pixels come out, what is added."""
    pack(a_network(), {"first": (4, 1)}, load_build("8x32")).save(tmp_path / "p")
    assert main(["info", str(tmp_path / "p")]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = {name: " ".join(rest) for name, *rest in map(str.split, printed)}
    assert "3 x 3 stride 1 dilation 2 9 x 7 INT8, table" in lines["first"]
    assert lines["second"].endswith("1/15 8 4 1 3 x 3 stride 1 in 20 parts 9 x 7 INT8 + first")
    assert "2 x 2 max stride 2 in 20 parts 4 x 3 INT8" in lines["third"]
    assert "all pixels - INT8" in lines["fourth"]
    assert lines["fifth"].startswith("10 x 300") and lines["fifth"].endswith("- - INT32 sums")


def test_boards(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boards"]) == 0
    assert "Pynq-Z2" in capsys.readouterr().out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "ok  self-test, emulated and verified: bit-exact" in capsys.readouterr().out


def test_doctor_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["doctor"]) == 1
    assert "--  C++ compiler: CXX is 'no-such-compiler'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["compile", "missing.onnx"], 4, "missing.onnx"),
        (["compile", str(DIGITS)], 3, "needs calibration samples"),
        (["compile", str(DIGITS), "--calibration", "SAMPLES", "--sparsity", "0.999"], 3, "0.999"),
        (["compile", str(DIGITS), "--calibration", "SAMPLES", "--build", "9x9"], 7, "8x32"),
        (["compile", str(DIGITS), "--calibration", "missing.npy"], 3, "no file"),
        (["compile", str(DIGITS), "--calibration", str(DIGITS)], 3, "not an .npy"),
        (["compile", str(DIGITS), "--calibration", "SAMPLES", "-o", "/no/p"], 3, "cannot write"),
        (["run", "missing.bbs.npz", "--input", "SAMPLES"], 6, "no program file"),
        (["run", "SAMPLES", "--input", "SAMPLES"], 6, "not a program file"),
        (["run", "PROGRAM", "--input", "SAMPLES", "--board", "Z9"], 7, "known boards"),
        (["run", "PROGRAM", "--input", "WRONG"], 3, r"(5, 63)"),
        (["run", "PROGRAM", "--input", "SAMPLES", "--device", "board"], 9, "no board"),
        (["run", "PROGRAM", "--input", "SAMPLES", "--attach"], 3, "attach is for a board"),
        (["compile", str(DIGITS), "--calibration", "SAMPLES", "--board", "Z9"], 7, "known boards"),
        (["check", "SAMPLES"], 4, ""),
        (["info", "SAMPLES"], 6, "not a program file"),
    ],
)
def test_errors(
    arguments: list[str],
    code: int,
    text: str,
    program: Path,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An exit code for each cause, one message without a traceback, nothing half written."""
    monkeypatch.delenv("XILINX_XRT", raising=False)
    np.save(tmp_path / "wrong.npy", np.zeros((5, 63), np.float32))
    names = {"SAMPLES": samples, "PROGRAM": program, "WRONG": tmp_path / "wrong.npy"}
    monkeypatch.chdir(tmp_path)
    assert main([str(names.get(a, a)) for a in arguments]) == code
    message = capsys.readouterr().err
    assert message.startswith(f"bbs {arguments[0]}: ") and text in message
    assert [p.name for p in tmp_path.iterdir()] == ["wrong.npy"]


def test_wrong_usage() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run"])
    assert stopped.value.code == 2


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pynq_bbs.cli", *arguments]


def test_help_teaches_and_starts_fast() -> None:
    """No array library is imported to print help."""
    code = "import sys, pynq_bbs.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('numpy', 'onnx', 'cffi') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "examples:" in result.stdout and "exit codes:" in result.stdout
    assert result.stdout.rstrip().endswith("[]")


def test_reader_that_stops_early() -> None:
    """`bbs boards | true` is no reason for a traceback."""
    process = subprocess.Popen(command("boards"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() in (0, 141)


def test_ctrl_c(program: Path, tmp_path: Path) -> None:
    """Interrupted in the middle of a long run: no traceback, no output file, exit code 130."""
    # A sparse file: half a gigabyte of zeros that take no room.
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (2_000_000, 64))
    arguments = ["run", str(program), "--input", str(tmp_path / "x.npy"), "--device", "standin"]
    process = subprocess.Popen(
        command(*arguments, "-o", str(tmp_path / "y.npy")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    time.sleep(3)
    assert process.poll() is None, "the run was too short to interrupt"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.decode().strip().splitlines()[-1] == "bbs run: interrupted"
    assert b"Traceback" not in errors
    assert not (tmp_path / "y.npy").exists()


def test_demo() -> None:
    """The demo runs, verifies every column, and fine-tuning brings the accuracy back."""
    pytest.importorskip("sklearn")
    script = DIGITS.with_name("demo.py")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True
    )
    rows = [line for line in result.stdout.splitlines() if line.endswith("360 of 360")]
    assert len(rows) == 5
    assert "87.5 % fine-tuned" in rows[4]
    accuracy = float(rows[4].split()[3].rstrip("%"))
    assert accuracy >= 96


def test_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of several programs is run, described and planned as one of a single program."""
    a_pipeline().save(tmp_path / "p.bbs.npz")
    np.save(tmp_path / "x.npy", batch(9))
    path, out = str(tmp_path / "p.bbs.npz"), tmp_path / "y.npz"
    arguments = ["--input", str(tmp_path / "x.npy"), "--verify", "-o", str(out)]
    assert main(["run", path, *arguments]) == 0
    assert "9 verified bit-exact" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(out)["out"], expected(batch(9)))
    assert main(["info", path]) == 0
    printed = capsys.readouterr().out
    assert "input in: float32 (N, 5, 16)" in printed
    assert "program in -> a, 5 samples of its own for each:" in printed
    assert "host Tanh n_c: c" in printed
    assert "10 x 120" in printed
    assert main(["plan", path, "--samples", "2"]) == 0
    printed = capsys.readouterr().out
    assert "layer " in printed and "second " in printed
    assert "ms for 2 samples" in printed


def test_sequences_have_their_batch_where_the_file_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3000 samples are two pieces along axis 1 of (steps, N, features)."""
    model = Path(__file__).parent / "models" / "gru2-states-script.onnx"
    program, out = tmp_path / "p.bbs.npz", tmp_path / "y.npz"
    rng = np.random.default_rng(0)
    arrays = {
        "x0": rng.standard_normal((6, 3000, 5)).astype(np.float32),
        "x1": rng.uniform(-1, 1, (2, 3000, 8)).astype(np.float32),
    }
    np.savez(tmp_path / "x.npz", **arrays)
    given = ["--calibration", str(tmp_path / "x.npz"), "--build", "32x4x1"]
    assert main(["compile", str(model), *given, "-o", str(program)]) == 0
    given = ["--input", str(tmp_path / "x.npz"), "--device", "cpu", "-o", str(out)]
    assert main(["run", str(program), *given]) == 0
    wanted = run_onnxruntime(model, arrays, optimise=False)
    with np.load(out) as made:
        assert len(made.files) == 2
        for name, want in zip(made.files, wanted, strict=True):
            assert made[name].shape == want.shape
            assert np.abs(made[name] - want).max() < 0.06
    capsys.readouterr()
    assert main(["info", str(program)]) == 0
    printed = capsys.readouterr().out
    assert "input x0: float32 (6, N, 5)" in printed
    assert printed.count("output ") == 2 and "float32 (2, N, 8)" in printed
