# SPDX-License-Identifier: Apache-2.0
"""A model in several programs, with the host's operators between them, in one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..errors import ProgramError
from ..interface import VERSION
from ..operators.call import Call
from ..operators.node import HostNode
from ..operators.table import refusal
from . import archive
from .program import Program, from_header, header_of, sparsity_of

#: Version of the file; raised whenever an older reader would misread it.
FORMAT = 1

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Border:
    """An input or output of a pipeline: `shape` leaves the batch out, -1 is not known before."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Segment:
    """A program on tensors of the pipeline that have its inputs' and outputs' names.

    Of those tensors the dimensions `folded` stand behind the batch; each place there is a sample of
    the program's.
    """

    program: Program
    folded: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(spec.name for spec in self.program.inputs))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.program.outputs)

    def fold(self, x: NDArray[Any]) -> NDArray[Any]:
        """A tensor of the pipeline as the program takes it."""
        return fold(x, self.folded)

    def unfold(self, y: NDArray[Any]) -> NDArray[Any]:
        """What the program gives as a tensor of the pipeline."""
        return unfold(y, self.folded)


def fold(x: NDArray[Any], folded: tuple[int, ...]) -> NDArray[Any]:
    """Dimensions behind the batch as part of it: (N, *folded, ...) as (N * places, ...)."""
    return x.reshape(len(x) * prod(folded), *x.shape[1 + len(folded) :])


def unfold(y: NDArray[Any], folded: tuple[int, ...]) -> NDArray[Any]:
    """The other way round."""
    return y.reshape(len(y) // prod(folded), *folded, *y.shape[1:])


@dataclass
class Pipeline:
    """Stages in an order in which they can run, on tensors by name.

    With a `batch` the stages take exactly so many samples at once.
    """

    name: str
    inputs: list[Border]
    outputs: list[Border]
    stages: list[Segment | HostNode]
    constants: Tensors = field(default_factory=dict)
    batch: int | None = None

    @property
    def programs(self) -> list[Program]:
        return [stage.program for stage in self.stages if isinstance(stage, Segment)]

    @property
    def build(self) -> Build:
        """The one that all programs are for."""
        return self.programs[0].build

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and indices that an inference reads at least once."""
        return sum(program.weight_bytes for program in self.programs)

    @property
    def sparsity(self) -> float:
        """Share of the engine's weights that is not stored."""
        return sparsity_of(layer for program in self.programs for layer in program.layers)

    def last_uses(self) -> list[list[str]]:
        """Of every stage the tensors that nothing needs any more behind it."""
        done: list[list[str]] = []
        needed = {border.name for border in self.outputs} | set(self.constants) | {""}
        for stage in reversed(self.stages):
            names = dict.fromkeys((*stage.inputs, *stage.outputs))
            done.append([name for name in names if name not in needed])
            needed.update(names)
        return done[::-1]

    def save(self, path: str | Path) -> None:
        """Write the pipeline to `path`, whole or not at all."""
        arrays = {f"constant{i}": array for i, array in enumerate(self.constants.values())}
        for i, program in enumerate(self.programs):
            arrays[f"image{i}"] = program.image
        stored = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
        header = {
            "format": FORMAT,
            "interface": VERSION,
            "kind": "pipeline",
            "name": self.name,
            "inputs": [vars(border) for border in self.inputs],
            "outputs": [vars(border) for border in self.outputs],
            "stages": [_stage_header(stage) for stage in self.stages],
            "constants": list(self.constants),
            "batch": self.batch,
            "arrays": stored,
        }
        archive.write(path, header, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Pipeline:
        """Read a pipeline file.

        Raises:
            ProgramError: missing, damaged, not a pipeline, or of another version.
        """
        header, arrays = archive.read(path)
        if header.get("kind") != "pipeline":
            raise ProgramError(f"{path} holds a single program; Program.load reads it")
        return _from_header(header, arrays, str(path))


def load_any(path: str | Path) -> Program | Pipeline:
    """What a file holds, a program or a pipeline.

    Raises:
        ProgramError: missing, damaged, neither, or of another version.
    """
    header, arrays = archive.read(path)
    if header.get("kind") == "pipeline":
        return _from_header(header, arrays, str(path))
    return from_header(header, arrays.get("image"), str(path))


def _stage_header(stage: Segment | HostNode) -> dict[str, Any]:
    if isinstance(stage, Segment):
        return {"program": header_of(stage.program), "folded": stage.folded}
    attributes = {name: _plain(value) for name, value in stage.call.attributes.items()}
    call = {"opset": stage.call.opset, "attributes": attributes, "outputs": stage.call.outputs}
    return {**vars(stage), "call": call}


def _plain(value: Any) -> Any:
    """An attribute as JSON has it."""
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": value.shape, "values": value.ravel().tolist()}
    return value


def _from_header(header: dict[str, Any], arrays: Tensors, path: str) -> Pipeline:
    if header.get("format") != FORMAT or header.get("interface") != VERSION:
        raise ProgramError(
            f"{path} has format {header.get('format')} for interface {header.get('interface')}; "
            f"this release reads pipelines of format {FORMAT} for interface {VERSION}. Compile the "
            "model again"
        )
    described = {name: [array.dtype.str, [*array.shape]] for name, array in arrays.items()}
    if described != header["arrays"]:
        raise ProgramError(f"{path} is damaged: its arrays changed; compile the model again")
    stages: list[Segment | HostNode] = []
    for stored in header["stages"]:
        if "program" in stored:
            image = arrays[f"image{sum(isinstance(stage, Segment) for stage in stages)}"]
            program = from_header(stored["program"], image, path)
            stages.append(Segment(program, tuple(stored["folded"])))
        else:
            stages.append(_host_node(stored, path))
    return Pipeline(
        header["name"],
        [_border(stored) for stored in header["inputs"]],
        [_border(stored) for stored in header["outputs"]],
        stages,
        {name: arrays[f"constant{i}"] for i, name in enumerate(header["constants"])},
        header["batch"],
    )


def _border(stored: dict[str, Any]) -> Border:
    return Border(stored["name"], tuple(stored["shape"]), stored["dtype"])


def _host_node(stored: dict[str, Any], path: str) -> HostNode:
    call = stored["call"]
    attributes = {name: _restored(value) for name, value in call["attributes"].items()}
    reason = refusal(stored["op"], "", attributes)
    if reason:  # a file of a newer release
        raise ProgramError(f"{path}: node {stored['name']!r}: {reason} by this release")
    return HostNode(
        stored["name"],
        stored["op"],
        tuple(stored["inputs"]),
        tuple(stored["outputs"]),
        Call(call["opset"], attributes, call["outputs"]),
    )


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return np.array(value["values"], value["dtype"]).reshape(value["shape"])
    return value
