# SPDX-License-Identifier: Apache-2.0
"""The commands of an LSTM or GRU for all steps, and where they work.

A layer has a space of its own, `[slot][column tile][feature][COLS]`, where a slot has the features
of one step (`StepFeatures`). A step reads its slot and writes its hidden values beside the x of the
step that comes next; so there is a slot more than there are steps. X and Y are views of the space.

Where samples have lengths, a column tile has samples of one length, longest first. So the tiles
that still run are the first ones, and whatever begins or ends is whole tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from ..builds import PORT_BYTES, Build
from ..interface import FLAG_STATE_IN, FLAG_STATE_OUT, FLAG_STATE_ZERO, Command
from .cycles import Memory
from .program import PackedCell, PackedLayer
from .recurrent import StepFeatures
from .schedule import Place, Route, block_bases, layer_command


@dataclass(frozen=True)
class Space:
    """Where a recurrent layer works; offsets count 64-bit words.

    `lengths` are the steps of each column tile, falling, all of them unless they are `given` with
    the samples. Of the last tile not all columns need to count.
    """

    layer: PackedLayer
    build: Build
    offset: int
    steps: int
    columns: int
    lengths: tuple[int, ...]
    given: bool

    @property
    def cell(self) -> PackedCell:
        assert self.layer.cell is not None
        return self.layer.cell

    @property
    def at(self) -> StepFeatures:
        return StepFeatures.of(self.cell, self.build)

    @property
    def tiles(self) -> int:
        return len(self.lengths)

    @property
    def words(self) -> int:
        """All of it: behind the other slots one that stays zero."""
        return (self.steps + 2) * self.tiles * self._words(self.at.total)

    def before(self, step: int) -> int:
        """The slot of a step's x, and of what it finds as hidden values."""
        return step + self.cell.reverse

    def after(self, step: int) -> int:
        """The slot that a step's hidden values are written to."""
        return step + 1 - self.cell.reverse

    def first(self, length: int) -> int:
        """The slot that samples of `length` steps begin with."""
        return self.before(length - 1 if self.cell.reverse else 0)

    def last(self, length: int) -> int:
        """The slot in which they leave their last hidden values."""
        return self.after(0 if self.cell.reverse else length - 1)

    def place(self, slot: int, feature: int, first: int, end: int) -> Place:
        """Features from `feature` on of tiles `first` to `end` of a slot."""
        stride = self.at.total
        offset = (slot * self.tiles + first) * self._words(stride) + self._words(feature)
        columns = min(self.columns, end * self.build.cols) - first * self.build.cols
        return Place(self.offset + offset, stride, end - first, columns)

    def views(self) -> dict[str, Place]:
        """The tensors that lie here: x and y of all steps, and the initial and the last hidden
        values, each where all of them are in one slot."""
        every, cell = self.steps * self.tiles, self.cell
        x, y = self.before(0), self.after(0)
        places = {
            self.layer.input: replace(self.place(x, self.at.x, 0, self.tiles), tiles=every),
            self.layer.output: replace(self.place(y, self.at.h, 0, self.tiles), tiles=every),
        }
        if cell.initial_h and not self.scatters:
            places[cell.initial_h] = self.place(self.first(self.steps), self.at.h, 0, self.tiles)
        if cell.y_h and not self.gathers:
            places[cell.y_h] = self.place(self.last(self.steps), self.at.h, 0, self.tiles)
        return places

    @property
    def scatters(self) -> bool:
        """Whether samples begin in several slots, so that the initial h are copied there."""
        return self.given and self.cell.reverse

    @property
    def gathers(self) -> bool:
        """Whether samples end in several slots, so that the last h are copied from there."""
        return self.given and not self.cell.reverse

    def _words(self, features: int) -> int:
        return features * self.build.cols // PORT_BYTES


class Steps:
    """The commands of a recurrent layer for all steps of all samples."""

    def __init__(
        self,
        space: Space,
        index: int,
        places: dict[str, Place],
        memory: Memory,
        bases: list[int] | None,
        resident: bool,
    ) -> None:
        """
        Args:
            index: of the layer in the program.
            places: of all tensors.
            bases: where the layer's `matrices` stay in the block buffer, beside those of all other
                layers; if not, those of a step stay at least from step to step where they fit.
            resident: with `bases`, they are there since an earlier run.
        """
        layer, build = space.layer, space.build
        parts = layer.matrices
        if bases is None:
            resident, parts = False, tuple(p for p in parts if p is not space.cell.copy)
            bases = block_bases(parts, build)
        named = dict(zip([part.name for part in parts], bases, strict=True)) if bases else {}
        self._space, self._cell, self._build = space, space.cell, build
        self._index, self._places, self._memory = index, places, memory
        self._bases, self._loaded = named, set(named if resident else ())
        self._alike: dict[tuple[str, Place, Place, bool], Command] = {}

    def commands(self) -> Iterator[Command]:
        """In their order."""
        space, cell, h = self._space, self._cell, self._space.at.h
        for first, end, length in self._lengths():
            if cell.initial_h and space.scatters:
                start = space.place(space.first(length), h, first, end)
                yield self._copy(self._part(cell.initial_h, first, end), start)
        together = self._build.cell_words // space.at.states
        for first in range(0, space.tiles, together):
            yield from self._steps(first, min(first + together, space.tiles))
        for first, end, length in self._lengths():
            if cell.y_h and space.gathers:
                last = space.place(space.last(length), h, first, end)
                yield self._copy(last, self._part(cell.y_h, first, end))
            # They began where the Y of a later step would lie, which must be 0.
            if cell.initial_h and space.scatters and length < space.steps:
                start = space.place(space.first(length), h, first, end)
                yield self._copy(space.place(space.steps + 1, h, first, end), start)

    def _lengths(self) -> Iterator[tuple[int, int, int]]:
        """First tile, end and steps of the tiles of each length."""
        first = 0
        for length, tiles in groupby(self._space.lengths):
            end = first + len(list(tiles))
            yield first, end, length
            first = end

    def _steps(self, first: int, end: int) -> list[Command]:
        """All steps of tiles whose states are on chip together."""
        made: list[Command] = []
        lengths, reverse = self._space.lengths[first:end], self._cell.reverse
        before = first  # end of the tiles that the step before ran
        for step in reversed(range(lengths[0])) if reverse else range(lengths[0]):
            running = first + sum(length > step for length in lengths)
            for start, stop in ((first, min(before, running)), (before, running)):
                if start >= stop:
                    continue
                commands = self._step(step, start, stop)
                commands[-1].cell_base = (start - first) * self._space.at.states
                if start == before:
                    self._load_states(commands[-1], start, stop)
                if reverse and step == 0:
                    self._store_states(commands[-1], start, stop)
                made += commands
            before = running
        if not reverse:
            self._store_states(made[-1], first, end)
        return made

    def _step(self, step: int, first: int, end: int) -> list[Command]:
        """One step of some tiles; its last command is that of the gates."""
        space, at, commands = self._space, self._space.at, list[Command]()
        before, after = space.before(step), space.after(step)
        if self._cell.reset is not None:
            hidden = space.place(before, at.h, first, end)
            x, product = (space.place(before, f, first, end) for f in (at.x, 0))
            commands.append(self._command(self._cell.reset, x, product, hidden))
        source = space.place(before, 0, first, end)
        target = space.place(after, at.h, first, end)
        return [*commands, self._command(space.layer, source, target)]

    def _load_states(self, command: Command, first: int, end: int) -> None:
        if not self._cell.initial_state:
            command.flags |= FLAG_STATE_ZERO
            return
        command.flags |= FLAG_STATE_IN
        place = self._places[self._cell.initial_state]
        command.residual = place.offset + first * self._state_words
        command.state_words = (end - first) * self._state_words

    def _store_states(self, command: Command, first: int, end: int) -> None:
        if self._cell.y_state:
            command.flags |= FLAG_STATE_OUT
            place = self._places[self._cell.y_state]
            command.state = place.offset + first * self._state_words
            command.state_words = (end - first) * self._state_words

    @property
    def _state_words(self) -> int:
        """Port words of the states of a tile: two words of the cell memory each."""
        return self._space.at.states // 2

    def _part(self, tensor: str, first: int, end: int) -> Place:
        """Tiles `first` to `end` of a tensor of one step."""
        place, cols = self._places[tensor], self._build.cols
        offset = place.offset + first * place.stride * cols // PORT_BYTES
        columns = min(place.columns, end * cols) - first * cols
        return Place(offset, place.stride, end - first, columns)

    def _copy(self, source: Place, target: Place) -> Command:
        assert self._cell.copy is not None
        return self._command(self._cell.copy, source, target)

    def _command(
        self, part: PackedLayer, source: Place, target: Place, residual: Place | None = None
    ) -> Command:
        base, there = self._bases.get(part.name), part.name in self._loaded
        key = (part.name, replace(source, offset=0), replace(target, offset=0), there)
        if key not in self._alike:
            route = Route(block_base=base, resident=there)
            self._alike[key] = layer_command(
                part, self._index, source, target, self._build, self._memory, route, residual
            )
        if base is not None:
            self._loaded.add(part.name)
        return replace(
            self._alike[key],
            input=source.offset,
            output=target.offset,
            residual=residual.offset if residual else 0,
        )
