# SPDX-License-Identifier: Apache-2.0
"""From a model to a program: prune, quantise, pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from .builds import Build, load_build
from .compress.prune import bank_prune, choose_bank
from .compress.quantize import quantize
from .errors import InputError
from .model.graph import Layer, Model, QuantLayer, QuantModel
from .pack.image import dense_bank, pack
from .pack.program import Program

AnyLayer = TypeVar("AnyLayer", Layer, QuantLayer)


def compile(
    model: Model | QuantModel | str | Path,
    *,
    sparsity: float = 0.0,
    bank_size: int = 64,
    weight_bits: int = 8,
    calibration: Any = None,
    method: str = "minmax",
    build: str | Build = "8x32",
    progress: Callable[[int], None] | None = None,
) -> Program:
    """Compile a model for one build of the engine.

    Args:
        model: what `load_onnx` returns, or the path of an ONNX file.
        sparsity: share of the weights to remove from every bank; 0 keeps the model dense. A model
            whose weights have that pattern already loses nothing.
        bank_size: the largest bank to use; each layer takes the one that fills the lanes best.
            2:4 is `sparsity=0.5, bank_size=4`.
        weight_bits: 8, or 4 for half the memory and memory traffic of the weights.
        calibration: samples for a float model, an array (N, ...), a dict of arrays by input name,
            or an iterable of either. A quantised model brings its scales and needs none.
        method: how activation ranges are chosen: minmax, percentile, entropy or mse.
        build: name of a build, or a `Build`.
        progress: called with the number of calibration samples seen so far.

    Raises:
        ModelError, UnsupportedModelError: the file cannot be read or has nodes that cannot run.
        InputError: no or wrong calibration data, or a sparsity no bank up to `bank_size` can have.
        BuildError: unknown build.
    """
    target = build if isinstance(build, Build) else load_build(build)
    if isinstance(model, (str, Path)):
        from .model.onnx_import import load_onnx

        model = load_onnx(model)

    def bank(layer: Layer | QuantLayer) -> tuple[int, int]:
        features = layer.weights.shape[1]
        if sparsity == 0:
            return dense_bank(features, target)
        return choose_bank(features, sparsity, bank_size, target.lanes, target.takes_bank)

    if isinstance(model, Model):
        model = replace(model, layers=_pruned(model.layers, bank))
        if calibration is None:
            raise InputError(
                f"model {model.name!r} is float and needs calibration samples to choose its "
                "scales: give calibration=, some hundred typical inputs (on the command line "
                "--calibration samples.npy)"
            )
        model = quantize(
            model, calibration, method=method, weight_bits=weight_bits, progress=progress
        )
    else:
        layers = _pruned(model.layers, bank)
        layers = [replace(layer, weight_bits=weight_bits) for layer in layers]
        model = replace(model, layers=layers)
    return pack(model, {layer.name: bank(layer) for layer in model.layers}, target)


def _pruned(
    layers: list[AnyLayer], bank: Callable[[Layer | QuantLayer], tuple[int, int]]
) -> list[AnyLayer]:
    return [replace(la, weights=bank_prune(la.weights, *bank(la))) for la in layers]
