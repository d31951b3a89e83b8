# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of a program lie: each where others lie before and after it.

    image | activations | inputs and outputs of every sample of every bank | commands

What layers leave for other layers lies among the activations. Commands run in order, so a tensor
takes memory from the layer that writes it to the last one that reads it, and samples that run one
after the other have the same activations. Inputs and outputs have memory of their own, since the
host puts them there and takes them from there while other samples, or the other bank, run. So has
what recurrent layers work on, some of which must stay zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..builds import PORT_BYTES, Build
from .layout import tile_count
from .program import PackedLayer, Program, Tensor
from .schedule import Place
from .steps import Space


@dataclass(frozen=True)
class Block:
    """Words that are in use from the step `first` to the step `last`, both included."""

    name: str
    words: int
    first: int
    last: int


@dataclass(frozen=True)
class Layout:
    """Where everything lies; offsets count 64-bit words, those of the first sample and bank.

    Attributes:
        places: of all tensors; what never is in memory has offset 0.
        spaces: of recurrent layers, by their index.
        activations: the tensors that layers leave for others, and when.
        activation_words: what they take together.
        first_sample: word from which on the first sample's inputs and outputs lie.
        sample_words: words of these, of one sample where samples run one after the other.
    """

    places: dict[str, Place]
    spaces: dict[int, Space]
    activations: tuple[Block, ...]
    activation_words: int
    first_sample: int
    sample_words: int

    @property
    def unshared_words(self) -> int:
        """What the activations would take if each had memory of its own."""
        return sum(block.words for block in self.activations)


def shapes(
    program: Program, samples: int, lengths: tuple[int, ...]
) -> tuple[dict[str, Place], dict[int, Space]]:
    """Tiles, strides and columns of all tensors, and the spaces of recurrent layers by their
    index, before any of them has an offset."""
    build = program.build
    places: dict[str, Place] = {}
    spaces: dict[int, Space] = {}
    for index, layer in enumerate(program.layers):
        if layer.cell:
            steps = program.tensors[layer.input].steps
            each = lengths or (steps,) * tile_count(samples, build.cols)
            spaces[index] = Space(layer, build, 0, steps, samples, each, bool(program.lengths))
            places |= spaces[index].views()
    for name, tensor in program.tensors.items():
        if name not in places and not tensor.whole:
            columns = tensor.pixels if program.has_pixels else samples
            tiles = tensor.steps * tile_count(columns, build.cols)
            places[name] = Place(0, build.padded(tensor.features), tiles, columns)
    return places | _parts(program, places), spaces


def _parts(program: Program, places: dict[str, Place]) -> dict[str, Place]:
    """The tensors that lie in others, whose places are known."""
    parts = {}
    for name, tensor in program.tensors.items():
        if tensor.whole:
            whole = places[tensor.whole]
            a_step = whole.tiles // program.tensors[tensor.whole].steps  # tiles
            before = tensor.step * a_step * whole.stride + tensor.first
            offset = whole.offset + before * program.build.cols // PORT_BYTES
            parts[name] = replace(whole, offset=offset, tiles=tensor.steps * a_step)
    return parts


def lay_out(
    program: Program,
    places: dict[str, Place],
    spaces: dict[int, Space],
    reads: Sequence[Iterable[str]],
    stored: frozenset[str],
    *,
    every: bool,
) -> Layout:
    """Gives what `shapes` made an offset each.

    Args:
        reads: the tensors that each layer reads from memory.
        stored: the tensors that are in memory at any time.
        every: no two share memory, so that all are there in the end.
    """
    build, tensors = program.build, program.tensors
    names = [i.tensor for i in program.inputs] + [o.tensor for o in program.outputs]
    carried = {program.region(name)[0] for name in names}
    within = {name for space in spaces.values() for name in space.views()}
    roots = [
        name
        for name, tensor in tensors.items()
        if name in stored and name not in within and not tensor.whole and tensor.content < 0
    ]
    words = {name: tensor_words(places[name], build, tensors[name]) for name in roots}
    blocks = tuple(
        block
        for block in _lifetimes(program, reads, words)
        if not every and block.name not in carried
    )
    offsets, activation_words = share(blocks)
    start = len(program.image)
    offsets = {name: start + offset for name, offset in offsets.items()}
    at = first_sample = start + activation_words
    laid: dict[str, Place] = {}
    laid_spaces: dict[int, Space] = {}
    for index, space in spaces.items():
        laid_spaces[index] = replace(space, offset=at)
        laid |= laid_spaces[index].views()
        at += space.words
    for name in roots:
        if name not in offsets:
            offsets[name] = at
            at += words[name]
    for name, tensor in tensors.items():
        if name not in within and not tensor.whole:
            offset = tensor.content if tensor.content >= 0 else offsets.get(name, 0)
            laid[name] = replace(places[name], offset=offset)
    laid |= _parts(program, laid)
    return Layout(laid, laid_spaces, blocks, activation_words, first_sample, at - first_sample)


def share(blocks: Sequence[Block]) -> tuple[dict[str, int], int]:
    """An offset for each block, so that none overlaps another one that is in use together with
    it, and the words of all: the largest first, each in the smallest gap that holds it."""
    placed: list[tuple[int, Block]] = []
    for block in sorted(blocks, key=lambda b: -b.words):
        beside = sorted(
            (offset, offset + other.words)
            for offset, other in placed
            if other.first <= block.last and block.first <= other.last
        )
        gaps, end = list[tuple[int, int]](), 0
        for start, stop in beside:
            if start - end >= block.words:
                gaps.append((start - end, end))
            end = max(end, stop)
        placed.append((min(gaps)[1] if gaps else end, block))
    total = max((offset + block.words for offset, block in placed), default=0)
    return {block.name: offset for offset, block in placed}, total


def tensor_words(place: Place, build: Build, tensor: Tensor) -> int:
    """Words that a tensor takes, of one sample where samples run one after the other."""
    return place.tiles * place.stride * build.cols * tensor.dtype.itemsize // PORT_BYTES


def _lifetimes(
    program: Program, reads: Sequence[Iterable[str]], words: dict[str, int]
) -> list[Block]:
    """From which layer to which each tensor that lies in no other is in use."""
    used: dict[str, list[int]] = {}
    for index, layer in enumerate(program.layers):
        for name in (*layer.outputs, *reads[index]):
            used.setdefault(program.region(name)[0], []).append(index)
    return [
        Block(name, words[name], used[name][0], used[name][-1]) for name in words if name in used
    ]


def read_by(layer: PackedLayer) -> set[str]:
    """The tensors that a layer reads from memory besides its input, however that comes."""
    names = [layer.weight_tensor]
    if layer.combination:
        names.append(layer.combination.tensor)
    if layer.cell:
        names += [layer.input, layer.cell.initial_h, layer.cell.initial_state]
    return {name for name in names if name}
