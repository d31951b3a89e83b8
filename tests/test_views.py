# SPDX-License-Identifier: Apache-2.0
"""Slices, concatenations and reshapes: they move no value, and where the layout allows no byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from damage import damage
from layers import pool, random_layer, random_window_layer
from oracle import oracle_layer, oracle_window
from pynq_bbs.accelerator import Accelerator
from pynq_bbs.builds import Build, load_build
from pynq_bbs.cpu.device import CpuDevice
from pynq_bbs.device.session import Session, open_device
from pynq_bbs.errors import InputError, VerificationError
from pynq_bbs.interface import FLAG_FROM_CHAIN, FLAG_TO_CHAIN, FLAG_TO_MEMORY
from pynq_bbs.model.arithmetic import dequantise, quantise, sum_of
from pynq_bbs.model.graph import (
    Combination,
    Concat,
    Constant,
    QuantInput,
    QuantLayer,
    QuantModel,
    QuantOutput,
    Slice,
    Window,
)
from pynq_bbs.model.moving import concatenated, cropped, padded
from pynq_bbs.pack.image import pack
from pynq_bbs.pack.plan import make_plan
from pynq_bbs.pack.program import Program
from test_plan import MEMORY, check_places, check_plan, run_engine

HERE = Path(__file__).parent
BUILD = load_build("8x32")
#: Two rows at a time, and two features to a word.
ROWS = load_build(str(HERE / "builds" / "16x2x16.json"))
NARROW = load_build(str(HERE / "builds" / "8x2x4.json"))
Values = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="module", params=[BUILD, ROWS, NARROW], ids=lambda build: build.name)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with open_device("standin", request.param, strict=True) as opened:
        yield opened


def combined(c: Combination, a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.int8]:
    p, q = a.astype(np.int64) - c.a_zero, b.astype(np.int64) - c.b_zero
    acc = c.a_scale * p * q if c.product else c.a_scale * p + c.b_scale * q
    down, rest = np.divmod(acc, 1 << c.shift)
    up = (2 * rest > 1 << c.shift) | ((2 * rest == 1 << c.shift) & (down % 2 == 1))
    return np.clip(down + up + c.zero_point, c.low, c.high).astype(np.int8)


def evaluated(model: QuantModel, inputs: Values) -> Values:
    """Every tensor (N, C, H, W) by numpy alone, whole and in whatever order it can be had."""
    known = dict(inputs)
    samples = len(next(iter(inputs.values())))
    for constant in model.constants:
        known[constant.name] = np.repeat(constant.values[None], samples, axis=0)
    layers, views = list(model.layers), list(model.views)
    while layers or views:
        for view in [v for v in views if isinstance(v, Slice) and v.input in known]:
            part = known[view.input][:, view.first : view.first + view.shape[0]]
            known[view.output] = part.reshape(samples, *view.shape, *(1,) * (3 - len(view.shape)))
            views.remove(view)
        for view in [v for v in views if isinstance(v, Concat) and known.keys() >= {*v.inputs}]:
            known[view.output] = np.concatenate([known[n] for n in view.inputs], axis=1)
            views.remove(view)
        if layers and layers[0].input in known:
            layer = layers.pop(0)
            x = known[layer.input].astype(np.int8)
            if layer.window is None:
                acc, y = oracle_layer(layer, x.reshape(samples, -1))
                y = (acc if y is None else y)[:, :, None, None]
            else:
                y = oracle_window(layer, x)
            if layer.combination:
                y = combined(layer.combination, y, known[layer.combination.tensor])
            known[layer.output] = y
    return known


class Graph:
    """A model under construction; tensors have shapes (C, H, W)."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
        self.rng = rng
        self.shapes = {"x": shape}
        self.layers: list[QuantLayer] = []
        self.views: list[Slice | Concat] = []
        self.constants: list[Constant] = []

    def __repr__(self) -> str:
        layers = [(la.output, la.input, la.window, la.combination) for la in self.layers]
        return f"{self.shapes}; {layers}; {self.views}; {[c.name for c in self.constants]}"

    def name(self) -> str:
        return f"t{len(self.shapes)}"

    def add(self, layer: QuantLayer, source: str) -> str:
        name, window = self.name(), layer.window
        size = (window.out_height, window.out_width) if window else (1, 1)
        self.shapes[name] = (len(layer.weights), *size)
        self.layers.append(replace(layer, name=name, input=source, output=name))
        return name

    def layer(self, source: str, rows: int, kernel: int = 1) -> str:
        channels, *size = self.shapes[source]
        if size == [1, 1] and kernel == 1:
            return self.add(random_layer(self.rng, rows, channels, 1, 1), source)
        pad = kernel // 2
        window = Window(channels, *size, (kernel, kernel), pads=(pad, pad, pad, pad))
        return self.add(random_window_layer(self.rng, window, rows, 1, "plain"), source)

    def residual(self, source: str, other: str) -> str:
        name = self.layer(source, self.shapes[other][0])
        self.layers[-1].combination = sum_of(
            other, (np.float32(0.5), 3), (np.float32(0.7), -4), (np.float32(1), 5)
        )
        return name

    def concat(self, *parts: str) -> str:
        name = self.name()
        self.shapes[name] = (sum(self.shapes[p][0] for p in parts), *self.shapes[parts[0]][1:])
        self.views.append(Concat(parts, name))
        return name

    def slice(self, source: str, first: int, shape: tuple[int, int, int]) -> str:
        name = self.name()
        self.shapes[name] = shape
        self.views.append(Slice(source, name, first, shape))
        return name

    def constant(self, shape: tuple[int, int, int]) -> str:
        name = self.name()
        self.shapes[name] = shape
        values = self.rng.integers(-128, 128, shape).astype(np.int8)
        self.constants.append(Constant(name, values))
        return name

    def model(self, outputs: list[str]) -> QuantModel:
        x = QuantInput("x", "x", self.shapes["x"], "int8", np.float32(1), 0)
        shown = [QuantOutput(name, name, self.shapes.get(name, ()), "int8") for name in outputs]
        return QuantModel(
            "graph", [x], self.layers, shown, views=self.views, constants=self.constants
        )


@st.composite
def graphs(draw: st.DrawFn, images: bool) -> Graph:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    widths = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 8, 12])
    sizes = st.integers(1, 9) if images else st.just(1)
    graph = Graph(rng, (draw(widths), draw(sizes), draw(sizes)))
    names = ["x", graph.layer("x", draw(widths), 3 if images else 1)]
    for _ in range(draw(st.integers(2, 8))):
        source = draw(st.sampled_from(names[-4:]))  # mostly what has just been written
        channels, *size = graph.shapes[source]
        peers = [n for n in names if graph.shapes[n][1:] == tuple(size)]
        same = [n for n in peers if graph.shapes[n] == graph.shapes[source]]
        kinds = ["layer", "layer", "concat", "concat", "slice", "residual", "constant"]
        if images:
            kinds += ["conv", "depthwise", "pool", "reshape"]
        kind = draw(st.sampled_from(kinds))
        if kind == "layer":
            name = graph.layer(source, draw(widths))
        elif kind == "conv":
            name = graph.layer(source, draw(widths), 3)
        elif kind == "depthwise":
            window = Window(channels, *size, (3, 3), pads=(1, 1, 1, 1))
            name = graph.add(random_window_layer(rng, window, channels, channels, "plain"), source)
        elif kind == "pool":
            whole = draw(st.booleans())
            window = Window(channels, *size, (size[0], size[1]) if whole else (1, 1))
            name = graph.add(pool(window, maximum=not whole), source)
        elif kind == "slice":
            first = draw(st.integers(0, channels - 1))
            name = graph.slice(source, first, (draw(st.integers(1, channels - first)), *size))
        elif kind == "reshape":
            name = graph.slice(source, 0, (channels, size[0] * size[1], 1))
        elif kind == "constant":
            name = graph.constant(graph.shapes[source])
        elif kind == "concat":
            count = draw(st.integers(1, 4))
            name = graph.concat(*[draw(st.sampled_from(peers)) for _ in range(count)])
        else:
            name = graph.residual(source, draw(st.sampled_from(same)))
        names.append(name)
    return graph


def check(session: Session, graph: Graph, outputs: list[str], samples: int) -> Program:
    """Numpy, cpu device and engine agree in every tensor, stored whole or as little as may be."""
    model = graph.model(outputs)
    program = pack(model, {}, session.build)
    x = graph.rng.integers(-128, 128, (samples, *graph.shapes["x"])).astype(np.int8)
    inputs = {"x": x.reshape(samples, -1)}
    wanted = evaluated(model, {"x": x})
    got = CpuDevice(program).run(inputs)
    for name in wanted.keys() & got.keys():
        values = wanted[name].reshape(samples, -1)
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    for every in (False, True):
        plan = make_plan(program, samples, MEMORY, every=every)
        check_plan(program, plan)
        check_places(program, plan)
        for name, values in run_engine(program, session, inputs, every=every).items():
            np.testing.assert_array_equal(values, got[name], err_msg=f"{name}, {every=}")
    return program


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(data=st.data(), samples=st.integers(1, 3))
def test_any_views(session: Session, data: st.DataObject, samples: int) -> None:
    graph = data.draw(graphs(session.build.image_words > 0))
    names = list(graph.shapes)[1:]
    outputs = data.draw(st.lists(st.sampled_from(names), max_size=2))
    check(session, graph, list(dict.fromkeys([*outputs, names[-1]])), samples)


def commands(graph: Graph, outputs: list[str], build: Build = BUILD) -> int:
    """Commands of the program beyond the model's layers."""
    program = pack(graph.model(outputs), {}, build)
    check_plan(program, make_plan(program, 1, MEMORY))
    return len(program.layers) - len(graph.layers)


def branches(*widths: int, shape: tuple[int, int, int] = (3, 6, 7)) -> tuple[Graph, list[str]]:
    graph = Graph(np.random.default_rng(1), shape)
    return graph, [graph.layer("x", rows, 3 if shape[1:] != (1, 1) else 1) for rows in widths]


def test_a_concatenation_takes_no_command() -> None:
    graph, parts = branches(5, 3, 9)
    last = graph.layer(graph.concat(*parts), 4, 3)
    assert commands(graph, [last]) == 0
    program = pack(graph.model([last]), {}, BUILD)
    places = make_plan(program, 1, MEMORY).places
    assert [places[p].offset - places["t4"].offset for p in parts] == [0, 4 * 5, 4 * 8]
    assert {places[p].stride for p in parts} == {17}


def test_concatenations_of_one_another_take_no_command() -> None:
    """A dense block, whose layers read all that came before them: nested, or listed again."""
    for nested in (True, False):
        graph, (before,) = branches(8)
        parts = [before]
        for _ in range(3):
            parts.append(graph.layer(before, 4, 3))
            before = graph.concat(*([before, parts[-1]] if nested else parts))
        assert commands(graph, [graph.layer(before, 4)]) == 0


def test_an_input_as_a_part_takes_no_command(session: Session) -> None:
    build = session.build
    graph, (name,) = branches(8, shape=(8, 6, 7) if build.image_words else (8, 1, 1))
    last = graph.layer(graph.concat("x", name, "x"), 4)
    program = check(session, graph, [last], 3)
    assert len(program.layers) == 2 + 1  # the second x is a copy


def test_slices_and_reshapes_take_no_command() -> None:
    graph, (name,) = branches(12)
    halves = [graph.slice(name, first, (6, 6, 7)) for first in (0, 6)]
    names = [graph.layer(half, 2, 3) for half in halves]
    long = graph.slice(names[0], 0, (2, 42, 1))
    pixels = graph.slice(graph.layer(long, 3), 0, (3, 6, 7))
    assert commands(graph, [graph.layer(graph.concat(names[1], pixels), 3, 3)]) == 0


def test_a_flattened_average_stays_in_the_chain() -> None:
    graph, (name,) = branches(12)
    average = graph.add(pool(Window(12, 6, 7, (6, 7)), maximum=False), name)
    flat = graph.slice(average, 0, (12, 1, 1))
    program = pack(graph.model([graph.layer(flat, 5)]), {}, BUILD)
    assert "t3" not in make_plan(program, 1, MEMORY).stored


def test_a_part_goes_through_the_chain_as_well() -> None:
    graph, (name,) = branches(12)
    other = graph.layer(name, 12, 3)
    program = pack(graph.model([graph.concat(name, other)]), {}, BUILD)
    first, second = make_plan(program, 1, MEMORY).commands
    assert first.flags & FLAG_TO_CHAIN and first.flags & FLAG_TO_MEMORY
    assert second.flags & FLAG_FROM_CHAIN


def test_what_has_to_be_copied(session: Session) -> None:
    """A part of two concatenations, a constant, and what a residual of other strides is."""
    if not session.build.image_words:
        pytest.skip("no images")
    graph, (a, b, c) = branches(8, 4, 6)
    ab, bc = graph.concat(a, b), graph.concat(b, c)
    assert len(check(session, graph, [ab, bc], 2).layers) == 3 + 1
    graph, (a,) = branches(8)
    ac = graph.concat(a, graph.constant((8, 6, 7)))
    assert len(check(session, graph, [ac], 2).layers) == 1 + 1
    graph, (a, b) = branches(8, 4)
    ab = graph.concat(a, b)
    assert len(check(session, graph, [ab, graph.residual("x", a)], 2).layers) == 3 + 1


def test_parts_that_share_words_or_row_groups() -> None:
    """Zeros beside each part, and sums of all of them."""
    for build, step in ((BUILD, 1), (ROWS, 2), (NARROW, 2)):
        shape = (3, 6, 7) if build.image_words else (3, 1, 1)
        for widths in ((4, 6, 5), (5, 6, 4)):
            graph, parts = branches(*widths, shape=shape)
            extra = 0 if all(w % step == 0 for w in widths[:-1]) else 3
            assert commands(graph, [graph.concat(*parts)], build) == extra


def test_copies_are_no_weights() -> None:
    for shape in ((3, 6, 7), (3, 1, 1)):
        graph, (a, b, c) = branches(80, 40, 60, shape=shape)
        dense = pack(graph.model([a]), {}, BUILD)
        outputs = [graph.concat(a, b), graph.concat(b, c)]
        copying = pack(graph.model(outputs), {}, BUILD)
        assert len(copying.layers) == 3 + 1
        assert copying.layers[-1].model_weights == 40
        assert copying.sparsity == dense.sparsity == 0


def test_views_through_files_and_accelerator(tmp_path: Path) -> None:
    graph, (a, b) = branches(8, 4)
    whole = graph.concat(a, b)
    constant = graph.constant((4, 6, 7))
    last = graph.residual(whole, constant)
    outputs = [graph.slice(whole, 3, (7, 42, 1)), whole, last]
    model = graph.model(outputs)
    program = pack(model, {}, BUILD)
    program.save(tmp_path / "p.bbs.npz")
    loaded = Program.load(tmp_path / "p.bbs.npz")
    assert loaded.tensors == program.tensors and loaded.layers == program.layers
    x = graph.rng.integers(-128, 128, (3, 3, 6, 7)).astype(np.int8)
    wanted = evaluated(model, {"x": x})
    for device in ("standin", "cpu"):
        with Accelerator(loaded, device=device, verify=device != "cpu") as accelerator:
            for name, values in accelerator.run(x).items():
                np.testing.assert_array_equal(values.reshape(-1), wanted[name].reshape(-1))


def test_a_mismatch_in_a_part_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, (a, b) = branches(8, 4)
    program = pack(graph.model([graph.layer(graph.concat(a, b), 3)]), {}, BUILD)
    damage(monkeypatch, program.layers[1].parameters + 2, 1 << 20)
    with Accelerator(program, device="standin", verify=True) as accelerator:
        with pytest.raises(VerificationError, match=f"layer '{b}', row 2"):
            accelerator.run(graph.rng.integers(-128, 128, (1, 3, 6, 7)).astype(np.int8))


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (Slice("a", "y", 3, (6, 6, 7)), "does not fit its input, which is .*features=8"),
        (Slice("a", "y", 0, (8, 6, 6)), "does not fit"),
        (Slice("a", "b", 0, (8, 6, 7)), "tensor 'b' is written twice"),
        (Slice("nothing", "y", 0, (8, 6, 7)), "nothing gives all of what Slice.*'nothing'"),
        (Concat(("a", "c"), "y"), "the parts of 'y' differ in pixels"),
        (Concat(("a", "sums"), "y"), "tensor 'sums' has INT32 sums"),
    ],
)
def test_views_that_cannot_be(view: Slice | Concat, message: str) -> None:
    graph, _ = branches(8, 4, 4, 2)
    for layer, name in zip(graph.layers, ("a", "b", "c", "sums"), strict=True):
        layer.name = layer.output = name
    graph.layers[2].window = Window(3, 6, 7, (3, 3))
    graph.layers[3].multiplier = None
    model = graph.model(["a"])
    model.views = [view]
    with pytest.raises(InputError, match=message):
        pack(model, {}, BUILD)


def moved_alone(session: Session, layers: list[QuantLayer], x: NDArray[np.int8]) -> Values:
    """What layers over images make of `x` (N, C, H, W) on engine and cpu device; (N, C, H, W)."""
    graph = Graph(np.random.default_rng(0), x.shape[1:])
    graph.layers = layers
    for la in layers:
        assert la.window is not None
        size = (la.window.out_height, la.window.out_width)
        graph.shapes[la.output] = (len(la.weights), *size)
    check(session, graph, [layers[-1].output], len(x))
    inputs = {"x": x.reshape(len(x), -1)}
    got = CpuDevice(pack(graph.model([layers[-1].output]), {}, session.build)).run(inputs)
    return {n: v.reshape(len(x), *graph.shapes[n]) for n, v in got.items()}


sides = st.integers(0, 20)


@settings(max_examples=25, deadline=None)
@given(pads=st.tuples(sides, sides, sides, sides), value=st.integers(-128, 127))
def test_padding(pads: tuple[int, int, int, int], value: int) -> None:
    x = np.random.default_rng(2).integers(-128, 128, (2, 3, 5, 4)).astype(np.int8)
    top, left, bottom, right = pads
    with open_device("standin", BUILD, strict=True) as session:
        got = moved_alone(session, padded("y", "x", (3, 5, 4), pads, value), x)["y"]
    wide = ((0, 0), (0, 0), (top, bottom), (left, right))
    np.testing.assert_array_equal(got, np.pad(x, wide, constant_values=value))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(1, 50), width=st.integers(1, 9))
def test_pixels_cut_off(data: st.DataObject, height: int, width: int) -> None:
    x = np.random.default_rng(2).integers(-128, 128, (1, 3, height, width)).astype(np.int8)
    cuts = []
    for pixels in (height, width):
        begin = data.draw(st.integers(0, pixels - 1))
        stride = data.draw(st.integers(1, 3))
        cuts.append((begin, data.draw(st.integers(1, (pixels - begin - 1) // stride + 1)), stride))
    begin, size, strides = zip(*cuts, strict=True)
    layers = cropped("y", "x", (3, height, width), begin, size, strides)
    with open_device("standin", BUILD, strict=True) as session:
        got = moved_alone(session, layers, x)["y"]
    y, xx = (slice(b, b + (n - 1) * s + 1, s) for b, n, s in cuts)
    np.testing.assert_array_equal(got, x[:, :, y, xx])


@settings(max_examples=25, deadline=None)
@given(
    pads=st.tuples(*[st.integers(0, 12)] * 4),
    value=st.sampled_from([-128, 7]),
    maximum=st.booleans(),
)
def test_padding_before_windows(pads: tuple[int, int, int, int], value: int, maximum: bool) -> None:
    """Windows with room for it and the same value beside their image take it over."""
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (1, 3, 5, 4)).astype(np.int8)
    first = padded("p", "x", (3, 5, 4), pads, value)[0]
    assert first.window is not None
    size = (first.window.out_height, first.window.out_width)
    window = Window(3, *size, (3, 2), pads=(2, 5, 1, 1))
    if maximum:
        second = pool(window, maximum=True)
    else:
        second = random_window_layer(rng, window, 4, 1, "plain")
        second.input_zero_point = 7
    layers = [first, replace(second, name="second", input="p", output="second")]
    with open_device("standin", BUILD, strict=True) as session:
        got = moved_alone(session, layers, x)
    fits = pads[0] <= 13 and pads[1] <= 10 and value == (-128 if maximum else 7)
    assert ("p" not in got) == fits
    wide = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
    between = np.pad(x, wide, constant_values=value)
    np.testing.assert_array_equal(got["second"], oracle_window(second, between))


def test_parts_of_several_scales(session: Session) -> None:
    """Those that have not got the scale of the concatenation are requantised."""
    build = session.build
    shape = (3, 6, 7) if build.image_words else (3, 1, 1)
    graph, names = branches(4, 6, 4, shape=shape)
    scales = [(np.float32(0.5), 3), (np.float32(0.25), -9), (np.float32(0.5), 3)]
    shapes = [(graph.shapes[n][0], *shape[1:]) for n in names]
    y = scales[0]
    parts = list(zip(names, shapes, scales, strict=True))
    layers, concat = concatenated("y", parts, y)
    graph.layers += layers
    graph.views.append(concat)
    program = check(session, graph, ["y"], 2)
    assert len(program.layers) == 3 + 1
    x = graph.rng.integers(-128, 128, (2, *shape)).astype(np.int8)
    got = evaluated(graph.model(["y"]), {"x": x})
    wanted = [
        quantise(dequantise(got[name], *scale), *y)
        for name, scale in zip(names, scales, strict=True)
    ]
    np.testing.assert_array_equal(got["y"], np.concatenate(wanted, axis=1))
