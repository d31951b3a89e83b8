# SPDX-License-Identifier: Apache-2.0
"""What the cycle model says of single layers on a board. Modelled, nothing is measured.

python benchmarks/modelled.py [--clock-mhz 142.857] [--gigabytes-per-second 1.5]
"""

from __future__ import annotations

import argparse

from planned import matrix
from pynq_bbs.builds import Build, build_names, load_build
from pynq_bbs.pack.cycles import Memory, layer_cycles
from pynq_bbs.report import table

#: rows, features, bank size, keep
LAYERS = [(4096, 1024, 64, 8), (4096, 1024, 2, 2), (768, 3072, 64, 8)]
#: As sparse as the first one, with shorter indices: what builds of more lanes than the memory feeds
#: want.
SHORT_BANKS = (4096, 1024, 16, 2)


def modelled(
    build: Build, shape: tuple[int, int, int, int], columns: int, memory: Memory
) -> tuple[str, ...]:
    """A row of the table."""
    rows, features, bank_size, keep = shape
    command = matrix(build, memory, rows, features, columns, (bank_size, keep))
    cost = layer_cycles(command, build, memory)
    seconds = cost.total / memory.clock_hz
    return (
        build.name,
        f"{rows} x {features}",
        f"{keep}/{bank_size}",
        str(columns),
        f"{cost.total:.0f}",
        f"{cost.utilisation:.0%}",
        f"{cost.bytes / memory.bytes_per_cycle / cost.total:.0%}",
        f"{2e-9 * rows * features * columns / seconds:.1f}",
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
            rows.append(modelled(build, layer, columns, memory))
    for name in build_names():  # twice as many lanes, on larger boards
        if name.startswith("16x32"):
            for layer in (LAYERS[0], SHORT_BANKS):
                rows.append(modelled(load_build(name), layer, 128, memory))
    print(table(rows))
    print("GOPS are dense-equivalent: 2 x rows x features x columns over the modelled time")


if __name__ == "__main__":
    main()
