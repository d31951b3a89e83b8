# SPDX-License-Identifier: Apache-2.0
"""A program of one fully connected layer with random weights, for `bbs bench`.

    python benchmarks/layer.py 4096 1024 --sparsity 0.875 -o layer.bbs.npz
    bbs bench layer.bbs.npz --against onnxruntime,torch,scipy,numpy

float32 in and out, INT8 between, weights of all INT8 values: kernels that saturate are found out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pynq_bbs.compiler import compile as compile_model
from pynq_bbs.model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput


def model(rows: int, features: int) -> QuantModel:
    """The layer, dense; its outputs use most of the INT8 range."""
    rng = np.random.default_rng(0)
    layer = QuantLayer(
        name="layer",
        input="x",
        output="y",
        weights=rng.integers(-128, 128, (rows, features)).astype(np.int8),
        bias=rng.integers(-5000, 5000, rows).astype(np.int32),
        input_zero_point=3,
        multiplier=np.full(rows, 40 / (74 * 74 * np.sqrt(features)), np.float32),
        zero_point=-10,
    )
    x = QuantInput("x", "x", (features,), "float32", np.float32(0.05), 3)
    y = QuantOutput("y", "y", (rows,), "float32", np.full(1, 0.1, np.float32), -10)
    return QuantModel(f"{rows} x {features}", [x], [layer], [y])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", type=int)
    parser.add_argument("features", type=int)
    parser.add_argument("--sparsity", type=float, default=0.875)
    parser.add_argument("--bank-size", type=int, default=64)
    parser.add_argument("--build", default="8x32")
    parser.add_argument("-o", "--output", type=Path, default=Path("layer.bbs.npz"))
    args = parser.parse_args()
    program = compile_model(
        model(args.rows, args.features),
        sparsity=args.sparsity,
        bank_size=args.bank_size,
        build=args.build,
    )
    program.save(args.output)
    print(f"{args.output}: {program.name}, {program.sparsity:.1%} sparse")


if __name__ == "__main__":
    main()
