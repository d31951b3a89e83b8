# SPDX-License-Identifier: Apache-2.0
"""Quantisation-aware training against the programs that come of it, where torch is there."""

from __future__ import annotations

import numpy as np
import pytest

from pynq_bbs import Accelerator
from pynq_bbs import compile as compile_model
from pynq_bbs.compress.patterns import parse_pattern
from pynq_bbs.errors import InputError

torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
train = pytest.importorskip("pynq_bbs.train")
Linear, ReLU, Sequential = torch.nn.Linear, torch.nn.ReLU, torch.nn.Sequential


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_the_program_bit_for_bit(bits, bias):
    torch.manual_seed(bits)
    first, second, last = Linear(32, 48, bias), Linear(48, 24, bias), Linear(24, 5, bias)
    network = Sequential(first, ReLU(), second, ReLU(), last)
    x, y = torch.randn(200, 32), torch.randint(5, (200,))
    quantised = train.QuantisedNetwork(network, x[:100], weight_bits=bits)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    pruning = train.Pruning(
        {"0": network[0].weight}, lambda s: parse_pattern("banks:16", s), optimizer,
        train.CubicSchedule(0.5),
    )  # fmt: skip
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(quantised(x), y)
        loss.backward()
        optimizer.step()
        pruning.on_step_end()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    # beyond the range of the calibration too
    test = torch.cat([x, 3 * torch.randn(100, 32)])
    program = compile_model(quantised.to_model())
    made = Accelerator(program, device="cpu").run(test.numpy())
    expected = quantised(test).detach().numpy()
    np.testing.assert_array_equal(made, expected)
    assert len(np.unique(expected)) > 100


def test_saturated_values_have_no_gradient():
    network = Sequential(Linear(4, 3))
    quantised = train.QuantisedNetwork(network, torch.linspace(-1, 1, 40).reshape(10, 4))
    x = torch.tensor([[0.5, 9.0, -9.0, 0.0]], requires_grad=True)
    quantised(x).sum().backward()
    assert x.grad[0, [0, 3]].all() and not x.grad[0, [1, 2]].any()


def test_other_networks_are_refused():
    x = torch.zeros(1, 4)
    for layers in ([Linear(4, 3), ReLU()], [Linear(4, 3), torch.nn.Tanh(), Linear(3, 2)], []):
        with pytest.raises(InputError, match="Linear at the end"):
            train.QuantisedNetwork(Sequential(*layers), x)
    with pytest.raises(InputError, match="weight_bits is 3"):
        train.QuantisedNetwork(Sequential(Linear(4, 3)), x, weight_bits=3)
