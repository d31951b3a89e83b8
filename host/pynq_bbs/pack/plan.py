# SPDX-License-Identifier: Apache-2.0
"""From a program and a batch to a memory block: where tensors lie, which of them stay on chip.

Where no tensor has pixels, samples are columns and every layer runs once for all of them. Else
pixels are columns, and the samples run one after the other, each with tensors of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..builds import PORT_BYTES, Build
from ..errors import InputError
from ..interface import COMMAND_WORDS, Command
from .cycles import Memory
from .following import following
from .layout import tile_count
from .program import PackedLayer, Program, Tensor
from .schedule import Place, Route, block_bases, layer_command
from .steps import Space, Steps
from .windows import whole_words

#: Where `input` and `output`, and `residual`, lie in an encoded command: (word, bits to shift).
_ADDRESSES = ((1, 0), (1, 32), (4, 0))
_OFFSET = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Plan:
    """The memory block of one program at one batch size; offsets count 64-bit words.

    `commands` are those of the first sample where samples run one after the other; the tensors of
    the next one lie `sample_words` further.
    """

    samples: int
    runs: int  # how often the commands run: once, or once a sample
    places: dict[str, Place]
    stored: frozenset[str]  # tensors that are in memory afterwards
    sample_words: int
    first_command: int
    commands: list[Command]
    memory_words: int
    lengths: tuple[int, ...] = ()  # steps of each column tile, where samples have lengths
    zeros: tuple[tuple[int, int], ...] = ()  # offset and words that must be 0 before the first run

    def words(self) -> NDArray[np.uint64]:
        """The commands of all samples as they lie in memory."""
        one = np.array([c.encode() for c in self.commands], np.uint64).reshape(-1, COMMAND_WORDS)
        every = np.repeat(one[None], self.runs, axis=0)
        shift = np.arange(self.runs, dtype=np.uint64)[:, None] * np.uint64(self.sample_words)
        for word, bits in _ADDRESSES:
            # What lies before the first sample is in the image, and the same for all.
            moves = (one[:, word] >> np.uint64(bits)) & _OFFSET >= np.uint64(self.first_sample)
            every[:, :, word] += (shift * moves) << np.uint64(bits)
        return every.reshape(-1)

    @property
    def first_sample(self) -> int:
        """Word from which on the first sample's tensors lie."""
        return self.first_command - self.runs * self.sample_words


def make_plan(
    program: Program,
    samples: int,
    memory: Memory,
    *,
    every: bool = False,
    resident: bool = False,
    lengths: tuple[int, ...] = (),
) -> Plan:
    """Lay out image, tensors and commands one after the other, and write the commands.

    Args:
        every: store every tensor, so that each layer's output can be verified afterwards; else
            only those that are read from memory or are outputs.
        resident: the weights lie in the block buffer since an earlier run, if they all fit it
            (`program_bases`). Nothing else differs from the plan without it.
        lengths: steps of each column tile (`layout.by_length`), where the samples have lengths.

    Raises:
        InputError: an image that the engine's image memory is too small for, or a product of
            tensors for another number of samples.
    """
    build = program.build
    runs = samples if program.has_pixels else 1
    start = len(program.image)
    places, spaces, size = _lay_out(program, samples, start, lengths)
    routes, stored = _routes(program, places, every)
    bases = program_bases(program)
    if bases:
        routes = [
            replace(route, block_base=base[0], resident=resident)
            for route, base in zip(routes, bases, strict=True)
        ]
    commands: list[Command] = []
    for index, layer in enumerate(program.layers):
        if layer.cell:
            own = bases[index] if bases else None
            steps = Steps(spaces[index], index, places, memory, own, resident)
            commands += steps.commands()
            continue
        commands.append(
            layer_command(
                _with_weights(layer, places),
                index,
                places[layer.input],
                places[layer.output],
                build,
                memory,
                routes[index],
                places[layer.combination.tensor] if layer.combination else None,
            )
        )
    first_command = start + runs * size
    return Plan(
        samples=samples,
        runs=runs,
        places=places,
        stored=stored,
        sample_words=size,
        first_command=first_command,
        commands=following(commands, build),
        memory_words=first_command + COMMAND_WORDS * len(commands) * runs,
        lengths=lengths,
        zeros=tuple((space.offset, space.words) for space in spaces.values()),
    )


def _lay_out(
    program: Program, samples: int, start: int, lengths: tuple[int, ...]
) -> tuple[dict[str, Place], dict[int, Space], int]:
    """Where the tensors lie, the spaces of recurrent layers by their index, and the words of all,
    of one sample where samples run one after the other."""
    build, at = program.build, start
    places: dict[str, Place] = {}
    spaces: dict[int, Space] = {}
    for index, layer in enumerate(program.layers):
        if layer.cell:
            steps = program.tensors[layer.input].steps
            each = lengths or (steps,) * tile_count(samples, build.cols)
            spaces[index] = Space(layer, build, at, steps, samples, each, bool(program.lengths))
            places |= spaces[index].views()
            at += spaces[index].words
    for name, tensor in program.tensors.items():
        if name not in places and not tensor.whole:
            columns = tensor.pixels if program.has_pixels else samples
            constant = tensor.content >= 0
            places[name] = _place(tensor, tensor.content if constant else at, columns, build)
            at += 0 if constant else tensor_words(places[name], build, tensor)
    for name, tensor in program.tensors.items():
        if tensor.whole:
            whole = places[tensor.whole]
            before = tensor.first * build.cols // PORT_BYTES
            places[name] = replace(whole, offset=whole.offset + before)
    return places, spaces, at - start


def _with_weights(layer: PackedLayer, places: dict[str, Place]) -> PackedLayer:
    """The layer with its weights where their tensor lies, if they are one.

    Raises:
        InputError: it has another number of columns than the layer multiplies by.
    """
    if not layer.weight_tensor:
        return layer
    place = places[layer.weight_tensor]
    if place.columns != layer.features:
        raise InputError(
            f"layer {layer.name!r} multiplies by the {layer.features} columns of "
            f"{layer.weight_tensor!r}, which has {place.columns}: run as many samples at once"
        )
    return replace(layer, weights=place.offset)


def program_bases(program: Program) -> list[list[int]] | None:
    """As `block_bases` those of each layer's `matrices`, for all of a program."""
    parts = [layer.matrices for layer in program.layers]
    bases = block_bases([part for matrices in parts for part in matrices], program.build)
    if bases is None:
        return None
    each = iter(bases)
    return [list(islice(each, len(matrices))) for matrices in parts]


def _place(tensor: Tensor, offset: int, columns: int, build: Build) -> Place:
    tiles = tensor.steps * tile_count(columns, build.cols)
    return Place(offset, build.padded(tensor.features), tiles, columns)


def tensor_words(place: Place, build: Build, tensor: Tensor) -> int:
    """Words that a tensor takes, of one sample where samples run one after the other."""
    return place.tiles * place.stride * build.cols * tensor.dtype.itemsize // PORT_BYTES


def _routes(
    program: Program, places: dict[str, Place], every: bool
) -> tuple[list[Route], frozenset[str]]:
    """Which tensors go through the chain or stay in the image memory, and which are stored."""
    build, layers, region = program.build, program.layers, program.region
    needed = {output.tensor for output in program.outputs}
    needed |= {layer.combination.tensor for layer in layers if layer.combination}
    needed |= {layer.weight_tensor for layer in layers if layer.weight_tensor}
    needed |= {name for la in layers if la.cell for name in (la.input, *la.outputs)}
    needed |= {la.cell.initial_h for la in layers if la.cell and la.cell.initial_h}
    from_chain = [False] * len(layers)
    to_chain = [False] * len(layers)
    resident = [False] * len(layers)
    waiting: int | None = None  # the layer that takes what the chain holds
    held = ("", 0, 0)  # the region that is whole in the image memory
    for index, layer in enumerate(layers):
        own = 0
        if waiting == index:
            from_chain[index], waiting = True, None
            own = chain_words(layer.input, program, places)
        if layer.window is not None:
            resident[index] = region(layer.input) == held
            held = region(layer.input) if _stays(layer, program) else ("", 0, 0)
        if not (from_chain[index] or resident[index]):
            needed.add(layer.input)
        reader = _reader(index, program, places)
        level = own + chain_words(layer.output, program, places)
        if waiting is None and reader is not None and level <= build.chain_words:
            to_chain[index], waiting = True, reader
    needed |= {i.tensor for i in program.inputs}
    # Where a part of a tensor is read from memory, all that lies in it is stored.
    wholes = {region(name)[0] for name in needed}
    stored = frozenset(n for n in program.tensors if every or region(n)[0] in wholes)
    routes = [
        Route(
            from_chain[i],
            resident[i] and not from_chain[i],
            to_chain[i],
            la.output in stored or not to_chain[i],
        )
        for i, la in enumerate(layers)
    ]
    return routes, stored


def chain_words(tensor: str, program: Program, places: dict[str, Place]) -> int:
    """Activation words of a tensor in the chain."""
    build = program.build
    features = build.padded(program.tensors[tensor].features)
    return places[tensor].tiles * features // build.pack


def _stays(layer: PackedLayer, program: Program) -> bool:
    """Whether all of the layer's input is in the image memory when it has run."""
    window, build = layer.window, program.build
    assert window is not None
    whole = whole_words(window, build) * window.channels <= build.image_words
    return whole and window.channels == program.tensors[layer.input].features


def _reader(index: int, program: Program, places: dict[str, Place]) -> int | None:
    """The next layer that can take the output of layer `index` from the chain."""
    build, layer = program.build, program.layers[index]
    features = build.padded(program.tensors[layer.output].features)
    if layer.sums_out or layer.first_row or layer.cell or layer.rows != features:
        return None
    for later in range(index + 1, len(program.layers)):
        reader = program.layers[later]
        if program.region(reader.input) != program.region(layer.output):
            continue
        one_pass = reader.csb(build).groups <= reader.groups_per_pass
        wanted = reader.window.channels if reader.window else reader.features
        whole = features * (places[layer.output].tiles if reader.sum_columns else 1)
        all_of_it = -(-wanted // build.pack) * build.pack == whole and not reader.first_feature
        return later if all_of_it and (reader.window is not None or one_pass) else None
    return None
