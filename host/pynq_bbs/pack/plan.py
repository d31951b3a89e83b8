# SPDX-License-Identifier: Apache-2.0
"""From a program and a batch to a memory block: what stays on chip, what lies where, the commands.

Where no tensor has pixels, samples are columns and every layer runs once for all of them. Else
pixels are columns, and the samples run one after the other, each with inputs and outputs of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..interface import COMMAND_WORDS, Command
from .cycles import Memory
from .following import following
from .memory import Layout, lay_out, read_by, shapes
from .program import PackedLayer, Program
from .schedule import Place, Route, block_bases, layer_command
from .steps import Steps
from .windows import whole_words

#: Where addresses of tensors lie in an encoded command: input, output, weights, residual, state.
_ADDRESSES = ((1, 0), (1, 32), (2, 0), (4, 0), (13, 0))
_OFFSET = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Plan:
    """The memory block of one program at one batch size; offsets count 64-bit words.

    `commands` are those of the first sample and bank where samples run one after the other; the
    inputs and outputs of the next one lie `layout.sample_words` further, and those of the next
    bank behind those of all samples. A bank holds a batch: the host can fill one while another one
    runs. Inputs and outputs must be 0 before the first run, for the columns that nothing fills.
    """

    samples: int
    runs: int  # how often the commands run: once, or once a sample
    banks: int
    layout: Layout
    stored: frozenset[str]  # tensors that are in memory at any time
    commands: list[Command]
    every: bool = False  # whether all tensors are there in the end
    lengths: tuple[int, ...] = ()  # steps of each column tile, where samples have lengths

    @property
    def places(self) -> dict[str, Place]:
        return self.layout.places

    @property
    def bank_words(self) -> int:
        """Words of the inputs and outputs of a bank."""
        return self.runs * self.layout.sample_words

    @property
    def first_command(self) -> int:
        """Where the first bank's commands lie; those of the others follow."""
        return self.layout.first_sample + self.banks * self.bank_words

    @property
    def command_words(self) -> int:
        """Words of the commands of a bank."""
        return COMMAND_WORDS * len(self.commands) * self.runs

    @property
    def memory_words(self) -> int:
        return self.first_command + self.banks * self.command_words

    def words(self) -> NDArray[np.uint64]:
        """The commands of all samples of all banks as they lie in memory."""
        one = np.array([c.encode() for c in self.commands], np.uint64).reshape(-1, COMMAND_WORDS)
        count = self.runs * self.banks
        every = np.repeat(one[None], count, axis=0)
        shift = np.arange(count, dtype=np.uint64)[:, None] * np.uint64(self.layout.sample_words)
        for word, bits in _ADDRESSES:
            # What lies before the first sample is the same for all.
            moves = (one[:, word] >> np.uint64(bits)) & _OFFSET >= np.uint64(
                self.layout.first_sample
            )
            every[:, :, word] += (shift * moves) << np.uint64(bits)
        return every.reshape(-1)


def make_plan(
    program: Program,
    samples: int,
    memory: Memory,
    *,
    every: bool = False,
    resident: bool = False,
    lengths: tuple[int, ...] = (),
    banks: int = 1,
) -> Plan:
    """Lay out image, tensors and commands one after the other, and write the commands.

    Args:
        every: store every tensor, each in memory of its own, so that each layer's output can be
            verified afterwards; else only those that are read from memory or are outputs.
        resident: the weights lie in the block buffer since an earlier run, if they all fit it
            (`program_bases`). Nothing else differs from the plan without it.
        lengths: steps of each column tile (`layout.by_length`), where the samples have lengths.
        banks: batches that are in memory together.

    Raises:
        InputError: an image that the engine's image memory is too small for, or a product of
            tensors for another number of samples.
    """
    build = program.build
    layout, routes, stored = _laid_out(program, samples, lengths, every=every)
    places, bases = layout.places, program_bases(program)
    if bases:
        routes = [
            replace(route, block_base=base[0], resident=resident)
            for route, base in zip(routes, bases, strict=True)
        ]
    commands: list[Command] = []
    for index, layer in enumerate(program.layers):
        if layer.cell:
            own = bases[index] if bases else None
            steps = Steps(layout.spaces[index], index, places, memory, own, resident)
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
    return Plan(
        samples=samples,
        runs=samples if program.has_pixels else 1,
        banks=banks,
        layout=layout,
        stored=stored,
        commands=following(commands, build),
        every=every,
        lengths=lengths,
    )


def layout_of(program: Program, samples: int) -> Layout:
    """Where everything lies for so many samples at once, without the commands."""
    return _laid_out(program, samples, (), every=False)[0]


def _laid_out(
    program: Program, samples: int, lengths: tuple[int, ...], *, every: bool
) -> tuple[Layout, list[Route], frozenset[str]]:
    places, spaces = shapes(program, samples, lengths)
    routes, stored = _routes(program, places, every)
    reads = [
        read_by(la) | (set() if route.from_chain or route.resident_input else {la.input})
        for la, route in zip(program.layers, routes, strict=True)
    ]
    return lay_out(program, places, spaces, reads, stored, every=every), routes, stored


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


def _routes(
    program: Program, places: dict[str, Place], every: bool
) -> tuple[list[Route], frozenset[str]]:
    """Which tensors go through the chain or stay in the image memory, and which are stored."""
    build, layers, region = program.build, program.layers, program.region
    needed = {output.tensor for output in program.outputs}
    needed |= {name for layer in layers for name in read_by(layer)}
    needed |= {name for layer in layers if layer.cell for name in layer.outputs}
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
    # What nobody reads has to go somewhere too.
    needed |= {la.output for la, chained in zip(layers, to_chain, strict=True) if not chained}
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
