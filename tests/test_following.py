# SPDX-License-Identifier: Apache-2.0
"""Which commands may begin while others run: what a command touches, and who waits for whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from numpy.typing import NDArray

from counting import counting_engine
from models import NETWORKS
from planned import matrix, network
from pynq_bbs.builds import TABLE_WORDS, Build, load_build
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.interface import (
    COMMAND_WORDS,
    FLAG_FOLLOWS,
    FLAG_IMAGE,
    FLAG_RESIDUAL,
    FLAG_TABLE,
    FLAG_TO_CHAIN,
    FLAG_TO_MEMORY,
    Command,
)
from pynq_bbs.pack.cycles import Memory, regions_of
from pynq_bbs.pack.following import Span, following, reads, writes
from pynq_bbs.pack.plan import make_plan
from pynq_bbs.pack.program import Program
from random_commands import chain_filler, chain_words, commands

BUILD = load_build("8x32")
LATENCY = load_build("32x4x1")
MEMORY = Memory(142.857e6, 1.5e9)
#: Words for each of the things in memory that a command names.
ROOM = 1 << 16
OFFSETS = ("input", "output", "weights", "indices", "parameters", "table", "residual", "state")
#: A float32 of about 2^-20 in the high half: multipliers whose bytes differ.
MULTIPLIER = np.uint64(0x35800000 << 32)


def words_of(spans: list[Span], size: int) -> NDArray[np.bool_]:
    inside = np.zeros(size, bool)
    for first, end in spans:
        inside[first:end] = True
    return inside


def filled_up(c: Command, build: Build) -> Command:
    """With features in every lane, where they are no taps: what lies in the others, random weights
    would bring to light."""
    if c.flags & FLAG_IMAGE:
        return c
    features = c.groups * build.lanes * c.bank_size
    return replace(c, features=features, input_stride=features + c.input_stride - c.features)


def run(build: Build, block: NDArray[np.uint64], run: list[Command]) -> NDArray[np.uint64]:
    """The memory afterwards."""
    words = np.array([word for command in run for word in command.encode()], np.uint64)
    block = block.copy()
    block[-len(words) :] = words
    first = len(block) - len(words)
    outputs = counting_engine(build).run(block.ctypes.data, len(block), first, len(run))
    assert outputs["status"] == 0, outputs
    return block


@pytest.mark.parametrize("build", [BUILD, LATENCY], ids=lambda b: b.name)
def test_a_command_touches_what_it_is_said_to(build: Build) -> None:
    """What lies elsewhere stays as it is, and changes nothing."""
    rng = np.random.default_rng(6)
    size = (len(OFFSETS) + 1) * ROOM + 2 * COMMAND_WORDS

    @settings(max_examples=15, phases=[Phase.generate])
    @given(command=commands(build))
    def check(command: Command) -> None:
        places = {name: (i + 1) * ROOM for i, name in enumerate(OFFSETS)}
        c = filled_up(replace(command, **places), build)
        filled = chain_words(c, build)
        both = [chain_filler(filled, build), c] if filled else [c]
        spans = [*reads(c, build), *writes(c, build)]
        assert all(end - begin <= ROOM and begin % ROOM == 0 for begin, end in spans)
        known = [*reads(c, build), (c.parameters, c.parameters + c.rows), (0, ROOM)]
        if c.flags & FLAG_TABLE:
            known.append((c.table, c.table + TABLE_WORDS))
        inside, written = words_of(known, size), words_of([*writes(c, build), (0, ROOM)], size)
        block = rng.integers(0, 1 << 64, size, np.uint64)
        block[c.parameters :][: c.rows] &= np.uint64(0xFFFFFFFF)
        block[c.parameters :][: c.rows] |= MULTIPLIER
        other = np.where(inside, block, rng.integers(0, 1 << 64, size, np.uint64))
        first, second = (run(build, before, both) for before in (block, other))
        for before, after in ((block, first), (other, second)):
            changed = (after != before)[: -2 * COMMAND_WORDS]
            assert not (changed & ~written[: -2 * COMMAND_WORDS]).any()
        outputs = words_of(list(writes(c, build)), size) & (first != block)
        if not c.flags & FLAG_IMAGE:
            np.testing.assert_array_equal(first[outputs], second[outputs])

    check()


@pytest.mark.parametrize("name", NETWORKS)
def test_who_waits_in_a_network(name: str) -> None:
    """Whoever waits reads what those before it have written; nobody else does."""
    run = network(name, BUILD, MEMORY)
    assert following(run, BUILD) == run
    written: list[Span] = []
    for region in regions_of(run):
        for number, command in enumerate(region):
            meets = any(
                a < last and first < b for a, b in reads(command, BUILD) for first, last in written
            )
            assert meets == (number == 0 and command is not run[0])
            written = (written if number else []) + list(writes(command, BUILD))
    assert run[0].flags & FLAG_FOLLOWS


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_samples_that_share_memory(name: str) -> None:
    """The commands of several samples in one run: none reads what its region has written."""
    layers = {"*": {"sparsity": 0.0}}
    program = compile_model(NETWORKS[name](), layers=layers, build=BUILD)
    assert isinstance(program, Program)
    words = make_plan(program, 3, MEMORY, banks=2).words().reshape(-1, COMMAND_WORDS)
    written: list[Span] = []
    for command in (Command.decode([int(word) for word in row]) for row in words):
        written = written if command.flags & FLAG_FOLLOWS else []
        spans = reads(command, BUILD)
        assert not any(a < last and first < b for a, b in spans for first, last in written)
        written += writes(command, BUILD)


def test_a_residual_waits_for_its_tensor() -> None:
    to_chain = FLAG_TO_CHAIN | FLAG_TO_MEMORY
    first = replace(matrix(BUILD, MEMORY, 64, 64, 32, (8, 8)), input=0, output=1000)
    first.flags |= to_chain
    other = replace(first, input=5000, output=2000)
    residual = replace(other, output=3000, residual=1000, flags=other.flags | FLAG_RESIDUAL)
    behind = replace(other, output=4000)
    marked = following([first, other, residual, behind], BUILD)
    assert [bool(c.flags & FLAG_FOLLOWS) for c in marked] == [True, True, False, True]
    # Once it has waited, everything before it has been written.
    again = following([first, residual, replace(residual, output=6000)], BUILD)
    assert [bool(c.flags & FLAG_FOLLOWS) for c in again] == [True, False, True]


def test_activations_as_weights_are_waited_for() -> None:
    first = replace(matrix(BUILD, MEMORY, 64, 64, 32, (8, 8)), input=0, output=1000)
    product = replace(first, input=5000, output=2000, weights=1000)
    marked = following([first, product], BUILD)
    assert [bool(c.flags & FLAG_FOLLOWS) for c in marked] == [True, False]
