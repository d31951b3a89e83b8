# SPDX-License-Identifier: Apache-2.0
"""How much memory a program takes on a board, and whether the board has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..boards import Board, load_boards
from ..builds import PORT_BYTES
from ..errors import DeviceMemoryError
from .memory import Layout
from .plan import Plan, layout_of
from .program import Program

#: So many of the largest tensors are named where a program does not fit.
_NAMED = 3


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in device memory, by what they hold.

    Attributes:
        weights: the program's image: weights, indices, row parameters, tables and constants.
        activations: the most that is in use at a time of what layers leave for each other.
        unshared: what that would be if no two tensors lay in the same place.
        carried: inputs, outputs and what recurrent layers work on.
        commands: all of them.
    """

    weights: int
    activations: int
    unshared: int
    carried: int
    commands: int = 0

    @classmethod
    def of(cls, program: Program, layout: Layout, batches: int = 1, commands: int = 0) -> MemoryUse:
        """Of so many `batches` of inputs and outputs, and so many words of commands."""
        words = (
            len(program.image),
            layout.activation_words,
            layout.unshared_words,
            batches * layout.sample_words,
            commands,
        )
        return cls(*(PORT_BYTES * count for count in words))

    @classmethod
    def of_plan(cls, program: Program, plan: Plan) -> MemoryUse:
        """Of all samples and banks of a plan."""
        batches = plan.runs * plan.banks
        return cls.of(program, plan.layout, batches, plan.banks * plan.command_words)

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.carried + self.commands

    def __str__(self) -> str:
        saved = f" ({self.unshared} if none shared a place)" if self.activations else ""
        commands = f", commands {self.commands}" if self.commands else ""
        return (
            f"{self.total} bytes of memory: weights and tables {self.weights}, activations "
            f"{self.activations}{saved}, inputs and outputs {self.carried}{commands}"
        )


def least_use(program: Program) -> MemoryUse:
    """What as few samples as can run at once take, without the commands."""
    return MemoryUse.of(program, _least_layout(program))


def check_fits(program: Program, board: Board) -> MemoryUse:
    """`least_use`. Raises a DeviceMemoryError if `board` has too little memory for it, and says how
    much of it goes where, and which boards have more."""
    layout = _least_layout(program)
    use = MemoryUse.of(program, layout)
    if use.total <= board.cma_bytes:
        return use
    sizes = {
        name: place.tiles * place.stride * program.build.cols * program.tensors[name].dtype.itemsize
        for name, place in layout.places.items()
        if not program.tensors[name].whole
    }
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_NAMED]
    named = ", ".join(
        f"{name!r} ({' x '.join(map(str, program.tensors[name].shape))}: {sizes[name]})"
        for name in largest
    )
    larger = [b.name for b in load_boards() if b.cma_bytes >= use.total]
    advice = "or split it: no board that is known has more"
    if larger:
        others = f" ({', '.join(larger[1:])} too)" if larger[1:] else ""
        advice = f"or compile for a board with more, board={larger[0]!r}{others}"
    raise DeviceMemoryError(
        f"{program.name!r} needs {use.total} bytes of contiguous memory for the least that runs at "
        f"once, {board.name} has {board.cma_bytes}: weights and tables {use.weights}, activations "
        f"{use.activations}, inputs and outputs {use.carried}. Its largest tensors: {named}. Give "
        f"it smaller inputs, prune its weights, {advice}"
    )


def check_together(name: str, programs: Sequence[Program], board: Board) -> None:
    """The same of programs that are in memory together."""
    needed = sum(check_fits(program, board).total for program in programs)
    if needed > board.cma_bytes:
        raise DeviceMemoryError(
            f"the {len(programs)} programs of {name!r} need {needed} bytes of contiguous memory "
            f"together, {board.name} has {board.cma_bytes}. Prune its weights, or compile for a "
            "board with more"
        )


def _least_layout(program: Program) -> Layout:
    """Of one column tile, or one image; a product of tensors takes as many columns as it has."""
    products = [layer.features for layer in program.layers if layer.weight_tensor]
    return layout_of(program, max(products, default=1))
