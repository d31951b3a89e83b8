# SPDX-License-Identifier: Apache-2.0
"""Which layers lose accuracy by quantisation and pruning: the signal-to-noise ratio of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .accelerator import Accelerator
from .builds import Build, load_build
from .choices import LayerChoice, choose
from .compiler import pruned_model
from .compress.activations import activations, batches, is_int8, model_inputs
from .compress.borders import dequantize_output, float_output, joined
from .compress.observe import Calibration, observe, read_tensors
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
    QuantModel,
    QuantOutput,
    window_shape,
)
from .model.onnx_segments import Part
from .model.partition import Partition
from .noise_table import LayerNoise, Sensitivity
from .pack.image import pack
from .pack.pipeline import Pipeline, run_folded, run_stages
from .pack.program import Program
from .pipeline_accelerator import run_named
from .pipeline_compiler import batches_of, calibrated, pipeline_of


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
    model: Model | Partition | str | Path,
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
        model: a float model, as `load_onnx` or `read_model` returns it, or the path of an ONNX
            file. Of one that becomes several programs, each layer is measured where it is; the
            host's nodes are floats.
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
    parts = _parts(model)
    layers_alone = [layer for part in parts.values() for layer in _layers(part)]
    if not isinstance(samples, (np.ndarray, Mapping)):
        raise InputError("samples are read several times: give an array, or a dict of arrays")
    options: dict[str, Any] = {"bank_size": bank_size, "weight_bits": weight_bits}
    tried = (0.0, *sparsities)
    everywhere = [choose(model, target, layers={"*": {"sparsity": s}}, **options) for s in tried]
    usual = [choose(model, target, sparsity=s, **options) for s in tried]
    bits = {layer.name: weight_bits for layer in layers_alone}
    read = 0  # samples, in all passes before this one

    def count(samples: int) -> None:
        if progress:
            progress(read + samples)

    wholes, scales = list[Program | Pipeline](), list[dict[int, dict[str, Scale]]]()
    for choices in usual:
        seen = _seen(model, choices, target, samples, method, count)
        read += _length(samples)
        scales.append({index: each.scales() for index, each in seen.items()})
        programs = {
            index: pack(Quantizer(each.model, scales[-1][index], bits).run(), {}, target)
            for index, each in seen.items()
        }
        wholes.append(
            pipeline_of(model, programs, target) if isinstance(model, Partition) else programs[0]
        )
    forms: dict[int, dict[str, list[_Alone | None]]] = {}
    for index, part in parts.items():
        quantizer = Quantizer(part, scales[0][index], bits)
        quantizer.run()
        known = scales[0][index] | quantizer.scales
        forms[index] = _forms(part, everywhere, known, target)
    ratios, ends = _measured(model, samples, forms, wholes, count)
    return Sensitivity(
        tuple(sparsities),
        tuple(
            LayerNoise(layer.name, layer.weights.size, *_split(ratios[layer.name]))
            for layer in layers_alone
        ),
        LayerNoise("all together", sum(la.weights.size for la in layers_alone), *_split(ends)),
    )


def _float_model(source: Model | Partition | str | Path) -> Model | Partition:
    if isinstance(source, (str, Path)):
        from .model.partition import read_model

        model = read_model(source)
    else:
        model = source
    stages = model.stages if isinstance(model, Partition) else []
    quantised = any(isinstance(s, Part) and isinstance(s.model, QuantModel) for s in stages)
    if quantised or isinstance(model, QuantModel):
        raise InputError(
            f"model {model.name!r} is quantised already: sensitivity is measured against the float "
            "model that it was made from; give that one"
        )
    return model


def _parts(model: Model | Partition) -> dict[int, Model]:
    """What programs run, by its place among the stages."""
    if isinstance(model, Model):
        return {0: model}
    return {
        index: stage.model
        for index, stage in enumerate(model.stages)
        if isinstance(stage, Part) and isinstance(stage.model, Model)
    }


def _seen(
    model: Model | Partition,
    choices: Mapping[str, LayerChoice],
    build: Build,
    samples: Any,
    method: str,
    count: Callable[[int], None],
) -> dict[int, Calibration]:
    """What every part, pruned, sees in one pass."""
    if isinstance(model, Model):
        smaller = pruned_model(model, choices, build)
        return {0: observe(smaller, samples, method=method, progress=count)}
    return calibrated(
        model, lambda part: pruned_model(part, choices, build), {}, calibration=samples,
        method=method, progress=count,
    )  # fmt: skip


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
    model: Model | Partition,
    samples: Any,
    forms: Mapping[int, Mapping[str, Sequence[_Alone | None]]],
    wholes: Sequence[Program | Pipeline],
    count: Callable[[int], None],
) -> tuple[dict[str, list[_Ratio | None]], list[_Ratio]]:
    """Ratios of every form of every layer, by name, and of every program's or pipeline's outputs;
    `forms` are those of each part."""
    ratios = {
        name: [None if form is None else _Ratio() for form in own]
        for layers in forms.values()
        for name, own in layers.items()
    }
    ends, seen = [_Ratio() for _ in wholes], 0
    parts = _parts(model)

    def run_part(index: int, given: Mapping[str, Any]) -> dict[str, Float]:
        """The outputs of a part in float; its layers are measured on the way."""
        part = parts[index]
        tensors = dict(activations(part, model_inputs(part, given)))
        outputs = {layer.name: layer.output for layer in part.layers}
        for name, own in forms[index].items():
            for form, ratio in zip(own, ratios[name], strict=True):
                if form and ratio:
                    ratio.add(tensors[outputs[name]], form.run(tensors))
        return joined(part.outputs, [float_output(o, tensors[o.tensor]) for o in part.outputs])

    def run(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        if isinstance(model, Model):
            return run_part(0, batch)
        stages, names = model.stages, [spec.name for spec in model.outputs]

        def run_stage(index: int, given: dict[str, Any]) -> dict[str, Any]:
            part = stages[index]
            assert isinstance(part, Part)
            return run_folded(part.folded, given, partial(run_part, index))

        return run_stages(stages, {**model.constants, **batch}, names, run_stage)

    with ExitStack() as stack:
        devices = [stack.enter_context(Accelerator(whole, "cpu")) for whole in wholes]
        for batch in _batches(model, samples):
            wanted = run(batch)
            for device, ratio in zip(devices, ends, strict=True):
                got = run_named(device, batch)
                for name, values in wanted.items():
                    ratio.add(values, got[name])
            seen += len(next(iter(batch.values())))
            count(seen)
    return ratios, ends


def _batches(model: Model | Partition, samples: Any) -> Iterator[dict[str, Any]]:
    """Samples as a user hands them in, so many at a time as are worked on together."""
    if not isinstance(model, Model):
        yield from batches_of(model, samples)
        return
    shapes = {spec.name: spec.shape for spec in model.inputs}
    for batch in batches(model, samples):
        yield {name: x.reshape(-1, *shapes[name]) for name, x in batch.items()}


def _split(ratios: Sequence[_Ratio | None]) -> tuple[float, tuple[float | None, ...]]:
    dense, *pruned = (ratio.decibels if ratio else None for ratio in ratios)
    assert dense is not None  # nothing keeps a layer from being dense
    return dense, tuple(pruned)


def _length(samples: Any) -> int:
    return len(next(iter(samples.values())) if isinstance(samples, Mapping) else samples)
