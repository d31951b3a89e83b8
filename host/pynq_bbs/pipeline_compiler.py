# SPDX-License-Identifier: Apache-2.0
"""From a partition to a pipeline: its float parts see what reaches them, all in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from .accelerator import Accelerator
from .builds import Build
from .compress.activations import in_batches
from .compress.observe import Calibration
from .compress.quantize import Quantizer
from .model.graph import Model, QuantModel
from .model.onnx_file import FileValue
from .model.onnx_segments import Part
from .model.partition import Partition
from .operators.node import HostNode
from .pack.pipeline import (
    Border,
    Pipeline,
    Segment,
    Tensors,
    checked_inputs,
    run_folded,
    run_stages,
)
from .pack.program import Program
from .pipeline_accelerator import run_named

#: Samples of calibration data worked on at a time.
_BATCH = 8


def compile_partition(
    partition: Partition,
    prune: Callable[[Any], Any],
    finish: Callable[[QuantModel], Program],
    build: Build,
    *,
    calibration: Any = None,
    method: str = "minmax",
    weight_bits: Mapping[str, int],
    progress: Callable[[int], None] | None = None,
) -> Pipeline:
    """Compile every part for itself.

    Args:
        prune: gives a part without the weights that are to go, of its own kind: `Model` or
            `QuantModel`.
        finish: makes a quantised part a program for `build`.
        calibration: samples of the whole model, as for `quantize`; float parts need them.
        progress: called with the number of samples seen so far.

    Raises:
        InputError: no calibration data, or data that does not fit the model's inputs.
    """
    programs = {
        index: finish(prune(stage.model))
        for index, stage in enumerate(partition.stages)
        if isinstance(stage, Part) and isinstance(stage.model, QuantModel)
    }
    calibrations = calibrated(
        partition, prune, programs, calibration=calibration, method=method, progress=progress
    )
    for index, each in calibrations.items():
        programs[index] = finish(Quantizer(each.model, each.scales(), weight_bits).run())
    return pipeline_of(partition, programs, build)


def pipeline_of(partition: Partition, programs: Mapping[int, Program], build: Build) -> Pipeline:
    """The partition with a program for each of its parts, by their places among the stages."""
    return Pipeline(
        partition.name,
        build,
        borders(partition.inputs),
        borders(partition.outputs),
        [
            stage
            if isinstance(stage, HostNode)
            else Segment(programs[index], stage.folded, stage.places)
            for index, stage in enumerate(partition.stages)
        ],
        partition.constants,
        partition.batch,
    )


def borders(specs: Iterable[FileValue]) -> list[Border]:
    """What goes in or out; a dimension that the file leaves open is -1."""
    return [_border(spec) for spec in specs]


def batches_of(partition: Partition, samples: Any) -> Iterator[Tensors]:
    """Checked samples, so many at a time as are worked on together.

    Raises:
        InputError: samples that do not fit the model's inputs.
    """
    inputs = borders(partition.inputs)
    size = partition.batch or _BATCH
    return in_batches(samples, lambda given: checked_inputs(inputs, given), size)


def _border(spec: FileValue) -> Border:
    shape = () if spec.shape is None else spec.shape[1:]
    return Border(spec.name, tuple(-1 if n is None else n for n in shape), spec.dtype)


def calibrated(
    partition: Partition,
    prune: Callable[[Any], Any],
    programs: Mapping[int, Program],
    *,
    calibration: Any,
    method: str,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Calibration]:
    """What the float parts, pruned, see when all of the model runs: they and the host's nodes in
    float, quantised parts as their `programs`. No pass where all are quantised."""
    calibrations = {
        index: Calibration(prune(stage.model), method)
        for index, stage in enumerate(partition.stages)
        if isinstance(stage, Part) and isinstance(stage.model, Model)
    }
    if not calibrations:
        return {}
    runners = {index: Accelerator(program, "cpu") for index, program in programs.items()}
    names, seen = [spec.name for spec in partition.outputs], 0

    def run_part(index: int, tensors: Tensors) -> Tensors:
        part = partition.stages[index]
        assert isinstance(part, Part)
        if index in calibrations:
            return run_folded(part.folded, tensors, calibrations[index].update)
        return run_folded(part.folded, tensors, partial(run_named, runners[index]))

    for batch in batches_of(partition, calibration):
        run_stages(partition.stages, {**partition.constants, **batch}, names, run_part)
        seen += len(next(iter(batch.values())))
        if progress:
            progress(seen)
    return calibrations
