# SPDX-License-Identifier: Apache-2.0
"""Exports the models beside this file from PyTorch, by both of its exporters:

    python tests/models/export.py

`<name>-dynamo.onnx` is of torch.onnx.export(dynamo=True), `<name>-script.onnx` of the older one.
"""

from __future__ import annotations

import io
from pathlib import Path

import onnx
import torch
from torch import nn

STEPS, INPUTS, UNITS = 6, 5, 8


class Recurrent(nn.Module):
    """LSTM or GRU, and a linear layer on every step, on the last one, or on the last values."""

    def __init__(self, kind: str, layers: int, behind: str, **more: bool) -> None:
        super().__init__()
        self.cells = getattr(nn, kind)(INPUTS, UNITS, layers, **more)
        self.linear = nn.Linear(UNITS * (2 if self.cells.bidirectional else 1), 3)
        self.behind = behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, last = self.cells(x)
        if self.behind == "last":
            y = y[:, -1] if self.cells.batch_first else y[-1]
        elif self.behind == "hidden":
            h = last[0] if isinstance(last, tuple) else last
            y = torch.cat((h[-2], h[-1]), 1) if self.cells.bidirectional else h[-1]
        return self.linear(y)


class Stateful(nn.Module):
    """All that LSTM or GRU take and give."""

    def __init__(self, kind: str, layers: int, **more: bool) -> None:
        super().__init__()
        self.cells = getattr(nn, kind)(INPUTS, UNITS, layers, **more)

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> object:
        y, last = self.cells(x, states[0] if len(states) == 1 else states)
        return (y, *last) if isinstance(last, tuple) else (y, last)


class FeedForward(nn.Module):
    """The second half of a transformer encoder layer without its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, 4 * INPUTS), nn.Linear(4 * INPUTS, INPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(nn.functional.gelu(self.first(x)))


class Heads(nn.Module):
    """What attention multiplies: queries, keys and values by heads."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(INPUTS, 3 * 2 * UNITS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = self.project(x).chunk(3, -1)
        return tuple(p.view(*x.shape[:2], 2, UNITS).transpose(1, 2) for p in parts)


def models() -> dict[str, tuple[nn.Module, list[torch.Tensor], list[int]]]:
    """Module, example inputs, and which axis of each is the batch."""
    torch.manual_seed(0)
    first, second = torch.randn(3, STEPS, INPUTS), torch.randn(STEPS, 3, INPUTS)
    state, hidden, cell = (torch.rand(n, 3, UNITS) for n in (2, 4, 4))
    return {
        "lstm": (Recurrent("LSTM", 1, "last", batch_first=True), [first], [0]),
        "lstm2": (Recurrent("LSTM", 2, "every"), [second], [1]),
        "gru2-both": (
            Recurrent("GRU", 2, "last", batch_first=True, bidirectional=True), [first], [0]
        ),
        "gru-hidden": (Recurrent("GRU", 1, "hidden", bidirectional=True), [second], [1]),
        "gru2-states": (Stateful("GRU", 2), [second, state], [1, 1]),
        "lstm2-states": (
            Stateful("LSTM", 2, batch_first=True, bidirectional=True),
            [first, hidden, cell], [0, 1, 1],
        ),
        "feedforward": (FeedForward(), [first], [0]),
        "heads": (Heads(), [first], [0]),
    }  # fmt: skip


def exported(
    module: nn.Module, examples: list[torch.Tensor], axes: list[int], *, dynamo: bool
) -> onnx.ModelProto:
    """With an open batch."""
    module.eval()
    if dynamo:
        batch = torch.export.Dim("batch")
        shapes = tuple({axis: batch} for axis in axes)
        # What a module takes as *states is one argument to torch.
        several = shapes if not isinstance(module, Stateful) else (shapes[0], shapes[1:])
        program = torch.onnx.export(
            module, tuple(examples), dynamo=True, dynamic_shapes=several, verbose=False
        )
        return program.model_proto
    names = [f"x{i}" for i in range(len(examples))]
    file = io.BytesIO()
    torch.onnx.export(
        module, tuple(examples), file, dynamo=False, input_names=names,
        dynamic_axes={n: {axis: "batch"} for n, axis in zip(names, axes, strict=True)},
    )  # fmt: skip
    return onnx.load_model_from_string(file.getvalue())


def stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without what depends on where it was made."""
    for node in proto.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
    return proto


if __name__ == "__main__":
    for name, (module, examples, axes) in models().items():
        for kind, dynamo in (("dynamo", True), ("script", False)):
            proto = stripped(exported(module, examples, axes, dynamo=dynamo))
            path = Path(__file__).parent / f"{name}-{kind}.onnx"
            path.write_bytes(proto.SerializeToString())
            print(path.name, path.stat().st_size)
