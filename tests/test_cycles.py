# SPDX-License-Identifier: Apache-2.0
"""The cycle model and the schedule that is chosen by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynq_bbs.builds import Build, load_build
from pynq_bbs.pack.csb import csb_shape
from pynq_bbs.pack.cycles import LayerCycles, Memory, layer_cycles
from pynq_bbs.pack.program import PackedLayer
from pynq_bbs.pack.schedule import layer_command

BUILD = load_build("8x32")
#: What the design's targets are stated for: Pynq-Z2, 142.857 MHz, 1.5 GB/s reachable.
MEMORY = Memory(142.857e6, 1.5e9)


def modelled(
    rows: int,
    features: int,
    columns: int,
    bank_size: int,
    keep: int,
    memory: Memory = MEMORY,
    build: Build = BUILD,
) -> LayerCycles:
    shape = csb_shape(rows, features, bank_size, keep, build.lanes, build.vector_words)
    layer = PackedLayer(
        "layer", "x", "y", rows, features, bank_size, keep, 8, shape.groups_per_pass,
        0, False, 0, 0, 0, -1,
    )  # fmt: skip
    tiles = -(-columns // build.cols)
    command = layer_command(layer, 0, {"x": 0, "y": 0}, tiles, build, memory)
    return layer_cycles(command, build, memory)


@pytest.mark.parametrize(("bank_size", "keep"), [(64, 8), (2, 2)])
@pytest.mark.parametrize("columns", [64, 128, 512])
def test_large_layers_keep_the_multipliers_busy(bank_size: int, keep: int, columns: int) -> None:
    assert modelled(4096, 1024, columns, bank_size, keep).utilisation >= 0.85


def test_one_column_is_bound_by_memory() -> None:
    cycles = modelled(4096, 1024, 1, 64, 8)
    assert cycles.bytes / MEMORY.bytes_per_cycle / cycles.total >= 0.9


@given(
    rows=st.integers(1, 3000),
    features=st.integers(1, 12000),
    columns=st.integers(1, 600),
    bank_size=st.integers(2, 256),
    data=st.data(),
)
def test_no_bound_is_beaten(
    rows: int, features: int, columns: int, bank_size: int, data: st.DataObject
) -> None:
    """Neither the multipliers nor the memory can be faster than they are; work is not lost."""
    keep = data.draw(st.integers(1, bank_size))
    cycles = modelled(rows, features, columns, bank_size, keep)
    tiles = -(-columns // BUILD.cols)
    shape = csb_shape(rows, features, bank_size, keep, BUILD.lanes, BUILD.vector_words)
    assert cycles.multiply == rows * shape.groups * keep * tiles
    assert cycles.macs == cycles.multiply * BUILD.products_per_cycle
    assert cycles.total >= cycles.multiply
    assert cycles.total * MEMORY.bytes_per_cycle >= cycles.bytes
    # Every input and output byte moves at least once, every weight at least once.
    assert cycles.bytes_read >= features * tiles * BUILD.cols + rows * shape.groups * keep * 8
    assert cycles.bytes_written == rows * tiles * BUILD.cols


def test_more_memory_never_costs_cycles() -> None:
    rates = np.array([0.5e9, 1e9, 2e9, 4e9, 16e9])
    totals = [modelled(768, 3072, 128, 64, 8, Memory(142.857e6, r)).total for r in rates]
    assert totals == sorted(totals, reverse=True)


def test_several_tiles_share_a_weight_block() -> None:
    """At this rate one tile a block would leave the multipliers waiting for weights."""
    cycles = modelled(4096, 1024, 128, 64, 8)
    weights_once = 4096 * 1024 // 8
    assert cycles.bytes_read < 4 * 2 * weights_once
