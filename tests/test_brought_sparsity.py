# SPDX-License-Identifier: Apache-2.0
"""Zeros that a model's weights have when it comes: found, packed in their banks, no bit changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layers import random_layer, random_window_layer
from oracle import oracle_layer, oracle_window
from pynq_bbs import Accelerator, compile, load_build
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput, Window
from pynq_bbs.pack.banks import bank_of
from pynq_bbs.pack.csb import unpack_csb
from pynq_bbs.pack.image import pack


def of_one(layer: QuantLayer, shape: tuple[int, ...]) -> QuantModel:
    x = QuantInput(layer.input, layer.input, shape, "int8", np.float32(1), 0, tensor_shape=shape)
    return QuantModel(
        "one", [x], [layer], [QuantOutput("y", layer.output, (len(layer.weights),), "int8")]
    )


def a_mask(
    rng: np.random.Generator, shape: tuple[int, ...], size: int, keep: int
) -> NDArray[np.bool_]:
    """Just `keep` of every bank along the last axis, anywhere in it."""
    banks = rng.random((*shape[:-1], -(-shape[-1] // size), size))
    mask = banks.argsort(axis=-1).argsort(axis=-1) < keep
    return mask.reshape(*shape[:-1], -1)[..., : shape[-1]]


@given(
    seed=st.integers(0, 2**32),
    build=st.sampled_from(["8x32", "16x32", "32x4x1"]),
    bank=st.integers(2, 80).flatmap(lambda s: st.tuples(st.just(s), st.integers(1, s - 1))),
    groups=st.integers(1, 2),
    weight_bits=st.sampled_from([8, 4]),
)
@settings(max_examples=40, deadline=None)
def test_any_pattern_is_found(seed, build, bank, groups, weight_bits):
    """Where it fills the lanes, the pattern's own bank: there is none with less work."""
    rng, (size, keep), target = np.random.default_rng(seed), bank, load_build(build)
    if size < target.pack or not target.takes_bank(size):
        return
    features = target.lanes * size * groups
    layer = random_layer(rng, 24, features, features, features, weight_bits=weight_bits)
    mask = a_mask(rng, layer.weights.shape, size, keep)
    layer.weights = (np.where(layer.weights == 0, 1, layer.weights) * mask).astype(np.int8)
    model = of_one(layer, (features,))
    program = compile(model, build=target, weight_bits=weight_bits)
    (packed,) = program.layers
    index_bits = 4 if size <= 16 else 6 if size <= 64 else 8
    worth_it = keep * (weight_bits + index_bits) < size * weight_bits
    if worth_it:
        assert (packed.bank_size, packed.keep) == bank
        given_banks = pack(replace(model, layers=[layer]), {layer.name: bank}, target)
        np.testing.assert_array_equal(program.image, given_banks.image)
    else:
        assert packed.keep == packed.bank_size
    x = rng.integers(-128, 128, (5, features)).astype(np.int8)
    np.testing.assert_array_equal(
        CpuDevice(program).run({layer.input: x})[layer.output], oracle_layer(layer, x)[1]
    )


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 9),
    features=st.integers(1, 200),
    density=st.floats(0, 1),
    build=st.sampled_from(["8x32", "32x4x1"]),
)
@settings(max_examples=60, deadline=None)
def test_no_weight_is_lost(seed, rows, features, density, build):
    """Zeros anywhere: what is packed unpacks to the weights as they were."""
    rng, target = np.random.default_rng(seed), load_build(build)
    weights = rng.integers(-128, 128, (rows, features)).astype(np.int8)
    weights *= rng.random(weights.shape) < density
    size, keep = bank_of(weights, target)
    layer = random_layer(rng, rows, features, 1, 1)
    layer.weights = weights
    program = compile(of_one(layer, (features,)), build=target)
    (packed,) = program.layers
    assert (packed.bank_size, packed.keep) == (size, keep)
    shape = packed.csb(target)
    values, columns = unpack_csb(
        program.image[packed.weights :], program.image[packed.indices :], shape
    )
    unpacked = np.zeros((packed.rows, features), np.int64)
    np.add.at(unpacked, (np.arange(packed.rows)[:, None], columns), values)
    np.testing.assert_array_equal(unpacked[:rows], weights)


@given(
    seed=st.integers(0, 2**32),
    blocks=st.integers(1, 4),
    bank=st.sampled_from([(4, 2), (4, 1), (8, 2), (16, 3), (5, 1)]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
@settings(max_examples=25, deadline=None)
def test_patterns_along_the_channels_of_a_tap(seed, blocks, bank, kernel):
    rng, (size, keep) = np.random.default_rng(seed), bank
    window = Window(size * blocks, 5, 6, kernel, pads=(1, 0, 0, 1))
    layer = random_window_layer(rng, window, 8, 1, "plain")
    mask = a_mask(rng, (8, *kernel, window.channels), size, keep)
    layer.weights = layer.weights * mask.transpose(0, 3, 1, 2).astype(np.int8)
    program = compile(of_one(layer, (window.channels, 5, 6)))
    (packed,) = program.layers
    if (kernel[0] * kernel[1] * blocks) % 8 == 0:  # banks fill the lanes
        assert packed.keep / packed.bank_size <= keep / size
    x = rng.integers(-128, 128, (2, window.channels * 30)).astype(np.int8)
    wanted = oracle_window(layer, x.reshape(2, window.channels, 5, 6))
    np.testing.assert_array_equal(
        CpuDevice(program).run({layer.input: x})[layer.output], wanted.reshape(2, -1)
    )


def test_runs_on_the_engine() -> None:
    rng = np.random.default_rng(0)
    layer = random_layer(rng, 40, 256, 4, 2)
    program = compile(of_one(layer, (256,)))
    assert (program.layers[0].bank_size, program.layers[0].keep) == (4, 2)
    x = rng.integers(-128, 128, (33, 256)).astype(np.int8)
    with Accelerator(program, device="standin", verify=True) as accelerator:
        np.testing.assert_array_equal(accelerator.run(x), oracle_layer(layer, x)[1])


@pytest.mark.parametrize("density", [0.7, 1.0])
def test_mostly_full_layers_stay_dense(density: float) -> None:
    """Indices would take more memory than the zeros that they leave out."""
    rng = np.random.default_rng(1)
    layer = random_layer(rng, 16, 512, 1, 1)
    layer.weights *= rng.random(layer.weights.shape) < density
    (packed,) = compile(of_one(layer, (512,))).layers
    assert packed.keep == packed.bank_size


def test_a_large_layer_takes_no_time() -> None:
    """ResNet-18's largest: 2.4 million weights, in every bank size."""
    import time

    rng = np.random.default_rng(2)
    weights = rng.integers(1, 128, (512, 9, 512)).astype(np.int8)
    weights *= a_mask(rng, weights.shape, 8, 2)
    start = time.perf_counter()
    assert bank_of(weights, load_build("8x32")) == (8, 2)
    assert time.perf_counter() - start < 5
