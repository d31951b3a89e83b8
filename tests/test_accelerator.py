# SPDX-License-Identifier: Apache-2.0
"""The user's interface: batches, verification, errors, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from damage import damage, sums_of
from layers import model_of, random_layer, random_window_layer
from oracle import oracle_model
from pynq_bbs import Accelerator, Program
from pynq_bbs import compile as compile_model
from pynq_bbs.builds import load_build
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.device.emulator import load_engine
from pynq_bbs.device.engine import MOST_IMAGES, EngineProgram
from pynq_bbs.device.session import describe, open_device
from pynq_bbs.errors import (
    BuildError,
    DeviceError,
    DeviceMemoryError,
    InputError,
    ProgramError,
    VerificationError,
)
from pynq_bbs.model.graph import QuantInput, QuantModel, QuantOutput, Window
from pynq_bbs.pack.image import pack

DEVICES = ["cpu", "standin", "emulated-pynq"]


def needs(device: str) -> str:
    """`device`, or a skip with the reason why it cannot be had here."""
    for available in describe():
        if available.kind == device and not available.available:
            pytest.skip(available.reason)
    return device


def two_headed() -> QuantModel:
    """in -> first -> (second, third): a branch, INT8, float and INT32 outputs."""
    rng = np.random.default_rng(0)
    first = random_layer(rng, 48, 64, 8, 8, kind="table")
    second = random_layer(rng, 10, 48, 8, 8, kind="sums")
    third = random_layer(rng, 6, 48, 8, 8)
    for layer, name, source, output in (
        (first, "first", "x", "h"), (second, "second", "h", "s"), (third, "third", "h", "t"),
    ):  # fmt: skip
        layer.name, layer.input, layer.output = name, source, output
    return QuantModel(
        "two-headed",
        [QuantInput("in", "x", (4, 16), "float32", np.float32(0.05), first.input_zero_point)],
        [first, second, third],
        [
            QuantOutput("sums", "s", (10,), "int32"),
            QuantOutput("real", "t", (6,), "float32", np.float32([0.25]), third.zero_point),
            QuantOutput("hidden", "h", (48,), "uint8"),
        ],
    )


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_model(two_headed())


def batch(columns: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(scale=3, size=(columns, 4, 16)).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("columns", [1, 31, 33, 700])
def test_outputs_are_the_oracles(program: Program, device: str, columns: int) -> None:
    x = batch(columns)
    expected = oracle_model(two_headed(), {"in": x})
    with Accelerator(program, needs(device), verify=device != "cpu") as accelerator:
        y = accelerator.run(x)
        assert accelerator.report().columns == columns
        if device != "cpu":
            assert accelerator.report().verified_columns == columns
    np.testing.assert_array_equal(y["sums"], expected["s"])
    zero_point = two_headed().layers[2].zero_point
    np.testing.assert_array_equal(y["real"], (expected["t"].astype(np.float32) - zero_point) / 4)
    np.testing.assert_array_equal(y["hidden"], expected["h"].astype(int) + 128)


def test_batches_of_changing_size(program: Program) -> None:
    """The memory block is used again, whatever came before."""
    with Accelerator(program, "standin") as accelerator:
        for columns in (3, 100, 1, 64, 600, 2):
            x = batch(columns, seed=columns)
            expected = oracle_model(two_headed(), {"in": x})
            np.testing.assert_array_equal(accelerator.run(x)["sums"], expected["s"])


def test_a_wrong_integer_is_named(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with Accelerator(program, "standin", verify=True) as accelerator:
        true_get = EngineProgram.get

        def one_bit_off(*arguments):  # type: ignore[no-untyped-def]
            results = true_get(*arguments)
            if "t" in results:
                results["t"][5, 3] ^= 1
            return results

        monkeypatch.setattr(EngineProgram, "get", one_bit_off)
        with pytest.raises(VerificationError) as error:
            accelerator.run(batch(40))
        reference = oracle_model(two_headed(), {"in": batch(40)})
        text = str(error.value)
        assert "layer 'third', row 3, column 5" in text
        right = int(reference["t"][5, 3])
        assert f"gave {right ^ 1}, the cpu device {right}" in text
        assert "1 of 240 outputs" in text
        monkeypatch.undo()
        accelerator.run(batch(40))  # and the next run works


def test_damaged_weights_show_both_sums(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(monkeypatch, program.layers[0].weights, 0x40)
    with (
        Accelerator(program, "standin", verify=True) as accelerator,
        pytest.raises(VerificationError, match=r"layer 'first', row 0, column \d+:") as caught,
    ):
        accelerator.run(batch(2))
    device, cpu = sums_of(caught.value)
    assert device != cpu


def test_a_damaged_table_shows_equal_sums(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in range(32):
        damage(monkeypatch, program.layers[0].table + word, 0x0101010101010101)
    with (
        Accelerator(program, "standin", verify=True) as accelerator,
        pytest.raises(VerificationError, match=r"layer 'first', row 0, column 0:") as caught,
    ):
        accelerator.run(batch(2))
    device, cpu = sums_of(caught.value)
    assert device == cpu


def test_weights_that_stay_are_loaded_once(program: Program) -> None:
    """Small programs keep their weights on chip, until another program has run."""
    with Accelerator(program, "standin") as accelerator:
        x = batch(20)
        expected = accelerator.run(x)["sums"]
        engine = accelerator._engine
        assert engine is not None
        first, last = program.layers[0], program.layers[-1]
        weights = slice(first.weights, last.weights + last.csb(program.build).weight_bytes // 8)
        words = np.asarray(engine._block)[weights].copy()
        np.asarray(engine._block)[first.weights] ^= np.uint64(0x4040404040404040)
        engine._block.flush()
        np.testing.assert_array_equal(accelerator.run(x)["sums"], expected)
        engine.sums(0, np.zeros((1, 64), np.int8))  # another program on the same engine
        assert (accelerator.run(x)["sums"] != expected).any()
        np.asarray(engine._block)[weights] = words
        engine._block.flush()
        engine.sums(0, np.zeros((1, 64), np.int8))
        np.testing.assert_array_equal(accelerator.run(x)["sums"], expected)


def test_batches_of_a_known_size_are_not_planned_again(
    program: Program, convolutions: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of any number are; their commands are those of one."""
    images = np.random.default_rng(9).integers(-128, 128, (70, 3, 9, 11)).astype(np.int8)
    with (
        Accelerator(program, "standin") as flat,
        Accelerator(convolutions, "standin", verify=True) as accelerator,
    ):
        wanted = [flat.run(batch(n))["sums"] for n in (3, 40, 3)]
        accelerator.run(images[:1]), accelerator.run(images[:1])
        monkeypatch.setattr("pynq_bbs.device.engine.make_plan", None)
        for n, sums in zip((3, 40, 3), wanted, strict=True):
            np.testing.assert_array_equal(flat.run(batch(n))["sums"], sums)
        for n in (70, 2, 1):
            accelerator.run(images[:n])
        assert accelerator.report().verified_columns == 75


SCALES = np.float32([0.5, 1, 0.25, 2, 4])  # of the rows of the second layer


@pytest.fixture(scope="module")
def convolutions() -> Program:
    """x -> a table -> stride 2, images in and out; an input of zeros hides every weight."""
    rng = np.random.default_rng(7)
    first = random_window_layer(rng, Window(3, 9, 11, (3, 3), pads=(1, 1, 1, 1)), 6, 1, "table")
    second = random_window_layer(rng, Window(6, 9, 11, (3, 3), (2, 2)), 5, 1, "plain")
    first = replace(first, name="first", output="h", input_zero_point=0)
    second = replace(second, name="second", input="h")
    program = pack(model_of([first, second], (3, 9, 11)), {}, load_build("8x32"))
    program.outputs = [
        QuantOutput("hidden", "h", (6, 9, 11), "uint8"),
        QuantOutput("real", "y", (5, 4, 5), "float32", SCALES, 9),
    ]
    return program


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_mismatch_in_a_convolution_names_its_pixel(
    convolutions: Program, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Samples go in pieces; what differs first lies beyond the first one."""
    index, row = ["first", "second"].index(name), 3
    layer = convolutions.layers[index]
    row_words = layer.csb(convolutions.build).weight_row_bytes(layer.groups_per_pass) // 8
    word = layer.weights + row * row_words + 2
    image = convolutions.image.copy()
    image[word] ^= np.uint64(0x4000)
    wrong = replace(convolutions, image=image)
    x = np.zeros((MOST_IMAGES + 9, 3, 9, 11), np.int8)
    x[-5:] = np.random.default_rng(8).integers(-128, 128, x[-5:].shape)
    flat = {"x": x.reshape(len(x), -1)}
    tensor = convolutions.tensors[layer.output]
    good, bad = (
        CpuDevice(p).run(flat)[layer.output].reshape(len(x), tensor.features, tensor.pixels)
        for p in (convolutions, wrong)
    )
    differing = np.argwhere(good != bad)
    if name == "first":
        assert differing[0, 0] == MOST_IMAGES + 4
    else:  # the first layer's outputs for zeros are none
        differing = differing[differing[:, 0] == differing[0, 0]]
    sample, found_row, pixel = differing[0]
    assert found_row == row

    damage(monkeypatch, word, 0x4000)
    with (
        Accelerator(convolutions, "standin", verify=True) as accelerator,
        pytest.raises(VerificationError) as caught,
    ):
        accelerator.run(x)
    text = str(caught.value)
    assert f"layer '{name}', row {row}, column {pixel} of sample {sample}: " in text
    right, found = int(good[tuple(differing[0])]), int(bad[tuple(differing[0])])
    assert f"the device gave {found}, the cpu device {right} " in text
    device, cpu = sums_of(caught.value)
    assert device != cpu


@pytest.mark.parametrize(("channels", "parts", "row"), [(65, 1, 64), (48, 3, 37)])
def test_a_mismatch_in_a_part_of_the_channels(
    monkeypatch: pytest.MonkeyPatch, channels: int, parts: int, row: int
) -> None:
    """An odd number of channels is one part, whose last row group is filled up with zeros."""
    window = Window(channels, 5, 6, (3, 3), pads=(1, 1, 1, 1))
    layer = random_window_layer(np.random.default_rng(11), window, channels, channels, "plain")
    build = load_build(str(Path(__file__).parent / "builds" / "16x2x16.json"))
    program = pack(model_of([layer], (channels, 5, 6)), {}, build)
    (packed,) = program.layers
    assert packed.parts == parts and packed.rows == channels + channels % 2
    damage(monkeypatch, packed.parameters + row, 1 << 12)
    x = np.random.default_rng(12).integers(-128, 128, (2, channels, 5, 6)).astype(np.int8)
    with (
        Accelerator(program, "standin", verify=True) as accelerator,
        pytest.raises(VerificationError, match=rf"layer 'layer', row {row}, column \d+") as caught,
    ):
        accelerator.run(x)
    device, cpu = sums_of(caught.value)
    assert abs(device - cpu) == 1 << 12


def test_a_mismatch_where_channels_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image memory holds a tile's rows of 19 channels; the last piece begins at the 54th."""
    window = Window(65, 4, 200, (3, 3), pads=(1, 1, 1, 1))
    layer = random_window_layer(np.random.default_rng(11), window, 65, 65, "plain")
    build = load_build(str(Path(__file__).parent / "builds" / "16x2x16.json"))
    program = pack(model_of([layer], (65, 4, 200)), {}, build)
    pieces = [(piece.first_row, piece.rows) for piece in program.layers]
    assert pieces == [(0, 18), (18, 18), (36, 18), (54, 12)]
    damage(monkeypatch, program.layers[3].parameters + 10, 1 << 12)
    x = np.random.default_rng(12).integers(-128, 128, (2, 65, 4, 200)).astype(np.int8)
    with (
        Accelerator(program, "standin", verify=True) as accelerator,
        pytest.raises(VerificationError, match=r"layer 'layer:54', row 10, column") as caught,
    ):
        accelerator.run(x)
    device, cpu = sums_of(caught.value)
    assert abs(device - cpu) == 1 << 12


@pytest.mark.parametrize("device", DEVICES)
def test_images_in_and_out(convolutions: Program, device: str) -> None:
    x = np.random.default_rng(9).integers(-128, 128, (70, 3, 9, 11)).astype(np.int8)
    with Accelerator(convolutions, needs(device), verify=device != "cpu") as accelerator:
        y = accelerator.run(x)
        report = accelerator.report()
    reference = CpuDevice(convolutions).run({"x": x.reshape(70, -1)})
    h, t = (reference[name].astype(int) for name in ("h", "y"))
    np.testing.assert_array_equal(y["hidden"], h.reshape(70, 6, 9, 11) + 128)
    expected = (t.reshape(70, 5, 4, 5) - 9) * SCALES[:, None, None]
    np.testing.assert_array_equal(y["real"], expected)
    if device != "cpu":
        assert report.verified_columns == report.columns == 70
        products = 70 * (6 * 27 * 99 + 5 * 54 * 20)
        assert report.dense_equivalent_gops == pytest.approx(
            2e-9 * products / report.modelled_seconds
        )


def test_memory_that_only_holds_small_batches(program: Program) -> None:
    """Less memory: smaller pieces, the same result; hardly any: an error."""
    x = batch(300)
    with Accelerator(program, "standin", memory_bytes=64 << 10) as accelerator:
        y = accelerator.run(x)
    np.testing.assert_array_equal(y["sums"], oracle_model(two_headed(), {"in": x})["s"])
    with (
        Accelerator(program, "standin", memory_bytes=8 << 10) as accelerator,
        pytest.raises(DeviceMemoryError),
    ):
        accelerator.run(x)


def test_program_of_another_build(program: Program) -> None:
    other = replace(program.build, block_words=program.build.block_words * 2)
    with pytest.raises(BuildError, match="block_words"):
        open_device("standin", other, engine=load_engine(program.build))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.zeros((3, 4, 15), np.float32), r"\(3, 4, 15\)"),
        (np.zeros((4, 16), np.float32), "in"),
        (np.full((2, 4, 16), np.nan, np.float32), "in"),
        (np.array(["a"]), "in"),
        ({"other": np.zeros((1, 4, 16))}, "the model takes exactly: in"),
        ({}, "given inputs: none"),
        (np.zeros((0, 4, 16), np.float32), "in"),
    ],
)
def test_bad_inputs(program: Program, x: object, text: str) -> None:
    with Accelerator(program, "standin") as accelerator:
        with pytest.raises(InputError, match=text):
            accelerator.run(x)
        accelerator.run(batch(2))  # the next run works


def test_verify_on_cpu_makes_no_sense(program: Program) -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        Accelerator(program, "cpu", verify=True)


def test_unknown_device(program: Program) -> None:
    with pytest.raises(InputError, match="unknown device"):
        Accelerator(program, "fpga")


def test_ctrl_c_leaves_nothing_behind(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with Accelerator(program, "standin") as accelerator:
        driver = accelerator._engine._session.driver  # type: ignore[union-attr]

        def interrupt(timeout: float) -> bool:
            monkeypatch.undo()  # once: a second Ctrl-C would not wait for the engine
            raise KeyboardInterrupt

        monkeypatch.setattr(driver, "_poll", interrupt)
        with pytest.raises(KeyboardInterrupt):
            accelerator.run(batch(10))
        x = batch(10)
        expected = oracle_model(two_headed(), {"in": x})
        np.testing.assert_array_equal(accelerator.run(x)["sums"], expected["s"])


def test_refused_command_names_the_layer(program: Program) -> None:
    layers = [program.layers[0], replace(program.layers[1], keep=2), program.layers[2]]
    broken = replace(program, layers=layers)
    with (
        Accelerator(broken, "standin") as accelerator,
        pytest.raises(DeviceError, match=r"command 1 of 3, layer 'second': status 3 \(bad_bank\)"),
    ):
        accelerator.run(batch(1))


def test_image_shorter_than_its_layers(program: Program) -> None:
    with pytest.raises(ProgramError, match="reaches outside"):
        Accelerator(replace(program, image=program.image[:50]), "cpu")


def test_report_prints_itself(program: Program) -> None:
    with Accelerator(program, "standin", verify=True) as accelerator:
        accelerator.run(batch(5))
        text = repr(accelerator.report())
    assert "5 columns in 1 runs, 5 verified bit-exact" in text
    assert "bytes of memory: weights and tables" in text
    assert "first" in text and "modelled for build 8x32 on Pynq-Z2" in text


def test_two_devices_at_once(program: Program) -> None:
    first = Accelerator(program, "standin")
    second = Accelerator(program, "standin")
    with first, second:
        x = batch(9)
        np.testing.assert_array_equal(first.run(x)["sums"], second.run(x)["sums"])
