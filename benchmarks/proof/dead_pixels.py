# SPDX-License-Identifier: Apache-2.0
"""How many kept weights of MNIST's first layer face pixels that are 0 in every training image.

    python benchmarks/proof/dead_pixels.py [--sparsity 0.875] [--seed 0]

Needs the networks that run.py left.
"""

from __future__ import annotations

import argparse

import torch
from run import PATTERNS, checkpoint
from tasks import mnist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sparsity", type=float, default=0.875)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dead = mnist()[0].max(0).values == 0
    print(f"pixels: {float(dead.float().mean()):.1%}")
    for pattern in PATTERNS:
        path = checkpoint("mnist", pattern, arguments.sparsity, arguments.seed)
        if path.exists():
            weights = torch.load(path, weights_only=True)["model"]["hidden1.weight"]
            kept = weights != 0
            print(f"{pattern}: {float(kept[:, dead].sum() / kept.sum()):.1%}")


if __name__ == "__main__":
    main()
