# SPDX-License-Identifier: Apache-2.0
"""What the cycle model says of whole networks on a Pynq-Z2. Modelled, nothing is measured.

    python benchmarks/networks.py [--layers NAME]

142.857 MHz and 1.5 GB/s are assumed. With `--layers`, each layer of the networks whose name begins
so: where its tensors are, how its loops are cut, and what bounds it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from planned import network
from pynq_bbs.builds import Build, load_build
from pynq_bbs.interface import (
    FLAG_IMAGE,
    FLAG_RESIDENT_WEIGHTS,
    Command,
)
from pynq_bbs.pack.cycles import RUN_CYCLES, LayerCycles, Memory, run_cycles
from pynq_bbs.pack.explain import HEAD, explained
from pynq_bbs.report import table

MEMORY = Memory(142.857e6, 1.5e9)


@dataclass(frozen=True)
class Case:
    """A network on a build; `published` inferences a second are the ones to compare with."""

    title: str
    network: str
    build: str
    sparsity: float = 0.0
    samples: int = 1
    resident: bool = False
    published: int = 0


@dataclass(frozen=True)
class Cost:
    """The modelled commands of one run, and how many inferences they make."""

    build: Build
    commands: list[Command]
    cycles: list[LayerCycles]
    inferences: int

    @property
    def total(self) -> float:
        return RUN_CYCLES + sum(x.total for x in self.cycles)

    @property
    def per_second(self) -> float:
        return self.inferences * MEMORY.clock_hz / self.total

    @property
    def busy(self) -> float:
        return sum(x.multiply for x in self.cycles) / self.total

    @property
    def memory(self) -> float:
        return sum(x.bytes for x in self.cycles) / MEMORY.bytes_per_cycle / self.total


#: Published figures are of MLPerf Tiny submissions on boards of this class, inferences a second.
CASES = [
    Case("ResNet-8", "resnet8", "8x32", published=2431),
    Case("ResNet-8, 75 % sparse", "resnet8", "8x32", 0.75, published=2431),
    Case("DS-CNN", "ds_cnn", "8x32", published=3088),
    Case("DS-CNN, 75 % sparse", "ds_cnn", "8x32", 0.75, published=3088),
    Case("MobileNet 0.25", "mobilenet", "8x32", published=105),
    Case("MobileNet 0.25, 75 % sparse", "mobilenet", "8x32", 0.75, published=105),
    Case("autoencoder, 32 samples", "autoencoder", "8x32", samples=32, published=53365),
    Case("autoencoder, 75 % sparse, 32 samples", "autoencoder", "8x32", 0.75, 32, published=53365),
    Case("autoencoder, 1 sample, on chip", "autoencoder", "32x4x1", resident=True),
    Case("LSTM-512 step, 87.5 % sparse, on chip", "lstm512", "32x4x1", 0.875, resident=True),
]


def cost_of(case: Case) -> Cost:
    """The modelled cost of one run of the case."""
    build = load_build(case.build)
    commands = network(
        case.network,
        build,
        MEMORY,
        case.sparsity,
        samples=case.samples,
        resident=case.resident,
    )
    resident = all(c.flags & FLAG_RESIDENT_WEIGHTS for c in commands)
    if case.resident and not resident:
        raise SystemExit(f"{case.title}: the weights do not fit the block buffer")
    return Cost(build, commands, run_cycles(commands, build, MEMORY), case.samples)


def layers(title: str, cost: Cost) -> str:
    """A table of the network's layers."""
    names = [
        f"{number} {f'{c.kernel_height}x{c.kernel_width}' if c.flags & FLAG_IMAGE else 'dense'}"
        for number, c in enumerate(cost.commands)
    ]
    rows = [HEAD, *explained(names, cost.commands, cost.build, MEMORY)]
    return f"{title} on {cost.build.name}\n{table(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", metavar="NAME", help="each layer of these networks")
    args = parser.parse_args()
    if args.layers is not None:
        chosen = [c for c in CASES if c.title.lower().startswith(args.layers.lower())]
        if not chosen:
            parser.error(f"no network begins with {args.layers!r}: {', '.join(map(_title, CASES))}")
        print("\n\n".join(layers(case.title, cost_of(case)) for case in chosen))
        return
    rows = [
        ("network", "build", "cycles", "inferences/s", "MACs busy", "memory busy", "published",
         "times")
    ]  # fmt: skip
    for case in CASES:
        cost = cost_of(case)
        rows.append(
            (
                case.title,
                case.build,
                f"{cost.total:.0f}",
                f"{cost.per_second:.0f}",
                f"{cost.busy:.0%}",
                f"{cost.memory:.0%}",
                str(case.published or ""),
                f"{cost.per_second / case.published:.2f}" if case.published else "",
            )
        )
    print(table(rows))


def _title(case: Case) -> str:
    return case.title


if __name__ == "__main__":
    main()
