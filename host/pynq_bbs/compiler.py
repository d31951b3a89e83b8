# SPDX-License-Identifier: Apache-2.0
"""From a model to a program: prune, quantise, pack."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .boards import DEFAULT_BOARD, load_board
from .builds import Build, load_build
from .choices import LayerChoice, bank_for, choose, layers_of, without_matrix
from .compress.one_shot import checked_scores, prune_weights
from .compress.prune import bank_prune
from .compress.quantize import quantize
from .compress.scores import Float64, input_moments
from .errors import InputError
from .model.graph import Layer, Model, QuantLayer, QuantModel
from .model.partition import Partition, read_model
from .model.recurrent import RecurrentLayer
from .model.recurrent_floats import FloatRecurrent
from .pack.banks import bank_of, moves
from .pack.fits import check_fits, check_together
from .pack.image import pack
from .pack.pipeline import Pipeline
from .pack.program import Program
from .pack.recurrent import prune_recurrent
from .pipeline_compiler import compile_partition

AnyLayer = TypeVar("AnyLayer", Layer, QuantLayer)


def compile(
    model: Model | QuantModel | Partition | str | Path | Any,
    example_input: Any = None,
    *,
    sparsity: float = 0.0,
    bank_size: int = 64,
    weight_bits: int = 8,
    pruning: str = "magnitude",
    rounding: str = "nearest",
    scores: Mapping[str, NDArray[Any]] | None = None,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    calibration: Any = None,
    method: str = "minmax",
    build: str | Build | None = None,
    board: str = DEFAULT_BOARD,
    progress: Callable[[int], None] | None = None,
) -> Program | Pipeline:
    """Compile a model for one build of the engine and the memory of a board.

    Zeros that the model's weights have are found: where a bank covers them and saves work and
    memory, the layer is packed in it, and gives the same integers as if it were dense.

    A model that `load_onnx` gives is one program. Of a file that has nodes which the engine cannot
    run, a pipeline is made: several programs, and those nodes on the host in between.

    Args:
        model: what `load_onnx` or `read_model` returns, the path of an ONNX file, or a
            `torch.nn.Module`.
        example_input: of a module, as `load_torch` takes it.
        sparsity: share of the weights to remove from every bank; 0 removes none. A model whose
            weights have that pattern already loses nothing. The first and last layers with
            weights, depthwise ones, and convolutions of too few channels for any bank are not
            pruned (`choices.choose` says which); nor are both ends where they are all there is.
        bank_size: the largest bank to prune in; each layer takes the one that fills the lanes best.
            2:4 is `sparsity=0.5, bank_size=4`. Banks of a convolution lie along the channels of
            a tap.
        weight_bits: 8, or 4 for half the memory and memory traffic of the weights; those that a
            model brings in 4 bits take 4 anyway.
        pruning: which weights go: "magnitude", the smallest; "wanda", those whose products are
            small on the calibration samples; "sparsegpt", those that the others can make up for,
            which are changed to do so. The last two read the calibration samples once more, and
            take float models of one program; gates go by magnitude.
        rounding: how weights become integers: "nearest", or "gptq", so that those of a row make up
            for each other's errors on the calibration samples, which are read once more as for
            `pruning`; depthwise and grouped layers, and gates, go to the nearest.
        scores: by layer name, in the shape of its weights and not negative, how much each weight
            matters, in place of `pruning` (see `compress.scores.taylor`).
        layers: sparsity, bank_size, weight_bits, pruning and rounding for single layers, as
            `{"conv1": {"sparsity": 0, "weight_bits": 8}}`. A name may be a pattern with `*` and
            `?`; later entries win, and all win over what is
            usual for first and last layers: `{"*": {"sparsity": 0.5}}` prunes them all.
        calibration: samples for a float model, an array (N, ...), a dict of arrays by input name,
            or an iterable of either. A quantised model brings its scales and needs none.
        method: how activation ranges are chosen: minmax, percentile, entropy or mse.
        build: name of a build, or a `Build`; None is the board's.
        board: whose memory the program must fit.
        progress: called with the number of calibration samples seen so far.

    Raises:
        ModelError, UnsupportedModelError: the file cannot be read or has nodes that neither the
            engine nor the host can run.
        InputError: no or wrong calibration data, a sparsity no bank up to `bank_size` can have, or
            options of layers that do not exist.
        BuildError: unknown build or board.
        DeviceMemoryError: not even one sample fits the board's memory.
    """
    target = build if isinstance(build, Build) else load_build(build or load_board(board).build)
    if _is_module(model):
        from .model.torch_import import load_torch

        if example_input is None:
            raise InputError(
                "a PyTorch module needs an example of its input: compile(module, example_input)"
            )
        model = load_torch(model, example_input)
    elif example_input is not None:
        raise InputError(
            f"example_input is for PyTorch modules, the model is a {type(model).__name__}; give "
            "samples as calibration="
        )
    if isinstance(model, (str, Path)):
        model = read_model(model)
    floats = model.is_float if isinstance(model, Partition) else isinstance(model, Model)
    if floats and calibration is None:
        raise InputError(
            f"model {model.name!r} is float and needs calibration samples to choose its "
            "scales: give calibration=, some hundred typical inputs (on the command line "
            "--calibration samples.npy)"
        )
    chosen = choose(
        model, target, sparsity=sparsity, bank_size=bank_size, weight_bits=weight_bits,
        pruning=pruning, rounding=rounding, layers=layers,
    )  # fmt: skip
    shapes = {
        la.name: la.weights.shape for la in layers_of(model) if isinstance(la, (Layer, QuantLayer))
    }
    scores = checked_scores(shapes, scores or {})
    moments = _moments(model, chosen, scores, calibration)
    bits = {name: choice.weight_bits for name, choice in chosen.items()}
    if isinstance(model, Partition):
        pipeline = compile_partition(
            model,
            lambda part: pruned_model(part, chosen, target, scores=scores),
            lambda part: _packed(part, chosen, target),
            target,
            calibration=calibration, method=method, weight_bits=bits, progress=progress,
        )  # fmt: skip
        check_together(pipeline.name, pipeline.programs, load_board(board))
        return pipeline
    pruned = pruned_model(model, chosen, target, moments, scores)
    if isinstance(pruned, Model):
        rounded = {name: m for name, m in moments.items() if chosen[name].rounding == "gptq"}
        pruned = quantize(
            pruned, calibration, method=method, weight_bits=bits, moments=rounded,
            progress=progress,
        )  # fmt: skip
    program = _packed(pruned, chosen, target)
    check_fits(program, load_board(board))
    return program


@overload
def pruned_model(
    model: Model,
    chosen: Mapping[str, LayerChoice],
    build: Build,
    moments: Mapping[str, Float64] = ...,
    scores: Mapping[str, NDArray[Any]] = ...,
) -> Model: ...
@overload
def pruned_model(
    model: QuantModel,
    chosen: Mapping[str, LayerChoice],
    build: Build,
    moments: Mapping[str, Float64] = ...,
    scores: Mapping[str, NDArray[Any]] = ...,
) -> QuantModel: ...
def pruned_model(
    model: Model | QuantModel,
    chosen: Mapping[str, LayerChoice],
    build: Build,
    moments: Mapping[str, Float64] = MappingProxyType({}),
    scores: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> Model | QuantModel:
    """The model without the weights that `chosen` removes, those of gates excepted: by the `scores`
    of a layer, by its `moments` (`input_moments`), else by magnitude."""

    def smaller(layer: AnyLayer) -> AnyLayer:
        name = layer.name
        return _pruned(layer, chosen[name], build, moments.get(name), scores.get(name))

    if isinstance(model, Model):
        floats = [la if isinstance(la, FloatRecurrent) else smaller(la) for la in model.layers]
        return replace(model, layers=floats)
    integers = [la if isinstance(la, RecurrentLayer) else smaller(la) for la in model.layers]
    integers = [
        replace(la, weight_bits=min(la.weight_bits, chosen[la.name].weight_bits)) for la in integers
    ]
    return replace(model, layers=integers)


def _packed(model: QuantModel, chosen: Mapping[str, LayerChoice], build: Build) -> Program:
    # Gates are pruned as integers: only there have inputs and hidden values of a row one scale.
    banks: dict[str, tuple[int, int]] = {}
    layers = [
        _pruned_recurrent(la, chosen[la.name], build, banks)
        if isinstance(la, RecurrentLayer)
        else la
        for la in model.layers
    ]
    for layer in layers:
        if isinstance(layer, QuantLayer) and (bank := _bank(layer, chosen.get(layer.name), build)):
            banks[layer.name] = bank
    return pack(replace(model, layers=layers), banks, build)


def _is_module(model: object) -> bool:
    """Whether it is a `torch.nn.Module`; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


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


def _pruned(
    layer: AnyLayer,
    choice: LayerChoice,
    build: Build,
    moments: Float64 | None,
    scores: NDArray[Any] | None,
) -> AnyLayer:
    if choice.sparsity == 0:
        return layer
    bank = _named(layer.name, layer.weights.shape, choice, build)
    return replace(
        layer, weights=prune_weights(layer.weights, *bank, choice.pruning, moments, scores)
    )


def _moments(
    model: Model | QuantModel | Partition,
    chosen: Mapping[str, LayerChoice],
    scores: Mapping[str, Any],
    calibration: Any,
) -> dict[str, Float64]:
    """Those of the inputs of the layers that are pruned or rounded by them."""
    wanted: dict[str, str] = {}
    asked = ""
    for la in layers_of(model):
        if not isinstance(la, (Layer, QuantLayer)):
            continue
        choice = chosen[la.name]
        if choice.rounding == "gptq" and not without_matrix(la):
            wanted[la.name], asked = "sparsegpt", "rounding 'gptq'"
        elif choice.sparsity > 0 and choice.pruning != "magnitude" and la.name not in scores:
            wanted[la.name], asked = choice.pruning, f"pruning {choice.pruning!r}"
    if not wanted:
        return {}
    if not isinstance(model, Model):
        what = "is quantised" if isinstance(model, QuantModel) else "is several programs"
        raise InputError(
            f"model {model.name!r} {what}: {asked} takes a float model of one program; take "
            "pruning 'magnitude', or give scores, and rounding 'nearest'"
        )
    if isinstance(calibration, Iterator):
        raise InputError(
            f"calibration samples are read twice for {asked}: give an array, a dict of arrays, or "
            "a list of them"
        )
    return input_moments(model, calibration, wanted)


def _named(name: str, shape: tuple[int, ...], choice: LayerChoice, build: Build) -> tuple[int, int]:
    try:
        return bank_for(shape, choice, build)
    except InputError as error:
        raise InputError(f"layer {name!r}: {error}") from None
