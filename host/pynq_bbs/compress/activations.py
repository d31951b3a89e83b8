# SPDX-License-Identifier: Apache-2.0
"""What a float model computes, batch by batch: every tensor in turn, and those in between that
quantisation needs to know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.floats import layer_sums
from ..model.graph import (
    AtStep,
    Concat,
    Float,
    Function,
    GraphInput,
    Layer,
    Model,
    View,
    apply_functions,
    window_shape,
)
from ..model.recurrent_floats import FloatRecurrent
from .borders import checked_lengths, float_input

#: Samples of calibration data worked on at a time at most, and values of all their tensors, which
#: are kept until the last of them was seen: 64 MB.
_CALIBRATION_BATCH = 256
_CALIBRATION_VALUES = 1 << 24


def run_float(model: Model, inputs: Mapping[str, Any] | NDArray[Any]) -> dict[str, Float]:
    """Every tensor of the float model, by name, as (N, features).

    Args:
        model: what `load_onnx` returns for a float model.
        inputs: (N, *shape) by input name, or the array itself where there is one input.

    Raises:
        InputError: an input is missing, unknown, of a wrong shape or dtype, or not finite.
    """
    batch = model_inputs(model, inputs)
    shown = {i.tensor for i in model.inputs} | {view.output for view in model.views}
    shown |= {name for layer in model.layers for name in layer.outputs}
    return {name: value for name, value in activations(model, batch) if name in shown}


def split_functions(
    functions: tuple[Function, ...],
) -> tuple[tuple[Function, ...], tuple[Function, ...]]:
    """The clamps that go first, and everything from the first other function on."""
    count = next((i for i, f in enumerate(functions) if not f.clamps), len(functions))
    return functions[:count], functions[count:]


def ready(waiting: list[View], known: Mapping[str, object]) -> Iterator[View]:
    """Each view of `waiting` once all that it reads is `known`; it waits no longer then."""
    for view in list(waiting):
        if all(name in known for name in view.reads):
            waiting.remove(view)
            yield view


def _viewed(view: View, tensors: Mapping[str, Float], steps: Mapping[str, int]) -> Float:
    """A view of tensors (N, values of a sample), which have so many steps."""
    if isinstance(view, Concat):
        parts = [tensors[n].reshape(len(tensors[n]), steps[n], -1) for n in view.inputs]
        joined: Float = np.concatenate(parts, axis=2)
        return joined.reshape(len(joined), -1)
    if isinstance(view, AtStep):
        whole = tensors[view.input]
        return np.asarray(whole.reshape(len(whole), steps[view.input], -1)[:, view.step])
    first = view.first * int(np.prod(view.shape[1:]))
    return tensors[view.input][:, first : first + int(np.prod(view.shape))]


def is_int8(layer: Layer, read: set[str]) -> bool:
    """Whether a layer has a scale of its own to be calibrated: not for sums alone, nor maxima."""
    return not layer.maximum and bool(layer.output in read or layer.functions or layer.other)


def observed_name(layer: Layer) -> str:
    """What is calibrated for a layer: its output, or what stands before its first sigmoid or tanh,
    or before an addition or multiplication."""
    before = layer.other or split_functions(layer.functions)[1]
    return f"\0before {layer.output}" if before else layer.output


def activations(model: Model, batch: Mapping[str, Float]) -> Iterator[tuple[str, Float]]:
    """Every tensor in turn, those that `observed_name` names before a function included."""
    tensors: dict[str, Float] = {}
    steps = {spec.tensor: spec.steps for spec in model.inputs}
    waiting = list(model.views)

    def views() -> Iterator[tuple[str, Float]]:
        for view in ready(waiting, tensors):
            steps[view.output] = steps[view.reads[0]] if isinstance(view, Concat) else 1
            tensors[view.output] = _viewed(view, tensors, steps)
            yield view.output, tensors[view.output]

    for spec in model.inputs:
        values = spec.arrangement.apply(apply_functions(spec.functions, batch[spec.name]))
        size = int(np.prod(spec.tensor_shape or spec.shape, dtype=np.int64))
        tensors[spec.tensor] = values[:, spec.first : spec.first + size]
        yield spec.tensor, tensors[spec.tensor]
    yield from views()
    for layer in model.layers:
        if isinstance(layer, FloatRecurrent):
            made = layer(tensors, batch.get(model.lengths))
            tensors |= made
            steps |= {name: 1 for name in made} | {layer.output: steps[layer.input]}
            yield from made.items()
            yield from views()
            continue
        clamps, rest = split_functions(layer.functions)
        steps[layer.output] = steps[layer.input]
        x = tensors[layer.input]
        with np.errstate(over="ignore", invalid="ignore"):
            columns = x.reshape(len(x) * steps[layer.input], -1)
            before = layer_sums(layer, columns).reshape(len(x), -1)
            if layer.other:
                yield observed_name(layer), before
                other = tensors[layer.other]
                before = before * other if layer.product else before + other
            before = apply_functions(clamps, before)
        if rest:
            yield observed_name(layer), before
        tensors[layer.output] = apply_functions(rest, before)
        yield layer.output, tensors[layer.output]
        yield from views()


def batches(model: Model, calibration: Iterable[Any]) -> Iterator[dict[str, Float]]:
    values = sum(spec.features for spec in model.inputs)
    values += sum(
        prod(window_shape(len(la.weights), la.window))
        if isinstance(la, Layer)
        else la.weights.units
        for la in model.layers
    )
    step = max(1, min(_CALIBRATION_BATCH, _CALIBRATION_VALUES // values))
    return in_batches(calibration, lambda given: model_inputs(model, given), step)


def in_batches(
    samples: Any, checked: Callable[[Any], dict[str, NDArray[Any]]], size: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs by name, at most `size` samples at a time.

    Args:
        samples: an array, a dict of arrays by input name, or an iterable of either.
        checked: makes such a dict of each of them, or raises InputError.
    """
    whole = isinstance(samples, Mapping) or hasattr(samples, "__array__")
    for item in [samples] if whole else samples:
        given = checked(item)
        for start in range(0, len(next(iter(given.values()))), size):
            yield {name: x[start : start + size] for name, x in given.items()}


def model_inputs(model: Model, given: Any) -> dict[str, Float]:
    """The checked inputs of a float model, (N, features) each."""
    specs: dict[str, GraphInput] = {spec.name: spec for spec in model.inputs}
    names = [*specs, *filter(None, [model.lengths])]
    if not isinstance(given, Mapping):
        if len(names) != 1:
            raise InputError(
                f"the model has {len(names)} inputs ({', '.join(names)}); "
                "give a dict with an array for each."
            )
        given = {names[0]: given}
    if set(given) != set(names):
        raise InputError(
            f"inputs given: {', '.join(map(str, given)) or 'none'}; the model has: "
            f"{', '.join(names)}. Give exactly these."
        )
    batch = {name: float_input(spec, given[name]) for name, spec in specs.items()}
    counts = {name: len(x) for name, x in batch.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"inputs differ in their number of samples: {counts}.")
    if model.lengths:
        steps, samples = max(spec.steps for spec in model.inputs), next(iter(counts.values()))
        lengths: NDArray[Any] = checked_lengths(model.lengths, given[model.lengths], steps, samples)
        batch[model.lengths] = lengths
    return batch
