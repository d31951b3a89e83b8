# SPDX-License-Identifier: Apache-2.0
"""Magnitude pruning while training: masks that grow on a schedule, and an optimiser that obeys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..compress.patterns import Pattern, mask_of
from ..errors import InputError


@dataclass(frozen=True)
class CubicSchedule:
    """Sparsity from 0 to `final`, fast at first (Zhu & Gupta, 2017).

    Args:
        final: sparsity at the end and after it.
        steps: optimiser steps until then; 0 prunes at once.
        every: steps from one new mask to the next.
        levels: sparsities on the way are multiples of 1 / levels, rounded down: the bank size,
            where banks cannot have every sparsity.
    """

    final: float
    steps: int = 0
    every: int = 100
    levels: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.final < 1.0:
            raise InputError(f"final sparsity is {self.final}, must be at least 0 and less than 1.")
        if self.steps < 0 or self.every < 1 or (self.levels is not None and self.levels < 1):
            raise InputError("steps must be at least 0, every and levels at least 1.")

    def sparsity(self, step: int) -> float:
        """The sparsity after so many steps."""
        if step >= self.steps:
            return self.final
        sparsity = self.final * (1.0 - (1.0 - step / self.steps) ** 3)
        return int(sparsity * self.levels) / self.levels if self.levels else sparsity

    def changes(self, step: int) -> bool:
        """Whether masks are made anew after so many steps."""
        return step == self.steps or (step < self.steps and step % self.every == 0)


class Pruning:
    """Keeps pruned weights, and what the optimiser remembers of them, at zero.

    Masks of step 0 are made at once. Those made later keep pruned weights pruned: their magnitude
    is zero.

    Args:
        weights: by name, (M, K) or (M, C, *kernel); changed in place.
        pattern: makes the pattern of a sparsity.
        optimizer: its moments have the masks too, so that none moves a pruned weight later.
        schedule: when masks are made, for which sparsity.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.nn.Parameter],
        pattern: Callable[[float], Pattern],
        optimizer: torch.optim.Optimizer,
        schedule: CubicSchedule,
    ) -> None:
        if not weights:
            raise InputError("there are no weights to prune.")
        self.weights, self.pattern = dict(weights), pattern
        self.optimizer, self.schedule = optimizer, schedule
        self.step = 0
        self.masks: dict[str, torch.Tensor] = {}
        self._update()

    def on_step_end(self) -> None:
        """To be called after every `optimizer.step()`."""
        self.step += 1
        self._update()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, beside those of the model and the optimiser."""
        return {"step": self.step, "masks": self.masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; InputError where it is one of other weights."""
        shapes = {name: mask.shape for name, mask in state["masks"].items()}
        if shapes != {name: weight.shape for name, weight in self.weights.items()}:
            raise InputError("the checkpoint's masks are not those of these weights.")
        self.step = state["step"]
        self.masks = {n: m.to(self.weights[n].device) for n, m in state["masks"].items()}
        self._apply()

    def _update(self) -> None:
        if self.schedule.changes(self.step):
            pattern = self.pattern(self.schedule.sparsity(self.step))
            for name, weight in self.weights.items():
                mask = mask_of(pattern, weight.detach().float().cpu().numpy())
                self.masks[name] = torch.from_numpy(mask).to(weight.device)
        self._apply()

    def _apply(self) -> None:
        with torch.no_grad():
            for name, weight in self.weights.items():
                pruned = ~self.masks[name]
                weight.masked_fill_(pruned, 0)
                for value in self.optimizer.state.get(weight, {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                        value.masked_fill_(pruned, 0)
