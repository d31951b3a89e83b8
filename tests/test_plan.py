# SPDX-License-Identifier: Apache-2.0
"""The memory plan: whatever stays on chip, nothing is read from where it was not put."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layers import alone, pool, random_layer, random_window_layer
from oracle import oracle_window
from pynq_bbs.builds import PORT_BYTES, Build, load_build
from pynq_bbs.cpu.device import CpuDevice, combined
from pynq_bbs.device.engine import EngineProgram
from pynq_bbs.device.session import Session, open_device
from pynq_bbs.interface import (
    COMMAND_WORDS,
    FLAG_FROM_CHAIN,
    FLAG_RESIDENT_INPUT,
    FLAG_RESIDUAL,
    FLAG_TO_CHAIN,
    FLAG_TO_MEMORY,
    Command,
)
from pynq_bbs.model.arithmetic import product_of, sum_of
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput, Window
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.memory import Block, share
from pynq_bbs.pack.plan import Plan, make_plan
from pynq_bbs.pack.program import Program
from pynq_bbs.report import PARTS

MEMORY = Memory(142.857e6, 1.5e9)
BUILD = load_build("8x32")
#: Row groups of two, and memories that even little graphs do not always fit.
SMALL = replace(
    BUILD,
    name="small",
    lanes=16,
    rows=2,
    cols=16,
    vector_words=256,
    block_words=256,
    block_rows=24,
    sum_words=32,
    image_words=512,
    chain_words=128,
    index_bits=6,
)


@pytest.fixture(scope="module", params=[BUILD, SMALL], ids=lambda build: build.name)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with open_device("standin", request.param, strict=True) as opened:
        yield opened


class Graph:
    """A model under construction; `shapes` of its tensors are (channels, height, width)."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
        self.rng = rng
        self.shapes = {"x": shape}
        self.layers: list[QuantLayer] = []

    def __repr__(self) -> str:
        return "; ".join(
            f"{la.output} = {'max ' * la.maximum}{la.window} of {la.input}, groups {la.groups}"
            + (f" with {la.combination.tensor}" if la.combination else "")
            for la in self.layers
        )

    def add(self, layer: QuantLayer, source: str) -> str:
        name = f"t{len(self.layers)}"
        window = layer.window
        size = (window.out_height, window.out_width) if window else self.shapes[source][1:]
        self.shapes[name] = (len(layer.weights), *size)
        self.layers.append(replace(layer, name=name, input=source, output=name))
        return name

    def window(self, source: str, kernel: int, stride: int = 1) -> Window:
        """One that keeps the size, but for the stride."""
        pad = kernel // 2
        return Window(
            *self.shapes[source], (kernel, kernel), (stride, stride), pads=(pad, pad, pad, pad)
        )

    def convolution(self, source: str, rows: int, kernel: int, stride: int, groups: int) -> str:
        window = self.window(source, kernel, stride)
        return self.add(random_window_layer(self.rng, window, rows, groups, "plain"), source)

    def combine(self, source: str, other: str, *, product: bool) -> str:
        """A convolution of `source` with `other` added, or multiplied, at the end."""
        window = self.window(source, 3)
        layer = random_window_layer(self.rng, window, self.shapes[other][0], 1, "plain")
        make = product_of if product else sum_of
        a, b, y = ((np.float32(s), int(self.rng.integers(-9, 9))) for s in (0.5, 0.75, 1))
        if product:
            y = (np.float32(20), y[1])
        return self.add(replace(layer, combination=make(other, a, b, y)), source)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.sampled_from([1, 3, 8, 12, 70]))
    size = (draw(st.integers(1, 13)), draw(st.integers(1, 13)))
    graph = Graph(rng, (channels, *size))
    names = ["x"]
    for _ in range(draw(st.integers(2, 6))):
        source = draw(st.sampled_from(names[-3:]))  # mostly what has just been written
        channels = graph.shapes[source][0]
        peers = [n for n in names if graph.shapes[n][1:] == graph.shapes[source][1:]]
        kind = draw(st.sampled_from(["conv", "conv", "pixel", "groups", "pool", "residual"]))
        stride = draw(st.sampled_from([1, 1, 2]))
        rows = draw(st.sampled_from([2, 6, 8, 11]))
        if kind == "conv":
            name = graph.convolution(source, rows, 3, stride, 1)
        elif kind == "pixel":
            name = graph.convolution(source, rows, 1, 1, 1)
        elif kind == "groups":
            groups = draw(st.sampled_from([g for g in (2, 3, channels) if channels % g == 0]))
            rows = groups * draw(st.integers(1, 2 if groups > 3 else 5))
            name = graph.convolution(source, rows, 3, stride, groups)
        elif kind == "pool":
            pooling = pool(graph.window(source, 3, stride), maximum=draw(st.booleans()))
            name = graph.add(pooling, source)
        else:
            name = graph.combine(source, draw(st.sampled_from(peers)), product=draw(st.booleans()))
        names.append(name)
    if draw(st.booleans()):
        channels, height, width = graph.shapes[names[-1]]
        average = pool(Window(channels, height, width, (height, width)), maximum=False)
        average_of = graph.add(average, names[-1])
        names.append(graph.add(random_layer(rng, 5, channels, 1, 1), average_of))
    return graph


def model_of(graph: Graph, outputs: list[str]) -> QuantModel:
    x = QuantInput("x", "x", graph.shapes["x"], "int8", np.float32(1), 0)
    shown = [QuantOutput(name, name, (), "int8") for name in outputs]
    return QuantModel("graph", [x], graph.layers, shown)


def run_engine(
    program: Program, session: Session, inputs: dict[str, NDArray[np.int8]], *, every: bool
) -> dict[str, NDArray[np.generic]]:
    """All tensors, or the outputs; run twice, because the second time weights may be there."""
    engine = EngineProgram(program, session, MEMORY, dict.fromkeys(PARTS, 0.0), every=every)
    wanted = list(program.tensors) if every else [o.tensor for o in program.outputs]
    try:
        engine.run(inputs, wanted)
        return engine.run(inputs, wanted)[0]
    finally:
        engine.close()


def check_plan(program: Program, plan: Plan) -> None:
    """Follows the tensors through memory, chain and image memory, command by command."""
    build, region = program.build, program.region
    nothing = ("", 0, 0)
    chain, held, level = nothing, nothing, 0
    # Of every tensor that lies in no other: which of its features are in memory.
    there = {n: np.zeros(t.features, bool) for n, t in program.tensors.items() if not t.whole}

    def features(name: str, first: int = 0, rows: int = 1 << 20) -> NDArray[np.bool_]:
        whole, start, count = region(name)
        return there[whole][start + first : start + min(first + rows, count)]

    for name, tensor in program.tensors.items():
        if tensor.content >= 0 or name in {i.tensor for i in program.inputs}:
            features(name)[:] = True
    for layer, command in zip(program.layers, plan.commands, strict=True):
        flags = command.flags
        if flags & FLAG_FROM_CHAIN:
            assert chain == region(layer.input)
            level -= chain_input(command, build)
            assert level == 0, "all of it is taken"
            chain = nothing
        elif flags & FLAG_RESIDENT_INPUT:
            assert held == region(layer.input)
            assert layer.window is not None and not layer.first_feature
        else:
            assert features(layer.input, layer.first_feature, command.features).all()
        if flags & FLAG_RESIDUAL:
            assert layer.combination is not None
            assert features(layer.combination.tensor, layer.first_row, layer.rows).all()
            strides = {plan.places[t].stride for t in (layer.output, layer.combination.tensor)}
            assert strides == {command.output_stride}
        if layer.window is not None:
            channels = program.tensors[layer.input].features
            words = -(-layer.window.height * layer.window.width // build.cols) * build.cols
            fits = command.image_words >= -(-words // build.banks)
            held = region(layer.input) if fits and channels == command.channels else nothing
        before = level + (chain_input(command, build) if flags & FLAG_FROM_CHAIN else 0)
        if flags & FLAG_TO_CHAIN:
            assert chain == nothing and level == 0
            chain, level = region(layer.output), command.tiles * command.rows // build.pack
            assert before + level <= build.chain_words
        if flags & FLAG_TO_MEMORY:
            features(layer.output, layer.first_row, layer.rows)[:] = True
            whole, start, _ = region(layer.output)
            last = start + layer.first_row + layer.rows
            assert last <= build.padded(len(there[whole])), "nothing beyond its tile"
            spilled = there[whole][start + program.tensors[layer.output].features : last]
            assert not spilled.any(), "nothing over what lies behind it"
    assert chain == nothing
    assert all(features(name).all() for name in plan.stored)
    assert {o.tensor for o in program.outputs} <= plan.stored


def chain_input(command: Command, build: Build) -> int:
    if command.height:
        return -(-command.height * command.width // build.cols) * command.channels
    return command.tiles * command.features // build.pack


def check_places(program: Program, plan: Plan) -> None:
    """Follows every byte through the commands of all samples of all banks: what is read is there,
    and nothing is written over image, commands, or what this or a later command reads."""
    samples = range(plan.runs * plan.banks)
    roots = {name: number for number, name in enumerate(program.tensors, 1)}
    owners = np.zeros(PORT_BYTES * plan.memory_words, int)
    image = PORT_BYTES * len(program.image)

    def owner(name: str, sample: int) -> int:
        return roots[program.region(name)[0]] * len(samples) + sample

    def bytes_of(name: str, sample: int, first: int = 0, rows: int = 1 << 20) -> NDArray[np.intp]:
        place, tensor = plan.places[name], program.tensors[name]
        feature = program.build.cols * tensor.dtype.itemsize
        features = np.arange(first, min(first + rows, tensor.features))
        at = np.arange(place.tiles)[:, None, None] * place.stride + features[:, None]
        moved = sample * plan.layout.sample_words
        moved *= place.offset >= plan.layout.first_sample
        return (PORT_BYTES * (place.offset + moved) + at * feature + np.arange(feature)).reshape(-1)

    def check_read(name: str, sample: int) -> NDArray[np.intp]:
        own = bytes_of(name, sample)
        if program.tensors[program.region(name)[0]].content < 0:
            assert (owners[own] == owner(name, sample)).all(), name
        return own

    for sample in samples:
        for spec in program.inputs:
            own = bytes_of(spec.tensor, sample)
            assert not owners[own].any() and own.min() >= image
            owners[own] = owner(spec.tensor, sample)
    for sample in samples:
        for layer, command in zip(program.layers, plan.commands, strict=True):
            read = [np.zeros(0, np.intp)]
            if not command.flags & (FLAG_FROM_CHAIN | FLAG_RESIDENT_INPUT):
                read.append(check_read(layer.input, sample))
            if layer.combination:
                read.append(check_read(layer.combination.tensor, sample))
            if command.flags & FLAG_TO_MEMORY:
                written = bytes_of(layer.output, sample, layer.first_row, layer.rows)
                # In hardware the first outputs are written before the last inputs are read.
                assert not np.isin(written, np.concatenate(read)).any()
                assert image <= written.min() <= written.max() < PORT_BYTES * plan.first_command
                owners[written] = owner(layer.output, sample)
    for sample in samples:
        for name in plan.stored if plan.every else {o.tensor for o in program.outputs}:
            check_read(name, sample)
    assert plan.memory_words == plan.first_command + len(plan.words())
    for name, tensor in program.tensors.items():
        if tensor.whole:
            before = tensor.first * program.build.cols // PORT_BYTES
            whole = plan.places[tensor.whole]
            assert plan.places[name] == replace(whole, offset=whole.offset + before)
        elif tensor.content >= 0:
            assert plan.places[name].offset == tensor.content


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 99), st.integers(0, 12), st.integers(0, 12)), max_size=24
    ).map(
        lambda drawn: [
            Block(str(i), words, min(ends), max(ends)) for i, (words, *ends) in enumerate(drawn)
        ]
    )
)
def test_blocks_in_use_together_never_overlap(blocks: list[Block]) -> None:
    offsets, total = share(blocks)
    for step in range(13):
        spans = sorted(
            (offsets[b.name], offsets[b.name] + b.words)
            for b in blocks
            if b.first <= step <= b.last
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    most = max(sum(b.words for b in blocks if b.first <= s <= b.last) for s in range(13))
    assert most <= total <= sum(b.words for b in blocks)
    assert all(0 <= offsets[b.name] <= total - b.words for b in blocks)


def test_a_chain_of_layers_takes_two_buffers() -> None:
    """Each layer reads what the one before wrote, and all are too large for the chain."""
    offsets, total = share([Block(str(i), 10 + i % 2, i, i + 1) for i in range(9)])
    assert total == 21
    assert set(offsets.values()) == {0, 11}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), graph=graphs(), samples=st.integers(1, 3))
def test_what_stays_on_chip_changes_nothing(
    session: Session, data: st.DataObject, graph: Graph, samples: int
) -> None:
    names = list(graph.shapes)[1:]
    outputs = data.draw(st.lists(st.sampled_from(names), max_size=1))
    outputs = list(dict.fromkeys([*outputs, names[-1]]))
    program = pack(model_of(graph, outputs), {}, session.build)
    shape = (samples, program.tensors["x"].size)
    x = graph.rng.integers(-128, 128, shape).astype(np.int8)
    expected = CpuDevice(program).run({"x": x})
    for every in (False, True):
        plan = make_plan(program, samples, MEMORY, every=every, banks=1 + samples % 2)
        check_plan(program, plan)
        check_places(program, plan)
        assert not every or plan.stored == set(program.tensors)
        for name, values in run_engine(program, session, {"x": x}, every=every).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=f"{name}, {every=}")


@pytest.mark.parametrize(
    ("channels", "groups", "rows"), [(4, 2, 2), (6, 2, 6), (6, 3, 9), (70, 70, 70), (5, 5, 15)]
)
def test_groups_that_do_not_fill_row_groups(
    session: Session, channels: int, groups: int, rows: int
) -> None:
    """A part writes whole row groups, and must not write beyond its tile."""
    graph = Graph(np.random.default_rng(1), (channels, 7, 13))
    graph.convolution("x", rows, 3, 1, groups)
    program = pack(model_of(graph, ["t0"]), {}, session.build)
    x = graph.rng.integers(-128, 128, (2, channels, 7, 13)).astype(np.int8)
    y = run_engine(program, session, {"x": x.reshape(2, -1)}, every=False)["t0"]
    np.testing.assert_array_equal(y, oracle_window(graph.layers[0], x).reshape(2, -1))


@pytest.mark.parametrize(("groups", "rows"), [(60, 120), (240, 240), (80, 80)])
def test_groups_that_the_image_memory_does_not_hold_at_once(
    session: Session, groups: int, rows: int
) -> None:
    """They come in pieces: groups of several channels, of one, and of no whole row groups."""
    graph = Graph(np.random.default_rng(6), (240, 5, 120))
    for _ in range(2):
        graph.convolution("x", rows, 3, 1, groups)
    first, second = graph.layers
    scales = (np.float32(0.5), 3), (np.float32(0.75), -4), (np.float32(1), 5)
    second.combination = sum_of("t0", *scales)
    program = pack(model_of(graph, ["t1"]), {}, session.build)
    assert len(program.layers) > 2
    whole_row_groups = rows // groups % session.build.row_step == 0 or groups == 240
    assert all((la.parts > 1) == whole_row_groups for la in program.layers)
    x = graph.rng.integers(-128, 128, (2, 240, 5, 120)).astype(np.int8)
    y = run_engine(program, session, {"x": x.reshape(2, -1)}, every=False)["t1"]
    wanted = combined(second.combination, *(oracle_window(la, x) for la in (second, first)))
    np.testing.assert_array_equal(y, wanted.reshape(2, -1))


def test_an_average_over_tiles_with_a_gap_between(session: Session) -> None:
    """Where features fill row groups, the tiles of an odd number do not follow at once."""
    graph = Graph(np.random.default_rng(2), (11, 7, 13))
    graph.add(pool(Window(11, 7, 13, (7, 13)), maximum=False, zero_point=5), "x")
    program = pack(model_of(graph, ["t0"]), {}, session.build)
    x = graph.rng.integers(-128, 128, (2, 11, 7, 13)).astype(np.int8)
    y = run_engine(program, session, {"x": x.reshape(2, -1)}, every=False)["t0"]
    np.testing.assert_array_equal(y, oracle_window(graph.layers[0], x).reshape(2, -1))


@pytest.mark.parametrize("rows", [(80, 80, 80), (120, 8, 120), (40, 80, 48), (128, 128, 1)])
def test_the_chain_never_holds_more_than_it_can(rows: tuple[int, int, int]) -> None:
    """Eight tiles of so many features: both what a layer takes and what it leaves count."""
    graph = Graph(np.random.default_rng(3), (2, 16, 16))
    name = "x"
    for count in rows:
        name = graph.convolution(name, count, 3, 1, 1)
    program = pack(model_of(graph, [name]), {}, BUILD)
    plan = make_plan(program, 1, MEMORY)
    check_plan(program, plan)
    chained = [bool(c.flags & FLAG_TO_CHAIN) for c in plan.commands]
    words = [8 * count for count in rows]
    taken = 0
    for own, next_one, to_chain in zip(words, [*words[1:], 0], chained, strict=True):
        possible = taken + own <= BUILD.chain_words and next_one > 0
        assert to_chain == possible
        taken = own if to_chain else 0


@pytest.mark.parametrize("samples", [1, 40])
def test_inputs_and_outputs_lie_one_after_the_other(samples: int) -> None:
    """Samples as columns lie in the tensors, samples with pixels have tensors of their own."""
    graph = Graph(np.random.default_rng(4), (3, 5, 9))
    graph.convolution("x", 6, 3, 2, 1)
    with_pixels = pack(model_of(graph, ["t0"]), {}, BUILD)
    plan = make_plan(with_pixels, samples, MEMORY)
    check_places(with_pixels, plan)
    assert plan.runs == samples
    tile = BUILD.cols // PORT_BYTES
    assert plan.layout.sample_words == (2 * 3 + 6) * tile  # 45 pixels to 15
    commands = plan.words().reshape(samples, -1, COMMAND_WORDS)
    for sample, (words,) in enumerate(commands):
        command = Command.decode(words.tolist())
        moved = sample * plan.layout.sample_words
        assert command.input == plan.places["x"].offset + moved
        assert command.output == plan.places["t0"].offset + moved

    layer = random_layer(np.random.default_rng(5), 10, 64, 8, 2)
    flat = pack(alone(layer), {"layer": (8, 2)}, BUILD)
    plan = make_plan(flat, samples, MEMORY)
    check_places(flat, plan)
    assert plan.runs == 1
    assert plan.memory_words - len(flat.image) == (
        COMMAND_WORDS + (64 + 10) * tile * -(-samples // BUILD.cols)
    )
