# SPDX-License-Identifier: Apache-2.0
"""What a float model computes, batch by batch: every tensor in turn, and those in between that
quantisation needs to know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.floats import layer_sums
from ..model.graph import (
    Concat,
    Float,
    Function,
    GraphInput,
    Layer,
    Model,
    Slice,
    apply_functions,
)

#: Samples of calibration data worked on at a time.
_CALIBRATION_BATCH = 256


def run_float(model: Model, inputs: Mapping[str, Any] | NDArray[Any]) -> dict[str, Float]:
    """Every tensor of the float model, by name, as (N, features).

    Args:
        model: what `load_onnx` returns for a float model.
        inputs: (N, *shape) by input name, or the array itself where there is one input.

    Raises:
        InputError: an input is missing, unknown, of a wrong shape or dtype, or not finite.
    """
    batch = _model_inputs(model, inputs)
    shown = {i.tensor for i in model.inputs} | {layer.output for layer in model.layers}
    shown |= {view.output for view in model.views}
    return {name: value for name, value in activations(model, batch) if name in shown}


def split_functions(
    functions: tuple[Function, ...],
) -> tuple[tuple[Function, ...], tuple[Function, ...]]:
    """The clamps that go first, and everything from the first other function on."""
    count = next((i for i, f in enumerate(functions) if not f.clamps), len(functions))
    return functions[:count], functions[count:]


def ready(waiting: list[Slice | Concat], known: Mapping[str, object]) -> Iterator[Slice | Concat]:
    """Each view of `waiting` once all that it reads is `known`; it waits no longer then."""
    for view in list(waiting):
        if all(name in known for name in view.reads):
            waiting.remove(view)
            yield view


def _viewed(view: Slice | Concat, tensors: Mapping[str, Float]) -> Float:
    """A view of tensors (N, features)."""
    if isinstance(view, Concat):
        return np.concatenate([tensors[name] for name in view.inputs], axis=1)
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
    waiting = list(model.views)

    def views() -> Iterator[tuple[str, Float]]:
        for view in ready(waiting, tensors):
            tensors[view.output] = _viewed(view, tensors)
            yield view.output, tensors[view.output]

    for spec in model.inputs:
        values = apply_functions(spec.functions, batch[spec.name])
        tensors[spec.tensor] = spec.arrangement.apply(values)
        yield spec.tensor, tensors[spec.tensor]
    yield from views()
    for layer in model.layers:
        clamps, rest = split_functions(layer.functions)
        with np.errstate(over="ignore", invalid="ignore"):
            before = layer_sums(layer, tensors[layer.input])
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
    whole = isinstance(calibration, (np.ndarray, Mapping))
    for item in [calibration] if whole else calibration:
        batch = _model_inputs(model, item)
        for start in range(0, len(next(iter(batch.values()))), _CALIBRATION_BATCH):
            yield {name: x[start : start + _CALIBRATION_BATCH] for name, x in batch.items()}


def _model_inputs(model: Model, given: Any) -> dict[str, Float]:
    """The checked inputs of a float model, (N, features) each."""
    specs: dict[str, GraphInput] = {spec.name: spec for spec in model.inputs}
    if not isinstance(given, Mapping):
        if len(specs) != 1:
            raise InputError(
                f"the model has {len(specs)} inputs ({', '.join(specs)}); "
                "give a dict with an array for each."
            )
        given = {next(iter(specs)): given}
    if set(given) != set(specs):
        raise InputError(
            f"inputs given: {', '.join(map(str, given)) or 'none'}; the model has: "
            f"{', '.join(specs)}. Give exactly these."
        )
    batch = {name: float_input(name, spec.shape, given[name]) for name, spec in specs.items()}
    counts = {name: len(x) for name, x in batch.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"inputs differ in their number of samples: {counts}.")
    return batch


def float_input(name: str, shape: tuple[int, ...], x: Any) -> Float:
    array = as_array(name, x)
    if array.dtype.kind not in "fiu":
        raise InputError(f"input {name!r} is {array.dtype}, must be real numbers (float32).")
    with np.errstate(over="ignore"):
        flat = flattened(name, shape, array).astype(np.float32)
    if not np.isfinite(flat).all():
        raise InputError(
            f"input {name!r} holds NaN, infinity or numbers beyond float32; "
            "every value must be finite."
        )
    return flat


def as_array(name: str, x: Any) -> NDArray[Any]:
    try:
        return np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"input {name!r} is not an array: {error}") from None


def flattened(name: str, shape: tuple[int, ...], array: NDArray[Any]) -> NDArray[Any]:
    if array.shape[1:] != shape or array.ndim != len(shape) + 1 or len(array) == 0:
        wanted = "(N, " + ", ".join(map(str, shape)) + ")"
        hint = ""
        if array.shape == shape:
            hint = " This is one sample without a batch dimension: give x[None]."
        raise InputError(
            f"input {name!r} has shape {array.shape}, must be {wanted} with at least "
            f"one sample.{hint}"
        )
    return array.reshape(len(array), -1)
