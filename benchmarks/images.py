# SPDX-License-Identifier: Apache-2.0
"""Labelled images out of a file of JPEG-coded ones, as CIFAR-10 lies beside the checkout."""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Training images that scales are chosen by.
CALIBRATION_IMAGES = 256


def image_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the images are, and how many to judge by."""
    parser.add_argument("--test", type=Path, required=True, help=".npz of test images")
    parser.add_argument("--train", type=Path, required=True, help=".npz of training images")
    parser.add_argument("--images", type=int, default=1000, help="test images (default: 1000)")


def labelled_images(path: Path, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`count` of the file's images (count, H, W, 3) and their labels, always the same ones.

    Drawn from all of the file, because such files are often sorted by label. The arrays of the
    file: `jpeg`, all files one after the other, their `lengths`, and `labels`.
    """
    from PIL import Image

    with np.load(path) as stored:
        jpeg, lengths = stored["jpeg"], stored["lengths"].astype(np.int64)
        labels = stored["labels"].astype(np.int64)
    chosen = np.random.default_rng(0).permutation(len(lengths))[:count]
    ends = np.cumsum(lengths)
    files: list[Any] = [jpeg[ends[i] - lengths[i] : ends[i]].tobytes() for i in chosen]
    return np.stack([np.asarray(Image.open(BytesIO(file))) for file in files]), labels[chosen]
