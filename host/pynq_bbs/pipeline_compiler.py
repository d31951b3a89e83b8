# SPDX-License-Identifier: Apache-2.0
"""From a partition to a pipeline: its float parts see what reaches them, all in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    calibrations: dict[int, Calibration] = {}
    programs: dict[int, Program] = {}
    for index, stage in enumerate(partition.stages):
        if isinstance(stage, Part) and isinstance(stage.model, Model):
            calibrations[index] = Calibration(prune(stage.model), method)
        elif isinstance(stage, Part):
            assert isinstance(stage.model, QuantModel)
            programs[index] = finish(prune(stage.model))
    inputs = [border_of(spec) for spec in partition.inputs]
    if calibrations:
        size = partition.batch or _BATCH
        batches = in_batches(calibration, lambda given: checked_inputs(inputs, given), size)
        _calibrate(partition, calibrations, programs, batches, progress)
    for index, calibrated in calibrations.items():
        quantizer = Quantizer(calibrated.model, calibrated.scales(), weight_bits)
        programs[index] = finish(quantizer.run())
    return Pipeline(
        partition.name,
        build,
        inputs,
        [border_of(spec) for spec in partition.outputs],
        [
            stage
            if isinstance(stage, HostNode)
            else Segment(programs[index], stage.folded, stage.places)
            for index, stage in enumerate(partition.stages)
        ],
        partition.constants,
        partition.batch,
    )


def border_of(spec: FileValue) -> Border:
    """An input or output of the file, as a pipeline has it.

    A dimension that the file leaves open is -1.
    """
    shape = () if spec.shape is None else spec.shape[1:]
    return Border(spec.name, tuple(-1 if n is None else n for n in shape), spec.dtype)


def _calibrate(
    partition: Partition,
    calibrations: dict[int, Calibration],
    programs: dict[int, Program],
    batches: Iterable[Tensors],
    progress: Callable[[int], None] | None,
) -> None:
    """Run all of the model: float parts and the host's nodes in float, quantised parts as such."""
    runners = {index: Accelerator(program, "cpu") for index, program in programs.items()}
    names, seen = [spec.name for spec in partition.outputs], 0

    def run_part(index: int, tensors: Tensors) -> Tensors:
        part = partition.stages[index]
        assert isinstance(part, Part)
        if index in calibrations:
            return run_folded(part.folded, tensors, calibrations[index].update)
        return run_folded(part.folded, tensors, partial(run_named, runners[index]))

    for batch in batches:
        run_stages(partition.stages, {**partition.constants, **batch}, names, run_part)
        seen += len(next(iter(batch.values())))
        if progress:
            progress(seen)
