# SPDX-License-Identifier: Apache-2.0
"""From a model to a program: prune, quantise, pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .builds import Build, load_build
from .choices import LayerChoice, bank_for, choose
from .compress.prune import bank_prune
from .compress.quantize import quantize
from .errors import InputError
from .model.graph import Layer, Model, QuantLayer, QuantModel
from .model.recurrent import RecurrentLayer
from .pack.banks import bank_of, moves
from .pack.image import pack
from .pack.program import Program
from .pack.recurrent import prune_recurrent

AnyLayer = TypeVar("AnyLayer", Layer, QuantLayer)


def compile(
    model: Model | QuantModel | str | Path,
    *,
    sparsity: float = 0.0,
    bank_size: int = 64,
    weight_bits: int = 8,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    calibration: Any = None,
    method: str = "minmax",
    build: str | Build = "8x32",
    progress: Callable[[int], None] | None = None,
) -> Program:
    """Compile a model for one build of the engine.

    Zeros that the model's weights have are found: where a bank covers them and saves work and
    memory, the layer is packed in it, and gives the same integers as if it were dense.

    Args:
        model: what `load_onnx` returns, or the path of an ONNX file.
        sparsity: share of the weights to remove from every bank; 0 removes none. A model whose
            weights have that pattern already loses nothing. The first and last layers with
            weights, depthwise ones, and convolutions of too few channels for any bank are not
            pruned (`choices.choose` says which); nor are both ends where they are all there is.
        bank_size: the largest bank to prune in; each layer takes the one that fills the lanes best.
            2:4 is `sparsity=0.5, bank_size=4`. Banks of a convolution lie along the channels of
            a tap.
        weight_bits: 8, or 4 for half the memory and memory traffic of the weights; those that a
            model brings in 4 bits take 4 anyway.
        layers: the same three for single layers, as `{"conv1": {"sparsity": 0, "weight_bits": 8}}`.
            A name may be a pattern with `*` and `?`; later entries win, and all win over what is
            usual for first and last layers: `{"*": {"sparsity": 0.5}}` prunes them all.
        calibration: samples for a float model, an array (N, ...), a dict of arrays by input name,
            or an iterable of either. A quantised model brings its scales and needs none.
        method: how activation ranges are chosen: minmax, percentile, entropy or mse.
        build: name of a build, or a `Build`.
        progress: called with the number of calibration samples seen so far.

    Raises:
        ModelError, UnsupportedModelError: the file cannot be read or has nodes that cannot run.
        InputError: no or wrong calibration data, a sparsity no bank up to `bank_size` can have, or
            options of layers that do not exist.
        BuildError: unknown build.
    """
    target = build if isinstance(build, Build) else load_build(build)
    if isinstance(model, (str, Path)):
        from .model.onnx_import import load_onnx

        model = load_onnx(model)
    chosen = choose(
        model, target, sparsity=sparsity, bank_size=bank_size, weight_bits=weight_bits,
        layers=layers,
    )  # fmt: skip
    banks: dict[str, tuple[int, int]] = {}
    if isinstance(model, Model):
        if calibration is None:
            raise InputError(
                f"model {model.name!r} is float and needs calibration samples to choose its "
                "scales: give calibration=, some hundred typical inputs (on the command line "
                "--calibration samples.npy)"
            )
        model = quantize(
            pruned_model(model, chosen, target),
            calibration,
            method=method,
            weight_bits={name: choice.weight_bits for name, choice in chosen.items()},
            progress=progress,
        )
    else:
        model = _pruned_integers(model, chosen, target, banks)
    for layer in model.layers:
        if isinstance(layer, QuantLayer) and (bank := _bank(layer, chosen.get(layer.name), target)):
            banks[layer.name] = bank
    return pack(model, banks, target)


def pruned_model(model: Model, chosen: Mapping[str, LayerChoice], build: Build) -> Model:
    """A float model without the weights that `chosen` removes."""
    return replace(
        model, layers=[_pruned(layer, chosen[layer.name], build) for layer in model.layers]
    )


def _pruned_integers(
    model: QuantModel,
    chosen: Mapping[str, LayerChoice],
    build: Build,
    banks: dict[str, tuple[int, int]],
) -> QuantModel:
    """The same of a quantised one; the banks of recurrent layers are added to `banks`."""
    layers: list[QuantLayer | RecurrentLayer] = []
    for layer in model.layers:
        choice = chosen[layer.name]
        if isinstance(layer, RecurrentLayer):
            layers.append(_pruned_recurrent(layer, choice, build, banks))
        else:
            layers.append(_pruned(layer, choice, build))
    narrowed = [
        replace(layer, weight_bits=min(layer.weight_bits, chosen[layer.name].weight_bits))
        for layer in layers
    ]
    return replace(model, layers=narrowed)


def _pruned_recurrent(
    layer: RecurrentLayer,
    choice: LayerChoice,
    build: Build,
    banks: dict[str, tuple[int, int]],
) -> RecurrentLayer:
    """The layer with its matrices pruned; their banks are added to `banks`."""

    def prune(name: str, weights: NDArray[np.int8]) -> NDArray[np.int8]:
        if choice.sparsity == 0:
            banks[name] = bank_of(weights, build, choice.weight_bits)
            return weights
        banks[name] = _named(layer.name, weights.shape, choice, build)
        pruned: NDArray[np.int8] = bank_prune(weights, *banks[name])
        return pruned

    return prune_recurrent(layer, prune, build)


def _bank(layer: QuantLayer, choice: LayerChoice | None, build: Build) -> tuple[int, int] | None:
    """Bank size and keep; None for a layer whose banks are not chosen but follow from what it
    does."""
    if layer.weight_tensor or layer.maximum or layer.groups > 1 or moves(layer.weights):
        return None
    if choice is not None and choice.sparsity > 0:
        return bank_for(layer.weights.shape, choice, build)
    return found_bank(layer.weights, build, layer.weight_bits)


def found_bank(weights: NDArray[Any], build: Build, weight_bits: int = 8) -> tuple[int, int]:
    """Bank size and keep that cover the nonzero weights of a layer, (M, K) or (M, C, kernel height,
    width), dense where nothing is won by less."""
    taps = weights.reshape(*weights.shape[:2], -1)
    if taps.shape[2] == 1:
        return bank_of(taps[:, :, 0], build, weight_bits)
    return bank_of(np.swapaxes(taps, 1, 2), build, weight_bits)


def _pruned(layer: AnyLayer, choice: LayerChoice, build: Build) -> AnyLayer:
    if choice.sparsity == 0:
        return layer
    bank = _named(layer.name, layer.weights.shape, choice, build)
    if layer.weights.ndim == 2:
        return replace(layer, weights=bank_prune(layer.weights, *bank))
    rows, channels, *kernel = layer.weights.shape
    taps = np.ascontiguousarray(layer.weights.transpose(0, 2, 3, 1)).reshape(-1, channels)
    kept = bank_prune(taps, *bank).reshape(rows, *kernel, channels)
    return replace(layer, weights=np.ascontiguousarray(kept.transpose(0, 3, 1, 2)))


def _named(name: str, shape: tuple[int, ...], choice: LayerChoice, build: Build) -> tuple[int, int]:
    try:
        return bank_for(shape, choice, build)
    except InputError as error:
        raise InputError(f"layer {name!r}: {error}") from None
