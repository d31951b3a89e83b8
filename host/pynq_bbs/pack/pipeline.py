# SPDX-License-Identifier: Apache-2.0
"""A model in several programs, with the host's operators between them, in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..compress.borders import by_name, samples_of
from ..errors import InputError, ProgramError
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
    batch_axis: ClassVar[int] = 0


@dataclass(frozen=True)
class Segment:
    """A program on tensors of the pipeline that have its inputs' and outputs' names.

    Of those tensors as many dimensions as `folded` stand behind the first; each place is a sample
    of the program's, and a sample of the pipeline has so many `places`.
    """

    program: Program
    folded: int = 0
    places: int = 1

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(spec.name for spec in self.program.inputs))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(spec.name for spec in self.program.outputs))


def run_folded(folded: int, tensors: Tensors, run: Callable[[Tensors], Tensors]) -> Tensors:
    """What `run` gives of tensors (places, ...), for tensors with `folded` dimensions behind the
    first, which its results have again."""
    if not folded:
        return run(tensors)
    lead = next(iter(tensors.values())).shape[: 1 + folded]
    given = {name: x.reshape(-1, *x.shape[1 + folded :]) for name, x in tensors.items()}
    return {name: y.reshape(*lead, *y.shape[1:]) for name, y in run(given).items()}


@dataclass
class Pipeline:
    """Stages in an order in which they can run, on tensors by name.

    All programs are for one build. With a `batch` the stages take exactly so many samples at once.
    """

    name: str
    build: Build
    inputs: list[Border]
    outputs: list[Border]
    stages: list[Segment | HostNode]
    constants: Tensors = field(default_factory=dict)
    batch: int | None = None

    @property
    def programs(self) -> list[Program]:
        return [segment.program for segment in self.segments]

    @property
    def segments(self) -> list[Segment]:
        """The stages that are programs."""
        return [stage for stage in self.stages if isinstance(stage, Segment)]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and indices that an inference reads at least once."""
        return sum(program.weight_bytes for program in self.programs)

    @property
    def sparsity(self) -> float:
        """Share of the engine's weights that is not stored."""
        return sparsity_of(layer for program in self.programs for layer in program.layers)

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
            "build": asdict(self.build),
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


def run_stages(
    stages: Sequence[Any],
    tensors: Tensors,
    wanted: Sequence[str],
    run_program: Callable[[int, Tensors], Tensors],
    seconds: list[float] | None = None,
) -> Tensors:
    """The `wanted` tensors, from those that there are before the first stage.

    Args:
        stages: nodes of the host, and others that name their `inputs` and `outputs`.
        run_program: gives the outputs of such another one, of which it gets the index.
        seconds: of each stage, to which the time it takes is added.
    """
    last = {name: index for index, stage in enumerate(stages) for name in stage.inputs}
    tensors = dict(tensors)
    for index, stage in enumerate(stages):
        start = perf_counter()
        if isinstance(stage, HostNode):
            tensors.update(stage.run(tensors))
        else:
            tensors.update(run_program(index, {name: tensors[name] for name in stage.inputs}))
        if seconds is not None:
            seconds[index] += perf_counter() - start
        for name in (*stage.inputs, *stage.outputs):  # what nothing needs any more goes
            if last.get(name, index) <= index and name not in wanted:
                tensors.pop(name, None)
    return {name: tensors[name] for name in wanted}


def checked_inputs(borders: Sequence[Border], x: Any) -> Tensors:
    """What a user hands in, by name, each (N, *shape) of its dtype.

    Args:
        x: an array where there is one input, or a dict of arrays.

    Raises:
        InputError: missing or unknown input, wrong shape or dtype, different N.
    """
    x = by_name(x, [border.name for border in borders])
    tensors = {border.name: _checked_input(border, x[border.name]) for border in borders}
    samples_of(tensors)
    return tensors


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
        return {"program": header_of(stage.program), "folded": stage.folded, "places": stage.places}
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
            stages.append(Segment(program, stored["folded"], stored["places"]))
        else:
            stages.append(_host_node(stored, path))
    return Pipeline(
        header["name"],
        Build(**{f.name: header["build"][f.name] for f in fields(Build)}),
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


def _checked_input(border: Border, x: Any) -> NDArray[Any]:
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"input {border.name!r} is not an array: {error}") from None
    wanted = "(N, " + ", ".join(map(str, border.shape)) + ")"
    if array.ndim != len(border.shape) + 1 or array.shape[1:] != border.shape or not len(array):
        raise InputError(
            f"input {border.name!r} has shape {array.shape}, must be {wanted} with at least one "
            "sample"
        )
    if border.dtype == "float32" and array.dtype.kind in "fiu":
        return array.astype(np.float32)
    if array.dtype != np.dtype(border.dtype):
        raise InputError(f"input {border.name!r} is {array.dtype}, must be {border.dtype}")
    return array
