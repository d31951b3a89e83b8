# SPDX-License-Identifier: Apache-2.0
"""The cycle model by itself: bounds that it must keep, and the design's targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from planned import matrix, network
from pynq_bbs.builds import PORT_BYTES, load_build
from pynq_bbs.interface import (
    FLAG_FROM_CHAIN,
    FLAG_IMAGE,
    FLAG_RESIDENT_INPUT,
    FLAG_RESIDENT_WEIGHTS,
    FLAG_SUMS_OUT,
    FLAG_TABLE,
    FLAG_TO_MEMORY,
    Command,
)
from pynq_bbs.pack.cycles import LayerCycles, Memory, layer_cycles, trip_counts
from random_commands import commands

BUILD = load_build("8x32")
#: What the design's targets are stated for: Pynq-Z2, 142.857 MHz, 1.5 GB/s reachable.
MEMORY = Memory(142.857e6, 1.5e9)


def modelled(
    rows: int, features: int, columns: int, bank: tuple[int, int], memory: Memory = MEMORY
) -> LayerCycles:
    command = matrix(BUILD, memory, rows, features, columns, bank)
    return layer_cycles(command, BUILD, memory)


@pytest.mark.parametrize("bank", [(64, 8), (2, 2)])
@pytest.mark.parametrize("columns", [64, 128, 512])
def test_large_layers_keep_the_multipliers_busy(bank: tuple[int, int], columns: int) -> None:
    assert modelled(4096, 1024, columns, bank).utilisation >= 0.85


def test_one_column_is_bound_by_memory() -> None:
    cycles = modelled(4096, 1024, 1, (64, 8))
    assert cycles.bytes / MEMORY.bytes_per_cycle / cycles.total >= 0.9


@given(command=commands(BUILD))
def test_no_bound_is_beaten(command: Command) -> None:
    """Neither the multipliers nor the memory can be faster than they are; work is not lost."""
    c, cycles = command, layer_cycles(command, BUILD, MEMORY)
    assert cycles.multiply == c.rows * c.groups * c.keep * c.tiles
    assert cycles.macs == cycles.multiply * BUILD.products_per_cycle
    assert cycles.total >= max(trip_counts(c, BUILD).values()) >= cycles.multiply
    assert cycles.total * MEMORY.bytes_per_cycle >= cycles.bytes
    # Every input and output byte moves at least once, and every weight.
    read = 0 if c.flags & FLAG_RESIDENT_WEIGHTS else c.rows * c.groups * c.keep * BUILD.lanes // 2
    if c.flags & FLAG_IMAGE and not c.flags & (FLAG_FROM_CHAIN | FLAG_RESIDENT_INPUT):
        read += c.height * c.width * c.channels
    elif not c.flags & (FLAG_FROM_CHAIN | FLAG_RESIDENT_INPUT):
        read += c.features * c.tiles * BUILD.cols
    assert cycles.bytes_read >= read
    outputs = c.rows * c.tiles * BUILD.cols * (4 if c.flags & FLAG_SUMS_OUT else 1)
    assert cycles.bytes_written == (outputs if c.flags & FLAG_TO_MEMORY else 0)


def test_more_memory_never_costs_cycles() -> None:
    rates = (0.5e9, 1e9, 2e9, 4e9, 16e9)
    totals = [modelled(768, 3072, 128, (64, 8), Memory(142.857e6, r)).total for r in rates]
    assert totals == sorted(totals, reverse=True)


def test_several_tiles_share_a_weight_block() -> None:
    """At this rate one tile a block would leave the multipliers waiting for weights."""
    cycles = modelled(4096, 1024, 128, (64, 8))
    weights_once = 4096 * 1024 // 8
    assert cycles.bytes_read < 4 * 2 * weights_once


def test_what_stays_on_chip_costs_no_bytes() -> None:
    """Of the layers of ResNet-8, those whose image comes from the chain read less."""
    for c in network("resnet8", BUILD, MEMORY):
        if not c.flags & FLAG_IMAGE:
            continue
        kept = replace(c, flags=c.flags & ~FLAG_FROM_CHAIN | FLAG_RESIDENT_INPUT)
        stored = replace(c, flags=c.flags & ~FLAG_FROM_CHAIN & ~FLAG_RESIDENT_INPUT)
        image = -(-c.height * c.width // BUILD.cols) * BUILD.cols * c.channels
        less, more = (layer_cycles(x, BUILD, MEMORY) for x in (kept, stored))
        assert more.bytes_read - less.bytes_read == image
        assert less.total < more.total


def test_a_table_costs_little_but_its_words() -> None:
    for rows, most in ((8, 60), (4096, 32)):
        plain = matrix(BUILD, MEMORY, rows, 1024, 32, (2, 2))
        table = replace(plain, flags=plain.flags | FLAG_TABLE)
        added = (layer_cycles(x, BUILD, MEMORY) for x in (table, plain))
        with_table, without = added
        assert with_table.bytes_read - without.bytes_read == 32 * PORT_BYTES
        assert 0 <= with_table.total - without.total <= most
