# SPDX-License-Identifier: Apache-2.0
"""What a float image classifier loses by pruning and rounding without training.

    python benchmarks/compression.py MODEL.onnx --test FILE.npz --train FILE.npz [--images 1000]

All layers but the first and last are pruned after 256 training images, at each number of weight
bits. The files hold JPEG-coded images (`images.py`). Programs run on the cpu device, whose integers
are those of the engine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from images import CALIBRATION_IMAGES, image_arguments, labelled_images
from pynq_bbs import Accelerator, load_onnx
from pynq_bbs import compile as compile_model
from pynq_bbs.compress.activations import run_float
from pynq_bbs.compress.scores import PRUNING
from pynq_bbs.compress.second_order import ROUNDING
from pynq_bbs.errors import InputError
from pynq_bbs.model.graph import Model
from pynq_bbs.report import table

#: name, sparsity and bank size
PATTERNS = [("2:4", 0.5, 4), ("75 % in banks up to 64", 0.75, 64)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, help="ONNX file, float")
    image_arguments(parser)
    args = parser.parse_args()
    model = load_onnx(args.model)
    if not isinstance(model, Model):
        raise InputError(f"{args.model} is quantised; give the float model")
    images, labels = labelled_images(args.test, args.images)
    x = images.astype(np.float32)
    train = labelled_images(args.train, CALIBRATION_IMAGES)[0].astype(np.float32)
    shown = run_float(model, x)[model.outputs[0].tensor].argmax(axis=1)
    rows = [(f"{args.model.name}, {len(x)} images", "weight bits", "right", "as in float")]
    rows.append(("float", "32", f"{np.mean(shown == labels):.1%}", ""))
    forms = [("dense", 0.0, 64, "magnitude", rounding) for rounding in ROUNDING]
    for name, s, size in PATTERNS:
        forms += [(name, s, size, pruning, "nearest") for pruning in PRUNING]
        forms.append((name, s, size, "sparsegpt", "gptq"))
    for bits in (8, 4):
        for name, sparsity, bank_size, pruning, rounding in forms:
            program = compile_model(
                model, calibration=train, sparsity=sparsity, bank_size=bank_size,
                weight_bits=bits, pruning=pruning, rounding=rounding,
            )  # fmt: skip
            with Accelerator(program, device="cpu") as accelerator:
                chosen = accelerator.run(x).argmax(axis=1)
            named = ", ".join(
                [name] + [pruning] * (sparsity > 0) + [rounding] * (rounding != "nearest")
            )
            right, same = np.mean(chosen == labels), np.mean(chosen == shown)
            rows.append((named, str(bits), f"{right:.1%}", f"{same:.1%}"))
    print(table(rows))


if __name__ == "__main__":
    main()
