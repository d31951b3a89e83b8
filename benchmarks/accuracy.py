# SPDX-License-Identifier: Apache-2.0
"""How many test images an image classifier gets right: as it is, as INT8, and pruned.

    python benchmarks/accuracy.py MODEL.onnx --test FILE.npz --train FILE.npz [--images 1000]

A float model is also run by onnxruntime, and quantised with each way of calibrating on 256 training
images; nothing is fine-tuned after pruning. The files hold JPEG-coded images (`images.py`). INT8
runs on the cpu device, whose integers are those of the engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from images import CALIBRATION_IMAGES, image_arguments, labelled_images
from pynq_bbs import Accelerator, Program, load_onnx
from pynq_bbs import compile as compile_model
from pynq_bbs.compress.calibrate import METHODS
from pynq_bbs.model.graph import Model
from pynq_bbs.pack.pipeline import Pipeline
from pynq_bbs.report import table

#: sparsity and bank size
PRUNED = [(0.5, 4), (0.75, 64)]


def forms(
    path: Path, x: NDArray[np.uint8], train: NDArray[np.uint8]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Every form of the model, and its scores (N, classes)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    signed = first.type == "tensor(int8)"
    own: NDArray[Any] = (x.astype(np.int16) - 128).astype(np.int8) if signed else x.astype("f4")
    yield "onnxruntime", session.run(None, {first.name: own})[0]
    model = load_onnx(path)
    if not isinstance(model, Model):
        yield "INT8 as it comes", _run(compile_model(model), own)
        return
    calibration = train.astype(np.float32)
    for method in METHODS:
        program = compile_model(model, calibration=calibration, method=method)
        yield f"INT8, {method}", _run(program, own)
    for sparsity, bank_size in PRUNED:
        program = compile_model(
            model, calibration=calibration, sparsity=sparsity, bank_size=bank_size
        )
        yield f"{sparsity:.0%} in banks up to {bank_size}, not fine-tuned", _run(program, own)


def _run(program: Program | Pipeline, x: NDArray[Any]) -> NDArray[np.generic]:
    with Accelerator(program, device="cpu") as accelerator:
        scores: NDArray[np.generic] = accelerator.run(x)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, help="ONNX file")
    image_arguments(parser)
    args = parser.parse_args()
    x, labels = labelled_images(args.test, args.images)
    train, _ = labelled_images(args.train, CALIBRATION_IMAGES)
    rows: list[tuple[str, ...]] = [(f"{args.model.name}, {len(x)} images", "right", "as the first")]
    first: NDArray[np.int64] | None = None
    for name, scores in forms(args.model, x, train):
        chosen = scores.argmax(axis=1)
        first = chosen if first is None else first
        rows.append((name, f"{np.mean(chosen == labels):.1%}", f"{np.mean(chosen == first):.1%}"))
    print(table(rows))


if __name__ == "__main__":
    main()
