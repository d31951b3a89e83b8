# SPDX-License-Identifier: Apache-2.0
"""From a program and a batch to a memory block: where tensors lie, which of them stay on chip.

Where no tensor has pixels, samples are columns and every layer runs once for all of them. Else
pixels are columns, and the samples run one after the other, each with tensors of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..builds import PORT_BYTES, Build
from ..errors import InputError
from ..interface import COMMAND_WORDS, Command
from .cycles import Memory
from .layout import tile_count
from .program import PackedLayer, Program, Tensor
from .schedule import Place, Route, layer_command
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
        return self.memory_words - self.runs * self.sample_words


def make_plan(
    program: Program,
    samples: int,
    memory: Memory,
    *,
    every: bool = False,
    resident: bool = False,
) -> Plan:
    """Lay out image, commands and tensors one after the other, and write the commands.

    Args:
        every: store every tensor, so that each layer's output can be verified afterwards; else
            only those that are read from memory or are outputs.
        resident: the weights lie in the block buffer since an earlier run, if they all fit it
            (`block_bases`). Nothing else differs from the plan without it.

    Raises:
        InputError: an image that the engine's image memory is too small for, or a product of
            tensors for another number of samples.
    """
    build, images, sums = program.build, program.has_pixels, program.sums
    runs = samples if images else 1
    first_command = len(program.image)
    at = start = first_command + COMMAND_WORDS * len(program.layers) * runs
    places: dict[str, Place] = {}
    for name, tensor in program.tensors.items():
        if not tensor.whole:
            offset = at if tensor.content < 0 else tensor.content
            places[name] = _place(tensor, offset, tensor.pixels if images else samples, build)
            at += tensor_words(places[name], build, name in sums) if tensor.content < 0 else 0
    for name, tensor in program.tensors.items():
        if tensor.whole:
            whole = places[tensor.whole]
            before = tensor.first * build.cols // PORT_BYTES
            places[name] = replace(whole, offset=whole.offset + before)
    routes, stored = _routes(program, places, every)
    if bases := block_bases(program):
        routes = [
            replace(route, block_base=base, resident=resident)
            for route, base in zip(routes, bases, strict=True)
        ]
    for layer in program.layers:
        if layer.weight_tensor and places[layer.weight_tensor].columns != layer.features:
            raise InputError(
                f"layer {layer.name!r} multiplies by the {layer.features} columns of "
                f"{layer.weight_tensor!r}, which has {places[layer.weight_tensor].columns}: run "
                "as many samples at once"
            )
    commands = [
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
        for index, layer in enumerate(program.layers)
    ]
    size = at - start
    return Plan(samples, runs, places, stored, size, first_command, commands, start + runs * size)


def _with_weights(layer: PackedLayer, places: dict[str, Place]) -> PackedLayer:
    """The layer with its weights where their tensor lies, if they are one."""
    if not layer.weight_tensor:
        return layer
    return replace(layer, weights=places[layer.weight_tensor].offset)


def block_bases(program: Program) -> list[int] | None:
    """Where each layer's weights can stay in the block buffer, in CSB words; None if not all do."""
    build, at, bases = program.build, 0, []
    for layer in program.layers:
        shape = layer.csb(build)
        if shape.groups > shape.groups_per_pass or layer.weight_tensor:
            return None
        bases.append(at)
        at += shape.row_groups * shape.groups * shape.keep
    return bases if at <= build.block_words else None


def _place(tensor: Tensor, offset: int, columns: int, build: Build) -> Place:
    return Place(offset, build.padded(tensor.features), tile_count(columns, build.cols), columns)


def tensor_words(place: Place, build: Build, is_sums: bool) -> int:
    """Words that a tensor takes, of one sample where samples run one after the other."""
    return place.tiles * place.stride * build.cols * (4 if is_sums else 1) // PORT_BYTES


def _routes(
    program: Program, places: dict[str, Place], every: bool
) -> tuple[list[Route], frozenset[str]]:
    """Which tensors go through the chain or stay in the image memory, and which are stored."""
    build, layers, region = program.build, program.layers, program.region
    needed = {output.tensor for output in program.outputs}
    needed |= {layer.combination.tensor for layer in layers if layer.combination}
    needed |= {layer.weight_tensor for layer in layers if layer.weight_tensor}
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
    if layer.sums_out or layer.first_row or layer.rows != features:
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
