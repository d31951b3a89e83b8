# SPDX-License-Identifier: Apache-2.0
"""Quantisation-aware training: forward in the engine's integers, gradients straight through.

What the network gives while it trains is, to the last bit, what the program compiled from
`to_model` gives (docs/arithmetic.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..compress.calibrate import make_observer
from ..compress.quantize import quantise_weights_of
from ..errors import InputError
from ..model.arithmetic import Scale, integer_bias, multiplier, sum_scale
from ..model.graph import Layer, QuantInput, QuantLayer, QuantModel, QuantOutput


class QuantisedNetwork(torch.nn.Module):  # type: ignore[misc]
    """A `Sequential` of Linear, each but the last with a ReLU behind it, in integers.

    It trains the network's own parameters: optimiser, `Pruning` and checkpoints stay with that.
    Scales of activations are those of the calibration samples and stay fixed; weights are
    quantised anew in every step, each row by its largest.

    Args:
        network: trained in float already.
        calibration: samples (N, features).
        method: how ranges are chosen, see `make_observer`.
        weight_bits: 8 or 4.

    Raises:
        InputError: other modules or an order other than that, or `weight_bits` is neither.
    """

    def __init__(
        self,
        network: torch.nn.Sequential,
        calibration: torch.Tensor,
        *,
        method: str = "minmax",
        weight_bits: int = 8,
    ) -> None:
        super().__init__()
        layers = list(network)
        kinds = [torch.nn.ReLU if i % 2 else torch.nn.Linear for i in range(len(layers))]
        if len(layers) % 2 == 0 or [type(layer) for layer in layers] != kinds:
            raise InputError("network must be Linear, ReLU, Linear and so on, a Linear at the end.")
        if weight_bits not in (4, 8):
            raise InputError(f"weight_bits is {weight_bits}, must be 4 or 8.")
        self.network, self.weight_bits = network, weight_bits
        self.linears = layers[::2]
        self.scales: list[Scale] = []
        with torch.no_grad():
            for i in range(0, len(layers), 2):
                observer = make_observer(method)
                observer.update(network[:i](calibration).cpu().numpy())
                self.scales.append(observer.quantisation())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, features) to float (N, outputs), dequantised."""
        x = _fake(x, *self.scales[0])
        for number in range(len(self.linears)):
            x = self._layer(number, x)
        return x

    def to_model(self, name: str = "network") -> QuantModel:
        """What it computes, for `compile`."""
        made = []
        for number in range(len(self.linears)):
            weights, w_scale, bias = self._integers(number)
            requantised = number + 1 < len(self.linears)
            y = self.scales[number + 1] if requantised else (np.float32(1), 0)
            x_scale, x_zero = self.scales[number]
            multipliers = multiplier(x_scale, w_scale, y[0]) if requantised else None
            made.append(
                QuantLayer(
                    f"linear{number}", f"x{number}", f"x{number + 1}", weights, bias, x_zero,
                    multipliers, y[1], weight_bits=self.weight_bits,
                )
            )  # fmt: skip
        last, features = self.linears[-1], self.linears[0].in_features
        return QuantModel(
            name,
            [QuantInput("x", "x0", (features,), "float32", *self.scales[0])],
            made,
            [
                QuantOutput(
                    "y", made[-1].output, (last.out_features,), "float32",
                    sum_scale(self.scales[-1][0], w_scale),
                )
            ],
        )  # fmt: skip

    def _integers(self, number: int) -> tuple[Any, Any, Any]:
        """Weights INT8 (M, K), their scales (M,), bias INT32 (M,)."""
        linear, x_scale = self.linears[number], self.scales[number][0]
        weights = linear.weight.detach().cpu().numpy()
        bias = np.zeros(len(weights), np.float32)
        if linear.bias is not None:
            bias = linear.bias.detach().cpu().numpy()
        layer = Layer(f"linear{number}", "", "", weights, bias)
        integers, w_scale = quantise_weights_of(layer, self.weight_bits, x_scale)
        return integers, w_scale, integer_bias(bias, sum_scale(x_scale, w_scale))

    def _layer(self, number: int, x: torch.Tensor) -> torch.Tensor:
        linear, x_scale = self.linears[number], self.scales[number][0]
        integers, w_scale, bias = self._integers(number)
        fake = torch.from_numpy(integers * w_scale[:, None]).to(x.device)
        y = functional.linear(x, _straight(linear.weight, fake), linear.bias)
        with torch.no_grad():
            # Sums below 2^31 are exact in float64.
            steps = torch.round(x / float(x_scale)).double()
            weights = torch.from_numpy(integers).to(x.device).double()
            sums = (steps @ weights.T + torch.from_numpy(bias).to(x.device)).float()
        if number + 1 == len(self.linears):
            scale = torch.from_numpy(sum_scale(x_scale, w_scale)).to(x.device)
            return _straight(y, sums * scale)
        y_scale, y_zero = self.scales[number + 1]
        factors = torch.from_numpy(multiplier(x_scale, w_scale, y_scale)).to(x.device)
        steps = torch.round(sums * factors).clamp(-128 - y_zero, 127 - y_zero)
        # The scale's range is ReLU's too: its lower end is zero.
        return _straight(_clamp(y, y_scale, y_zero), steps * float(y_scale))


def _fake(x: torch.Tensor, scale: np.float32, zero_point: int) -> torch.Tensor:
    steps = torch.round(x.detach() / float(scale)).clamp(-128 - zero_point, 127 - zero_point)
    return _straight(_clamp(x, scale, zero_point), steps * float(scale))


def _clamp(x: torch.Tensor, scale: np.float32, zero_point: int) -> torch.Tensor:
    """No gradient where INT8 saturates."""
    low, high = (-128 - zero_point) * float(scale), (127 - zero_point) * float(scale)
    return x.clamp(low, high)


class _StraightThrough(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(context: Any, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def _straight(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value`, with the gradient of `x`; unlike x + (value - x).detach() exactly."""
    made: torch.Tensor = _StraightThrough.apply(x, value)
    return made
