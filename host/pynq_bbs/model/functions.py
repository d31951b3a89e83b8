# SPDX-License-Identifier: Apache-2.0
"""Functions of one number each: what stands behind a layer, at an input or at an output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
_Double = NDArray[np.float64]


def _erf(x: _Double) -> _Double:
    """Abramowitz and Stegun 7.1.26, at most 1.5e-7 off."""
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    powers = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    polynomial = t * np.polyval(powers[::-1], t)
    result: _Double = np.sign(x) * (1.0 - polynomial * np.exp(-x * x))
    return result


def _softmax(x: _Double, size: float) -> _Double:
    rows = x.reshape(-1, int(size))
    result: _Double = rows - np.maximum.reduce(rows, axis=1, keepdims=True)
    np.exp(result, out=result)
    result /= np.add.reduce(result, axis=1, keepdims=True)
    return result.reshape(x.shape)


def _quantise(x: Float, scale: float, zero_point: float) -> Float:
    """On the way of every output that is quantised: without the Python steps of `np.clip`."""
    steps: Float = np.rint(x / np.float32(scale))
    steps += np.float32(zero_point)
    np.maximum(steps, np.float32(-128), out=steps)
    np.minimum(steps, np.float32(127), out=steps)
    return steps


#: Computed in float64, and rounded.
_CURVES: dict[str, Callable[..., Any]] = {
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": _erf,
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "power": lambda x, exponent: x**exponent,
    "elu": lambda x, alpha: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x),
    "softmax": _softmax,
}

#: Computed in float32, as what runs a model does.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "clip": lambda x, low, high: np.clip(x, np.float32(low), np.float32(high)),
    "affine": lambda x, gain, offset: x * np.float32(gain) + np.float32(offset),
    "leaky_relu": lambda x, slope: np.where(x < 0, x * np.float32(slope), x),
    "quantise": _quantise,
    "dequantise": lambda x, scale, zero_point: (x - np.float32(zero_point)) * np.float32(scale),
}

#: What makes one number of those that several chains give.
_JOINING: dict[str, Callable[[Any, Any], Any]] = {"sum": np.add, "product": np.multiply}


@dataclass(frozen=True)
class Function:
    """A pointwise function of one float: `relu`, `clip` (low, high), `sigmoid`, `tanh`, `erf`,
    `softplus`, `affine` (gain, offset), `power` (exponent), `leaky_relu` (slope), `elu` (alpha).

    `sum` and `product` are those of what each of several `chains` of functions gives of the float;
    a chain without any gives the float itself.

    On the host, behind an output, also `softmax` (over as many neighbours as it says), and
    `quantise` and `dequantise` (scale, zero point), between floats and INT8.
    """

    name: str
    parameters: tuple[float, ...] = ()
    chains: tuple[tuple[Function, ...], ...] = ()

    def __call__(self, x: Float) -> Float:
        if self.chains:
            results = [apply_functions(chain, x) for chain in self.chains]
            joined: Float = reduce(_JOINING[self.name], results)
            return joined
        if self.name in _CURVES:
            exact = np.asarray(x, np.float64)
            curve: Float = _CURVES[self.name](exact, *self.parameters).astype(np.float32)
            return curve
        result: Float = _FUNCTIONS[self.name](x, *self.parameters)
        return result

    @property
    def clamps(self) -> bool:
        """True where the function only limits its input, so that INT8 loses nothing by it."""
        return self.name in ("relu", "clip")

    @property
    def on_host(self) -> bool:
        """True where a value depends on its neighbours, so that no table can do it."""
        return self.name == "softmax"


def apply_functions(functions: tuple[Function, ...], x: Float) -> Float:
    """`x` through every function in turn."""
    if functions:
        with np.errstate(over="ignore"):
            for function in functions:
                x = function(x)
    return x


def restored_functions(stored: list[dict[str, Any]]) -> tuple[Function, ...]:
    """Functions as `dataclasses.asdict` and JSON leave them."""
    return tuple(
        Function(f["name"], tuple(f["parameters"]), tuple(map(restored_functions, f["chains"])))
        for f in stored
    )
