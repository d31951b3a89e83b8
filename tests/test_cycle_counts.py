# SPDX-License-Identifier: Apache-2.0
"""The cycle model against the source: trips of every loop exactly, cycles by a replay of them.

The replay (`replay.cpp`) knows nothing of the model: it takes the trips and stream accesses that
a counting build of `hls/` recorded, and runs them cycle by cycle. It shares three assumptions
with the model: an iteration a cycle, `PIPELINE_CYCLES` for every loop, and how long a command's
check and the start of the region take.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings

from counting import CountingEngine, Instrumented, UncountedLoopError, counting_engine
from models import NETWORKS
from planned import matrix, network
from pynq_bbs.builds import PORT_BYTES, Build, load_build
from pynq_bbs.interface import (
    COMMAND_WORDS,
    FLAG_FROM_CHAIN,
    FLAG_IMAGE,
    FLAG_RESIDENT_INPUT,
    FLAG_RESIDENT_WEIGHTS,
    FLAG_TO_CHAIN,
    FLAG_TO_MEMORY,
    Command,
)
from pynq_bbs.pack.cycles import (
    CHECK_CYCLES,
    PIPELINE_CYCLES,
    REGION_CYCLES,
    Memory,
    layer_cycles,
    regions_of,
    run_cycles,
    trip_counts,
)
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.layout import by_length
from pynq_bbs.pack.plan import make_plan
from pynq_bbs.pack.quotients import with_quotients
from random_commands import chain_filler, chain_words, commands
from recurrent_cases import BUILDS, KINDS, random_case

BUILD = load_build("8x32")
#: A row group of several rows; with few columns several features share a word, and there is no
#: image.
NARROW = load_build("32x4x1")
ROWS = replace(BUILD, name="test-8x2x8", rows=2, cols=8)
MEMORY = Memory(142.857e6, 1.5e9)
#: Of short layers latencies are a large part, and only their longest chain is modelled.
SHORT_CYCLES = 175
#: The model's shares of the memory are coarse, above all where the words of the next command come
#: beside those of a command: what one adds is off by up to a tenth, either way. Networks as a whole
#: stay within 2 %.
SHORT = 0.1
NETWORK = 0.02
#: A layer of several passes that all of memory is needed for.
LARGE = 0.03
COMMAND = "memory.hpp:fetch_residuals:command_words"
MULTIPLY = "multiply.hpp:multiply:csb_words"
DRAIN = "engine.cpp:drain:chain_words"


@cache
def memory_block(words: int) -> np.ndarray:
    return np.zeros(words, np.uint64)


def count(build: Build, run: list[Command], *, tracing: bool = False) -> dict[str, int]:
    """What the engine counts when it runs the commands, over memory that holds nothing else."""
    engine = counting_engine(build)
    words = np.array([word for command in run for word in command.encode()], np.uint64)
    block = memory_block(4 << 20)
    block[-len(words) :] = words
    engine.reset(tracing=tracing)
    outputs = engine.run(block.ctypes.data, len(block), len(block) - len(words), len(run))
    assert outputs["status"] == 0, outputs
    return engine.counts()


def expected(build: Build, run: list[Command]) -> Counter[str]:
    """The sum of the commands' trips, the words of each, what ends the multipliers behind each and
    before the first one, and what is left in the chain."""
    total = Counter({COMMAND: len(run) * COMMAND_WORDS, MULTIPLY: len(run) + 1})
    for command in run:
        total.update(trip_counts(command, build))
        total[DRAIN] -= chain_words(command, build)
        if command.flags & FLAG_TO_CHAIN:
            total[DRAIN] += command.tiles * command.rows // build.pack
    return total


def replayed(build: Build, run: list[Command], memory: Memory = MEMORY) -> list[int]:
    """Cycles that each of the commands adds."""
    assert count(build, run, tracing=True) == expected(build, run)
    engine = counting_engine(build)
    cycles: list[int] = []
    for region in regions_of(run):
        first, last = len(cycles), len(cycles) + len(region) - 1
        added = engine.replay(first, last, memory.bytes_per_cycle, PIPELINE_CYCLES, CHECK_CYCLES)
        cycles += [REGION_CYCLES + added[0], *added[1:]]
    return cycles


def fed(command: Command, build: Build) -> list[Command]:
    """The command, and before it one that leaves in the chain what it takes."""
    words = chain_words(command, build)
    return [chain_filler(words, build), command] if words else [command]


@pytest.mark.parametrize("build", [BUILD, NARROW, ROWS], ids=lambda b: b.name)
def test_trips_of_any_command(build: Build) -> None:
    @settings(max_examples=150)
    @given(command=commands(build))
    def check(command: Command) -> None:
        run = fed(command, build)
        assert count(build, run) == expected(build, run)

    check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.name)
def test_trips_of_recurrent_layers(build: Build, kind: str) -> None:
    for seed in range(8):
        case = random_case(build, kind, seed)
        samples, lengths = case.samples, ()
        if case.lengths is not None:
            _, lengths = by_length(case.lengths, build.cols)
            samples = len(lengths) * build.cols
        program = pack(case.model(), case.banks, build)
        run = make_plan(program, samples, MEMORY, lengths=lengths).commands
        assert count(build, run) == expected(build, run), f"seed {seed}"


def check_network(build: Build, run: list[Command], memory: Memory = MEMORY) -> None:
    """Every layer's trips exactly, its cycles, and those of the whole network."""
    modelled = [cost.total for cost in run_cycles(run, build, memory)]
    # The model takes it that every command has one behind it, which is fetched and checked.
    behind = matrix(build, memory, build.row_step, build.pack, 1, (build.pack, build.pack))
    wanted = replayed(build, [*run, behind], memory)[:-1]
    for command, cycles, replay in zip(run, modelled, wanted, strict=True):
        assert cycles == pytest.approx(replay, rel=SHORT, abs=SHORT_CYCLES), str(command)
    assert sum(modelled) == pytest.approx(sum(wanted), rel=NETWORK)


@pytest.mark.parametrize("sparsity", [0, 0.75])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, sparsity: float) -> None:
    check_network(BUILD, network(name, BUILD, MEMORY, sparsity))


@pytest.mark.parametrize("gigabytes", [0.75, 3, 6])
def test_networks_with_other_memories(gigabytes: float) -> None:
    memory = Memory(142.857e6, gigabytes * 1e9)
    check_network(BUILD, network("resnet8", BUILD, memory), memory)


def test_network_of_resident_weights() -> None:
    """What fits the block buffer stays there, and the chain passes the image on."""
    run = network("ds_cnn", BUILD, MEMORY)
    for c in run:
        if c.rows * c.groups * c.keep <= BUILD.block_words:
            c.flags |= FLAG_RESIDENT_WEIGHTS
    assert any(c.flags & FLAG_RESIDENT_WEIGHTS and c.flags & FLAG_FROM_CHAIN for c in run)
    check_network(BUILD, run)


def test_network_of_resident_images() -> None:
    run = network("resnet8", BUILD, MEMORY)
    for c in run:
        c.flags &= ~FLAG_FROM_CHAIN & ~FLAG_TO_CHAIN
        c.flags |= FLAG_TO_MEMORY | (FLAG_RESIDENT_INPUT if c.flags & FLAG_IMAGE else 0)
    check_network(BUILD, run)


def test_network_of_several_rows_at_a_time() -> None:
    check_network(ROWS, network("mobilenet", ROWS, MEMORY))


def test_network_of_several_rows_and_one_column() -> None:
    check_network(NARROW, network("autoencoder", NARROW, MEMORY))


def test_network_of_one_column_and_weights_on_chip() -> None:
    check_network(NARROW, network("autoencoder", NARROW, MEMORY, resident=True))


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_network_of_cells(samples: int, resident: bool) -> None:
    run = network("lstm512", NARROW, MEMORY, 0.875, samples=samples, resident=resident)
    check_network(NARROW, run)


@pytest.mark.parametrize("columns", [1, 64, 128])
@pytest.mark.parametrize("bank", [(64, 8), (2, 2)], ids=["87.5 %", "dense"])
@pytest.mark.parametrize("shape", [(4096, 1024), (768, 3072), (768, 6144)])
def test_large_layers(shape: tuple[int, int], bank: tuple[int, int], columns: int) -> None:
    command = matrix(BUILD, MEMORY, *shape, columns, bank)
    wanted = replayed(BUILD, [command])
    assert layer_cycles(command, BUILD, MEMORY).total == pytest.approx(wanted[0], rel=LARGE)


@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("shape", [(4096, 1024), (768, 3072)])
def test_large_layers_several_rows_at_a_time(shape: tuple[int, int], columns: int) -> None:
    command = matrix(NARROW, MEMORY, *shape, columns, (16, 2))
    wanted = replayed(NARROW, [command])
    assert layer_cycles(command, NARROW, MEMORY).total == pytest.approx(wanted[0], rel=LARGE)


def test_many_blocks_beside_one_filling() -> None:
    """More visits than a stream of them holds, while the next filling is taken already."""
    cut = replace(
        matrix(BUILD, MEMORY, 1024, 1024, 128, (64, 8)), tiles_per_block=2, rows_per_block=32
    )
    command = with_quotients(cut)
    wanted = replayed(BUILD, [command])
    assert layer_cycles(command, BUILD, MEMORY).total == pytest.approx(wanted[0], rel=0.04)


@settings(max_examples=40)
@given(command=commands(BUILD))
def test_any_command_comes_to_its_end(command: Command) -> None:
    """Streams of the source's depths never stand in each other's way; a replay that is stuck
    ends the process. No command is faster than its multipliers."""
    wanted = replayed(BUILD, fed(command, BUILD))[-1]
    assert wanted >= layer_cycles(command, BUILD, MEMORY).multiply


@pytest.mark.parametrize("build", [BUILD, NARROW, ROWS], ids=lambda b: b.name)
def test_bytes_are_trips_of_the_ports(build: Build) -> None:
    @given(command=commands(build))
    def check(command: Command) -> None:
        trips = trip_counts(command, build)
        ports = [n for x, n in trips.items() if x.startswith("memory.hpp") and "links" not in x]
        cycles = layer_cycles(command, build, MEMORY)
        assert len(ports) == 6 and cycles.bytes == PORT_BYTES * sum(ports)

    check()


LOOP = """inline void stage() {
words:
  for (int i = 0; i < 4; i++) {
#pragma HLS PIPELINE II=1
    step();
  }
}
"""


def test_a_loop_is_named_by_its_place() -> None:
    sources = Instrumented()
    sources.source("stage.hpp", LOOP)
    assert [str(loop) for loop in sources.loops] == ["stage.hpp:stage:words"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("words:\n", "", "has no label"),
        ("II=1", "II=2", "unknown here"),
        ("  for (int i = 0; i < 4; i++) {\n", "", "not stand first"),
        ("inline void stage() {\n", "", "in no function"),
        (LOOP, LOOP + LOOP, "two loops"),
    ],
)
def test_a_loop_that_cannot_be_counted_is_an_error(old: str, new: str, reason: str) -> None:
    with pytest.raises(UncountedLoopError, match=reason):
        Instrumented().source("stage.hpp", LOOP.replace(old, new))


def test_a_loop_that_waits_for_something_is_counted_too() -> None:
    sources = Instrumented()
    sources.source("stage.hpp", LOOP.replace("for (int i = 0; i < 4; i++)", "while (!done)"))
    assert [str(loop) for loop in sources.loops] == ["stage.hpp:stage:words"]


def test_a_trace_starts_with_what_the_chain_holds() -> None:
    """The same command, once fed by a short one and once by what a longer one leaves."""
    engine: CountingEngine = counting_engine(BUILD)
    taker = chain_filler(8, BUILD)
    flags = taker.flags & ~FLAG_TO_CHAIN | FLAG_FROM_CHAIN | FLAG_TO_MEMORY
    taker = with_quotients(replace(taker, flags=flags, tiles=8))
    cycles = []
    for words in (8, 64):
        count(BUILD, [chain_filler(words, BUILD), taker], tracing=True)
        cycles += engine.replay(1, 1, MEMORY.bytes_per_cycle, PIPELINE_CYCLES, CHECK_CYCLES)
    assert cycles[0] == cycles[1] > 0
