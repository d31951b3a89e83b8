# SPDX-License-Identifier: Apache-2.0
"""Products of two activation tensors, as attention needs them: one lies as the other's weights."""

from __future__ import annotations

import numpy as np
import pytest

from damage import damage, sums_of
from oracle import oracle_layer
from pynq_bbs.accelerator import Accelerator
from pynq_bbs.builds import load_build
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.device.engine import EngineProgram
from pynq_bbs.device.session import open_device
from pynq_bbs.errors import InputError, VerificationError
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput, Slice
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.image import pack
from pynq_bbs.report import PARTS

BUILD = load_build("8x32")
MEMORY = Memory(142.857e6, 1.5e9)


def layer(name: str, source: str, shape: tuple[int, int], weights_of: str = "") -> QuantLayer:
    rng = np.random.default_rng(len(name) + shape[0])
    weights = rng.integers(-128, 128, shape).astype(np.int8)
    return QuantLayer(
        name=name,
        input=source,
        output=name,
        weights=np.zeros_like(weights) if weights_of else weights,
        bias=rng.integers(-500, 500, shape[0]).astype(np.int32),
        input_zero_point=0,
        multiplier=np.full(shape[0], 40 / (75 * 75 * np.sqrt(shape[1])), np.float32),
        weight_tensor=weights_of,
    )


def attention(length: int, width: int, depth: int) -> QuantModel:
    """values = V x; scores = any (length, length) of x; context = scores' x values."""
    layers = [
        layer("values", "x", (depth, width)),
        layer("scores", "x", (length, width)),
        layer("context", "scores", (depth, length), "values"),
    ]
    x = QuantInput("x", "x", (width,), "int8", np.float32(1), 0)
    outputs = [QuantOutput(la.output, la.output, la.weights.shape[:1], "int8") for la in layers]
    return QuantModel("attention", [x], layers, outputs)


@pytest.mark.parametrize(
    ("length", "width", "depth"), [(32, 16, 8), (64, 40, 5), (128, 64, 64), (256, 24, 33)]
)
def test_product_of_tensors(length: int, width: int, depth: int) -> None:
    model = attention(length, width, depth)
    program = pack(model, {}, BUILD)
    x = np.random.default_rng(0).integers(-128, 128, (length, width)).astype(np.int8)
    with open_device("standin", BUILD, strict=True) as session:
        engine = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0))
        got = engine.run({"x": x}, ["values", "scores", "context"])[0]
        engine.close()
    known = {"x": x}
    for la in model.layers:
        if la.weight_tensor:
            la.weights = np.ascontiguousarray(known[la.weight_tensor].T)
        _, known[la.output] = oracle_layer(la, known[la.input])
    cpu = CpuDevice(program).run({"x": x})
    for name in ("values", "scores", "context"):
        np.testing.assert_array_equal(got[name], known[name], err_msg=name)
        np.testing.assert_array_equal(cpu[name], known[name], err_msg=name)
    assert len(np.unique(known["context"])) > 20


@pytest.mark.parametrize("verify", [True, False])
def test_products_in_the_background(verify: bool) -> None:
    """Each bank's values are the weights of its own product."""
    program = pack(attention(64, 40, 8), {}, BUILD)
    rng = np.random.default_rng(3)
    x = [rng.integers(-128, 128, (64, 40)).astype(np.int8) for _ in range(5)]
    with Accelerator(program, device="standin", verify=verify) as accelerator:
        futures = [accelerator.submit(own) for own in x]
        for future, own in zip(futures, x, strict=True):
            wanted = CpuDevice(program).run({"x": own})
            for name, y in future.result(60).items():
                np.testing.assert_array_equal(y, wanted[name])


def test_a_slice_as_weights() -> None:
    """Values and scores by one layer: the scores are read where they lie, the values are copied,
    because weights lie one after the other."""
    model = attention(64, 16, 8)
    values, scores, context = model.layers
    both = layer("both", "x", (8 + 64, 16))
    both.weights[:8], both.weights[8:] = values.weights, scores.weights
    both.bias[:8], both.bias[8:] = values.bias, scores.bias
    model.layers = [both, context]
    model.views = [Slice("both", "values", 0, (8,)), Slice("both", "scores", 8, (64,))]
    program = pack(model, {}, BUILD)
    assert [la.name for la in program.layers] == ["both", "values/0", "context"]
    x = np.random.default_rng(0).integers(-128, 128, (64, 16)).astype(np.int8)
    with Accelerator(program, device="standin", verify=True) as accelerator:
        got = accelerator.run(x)
    wanted = CpuDevice(pack(attention(64, 16, 8), {}, BUILD)).run({"x": x})
    for name, y in got.items():
        np.testing.assert_array_equal(y, wanted[name])


def test_other_columns_than_the_product_takes_are_refused() -> None:
    program = pack(attention(64, 16, 8), {}, BUILD)
    with open_device("standin", BUILD) as session:
        engine = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0))
        with pytest.raises(InputError, match="'context' multiplies by the 64 columns of 'values'"):
            engine.run({"x": np.zeros((32, 16), np.int8)}, ["context"])
        engine.close()


def test_what_a_product_cannot_be() -> None:
    with pytest.raises(InputError, match="'context': a product over 50 columns"):
        pack(attention(50, 16, 8), {}, BUILD)
    model = attention(64, 16, 8)
    model.layers[2].input_zero_point = 3
    with pytest.raises(InputError, match="zero point 3 of 'scores'"):
        pack(model, {}, BUILD)


def test_a_mismatch_names_row_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged bias: the sums of one sample need all samples, because they are the weights."""
    program = pack(attention(64, 16, 8), {}, BUILD)
    damage(monkeypatch, program.layers[2].parameters + 3, 1 << 12)
    x = np.random.default_rng(0).integers(-128, 128, (64, 16)).astype(np.int8)
    with Accelerator(program, device="standin", verify=True) as accelerator:
        with pytest.raises(VerificationError, match="layer 'context', row 3, column 0") as error:
            accelerator.run(x)
    device, reference = sums_of(error.value)
    assert abs(device - reference) == 1 << 12
