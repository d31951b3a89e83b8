# SPDX-License-Identifier: Apache-2.0
"""A program on the cpu device, run as `device.engine.EngineProgram` is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..pack.cycles import LayerCycles
from .device import CpuDevice

Tensors = Mapping[str, NDArray[np.generic]]


class CpuProgram:
    """Takes a batch of any size as it is; it has no cycles."""

    plan = None

    def __init__(self, device: CpuDevice, seconds: dict[str, float]) -> None:
        """`seconds` is where the time of each part of a run is added up (`report.PARTS`)."""
        self._device = device
        self._seconds = seconds
        self.banks = 1
        self._given: dict[int, tuple[Tensors, NDArray[np.int64] | None]] = {}
        self._results: Tensors = {}

    def pieces(
        self,
        samples: int,
        lengths: NDArray[np.int64] | None = None,
        drain: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, int]]:
        yield 0, samples

    def put(self, inputs: Tensors, lengths: NDArray[np.int64] | None = None, bank: int = 0) -> None:
        self._given[bank] = inputs, lengths

    def execute(self, bank: int = 0) -> list[LayerCycles]:
        start = perf_counter()
        inputs, lengths = self._given.pop(bank)
        self._results = self._device.run(dict(inputs), lengths)
        self._seconds["device"] += perf_counter() - start
        return []

    def get(self, wanted: Iterable[str], bank: int = 0) -> dict[str, NDArray[np.generic]]:
        return {name: self._results[name] for name in wanted}

    def close(self) -> None:
        self._given, self._results = {}, {}
