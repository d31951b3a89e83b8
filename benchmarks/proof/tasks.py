# SPDX-License-Identifier: Apache-2.0
"""Data and networks of the proof; the last layer of each stays dense, as `compile` keeps it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

#: training inputs and labels, test inputs and labels
Split = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def mnist() -> Split:
    """Pixels 0 to 1, filled up to 32 x 32 so that every bank is whole: (N, 1024)."""
    with np.load(DATA / "mnist.npz") as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}

    def images(name: str) -> torch.Tensor:
        padded = np.pad(arrays[name], ((0, 0), (2, 2), (2, 2)))
        return torch.from_numpy(padded.reshape(len(padded), -1).astype(np.float32) / 255)

    labels = {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in arrays}
    return images("x_train"), labels["y_train"], images("x_test"), labels["y_test"]


#: of spoken digits: frames of 32 ms, 20 ms apart, and bands up to 4 kHz
FRAMES, HOP, WINDOW, BANDS = 32, 160, 256, 64


def spoken_digits() -> Split:
    """Log-mel frames (N, FRAMES, BANDS), cut or filled with silence, normalised by the training
    part; takes 0 to 4 are the test."""
    with np.load(DATA / "spoken-digits.npz") as file:
        samples, lengths = file["samples"].astype(np.float32) / 32768, file["lengths"]
        labels, takes = file["labels"].astype(np.int64), file["takes"]
    starts = np.cumsum(lengths) - lengths
    padded = np.zeros((len(lengths), (FRAMES - 1) * HOP + WINDOW), np.float32)
    for row, start, length in zip(padded, starts, lengths, strict=True):
        part = samples[start : start + min(length, len(row))]
        row[: len(part)] = part
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::HOP]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), 2 * WINDOW)) ** 2
    x = np.log(spectrum @ _bands().T + 1e-6).astype(np.float32)
    test = takes < 5
    x = (x - x[~test].mean((0, 1))) / x[~test].std((0, 1))
    tensors = [x[~test], labels[~test], x[test], labels[test]]
    made = [torch.from_numpy(t) for t in tensors]
    return made[0], made[1], made[2], made[3]


def _bands() -> np.ndarray[Any, Any]:
    """Triangles evenly spaced in mel, (BANDS, WINDOW + 1)."""
    top = 2595 * np.log10(1 + 4000 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    hertz = np.linspace(0, 4000, WINDOW + 1)
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    triangles: np.ndarray[Any, Any] = np.maximum(0, np.minimum(rise, fall))
    return triangles


class Perceptron(nn.Module):  # type: ignore[misc]
    """1024-256-256-10 with Relu."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1, self.hidden2 = nn.Linear(1024, 256), nn.Linear(256, 256)
        self.scores = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(self.hidden2(self.hidden1(x).relu()).relu())
        return scores


class Speech(nn.Module):  # type: ignore[misc]
    """Two LSTM layers of 64 units; the last hidden value is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, 64, num_layers=2, batch_first=True)
        self.scores = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(self.lstm(x)[0][:, -1])
        return scores


@dataclass(frozen=True)
class Task:
    network: Callable[[], nn.Module]
    data: Callable[[], Split]
    dense_epochs: int
    tuning_epochs: int
    batch: int
    rate: float


TASKS = {
    "mnist": Task(Perceptron, functools.cache(mnist), 6, 2, 256, 2e-3),
    "spoken": Task(Speech, functools.cache(spoken_digits), 25, 5, 64, 4e-3),
}
