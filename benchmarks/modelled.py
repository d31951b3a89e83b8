# SPDX-License-Identifier: Apache-2.0
"""What the cycle model says of single layers on a board. Modelled, nothing is measured.

python benchmarks/modelled.py [--clock-mhz 142.857] [--gigabytes-per-second 1.5]
"""

from __future__ import annotations

import argparse

from pynq_bbs.builds import Build, build_names, load_build
from pynq_bbs.pack.csb import csb_shape
from pynq_bbs.pack.cycles import Memory, layer_cycles
from pynq_bbs.pack.program import PackedLayer
from pynq_bbs.pack.schedule import Place, layer_command
from pynq_bbs.report import table

#: rows, features, bank size, keep
LAYERS = [(4096, 1024, 64, 8), (4096, 1024, 2, 2), (768, 3072, 64, 8)]


def packed(rows: int, features: int, bank_size: int, keep: int, build: Build) -> PackedLayer:
    """A layer whose weights lie at the start of memory, for what it costs."""
    shape = csb_shape(rows, features, bank_size, keep, build.lanes, build.vector_words)
    return PackedLayer(
        name="layer",
        input="x",
        output="y",
        rows=rows,
        features=features,
        bank_size=bank_size,
        keep=keep,
        weight_bits=8,
        groups_per_pass=shape.groups_per_pass,
        zero_point=0,
        sums_out=False,
        weights=0,
        indices=0,
        parameters=0,
        table=-1,
    )


def modelled(build: Build, layer: PackedLayer, columns: int, memory: Memory) -> tuple[str, ...]:
    """A row of the table."""
    tiles = -(-columns // build.cols)
    source = Place(0, layer.features, tiles, columns)
    target = Place(0, layer.rows, tiles, columns)
    cost = layer_cycles(layer_command(layer, 0, source, target, build, memory), build, memory)
    seconds = cost.total / memory.clock_hz
    return (
        build.name,
        f"{layer.rows} x {layer.features}",
        f"{layer.keep}/{layer.bank_size}",
        str(columns),
        f"{cost.total:.0f}",
        f"{cost.utilisation:.0%}",
        f"{cost.bytes / memory.bytes_per_cycle / cost.total:.0%}",
        f"{2e-9 * layer.rows * layer.features * columns / seconds:.1f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clock-mhz", type=float, default=142.857)
    parser.add_argument("--gigabytes-per-second", type=float, default=1.5)
    args = parser.parse_args()
    memory = Memory(args.clock_mhz * 1e6, args.gigabytes_per_second * 1e9)
    rows: list[tuple[str, ...]] = [
        ("build", "rows x features", "keep/bank", "columns", "cycles", "MACs busy", "memory busy",
         "GOPS")
    ]  # fmt: skip
    build = load_build("8x32")
    for layer in LAYERS:
        for columns in (1, 64, 128):
            rows.append(modelled(build, packed(*layer, build), columns, memory))
    for name in build_names():  # twice as many lanes, on larger boards
        if name.startswith("16x32"):
            wide = load_build(name)
            rows.append(modelled(wide, packed(*LAYERS[0], wide), 128, memory))
    print(table(rows))
    print("GOPS are dense-equivalent: 2 x rows x features x columns over the modelled time")


if __name__ == "__main__":
    main()
