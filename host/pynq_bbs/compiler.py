# SPDX-License-Identifier: Apache-2.0
"""From a model to a program: prune, quantise, pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .builds import Build, load_build
from .compress.prune import bank_prune, choose_bank
from .compress.quantize import quantize
from .errors import InputError
from .model.graph import Layer, Model, QuantLayer, QuantModel
from .model.partition import Partition, read_model
from .model.recurrent import RecurrentLayer
from .pack.image import dense_bank, moves, pack
from .pack.pipeline import Pipeline
from .pack.program import Program
from .pack.recurrent import prune_recurrent
from .pipeline_compiler import compile_partition

AnyLayer = TypeVar("AnyLayer", Layer, QuantLayer)


def compile(
    model: Model | QuantModel | Partition | str | Path,
    *,
    sparsity: float = 0.0,
    bank_size: int = 64,
    weight_bits: int = 8,
    calibration: Any = None,
    method: str = "minmax",
    build: str | Build = "8x32",
    progress: Callable[[int], None] | None = None,
) -> Program | Pipeline:
    """Compile a model for one build of the engine.

    A model that `load_onnx` gives is one program. Of a file that has nodes which the engine cannot
    run, a pipeline is made: several programs, and those nodes on the host in between.

    Args:
        model: what `load_onnx` or `read_model` returns, or the path of an ONNX file.
        sparsity: share of the weights to remove from every bank; 0 keeps the model dense. A model
            whose weights have that pattern already loses nothing.
        bank_size: the largest bank to use; each layer takes the one that fills the lanes best.
            2:4 is `sparsity=0.5, bank_size=4`. Banks of a convolution lie along the channels of
            a tap; one of too few channels for any bank stays dense, as depthwise ones do.
        weight_bits: 8, or 4 for half the memory and memory traffic of the weights.
        calibration: samples for a float model, an array (N, ...), a dict of arrays by input name,
            or an iterable of either. A quantised model brings its scales and needs none.
        method: how activation ranges are chosen: minmax, percentile, entropy or mse.
        build: name of a build, or a `Build`.
        progress: called with the number of calibration samples seen so far.

    Raises:
        ModelError, UnsupportedModelError: the file cannot be read or has nodes that neither the
            engine nor the host can run.
        InputError: no or wrong calibration data, or a sparsity no bank up to `bank_size` can have.
        BuildError: unknown build.
    """
    target = build if isinstance(build, Build) else load_build(build)
    if isinstance(model, (str, Path)):
        model = read_model(model)

    def bank(layer: Layer | QuantLayer) -> tuple[int, int] | None:
        return _bank(layer, sparsity, bank_size, target)

    def prune(floats: Model) -> Model:
        return replace(floats, layers=[_pruned_layer(la, bank(la)) for la in floats.layers])

    floats = model.is_float if isinstance(model, Partition) else isinstance(model, Model)
    if floats and calibration is None:
        raise InputError(
            f"model {model.name!r} is float and needs calibration samples to choose its "
            "scales: give calibration=, some hundred typical inputs (on the command line "
            "--calibration samples.npy)"
        )
    if isinstance(model, Partition):
        options: dict[str, Any] = {"sparsity": sparsity, "bank_size": bank_size, "build": target}
        return compile_partition(
            model, prune, partial(_compile_part, weight_bits=weight_bits, **options), target,
            calibration=calibration, method=method, weight_bits=weight_bits, progress=progress,
        )  # fmt: skip
    banks: dict[str, tuple[int, int]] = {}
    if isinstance(model, Model):
        model = quantize(
            prune(model), calibration, method=method, weight_bits=weight_bits, progress=progress
        )
    else:
        layers: list[QuantLayer | RecurrentLayer] = []
        for layer in model.layers:
            if isinstance(layer, RecurrentLayer):
                layers.append(_pruned_recurrent(layer, sparsity, bank_size, target, banks))
            else:
                layers.append(_pruned_layer(layer, bank(layer)))
        layers = [replace(layer, weight_bits=weight_bits) for layer in layers]
        model = replace(model, layers=layers)
    for layer in model.layers:
        if isinstance(layer, QuantLayer) and (chosen := bank(layer)):
            banks[layer.name] = chosen
    return pack(model, banks, target)


def _compile_part(model: QuantModel, **options: Any) -> Program:
    program = compile(model, **options)
    assert isinstance(program, Program)
    return program


def _pruned_recurrent(
    layer: RecurrentLayer,
    sparsity: float,
    bank_size: int,
    build: Build,
    banks: dict[str, tuple[int, int]],
) -> RecurrentLayer:
    """The layer with its matrices pruned; their banks are added to `banks`."""

    def prune(name: str, weights: NDArray[np.int8]) -> NDArray[np.int8]:
        banks[name] = _matrix_bank(weights.shape[1], sparsity, bank_size, build)
        pruned: NDArray[np.int8] = bank_prune(weights, *banks[name])
        return pruned

    return prune_recurrent(layer, prune, build)


def _matrix_bank(features: int, sparsity: float, bank_size: int, build: Build) -> tuple[int, int]:
    if sparsity == 0:
        return dense_bank(features, build)
    return choose_bank(features, sparsity, bank_size, build.lanes, build.takes_bank)


def _bank(
    layer: Layer | QuantLayer, sparsity: float, bank_size: int, build: Build
) -> tuple[int, int] | None:
    """Bank size and keep; None for a layer whose banks are not chosen but follow from what it
    does, and for a convolution of too few channels for any bank of that sparsity."""
    features = layer.weights.shape[1]
    if isinstance(layer, QuantLayer) and (layer.weight_tensor or moves(layer.weights)):
        return None
    if layer.weights.ndim == 2:
        return _matrix_bank(features, sparsity, bank_size, build)
    # Weights that are all the same are an average, or a sum of channels: none is less than others.
    adds_up = bool(np.ptp(layer.weights) == 0)
    if layer.groups > 1 or layer.maximum or adds_up or sparsity == 0:
        return None
    taps = layer.weights.shape[2] * layer.weights.shape[3]
    largest = min(bank_size, features)
    try:
        return choose_bank(features, sparsity, largest, build.lanes, build.takes_bank, taps)
    except InputError:
        return None


def _pruned_layer(layer: AnyLayer, bank: tuple[int, int] | None) -> AnyLayer:
    if bank is None:
        return layer
    if layer.weights.ndim == 2:
        return replace(layer, weights=bank_prune(layer.weights, *bank))
    rows, channels, *kernel = layer.weights.shape
    taps = np.ascontiguousarray(layer.weights.transpose(0, 2, 3, 1)).reshape(-1, channels)
    kept = bank_prune(taps, *bank).reshape(rows, *kernel, channels)
    return replace(layer, weights=np.ascontiguousarray(kept.transpose(0, 3, 1, 2)))
