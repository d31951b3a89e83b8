# SPDX-License-Identifier: Apache-2.0
"""Other libraries, made ready to run the same model: weights prepacked, threads limited.

Each library offers the forms in which it can run a model; the fastest of them competes. A library
is imported when it is asked for, and one that is not there is named and left out.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .chain import Chain, FloatLayer

#: What a batch is: an array, or arrays by input name.
Batch = Any

#: How a form's arithmetic relates to ours.
SAME, FLOAT, OWN = "our integers", "float32", "INT8 of its own"
#: Outputs of the same integers may be this far apart, as a share of the largest.
_TOLERANCE = 1e-5
#: RMS, as a share of the largest output, that rounding of activations otherwise can make.
_ROUNDED = 0.01
_TRIALS = 5


@dataclass(frozen=True)
class Form:
    """One way in which a library runs the model: `run` takes a batch as users hand it in and gives
    what `Accelerator.run` gives. `exact` gives what INT8 of its own would be if no sum saturated.
    """

    library: str
    name: str
    arithmetic: str
    run: Callable[[Batch], Any]
    exact: Callable[[Batch], Any] | None = None

    @property
    def label(self) -> str:
        return f"{self.library} {self.name}"


@dataclass(frozen=True)
class Check:
    """Outputs against others: how many differ, by what at most, and in the mean square as a share
    of the largest of the others."""

    outputs: int
    differ: int
    most: float
    rms: float


def check(expected: Any, found: Any) -> Check:
    """Compare two results of a run, arrays or dicts of arrays."""
    a, b = (
        np.concatenate([np.ravel(v).astype(np.float64) for v in _arrays(y)])
        for y in (expected, found)
    )
    if a.shape != b.shape:
        return Check(a.size, a.size, float("inf"), float("inf"))
    largest = float(np.abs(a).max(initial=0)) or 1.0
    apart = np.abs(a - b)
    differ = int(np.count_nonzero(~(apart <= _TOLERANCE * largest)))  # NaN differs
    rms = float(np.sqrt(np.mean(apart**2))) / largest
    return Check(a.size, differ, float(apart.max(initial=0)), rms)


@dataclass(frozen=True)
class Verdict:
    """What a check means; `wrong` is arithmetic that is not what it should be."""

    same: bool
    wrong: bool
    words: str


@dataclass(frozen=True)
class Rounding:
    """How far outputs of the same integers may be off by rounding otherwise at ties: one `unit` of
    an INT8 output. In a model of several layers (`deep`) what is off in one goes on to the next."""

    unit: float = 0.0
    deep: bool = False


_EXACT = Rounding()
_SAME_OUTPUTS = Verdict(True, False, "same outputs")


def judge(arithmetic: str, found: Check, rounding: Rounding = _EXACT) -> Verdict:
    """What the outputs of a form are worth; `found` compares them with ours."""
    if found.differ == 0:
        return _SAME_OUTPUTS
    text = f"{found.differ} of {found.outputs} outputs differ"
    if arithmetic == SAME and found.most <= 1.01 * rounding.unit:
        return Verdict(False, False, f"{text}, by one unit: it rounds otherwise at ties")
    text += f", RMS {found.rms:.2%} of the largest"
    if arithmetic == SAME and rounding.deep and found.rms < _ROUNDED:
        words = "the same integers, but ties are rounded otherwise, or few sums saturate"
        return Verdict(False, False, f"{text}: {words}")
    if arithmetic == SAME:
        return Verdict(False, True, f"WRONG: {text}: the same integers, so its sums saturate")
    return Verdict(False, False, f"{arithmetic}: {text}")


def judge_own(found: Check) -> Verdict:
    """What the outputs of a device of ours are worth, whose integers all are the same."""
    if found.differ == 0:
        return _SAME_OUTPUTS
    text = f"{found.differ} of {found.outputs} outputs differ"
    return Verdict(False, True, f"WRONG: {text}: bbs run --verify finds the layer")


def judge_form(form: Form, ours: Any, x: Batch, rounding: Rounding = _EXACT) -> Verdict:
    """As `judge`, of a form's outputs for the batch `x`, for which ours are `ours`."""
    y = form.run(x)
    verdict = judge(form.arithmetic, check(ours, y), rounding)
    if form.exact is None or verdict.same:
        return verdict
    off = check(form.exact(x), y)
    if off.rms < _ROUNDED:
        return verdict
    words = f"WRONG, its sums saturate: RMS {off.rms:.2%} from what they should be"
    return Verdict(False, True, f"{words}; {verdict.words}")


def competing(
    forms: Sequence[Form], ours: Any, x: Batch, rounding: Rounding = _EXACT
) -> list[tuple[Form, Verdict]]:
    """The form that runs `x` in the least time, the best of some trials; and if it is wrong, the
    fastest of those that are right too. Others as `judge_form`."""
    least = [float("inf")] * len(forms)
    for _ in range(_TRIALS):  # in turns, as the measurement itself
        for index, form in enumerate(forms):
            start = time.perf_counter()
            form.run(x)
            least[index] = min(least[index], time.perf_counter() - start)
    chosen: list[tuple[Form, Verdict]] = []
    for index in sorted(range(len(forms)), key=lambda i: least[i]):
        verdict = judge_form(forms[index], ours, x, rounding)
        if not chosen or not verdict.wrong:
            chosen.append((forms[index], verdict))
        if not verdict.wrong:
            break
    return chosen


def library_forms(
    library: str, chain: Chain | None, why_none: str, model: str | None, threads: int
) -> list[Form]:
    """The forms in which a library runs a model.

    Args:
        library: "onnxruntime", "torch", "scipy" or "numpy".
        chain: the model as matrices, None where it is more than that.
        why_none: then why it is not.
        model: path of its ONNX file, None where there is only a program.

    Raises:
        InputError: unknown library, or one that cannot run this model; says why.
        ImportError: it is not installed.
    """
    if library == "onnxruntime":
        from .peers_onnx import onnxruntime_forms

        return onnxruntime_forms(chain, why_none, model, threads)
    makers = {"torch": torch_forms, "scipy": scipy_forms, "numpy": numpy_forms}
    if library not in makers:
        known = ", ".join(["onnxruntime", *makers])
        raise InputError(f"no peer {library!r}: known are {known}, and dense for our own")
    if chain is None:
        raise InputError(f"it runs fully connected layers only, and {why_none}")
    return makers[library](chain, threads)


def numpy_forms(chain: Chain, threads: int) -> list[Form]:
    """Matrix products in float32 by numpy's BLAS; `limit_threads` limits it."""
    del threads
    layers = chain.float_layers()
    packed = [np.ascontiguousarray(layer.weights.T) for layer in layers]

    def run(x: Batch) -> Any:
        h = rows_of(x)
        for layer, weights in zip(layers, packed, strict=True):
            h = _limited(h @ weights + layer.bias, layer)
        return chain.finished(h)

    return [Form("numpy", "float32", FLOAT, run)]


def scipy_forms(chain: Chain, threads: int) -> list[Form]:
    """Compressed sparse rows in float32; scipy's product has one thread, whatever is asked for."""
    del threads
    from scipy.sparse import csr_matrix

    layers = chain.float_layers()
    packed = [csr_matrix(layer.weights) for layer in layers]

    def run(x: Batch) -> Any:
        h = np.ascontiguousarray(rows_of(x).T)
        for layer, weights in zip(layers, packed, strict=True):
            h = _limited(weights @ h + layer.bias[:, None], layer)
        return chain.finished(np.ascontiguousarray(h.T))

    return [Form("scipy", "CSR float32", FLOAT, run)]


def torch_forms(chain: Chain, threads: int) -> list[Form]:
    """Dense and compressed sparse rows in float32, and dynamically quantised INT8."""
    import torch

    torch.set_num_threads(threads)
    layers = chain.float_layers()
    modules: list[Any] = []
    for layer in layers:
        linear = torch.nn.Linear(layer.weights.shape[1], layer.weights.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(layer.weights)))
            linear.bias.copy_(torch.from_numpy(np.ascontiguousarray(layer.bias)))
        modules.append(linear)
        if np.isfinite(layer.low):
            modules.append(torch.nn.Hardtanh(layer.low, layer.high))
    dense = torch.nn.Sequential(*modules).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it a beta
        sparse = [torch.from_numpy(layer.weights).to_sparse_csr() for layer in layers]
    biases = [torch.from_numpy(layer.bias)[:, None] for layer in layers]

    def of(network: Any) -> Callable[[Batch], Any]:
        def run(x: Batch) -> Any:
            with torch.inference_mode():
                return chain.finished(network(torch.from_numpy(rows_of(x))).numpy())

        return run

    def csr(x: Any) -> Any:
        h = x.T.contiguous()
        for layer, weights, bias in zip(layers, sparse, biases, strict=True):
            h = weights @ h + bias
            if np.isfinite(layer.low):
                h = h.clamp_(layer.low, layer.high)
        return h.T.contiguous()

    forms = [
        Form("torch", "float32", FLOAT, of(dense)),
        Form("torch", "CSR float32", FLOAT, of(csr)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to give this up
        try:
            quantised = torch.ao.quantization.quantize_dynamic(dense, {torch.nn.Linear})
        except (AttributeError, RuntimeError):  # it has, or has no kernels for this processor
            return forms
    return [*forms, Form("torch", "dynamic INT8", OWN, of(quantised))]


def limit_threads(threads: int) -> str:
    """Limit numpy's BLAS for the rest of the process; says how, or that it could not be done."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        if os.environ.get("OMP_NUM_THREADS") == str(threads):
            return f"{threads} by OMP_NUM_THREADS"
        return "not limited (threadpoolctl is not installed)"
    threadpool_limits(threads)
    return f"limited to {threads} by threadpoolctl"


def rows_of(x: Batch) -> NDArray[np.float32]:
    """A batch of the only input as (N, K) float32."""
    array = next(iter(x.values())) if isinstance(x, Mapping) else x
    return np.ascontiguousarray(array.reshape(len(array), -1), np.float32)


def _limited(h: NDArray[np.float32], layer: FloatLayer) -> NDArray[np.float32]:
    return np.clip(h, layer.low, layer.high, out=h) if np.isfinite(layer.low) else h


def _arrays(y: Any) -> list[NDArray[Any]]:
    return [y[name] for name in sorted(y)] if isinstance(y, Mapping) else [y]
