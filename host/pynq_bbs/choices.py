# SPDX-License-Identifier: Apache-2.0
"""What becomes of each layer's weights: how many are removed, in which banks, at how many bits."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from .builds import Build
from .compress.prune import MAX_BANK, MIN_BANK, choose_bank
from .compress.scores import PRUNING
from .compress.second_order import ROUNDING
from .errors import InputError
from .model.graph import Layer, Model, QuantLayer, QuantModel
from .model.onnx_segments import Part
from .model.partition import Partition
from .model.recurrent import RecurrentLayer
from .model.recurrent_floats import FloatRecurrent

AnyLayer = Layer | FloatRecurrent | QuantLayer | RecurrentLayer

#: What can be said of a single layer.
_OPTIONS = ("sparsity", "bank_size", "weight_bits", "pruning", "rounding")


@dataclass(frozen=True)
class LayerChoice:
    """How one layer is compiled. `kept` says why nothing is removed of it although the model's
    sparsity is not 0: "first", "last", "depthwise", ...; empty where it is pruned as asked."""

    sparsity: float
    bank_size: int
    weight_bits: int
    kept: str = ""
    pruning: str = "magnitude"
    rounding: str = "nearest"


def choose(
    model: Model | QuantModel | Partition,
    build: Build,
    *,
    sparsity: float = 0.0,
    bank_size: int = 64,
    weight_bits: int = 8,
    pruning: str = "magnitude",
    rounding: str = "nearest",
    layers: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, LayerChoice]:
    """The choice for every layer of a model, by name; the arguments are those of `compile`.

    Raises:
        InputError: a value that no layer can have, a name that no layer has, an unknown key, or
            a sparsity asked of a layer by its own name that this one cannot have.
    """
    asked = LayerChoice(sparsity, bank_size, weight_bits, pruning=pruning, rounding=rounding)
    for key in _OPTIONS:
        _check(key, getattr(asked, key), "")
    whole = _whole(model)
    by_name = {layer.name: layer for layer in whole.layers}
    chosen = dict.fromkeys(by_name, asked)
    fixed = {layer.name: reason for layer in whole.layers if (reason := without_matrix(layer))}
    usual = _kept_by_default(whole, fixed)
    if sparsity > 0:
        for name, reason in (usual | fixed).items():
            chosen[name] = replace(asked, sparsity=0.0, kept=reason)
    for pattern, options in (layers or {}).items():
        _check_options(pattern, options)
        for name in _matching(pattern, list(by_name)):
            kept = "" if "sparsity" in options else chosen[name].kept
            chosen[name] = replace(chosen[name], **options, kept=kept)
    for name, choice in chosen.items():
        if choice.sparsity > 0 and (reason := _cannot(by_name[name], choice, fixed, build)):
            if name in (layers or {}):
                raise InputError(f"layer {name!r} cannot have sparsity {choice.sparsity}: {reason}")
            chosen[name] = replace(choice, sparsity=0.0, kept=reason)
    return chosen


@dataclass(frozen=True)
class _Whole:
    """The layers of all programs, and the tensors that the first of them read and the last write;
    `views` are the tensors that each of them reads."""

    layers: Sequence[AnyLayer]
    views: Mapping[str, tuple[str, ...]]
    inputs: set[str]
    outputs: set[str]


def layers_of(model: Model | QuantModel | Partition) -> list[AnyLayer]:
    """The layers of all programs that a model becomes."""
    return [layer for part in _parts(model) for layer in part.layers]


def _parts(model: Model | QuantModel | Partition) -> list[Model | QuantModel]:
    if not isinstance(model, Partition):
        return [model]
    return [stage.model for stage in model.stages if isinstance(stage, Part)]


def _whole(model: Model | QuantModel | Partition) -> _Whole:
    parts = _parts(model)
    return _Whole(
        layers_of(model),
        {view.output: view.reads for part in parts for view in part.views},
        {spec.tensor for part in parts[:1] for spec in part.inputs},
        {spec.tensor for part in parts[-1:] for spec in part.outputs},
    )


def bank_for(shape: tuple[int, ...], choice: LayerChoice, build: Build) -> tuple[int, int]:
    """Bank size and keep for the sparsity that a layer is to have, whose weights have the `shape`
    (M, K), or (M, C, kernel height, width); InputError where no bank has it."""
    _, features, *kernel = shape
    size = min(choice.bank_size, features) if kernel else choice.bank_size
    taps = int(np.prod(kernel, dtype=np.int64))
    return choose_bank(features, choice.sparsity, size, build.lanes, build.takes_bank, taps)


def read_layers(path: Path) -> dict[str, dict[str, Any]]:
    """`layers` of `compile` from a TOML file: a table for each layer or pattern.

    Raises:
        InputError: the file cannot be read, or is no TOML of tables.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise InputError(
                "reading TOML needs the tomli package on this Python: pip install 'pynq-bbs[onnx]'"
            ) from None
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise InputError(f"{path} is not a TOML file: {error}") from None
    for name, options in tables.items():
        if not isinstance(options, dict):
            raise InputError(
                f"{path}: {name!r} is no table; write a [layer name] in quotes above its options"
            )
    return tables


def layers_text(layers: Mapping[str, Mapping[str, float | str]]) -> str:
    """`layers` of `compile` as `read_layers` reads them."""
    lines = []
    for name, options in layers.items():
        # JSON's strings are TOML's, but that TOML wants DEL escaped.
        quoted = json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"[{quoted}]")
        lines += [f"{key} = {value!r}" for key, value in options.items()]
        lines.append("")
    return "\n".join(lines)


def _check_options(name: str, options: object) -> None:
    if not isinstance(options, Mapping):
        raise InputError(f"layers[{name!r}] is {options!r}, must be a dict of options")
    for key, value in options.items():
        if key not in _OPTIONS:
            raise InputError(f"layer {name!r} has the unknown option {key!r}{_near(key, _OPTIONS)}")
        _check(key, value, f"layer {name!r}: ")


def _check(key: str, value: Any, where: str) -> None:
    """One option's value, whatever the layer is."""
    kind = type(value)
    if key == "sparsity":
        good = issubclass(kind, (int, float, np.floating)) and kind is not bool and 0 <= value < 1
        wanted = "at least 0 and less than 1"
    elif key in ("pruning", "rounding"):
        names = PRUNING if key == "pruning" else ROUNDING
        good, wanted = issubclass(kind, str) and value in names, " or ".join(names)
    else:
        allowed = (4, 8) if key == "weight_bits" else range(MIN_BANK, MAX_BANK + 1)
        good = issubclass(kind, (int, np.integer)) and kind is not bool and value in allowed
        wanted = "4 or 8" if key == "weight_bits" else f"an integer, {MIN_BANK} to {MAX_BANK}"
    if not good:
        raise InputError(f"{where}{key} is {value!r}, must be {wanted}.")


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The layer of that name, else those that a pattern with * and ? means."""
    found = [n for n in names if n == pattern] or [n for n in names if fnmatchcase(n, pattern)]
    if not found:
        raise InputError(f"no layer is called {pattern!r}{_near(pattern, names)}")
    return found


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    more = ", ..." if len(known) > 8 else ""
    return f"; there are {', '.join(map(repr, known[:8]))}{more}"


def without_matrix(layer: AnyLayer) -> str:
    """Why a layer has no weights that could be removed; empty where it has."""
    if isinstance(layer, (FloatRecurrent, RecurrentLayer)):
        return ""
    if layer.maximum:
        return "a maximum"
    if isinstance(layer, QuantLayer) and layer.weight_tensor:
        return "a product of two tensors"
    if np.count_nonzero(layer.weights.reshape(len(layer.weights), -1), axis=1).max() <= 1:
        return "it has one weight a row"
    if np.ptp(layer.weights) == 0:  # none is less than others
        return "its weights are all the same"
    if layer.groups > 1:
        return "depthwise" if layer.weights.shape[1] == 1 else "grouped"
    return ""


def _kept_by_default(model: _Whole, fixed: Mapping[str, str]) -> dict[str, str]:
    """The first and the last layers with weights; none where that would be all there are.

    Recurrent layers are never among them: most weights of a network that has any are theirs.
    """
    makers = {name: layer for layer in model.layers for name in layer.outputs}

    def sources(tensor: str) -> set[str]:
        """The layers with weights, and the inputs, that a tensor comes from."""
        found: set[str] = set()
        waiting, seen = [tensor], set[str]()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            made = makers.get(name)
            if made is None:
                waiting += model.views.get(name, ())
                found |= {name} & model.inputs
            elif made.name in fixed:
                waiting.append(made.input)
            else:
                found.add(made.name)
        return found

    plain = [
        layer
        for layer in model.layers
        if layer.name not in fixed and not isinstance(layer, (FloatRecurrent, RecurrentLayer))
    ]
    last = set[str]().union(*(sources(tensor) for tensor in model.outputs))
    kept = {layer.name: "last" for layer in plain if layer.name in last}
    kept |= {layer.name: "first" for layer in plain if sources(layer.input) & model.inputs}
    return {} if len(kept) == len(model.layers) - len(fixed) else kept


def _cannot(layer: AnyLayer, choice: LayerChoice, fixed: Mapping[str, str], build: Build) -> str:
    """Why a layer cannot have the sparsity chosen for it, or nothing."""
    if layer.name in fixed:
        return fixed[layer.name]
    if isinstance(layer, (FloatRecurrent, RecurrentLayer)) or layer.weights.ndim == 2:
        return ""  # of a matrix, `bank_for` says what is wrong
    try:
        bank_for(layer.weights.shape, choice, build)
    except InputError:
        channels = layer.weights.shape[1]
        return f"no bank of its {channels} channels, up to {choice.bank_size}, has that sparsity"
    return ""
