# SPDX-License-Identifier: Apache-2.0
"""What one query costs, layer by layer: products, bytes, measured seconds, modelled cycles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..builds import Build
from ..cpu.device import linear_ops
from ..pack.cycles import Memory
from ..pack.pipeline import Pipeline, Segment
from ..pack.program import PackedLayer, Program
from ..report import LayerReport, Report
from .record import LayerFigures, Modelled


def clocks(report: Report) -> NDArray[np.float64]:
    """Runs, and measured seconds of parts, stages and layers, since the accelerator was opened."""
    layers = (layer.seconds for layer in report.layers)
    parts, stages = report.seconds.values(), report.stages.values()
    return np.array([report.runs, *parts, *stages, *layers], np.float64)


@dataclass(frozen=True)
class Cost:
    """Of a run: measured seconds, which are medians, and what is modelled."""

    parts: dict[str, float]
    layers: list[LayerReport]
    stages: dict[str, float] = field(default_factory=dict)

    @classmethod
    def between(cls, before: Report, after: Report, stamps: Sequence[NDArray[np.float64]]) -> Cost:
        """From `before`, a copy, to `after`; `stamps` are the `clocks` behind each timed run."""
        spent = np.diff([clocks(before), *stamps], axis=0)
        seconds = np.median(spent[:, 1:] / spent[:, :1], axis=0)
        parts = dict(zip(after.seconds, seconds.tolist(), strict=False))
        _, of_stages, of_layers = np.split(
            seconds, np.cumsum([len(after.seconds), len(after.stages)])
        )
        stages = dict(zip(after.stages, of_stages.tolist(), strict=True))
        runs = after.runs - before.runs
        layers = [
            replace(
                new,
                cycles=(new.cycles - old.cycles) / runs,
                multiply_cycles=(new.multiply_cycles - old.multiply_cycles) // runs,
                bytes=(new.bytes - old.bytes) // runs,
                seconds=own,
            )
            for old, new, own in zip(before.layers, after.layers, of_layers.tolist(), strict=True)
        ]
        return cls({part: s for part, s in parts.items() if s > 0}, layers, stages)

    def figures(
        self, program: Program | Pipeline, samples: int, *, cpu: bool
    ) -> list[LayerFigures]:
        """By layer, of a query of so many samples; bytes on the cpu device are what its kernels
        read and write, else what the cycle model counts."""
        return [
            LayerFigures(
                packed.name,
                macs=count * _places(packed, part) * _executed(packed),
                dense_macs=count * _places(packed, part) * _dense(packed),
                bytes=_cpu_bytes(packed, part, count) if cpu else layer.bytes,
                seconds=layer.seconds if cpu else None,
                cycles=None if cpu else layer.cycles,
                busy=None if cpu else layer.utilisation,
            )
            for (packed, part, count), layer in zip(
                _layers(program, samples), self.layers, strict=True
            )
        ]

    def modelled(self, build: Build, board: str, memory: Memory) -> Modelled:
        """The query on a board, by the cycle model."""
        cycles = sum(layer.cycles for layer in self.layers)
        return Modelled(
            f"build {build.name} on {board} at {memory.clock_hz / 1e6:.1f} MHz",
            cycles,
            cycles / memory.clock_hz,
            build.products_per_cycle * memory.clock_hz,
            memory.bytes_per_second,
        )


def dense_macs(program: Program | Pipeline, samples: int) -> float:
    """Products of so many samples if no weight were zero."""
    layers = _layers(program, samples)
    return sum(count * _places(la, part) * _dense(la) for la, part, count in layers)


def _layers(
    program: Program | Pipeline, samples: int
) -> Iterator[tuple[PackedLayer, Program, int]]:
    """Every layer, its program, and the samples of that one in so many of the whole."""
    for segment in program.segments if isinstance(program, Pipeline) else [Segment(program)]:
        for layer in segment.program.layers:
            yield layer, segment.program, samples * segment.places


def _places(layer: PackedLayer, program: Program) -> int:
    """How often a sample meets the weights: pixels and steps of the output."""
    target = program.tensors[layer.output]
    return target.size // target.features


def _dense(layer: PackedLayer) -> float:
    """Products of a place; maxima and averages over all pixels make none."""
    return 0 if layer.maximum or layer.sum_columns else layer.model_weights


def _executed(layer: PackedLayer) -> float:
    return layer.kept_weights if _dense(layer) else 0


def _cpu_bytes(layer: PackedLayer, program: Program, samples: int) -> float:
    """Weights and indices as the cpu device keeps them, input and output, each once."""
    tensors, matrices = program.tensors, layer.matrices
    ops = [] if layer.weight_tensor else [op for la in matrices for op in linear_ops(la, program)]
    weights = sum(op.values.nbytes for op in ops)
    weights += sum(op.columns.nbytes for op in ops if op.columns is not None)
    names: Sequence[str] = (layer.input, *layer.outputs)
    return weights + samples * sum(tensors[n].size * tensors[n].bits // 8 for n in names)
