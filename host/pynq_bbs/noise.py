# SPDX-License-Identifier: Apache-2.0
"""Which layers lose accuracy by quantisation and pruning: the signal-to-noise ratio of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .accelerator import Accelerator
from .builds import Build, load_build
from .choices import LayerChoice, choose
from .compiler import pruned_model
from .compress.activations import activations, batches, is_int8
from .compress.borders import dequantize_output
from .compress.observe import observe, read_tensors
from .compress.quantize import Quantizer
from .cpu.device import CpuDevice
from .errors import InputError
from .model.arithmetic import Scale, quantise
from .model.graph import (
    Float,
    GraphInput,
    GraphOutput,
    Layer,
    Model,
    QuantOutput,
    apply_functions,
    window_shape,
)
from .pack.image import pack
from .pack.program import Program
from .report import table


@dataclass(frozen=True)
class LayerNoise:
    """Signal-to-noise ratios in dB of what a layer gives, against float.

    `quantised` is of the dense layer; `pruned` has one for each of the sparsities asked for, None
    where the layer cannot have it. No noise at all is inf.
    """

    name: str
    weights: int
    quantised: float
    pruned: tuple[float | None, ...]

    @property
    def least(self) -> float:
        """Of all its ratios."""
        return min(db for db in (self.quantised, *self.pruned) if db is not None)


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found, in the order of the model's layers; prints itself."""

    sparsities: tuple[float, ...]
    layers: tuple[LayerNoise, ...]
    whole: LayerNoise

    def suggested(self, least: float = 10.0) -> dict[str, dict[str, float]]:
        """`layers` for `compile`: for each layer the largest sparsity that leaves it `least` dB, 0
        where none does; those that cannot be pruned are left out."""
        suggestion = {}
        for layer in self.layers:
            known = dict(zip(self.sparsities, layer.pruned, strict=True))
            good = [s for s, db in known.items() if db is not None and db >= least]
            if any(db is not None for db in known.values()):
                suggestion[layer.name] = {"sparsity": max(good, default=0.0)}
        return suggestion

    def text(self, *, worst_first: bool = False) -> str:
        """A table; layers in the model's order, or from the least ratio on."""
        layers = list(self.layers)
        if worst_first:
            layers.sort(key=lambda layer: layer.least)
        rows = [("layer", "weights", "quantised", *(f"{100 * s:g} %" for s in self.sparsities))]
        rows += [
            (la.name, str(la.weights), _decibels(la.quantised), *map(_decibels, la.pruned))
            for la in (*layers, self.whole)
        ]
        return table(rows)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


def _decibels(db: float | None) -> str:
    return "-" if db is None else "exact" if db == math.inf else f"{db:.1f} dB"


class _Ratio:
    """Of signal to noise, over all batches."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, wanted: NDArray[Any], got: NDArray[Any]) -> None:
        exact = wanted.astype(np.float64)
        self._signal += float(np.sum(exact**2))
        self._noise += float(np.sum((got - exact) ** 2))

    @property
    def decibels(self) -> float:
        if not self._noise:
            return math.inf
        return 10 * math.log10(self._signal / self._noise) if self._signal else -math.inf


class _Alone:
    """One layer in integers, fed with floats."""

    def __init__(
        self, layer: Layer, scales: Mapping[str, Scale], bits: int, int8: bool, build: Build
    ) -> None:
        """`scales` are those of all tensors of its model; without `int8` it gives sums."""
        shape = window_shape(len(layer.weights), layer.window)
        shapes = {layer.other: shape} if layer.other else {}
        window = layer.window
        shapes[layer.input] = (
            (window.channels, window.height, window.width) if window else layer.weights.shape[1:]
        )
        features = (int(np.prod(shape)),)
        inputs = [GraphInput(name, own, tensor_shape=own) for name, own in shapes.items()]
        shown = [] if int8 else [GraphOutput(layer.output, layer.output, features)]
        quantizer = Quantizer(Model("alone", inputs, [layer], shown), scales, {layer.name: bits})
        model = quantizer.run(read={layer.output} if int8 else ())
        if int8:
            scale, zero_point = quantizer.scales[layer.output]
            self._output = QuantOutput(
                layer.output, layer.output, features, "float32", np.array([scale]), zero_point
            )
        else:
            (self._output,) = model.outputs
        self._scales = {name: scales[name] for name in shapes}
        self._device = CpuDevice(pack(replace(model, outputs=[self._output]), {}, build))

    def run(self, tensors: Mapping[str, Float]) -> NDArray[Any]:
        """Its output in float32 (N, features), from float tensors (N, features) by name."""
        given = {name: quantise(tensors[name], *scale) for name, scale in self._scales.items()}
        return dequantize_output(self._output, self._device.run(given)[self._output.tensor])


def sensitivity(
    model: Model | str | Path,
    samples: Any,
    *,
    sparsities: Sequence[float] = (0.5, 0.75),
    bank_size: int = 64,
    weight_bits: int = 8,
    method: str = "minmax",
    build: str | Build = "8x32",
    progress: Callable[[int], None] | None = None,
) -> Sensitivity:
    """How much of each layer's output survives quantisation, and pruning and quantisation.

    Each layer runs in integers on what the float model gives it, so that its ratio is of its own
    error alone. `whole` is of the model's outputs, with all layers as `compile` makes them: dense,
    and at each sparsity, first and last layers dense.

    Samples are read once to choose scales, once more for each sparsity, and once to measure
    everything, batch by batch; what is kept of them does not grow with their number.

    Args:
        model: a float model, as `load_onnx` returns it, or the path of an ONNX file.
        samples: an array (N, *shape), or a dict of such arrays by input name.
        sparsities: what to try on every layer that has weights to remove.
        bank_size, weight_bits, method, build: as for `compile`.
        progress: called with the samples read so far in all passes; there are
            `2 + len(sparsities)` of them.

    Raises:
        InputError: a quantised model, which has no float to compare with; samples that can be
            read only once, or do not fit the model; or options that `compile` does not take.
    """
    target = build if isinstance(build, Build) else load_build(build)
    model = _float_model(model)
    layers_alone = _layers(model)
    if not isinstance(samples, (np.ndarray, Mapping)):
        raise InputError("samples are read several times: give an array, or a dict of arrays")
    options: dict[str, Any] = {"bank_size": bank_size, "weight_bits": weight_bits}
    tried = (0.0, *sparsities)
    everywhere = [choose(model, target, layers={"*": {"sparsity": s}}, **options) for s in tried]
    usual = [choose(model, target, sparsity=s, **options) for s in tried]
    bits = {layer.name: weight_bits for layer in model.layers}
    read = 0  # samples, in all passes before this one

    def count(samples: int) -> None:
        if progress:
            progress(read + samples)

    wholes, scales = list[Program](), list[dict[str, Scale]]()
    for choices in usual:
        smaller = pruned_model(model, choices, target)
        scales.append(observe(smaller, samples, method=method, progress=count).scales())
        read += _length(samples)
        wholes.append(pack(Quantizer(smaller, scales[-1], bits).run(), {}, target))
    quantizer = Quantizer(model, scales[0], bits)
    quantizer.run()
    layers = _forms(model, everywhere, scales[0] | quantizer.scales, target)
    ratios, ends = _measured(model, batches(model, samples), layers, wholes, count)
    return Sensitivity(
        tuple(sparsities),
        tuple(
            LayerNoise(layer.name, layer.weights.size, *_split(ratios[layer.name]))
            for layer in layers_alone
        ),
        LayerNoise("all together", sum(la.weights.size for la in layers_alone), *_split(ends)),
    )


def _float_model(source: Model | str | Path) -> Model:
    if isinstance(source, Model):
        return source
    from .model.onnx_import import load_onnx

    model = load_onnx(source)
    if isinstance(model, Model):
        return model
    raise InputError(
        f"model {model.name!r} is quantised already: sensitivity is measured against the float "
        "model that it was made from; give that one"
    )


def _layers(model: Model) -> list[Layer]:
    """Those of a model without sequences."""
    layers = [layer for layer in model.layers if isinstance(layer, Layer)]
    if len(layers) < len(model.layers) or any(spec.steps > 1 for spec in model.inputs):
        raise InputError(
            f"model {model.name!r} works on sequences, whose layers cannot be measured one by one; "
            "compare the accuracy of compiled models instead"
        )
    return layers


def _forms(
    model: Model,
    choices: Sequence[Mapping[str, LayerChoice]],
    scales: Mapping[str, Scale],
    build: Build,
) -> dict[str, list[_Alone | None]]:
    """Every layer by itself, once for each of `choices`; None where that keeps it dense."""
    read = read_tensors(model)
    forms: dict[str, list[_Alone | None]] = {layer.name: [] for layer in model.layers}
    for chosen in choices:
        for layer in _layers(pruned_model(model, chosen, build)):
            choice, int8 = chosen[layer.name], layer.maximum or is_int8(layer, read)
            alone = None if choice.kept else _Alone(layer, scales, choice.weight_bits, int8, build)
            forms[layer.name].append(alone)
    return forms


def _measured(
    model: Model,
    samples: Iterable[Mapping[str, Float]],
    layers: Mapping[str, Sequence[_Alone | None]],
    wholes: Sequence[Program],
    count: Callable[[int], None],
) -> tuple[dict[str, list[_Ratio | None]], list[_Ratio]]:
    """Ratios of every form of every layer, by name, and of every program's outputs."""
    ratios = {
        name: [None if form is None else _Ratio() for form in forms]
        for name, forms in layers.items()
    }
    ends, seen = [_Ratio() for _ in wholes], 0
    shapes = {spec.name: spec.shape for spec in model.inputs}
    outputs = {layer.name: layer.output for layer in model.layers}
    with ExitStack() as stack:
        devices = [stack.enter_context(Accelerator(whole, "cpu")) for whole in wholes]
        for batch in samples:
            tensors = dict(activations(model, batch))
            for name, forms in layers.items():
                for form, ratio in zip(forms, ratios[name], strict=True):
                    if form and ratio:
                        ratio.add(tensors[outputs[name]], form.run(tensors))
            given = {name: x.reshape(-1, *shapes[name]) for name, x in batch.items()}
            for device, ratio in zip(devices, ends, strict=True):
                _compare(model, tensors, device.run(given), ratio)
            seen += len(next(iter(batch.values())))
            count(seen)
    return ratios, ends


def _compare(model: Model, tensors: Mapping[str, Float], got: Any, ratio: _Ratio) -> None:
    """What a device gives, and what the model's outputs are in float."""
    for spec in model.outputs:
        wanted = apply_functions(spec.functions, spec.arrangement.apply(tensors[spec.tensor]))
        own = got[spec.name] if isinstance(got, dict) else got
        ratio.add(wanted, own.reshape(wanted.shape))


def _split(ratios: Sequence[_Ratio | None]) -> tuple[float, tuple[float | None, ...]]:
    dense, *pruned = (ratio.decibels if ratio else None for ratio in ratios)
    assert dense is not None  # nothing keeps a layer from being dense
    return dense, tuple(pruned)


def _length(samples: Any) -> int:
    return len(next(iter(samples.values())) if isinstance(samples, Mapping) else samples)
