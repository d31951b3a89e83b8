# SPDX-License-Identifier: Apache-2.0
"""Device against cpu device, bit for bit, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import VerificationError

#: Sample, row and place -> the device's and the cpu device's INT32 sums there, as they are shown.
Sums = Callable[[int, int, int], tuple[str, str]]


def compare_layer(
    name: str,
    device: NDArray[np.generic],
    reference: NDArray[np.generic],
    first_sample: int,
    sums: Sums,
    steps: Sequence[int] = (),
) -> None:
    """Raise unless both tensors (N, M, places) hold the same integers.

    Args:
        name: of the layer that wrote the tensor.
        first_sample: which sample of the user's batch sample 0 is.
        sums: called only where they differ.
        steps: what steps the places are, in the order in which they were worked on; if none, they
            are the pixels of an image.

    Raises:
        VerificationError: names layer, row, column, both integers and both sums of the first
            difference, of steps of the first one that differs, and how many there are.
    """
    if device.shape == reference.shape and np.array_equal(device, reference):
        return
    if device.shape != reference.shape:
        raise VerificationError(
            f"layer {name!r}: the device gave {device.shape}, the cpu device {reference.shape}"
        )
    wrong = np.argwhere(device != reference)
    # A wrong step makes those after it wrong.
    sample, row, place = (int(i) for i in wrong[wrong[:, 2].argmin() if steps else 0])
    device_sums, reference_sums = sums(sample, row, place)
    column = f"column {first_sample + sample}"
    if steps:
        column += f", step {steps[place]}"
    elif device.shape[2] > 1:
        column = f"column {place} of sample {first_sample + sample}"
    raise VerificationError(
        f"layer {name!r}, row {row}, {column}: the device gave "
        f"{int(device[sample, row, place])}, the cpu device {int(reference[sample, row, place])} "
        f"(sums {device_sums} and {reference_sums}); "
        f"{len(wrong)} of {device.size} outputs of this layer differ. Equal sums point at "
        "requantisation, different ones at weights, indices or activations"
    )
