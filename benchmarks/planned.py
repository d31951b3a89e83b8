# SPDX-License-Identifier: Apache-2.0
"""Commands as the scheduler makes them: of the networks of `models.py`, and of single layers, whose
weights nothing here needs."""

from __future__ import annotations

from models import NETWORKS, RECURRENT
from pynq_bbs.builds import Build
from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.interface import Command
from pynq_bbs.pack.csb import shape_on
from pynq_bbs.pack.cycles import Memory
from pynq_bbs.pack.layout import tile_count
from pynq_bbs.pack.plan import make_plan
from pynq_bbs.pack.program import PackedLayer, Program
from pynq_bbs.pack.schedule import Place, layer_command


def network(
    name: str,
    build: Build,
    memory: Memory,
    sparsity: float = 0.0,
    *,
    samples: int = 1,
    resident: bool = False,
) -> list[Command]:
    """The commands for `samples` at once, or of images for one; see `make_plan`."""
    everywhere = {"*": {"sparsity": sparsity}}
    program = compile_model((NETWORKS | RECURRENT)[name](), layers=everywhere, build=build)
    assert isinstance(program, Program)
    return make_plan(program, samples, memory, resident=resident).commands


def matrix(
    build: Build, memory: Memory, rows: int, features: int, columns: int, bank: tuple[int, int]
) -> Command:
    """A fully connected layer, all of it from and to memory; `bank` is bank size and keep."""
    size, keep = bank
    shape = shape_on(build, rows, features, bank)
    layer = PackedLayer(
        name="layer",
        input="x",
        output="y",
        rows=rows,
        features=features,
        bank_size=size,
        keep=keep,
        weight_bits=shape.weight_bits,
        groups_per_pass=shape.groups_per_pass,
        zero_point=0,
        sums_out=False,
        weights=0,
        indices=0,
        parameters=0,
        table=-1,
    )
    tiles = tile_count(columns, build.cols)
    source, target = (Place(0, count, tiles, columns) for count in (features, rows))
    return layer_command(layer, 0, source, target, build, memory)
