# SPDX-License-Identifier: Apache-2.0
"""What is measured: a program, its dense form, its matrices, and samples to run it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.graph import GraphInput, Model, QuantInput, QuantModel
from ..pack.pipeline import Border, Pipeline, Segment, load_any
from ..pack.program import Program
from .chain import Chain, chain_of
from .dense import dense_program, is_pruned

if TYPE_CHECKING:  # reads ONNX, which boards need not have
    from ..model.partition import Partition

#: Samples that a float model is calibrated on where none are given.
_RANDOM_SAMPLES = 64


@dataclass
class Subject:
    """`dense` is None where nothing is pruned, `chain` where the program is more than layers one
    after the other (`why_no_chain`); `quantised` says that the file has our integers already."""

    program: Program | Pipeline
    file: str
    model: str | None  # path of the ONNX file, if it is one
    quantised: bool = False
    dense: Program | Pipeline | None = None
    chain: Chain | None = None
    why_no_chain: str = ""
    notes: list[str] = field(default_factory=list)


def load_subject(path: Path, calibration: Any = None, **options: Any) -> Subject:
    """Load a program file (.npz), or compile an ONNX file.

    Args:
        calibration, options: of `compile`. A float model without calibration samples is calibrated
            on random numbers, which gives the speed of the model but not its accuracy.

    Raises:
        InputError: there are no layers.
        ProgramError, ModelError, UnsupportedModelError, BuildError: as `Program.load`, `compile`.
    """
    notes = []
    if path.suffix == ".npz":
        program, model, quantised = load_any(path), None, False
    else:
        from ..compiler import compile as compile_model
        from ..model.partition import read_model

        loaded = read_model(path)
        if calibration is None and (calibration := _calibration(loaded)):
            notes.append(
                "calibrated on random numbers, for want of --calibration: the speed is the "
                "model's, its outputs mean nothing"
            )
        program = compile_model(loaded, calibration=calibration, **options)
        model, quantised = str(path), isinstance(loaded, QuantModel)
    if not any(part.layers for part in programs_of(program)):
        raise InputError(f"{path} has no layers: there is nothing to measure")
    subject = Subject(program, path.name, model, quantised, notes=notes)
    if any(is_pruned(layer) for part in programs_of(program) for layer in part.layers):
        subject.dense = _dense(program)
    if isinstance(program, Pipeline):
        subject.why_no_chain = "the model needs the host between its programs"
        subject.notes.append(
            "modelled figures are of the engine's programs alone, without the host's operators "
            "between them"
        )
        return subject
    try:
        subject.chain = chain_of(program)
    except InputError as error:
        subject.why_no_chain = str(error)
    return subject


def _calibration(model: Model | QuantModel | Partition) -> dict[str, NDArray[Any]] | None:
    """Random samples by input name, of a float model; None of one that needs none."""
    from ..model.partition import Partition
    from ..pipeline_compiler import borders

    if isinstance(model, QuantModel) or (isinstance(model, Partition) and not model.is_float):
        return None
    if isinstance(model, Partition):
        batch = model.batch or 1
        count = -(-_RANDOM_SAMPLES // batch) * batch
        return {border.name: _random(border, count) for border in borders(model.inputs)}
    made = {i.name: _random(i, _RANDOM_SAMPLES) for i in model.inputs}
    if model.lengths:
        steps = max(spec.steps for spec in model.inputs)
        made[model.lengths] = np.full(_RANDOM_SAMPLES, steps, np.int32)
    return made


def programs_of(program: Program | Pipeline) -> list[Program]:
    """All programs of a model."""
    return program.programs if isinstance(program, Pipeline) else [program]


def batch_of(program: Program | Pipeline) -> int:
    """The least samples of a query."""
    return (program.batch or 1) if isinstance(program, Pipeline) else 1


def samples_in(program: Program | Pipeline, x: Mapping[str, NDArray[Any]]) -> int:
    """How many samples a batch by input name has."""
    spec = program.inputs[0]
    return int(x[spec.name].shape[spec.batch_axis])


def taken(
    program: Program | Pipeline, x: Mapping[str, NDArray[Any]], samples: Sequence[int]
) -> dict[str, NDArray[Any]]:
    """These samples of a batch by input name, which need not be its first axis."""
    axes = {spec.name: spec.batch_axis for spec in program.inputs}  # else it is lengths
    return {name: np.take(v, samples, axes.get(name, 0)) for name, v in x.items()}


def _dense(program: Program | Pipeline) -> Program | Pipeline:
    if isinstance(program, Program):
        return dense_program(program)
    stages = [
        replace(stage, program=dense_program(stage.program))
        if isinstance(stage, Segment)
        else stage
        for stage in program.stages
    ]
    return replace(program, stages=stages)


def samples_for(program: Program | Pipeline, given: Any, count: int) -> dict[str, NDArray[Any]]:
    """A batch of `count` samples by input name: of those given, again from the first one where
    there are fewer, else random ones that use all of an input's range.

    Raises:
        InputError: given arrays without samples, or of other names than the inputs; a `count` that
            is no multiple of the batch that the model's file fixes.
    """
    if count % batch_of(program):
        raise InputError(
            f"{count} samples; the model's file fixes a batch of {batch_of(program)}: give "
            "--samples a multiple of that"
        )
    inputs: dict[str, QuantInput | Border] = {i.name: i for i in program.inputs}
    lengths = "" if isinstance(program, Pipeline) else program.lengths
    if given is None:
        batch = {name: _random(i, count) for name, i in inputs.items()}
        if isinstance(program, Program) and lengths:
            steps = next(program.tensors[la.input].steps for la in program.layers if la.cell)
            batch[lengths] = np.full(count, steps, np.int32)
        return batch
    names = [*inputs, *([lengths] if lengths else [])]
    arrays = given if isinstance(given, Mapping) else {names[0]: given}
    if set(arrays) != set(names):
        raise InputError(
            f"given inputs: {', '.join(map(str, arrays))}; the model takes: {', '.join(names)}"
        )
    axes = {name: spec.batch_axis for name, spec in inputs.items()}
    sizes = set()
    for name, array in arrays.items():
        axis = axes.get(name, 0)
        if array.ndim <= axis:
            raise InputError(f"input {name!r} has {array.ndim} dimensions, none of them of samples")
        sizes.add(array.shape[axis])
    if 0 in sizes:
        raise InputError("the input holds no sample")
    if len(sizes) > 1:
        raise InputError(f"the inputs have different batch sizes: {sorted(sizes)}")
    size = sizes.pop()
    return taken(program, arrays, [i % size for i in range(count)])


def _random(spec: QuantInput | GraphInput | Border, count: int) -> NDArray[Any]:
    rng, axis = np.random.default_rng(0), spec.batch_axis
    shape = (*spec.shape[:axis], count, *spec.shape[axis:])
    if isinstance(spec, GraphInput):
        return rng.normal(size=shape).astype(np.float32)
    if isinstance(spec, Border) and -1 in spec.shape:
        raise InputError(
            f"input {spec.name!r} has sizes that the model leaves open, {spec.shape}: give samples "
            "with --input"
        )
    if isinstance(spec, Border):
        if np.dtype(spec.dtype).kind == "f":
            return rng.normal(size=shape).astype(spec.dtype)
        return rng.integers(0, 2, shape).astype(spec.dtype)  # which any table has
    if spec.dtype != "float32":
        limits = np.iinfo(spec.dtype)
        return rng.integers(limits.min, limits.max + 1, shape).astype(spec.dtype)
    values = rng.integers(-128, 128, shape) - spec.zero_point
    return (values * np.float32(spec.scale)).astype(np.float32)
