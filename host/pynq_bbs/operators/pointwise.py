# SPDX-License-Identifier: Apache-2.0
"""Operators that work element by element, with numpy's broadcasting, which is ONNX's too."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np

from .call import Array, Call, Function

#: erf(x) is x P(x^2) / Q(x^2) between -4 and 4 to a few units in the last place of float32;
#: coefficients from the highest power down, as in Eigen and XLA.
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip

_SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def erf(x: Array) -> Array:
    """The error function."""
    if x.dtype == np.float64:
        exact: Array = np.vectorize(math.erf, otypes=[np.float64])(x)
        return exact
    inside = np.clip(x.astype(np.float32), np.float32(-4), np.float32(4))
    square = inside * inside
    result: Array = inside * (_polynomial(_ERF_P, square) / _polynomial(_ERF_Q, square))
    return result.astype(x.dtype)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    return reduce(lambda sum_, c: sum_ * x + np.float32(c), coefficients, np.zeros_like(x))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, np.zeros_like(x))


def _gelu(call: Call, x: Array) -> Array:
    half = x.dtype.type(0.5)
    if call.get("approximate", "none") == "tanh":
        inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
        return half * x * (1 + np.tanh(inner))
    return half * x * (1 + erf(x * x.dtype.type(math.sqrt(0.5))))


def _elu(call: Call, x: Array) -> Array:
    negative = call.get("alpha", 1.0) * np.expm1(np.minimum(x, 0))
    return np.where(x > 0, x, negative).astype(x.dtype)


def _celu(call: Call, x: Array) -> Array:
    alpha = call.get("alpha", 1.0)
    return (np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0) / alpha)).astype(x.dtype)


def _selu(call: Call, x: Array) -> Array:
    alpha, gamma = call.get("alpha", _SELU[0]), call.get("gamma", _SELU[1])
    return (gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))).astype(x.dtype)


def _leaky_relu(call: Call, x: Array) -> Array:
    return np.where(x >= 0, x, x.dtype.type(call.get("alpha", 0.01)) * x)


def _hard_sigmoid(call: Call, x: Array) -> Array:
    line = x * x.dtype.type(call.get("alpha", 0.2)) + x.dtype.type(call.get("beta", 0.5))
    return np.clip(line, 0, 1).astype(x.dtype)


def _hard_swish(call: Call, x: Array) -> Array:
    return x * np.clip(x / x.dtype.type(6) + x.dtype.type(0.5), 0, 1).astype(x.dtype)


def _swish(call: Call, x: Array) -> Array:
    return x * sigmoid(x.dtype.type(call.get("alpha", 1.0)) * x)


def _thresholded_relu(call: Call, x: Array) -> Array:
    return np.where(x > call.get("alpha", 1.0), x, np.zeros_like(x))


def _shrink(call: Call, x: Array) -> Array:
    limit, bias = call.get("lambd", 0.5), x.dtype.type(call.get("bias", 0.0))
    return np.where(x < -limit, x + bias, np.where(x > limit, x - bias, np.zeros_like(x)))


def _prelu(call: Call, x: Array, slope: Array) -> Array:
    return np.where(x >= 0, x, slope * x)


def _divide(call: Call, a: Array, b: Array) -> Array:
    """Of integers towards zero."""
    if a.dtype.kind not in "iu":
        return np.asarray(np.true_divide(a, b, dtype=np.result_type(a, b)))
    if not np.all(b):
        raise ValueError("divides integers by zero")
    quotient = np.floor_divide(a, b)
    short = (quotient < 0) & (quotient * b != a)
    return (quotient + short).astype(a.dtype)


def _power(call: Call, a: Array, b: Array) -> Array:
    return np.power(a, b).astype(a.dtype)


def _modulo(call: Call, a: Array, b: Array) -> Array:
    return np.fmod(a, b) if call.get("fmod", 0) else np.mod(a, b)


def _clip(call: Call, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Where the limits cross, the upper one holds."""
    least = call.get("min") if low is None else low
    most = call.get("max") if high is None else high
    if least is not None:
        x = np.maximum(x, np.asarray(least, x.dtype))
    return x if most is None else np.minimum(x, np.asarray(most, x.dtype))


def _where(call: Call, condition: Array, a: Array, b: Array) -> Array:
    return np.where(condition, a, b)


def _mean(call: Call, *values: Array) -> Array:
    return (reduce(np.add, values) / values[0].dtype.type(len(values))).astype(values[0].dtype)


def _is_infinite(call: Call, x: Array) -> Array:
    found = np.isposinf(x) & bool(call.get("detect_positive", 1))
    return np.asarray(found | (np.isneginf(x) & bool(call.get("detect_negative", 1))))


def _each(function: Any) -> Function:
    """An operator without attributes from a numpy function."""
    return lambda call, *inputs: function(*inputs)


def _all(function: Any) -> Function:
    """An operator of any number of inputs from a numpy function of two."""
    return lambda call, *inputs: reduce(function, inputs)


OPERATORS: dict[str, Function] = {
    "Abs": _each(np.abs),
    "Add": _each(np.add),
    "And": _each(np.logical_and),
    "Ceil": _each(np.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _each(np.cos),
    "Div": _divide,
    "Elu": _elu,
    "Equal": _each(np.equal),
    "Erf": _each(erf),
    "Exp": _each(np.exp),
    "Floor": _each(np.floor),
    "Gelu": _gelu,
    "Greater": _each(np.greater),
    "GreaterOrEqual": _each(np.greater_equal),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "IsInf": _is_infinite,
    "IsNaN": _each(np.isnan),
    "LeakyRelu": _leaky_relu,
    "Less": _each(np.less),
    "LessOrEqual": _each(np.less_equal),
    "Log": _each(np.log),
    "Max": _all(np.maximum),
    "Mean": _mean,
    "Min": _all(np.minimum),
    "Mish": _each(lambda x: x * np.tanh(_softplus(x))),
    "Mod": _modulo,
    "Mul": _each(np.multiply),
    "Neg": _each(np.negative),
    "Not": _each(np.logical_not),
    "Or": _each(np.logical_or),
    "PRelu": _prelu,
    "Pow": _power,
    "Reciprocal": _each(np.reciprocal),
    "Relu": _each(lambda x: np.maximum(x, x.dtype.type(0))),
    "Round": _each(np.rint),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _each(sigmoid),
    "Sign": _each(np.sign),
    "Sin": _each(np.sin),
    "Softplus": _each(_softplus),
    "Softsign": _each(lambda x: x / (1 + np.abs(x))),
    "Sqrt": _each(np.sqrt),
    "Sub": _each(np.subtract),
    "Sum": _all(np.add),
    "Swish": _swish,
    "Tanh": _each(np.tanh),
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
    "Xor": _each(np.logical_xor),
}
