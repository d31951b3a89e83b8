# SPDX-License-Identifier: Apache-2.0
"""Sparse training in PyTorch, a few lines around a loop of the user's own (extra `torch`).

pruning = Pruning(weights, lambda s: parse_pattern("banks:64", s), optimizer,
                  CubicSchedule(0.875, steps=2000, every=100, levels=64))
for x, y in batches:
    loss = ...
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    pruning.on_step_end()
"""

from .pruning import CubicSchedule, Pruning
from .recipes import distillation_loss, load_checkpoint, save_checkpoint

__all__ = ["CubicSchedule", "Pruning", "distillation_loss", "load_checkpoint", "save_checkpoint"]
