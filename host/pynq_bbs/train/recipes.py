# SPDX-License-Identifier: Apache-2.0
"""Distillation from a dense model, and checkpoints that a crash leaves whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ..errors import InputError


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 2.0,
    share: float = 0.5,
) -> torch.Tensor:
    """Cross-entropy with the labels, and `share` of it with the teacher's softened classes.

    Args:
        student, teacher: logits (N, classes); no gradient reaches the teacher.
        labels: (N,), integers.
        temperature: above 0; the teacher's part is scaled by its square (Hinton et al., 2015).
        share: 0 (labels alone) to 1 (the teacher alone).
    """
    if temperature <= 0 or not 0.0 <= share <= 1.0:
        raise InputError("temperature must be above 0 and share 0 to 1.")
    soft = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.softmax(teacher.detach() / temperature, dim=-1),
        reduction="batchmean",
    )
    hard = functional.cross_entropy(student, labels)
    return (1.0 - share) * hard + share * temperature**2 * soft


def save_checkpoint(path: str | Path, **parts: Any) -> None:
    """Write what the parts' `state_dict` give; the file is the old or the new one, never half."""
    path = Path(path)
    new = path.with_name(path.name + f".{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            torch.save({name: part.state_dict() for name, part in parts.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def load_checkpoint(path: str | Path, **parts: Any) -> bool:
    """Give the parts what `save_checkpoint` wrote; False where there is no file yet."""
    if not Path(path).exists():
        return False
    state = torch.load(path, weights_only=True)
    if set(state) != set(parts):
        raise InputError(f"{path} holds {sorted(state)}, not {sorted(parts)}.")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return True
