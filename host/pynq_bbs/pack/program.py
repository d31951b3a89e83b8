# SPDX-License-Identifier: Apache-2.0
"""A packed program: what the engine runs, independent of the batch, in one file.

The image holds weights, indices, row parameters and tables as they will lie in device memory.
Commands and the places of the activations follow from the batch and are made by `schedule.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..errors import ProgramError
from ..interface import VERSION
from ..model.arrangement import Arrangement
from ..model.functions import restored_functions
from ..model.graph import Combination, QuantInput, QuantOutput, Window
from . import archive
from .csb import CsbShape

#: Version of the file; raised whenever an older reader would misread it.
FORMAT = 5


@dataclass(frozen=True)
class Tensor:
    """Features of every column: of a sample, or of a pixel where there are pixels.

    A sample of several `steps` has as many of such columns, one after the other. `bits` are 8, of
    the states of a recurrent layer 16, of sums 32.

    With a `whole` it lies in that tensor, from its feature `first` on; no `whole` lies in another.
    Where that has more steps, it is those from `step` on.
    With a `content` it is the same for every sample, and lies in the image from that word on.
    """

    features: int
    height: int = 1
    width: int = 1
    steps: int = 1
    bits: int = 8
    whole: str = field(default="", repr=False)
    first: int = field(default=0, repr=False)
    step: int = field(default=0, repr=False)
    content: int = field(default=-1, repr=False)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.features, self.height, self.width

    @property
    def size(self) -> int:
        """Values of one sample."""
        return self.features * self.pixels * self.steps

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"int{self.bits}")

    @property
    def alone(self) -> Tensor:
        """The same, lying by itself."""
        return replace(self, whole="", first=0, step=0, content=-1)


@dataclass(frozen=True)
class PackedCell:
    """What makes of a layer an LSTM or GRU: it runs once a step, its rows are the gates.

    `units` and `inputs` are the model's, the layer's features those of `recurrent.StepFeatures`.
    `reset` makes the r h of a GRU whose reset gate comes before its matrix; `copy` moves hidden
    values to where a tensor of their own has none of the other features.
    """

    kind: str
    units: int
    inputs: int
    reverse: bool
    shift: int
    y_h: str
    y_state: str
    initial_h: str
    initial_state: str
    reset: PackedLayer | None
    copy: PackedLayer | None


@dataclass(frozen=True)
class PackedLayer:
    """One layer: its tensors, its shape, and the word offsets of its parts in the image.

    `rows` counts what is packed, zeros that fill a row group included. `features` are those that
    the weights meet: of the input's tensor from `first_feature` on, or with a `window` its taps,
    in the order of `windows.py`. Of a window with `parts`, equal parts of its channels belong to
    equal parts of the rows, and `features` are the taps of one part. The outputs are features
    `first_row` and on of the output's tensor. `weights_per_row` are the model's, where the features
    are more than that.
    """

    name: str
    input: str
    output: str
    rows: int
    features: int
    bank_size: int
    keep: int
    weight_bits: int
    groups_per_pass: int
    zero_point: int
    sums_out: bool
    weights: int
    indices: int
    parameters: int
    table: int  # -1: none
    window: Window | None = None
    pad_value: int = 0
    first_feature: int = 0
    first_row: int = 0
    maximum: bool = False
    sum_columns: bool = False
    parts: int = 1
    combination: Combination | None = None
    weight_tensor: str = ""  # the weights are this tensor as it lies, and `weights` means nothing
    weights_per_row: int = 0  # 0: one for every feature
    cell: PackedCell | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that the layer writes."""
        if self.cell is None:
            return (self.output,)
        return tuple(name for name in (self.output, self.cell.y_h, self.cell.y_state) if name)

    @property
    def matrices(self) -> tuple[PackedLayer, ...]:
        """The layer and those that run with it, each with weights of its own."""
        others = (self.cell.reset, self.cell.copy) if self.cell else ()
        return (self, *(layer for layer in others if layer))

    def csb(self, build: Build) -> CsbShape:
        """The counts of this layer's banks on an engine of `build`."""
        return CsbShape(
            self.rows,
            self.features,
            self.bank_size,
            self.keep,
            build.lanes,
            self.groups_per_pass,
            self.weight_bits,
            build.rows,
        )

    @property
    def model_weights(self) -> int:
        """Weights of the model, those that are not stored included."""
        return self.rows * (self.weights_per_row or self.features)

    @property
    def kept_weights(self) -> float:
        """Weights of the model that are stored, less those that fill up banks and lanes."""
        return min(self.model_weights, self.rows * self.features * self.keep / self.bank_size)


@dataclass
class Program:
    """A model compiled for one build."""

    name: str
    build: Build
    tensors: dict[str, Tensor]  #: model inputs first
    layers: list[PackedLayer]
    inputs: list[QuantInput]
    outputs: list[QuantOutput]
    image: NDArray[np.uint64]
    lengths: str = ""  #: the input that says how many steps each sample has; none: all of them

    @property
    def shown_outputs(self) -> list[QuantOutput]:
        """One entry for each output: what has several, which are parts of it, as a whole."""
        whole: dict[str, QuantOutput] = {}
        for part in self.outputs:
            before = whole[part.name].shape[0] if part.name in whole else 0
            shape = (before + part.shape[0], *part.shape[1:]) if part.shape else ()
            whole[part.name] = replace(part, shape=shape)
        return list(whole.values())

    @property
    def has_pixels(self) -> bool:
        """Whether columns are pixels, and samples run one after the other."""
        if any(layer.window or layer.sum_columns for layer in self.layers):
            return True
        return any(t.pixels > 1 or t.content >= 0 for t in self.tensors.values())

    def region(self, name: str) -> tuple[str, int, int]:
        """Where a tensor lies: in which one, from which feature of which step on, and how many. Two
        tensors of one region have the same values."""
        tensor = self.tensors[name]
        before = tensor.step * self.tensors[tensor.whole].features if tensor.whole else 0
        return tensor.whole or name, before + tensor.first, tensor.features * tensor.steps

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and indices that an inference reads at least once."""
        shapes = [part.csb(self.build) for layer in self.layers for part in layer.matrices]
        return sum(shape.weight_bytes + shape.index_bytes for shape in shapes)

    @property
    def sparsity(self) -> float:
        """Share of the model's weights that is not stored, over all layers that have any."""
        return sparsity_of(self.layers)

    def save(self, path: str | Path) -> None:
        """Write the program to `path`, whole or not at all."""
        archive.write(path, header_of(self), {"image": self.image})

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read a program file.

        Raises:
            ProgramError: missing, damaged, not a program, or of another version.
        """
        header, arrays = archive.read(path)
        if header.get("kind", "program") != "program":
            raise ProgramError(
                f"{path} holds a {header['kind']} of several programs; Accelerator and bbs take it"
            )
        return from_header(header, arrays.get("image"), str(path))


def sparsity_of(layers: Iterable[PackedLayer]) -> float:
    """Share of the weights that is not stored, over all layers that have any."""
    own = [la for la in layers if not (la.maximum or la.sum_columns or la.weight_tensor)]
    dense = sum(layer.model_weights for layer in own)
    return max(0.0, 1 - sum(layer.kept_weights for layer in own) / dense) if dense else 0.0


def header_of(program: Program) -> dict[str, Any]:
    """All of a program but its image, as JSON takes it."""
    return {
        "format": FORMAT,
        "interface": VERSION,
        "name": program.name,
        "build": asdict(program.build),
        "tensors": {name: asdict(tensor) for name, tensor in program.tensors.items()},
        "layers": [asdict(layer) for layer in program.layers],
        "inputs": [{**asdict(i), "scale": float(i.scale)} for i in program.inputs],
        "outputs": [
            {**asdict(o), "scale": np.asarray(o.scale, np.float64).tolist()}
            for o in program.outputs
        ],
        "lengths": program.lengths,
    }


def from_header(header: dict[str, Any], image: NDArray[Any] | None, path: str) -> Program:
    """The program that `header_of` and its image describe; `path` is for errors.

    Raises:
        ProgramError: another version, or an image that is none.
    """
    if header.get("format") != FORMAT or header.get("interface") != VERSION:
        raise ProgramError(
            f"{path} has format {header.get('format')} for interface {header.get('interface')}; "
            f"this release reads format {FORMAT} for interface {VERSION}. Compile the model again"
        )
    if image is None or image.dtype != np.uint64 or image.ndim != 1:
        raise ProgramError(
            f"{path} is damaged: its image is not a list of 64-bit words; compile the model again"
        )
    inputs = [
        QuantInput(**{**_restored(i), "scale": np.float32(i["scale"])}) for i in header["inputs"]
    ]
    outputs = [
        QuantOutput(**{**_restored(o), "scale": np.asarray(o["scale"], np.float32)})
        for o in header["outputs"]
    ]
    return Program(
        header["name"],
        Build(**{f.name: header["build"][f.name] for f in fields(Build)}),
        {name: Tensor(**tensor) for name, tensor in header["tensors"].items()},
        [_restored_layer(layer) for layer in header["layers"]],
        inputs,
        outputs,
        image,
        header["lengths"],
    )


def _restored_layer(stored: dict[str, Any]) -> PackedLayer:
    window, combination, cell = stored["window"], stored["combination"], stored["cell"]
    if window is not None:
        pairs: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in window.items()
        }
        window = Window(**pairs)
    if combination is not None:
        combination = Combination(**combination)
    if cell is not None:
        parts = {k: _restored_layer(cell[k]) for k in ("reset", "copy") if cell[k]}
        cell = PackedCell(**{**cell, **parts})
    return PackedLayer(**{**stored, "window": window, "combination": combination, "cell": cell})


def _restored(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples and no functions."""
    tuples = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
    functions = restored_functions(fields["functions"])
    arrangement = Arrangement(**{k: tuple(v) for k, v in fields["arrangement"].items()})
    return {**fields, **tuples, "functions": functions, "arrangement": arrangement}
