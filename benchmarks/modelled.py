# SPDX-License-Identifier: Apache-2.0
"""What the cycle model says of single layers on a board. Modelled, nothing is measured.

python benchmarks/modelled.py [--clock-mhz 142.857] [--gigabytes-per-second 1.5]
"""

from __future__ import annotations

import argparse

from pynq_bbs.builds import load_build
from pynq_bbs.pack.csb import csb_shape
from pynq_bbs.pack.cycles import Memory, layer_cycles
from pynq_bbs.pack.program import PackedLayer
from pynq_bbs.pack.schedule import layer_command
from pynq_bbs.report import table

BUILD = load_build("8x32")
#: rows, features, bank size, keep
LAYERS = [(4096, 1024, 64, 8), (4096, 1024, 2, 2), (768, 3072, 64, 8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clock-mhz", type=float, default=142.857)
    parser.add_argument("--gigabytes-per-second", type=float, default=1.5)
    args = parser.parse_args()
    memory = Memory(args.clock_mhz * 1e6, args.gigabytes_per_second * 1e9)
    rows = [
        ("rows x features", "keep/bank", "columns", "cycles", "MACs busy", "memory busy", "GOPS")
    ]
    for m, k, bank_size, keep in LAYERS:
        shape = csb_shape(m, k, bank_size, keep, BUILD.lanes, BUILD.vector_words)
        layer = PackedLayer(
            name="layer",
            input="x",
            output="y",
            rows=m,
            features=k,
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
        for n in (1, 64, 128):
            tiles = -(-n // BUILD.cols)
            command = layer_command(layer, 0, {"x": 0, "y": 0}, tiles, BUILD, memory)
            cost = layer_cycles(command, BUILD, memory)
            seconds = cost.total / memory.clock_hz
            rows.append(
                (
                    f"{m} x {k}",
                    f"{keep}/{bank_size}",
                    str(n),
                    f"{cost.total:.0f}",
                    f"{cost.utilisation:.0%}",
                    f"{cost.bytes / memory.bytes_per_cycle / cost.total:.0%}",
                    f"{2e-9 * m * k * n / seconds:.1f}",
                )
            )
    print(table(rows))
    print("GOPS are dense-equivalent: 2 x rows x features x columns over the modelled time")


if __name__ == "__main__":
    main()
