# SPDX-License-Identifier: Apache-2.0
"""Device against cpu device, bit for bit, layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .errors import VerificationError

#: Sample -> the device's and the cpu device's INT32 sums (M, pixels) of the layer that differs.
Sums = Callable[[int], tuple[NDArray[np.int32], NDArray[np.int32]]]


def compare_layer(
    name: str,
    device: NDArray[np.generic],
    reference: NDArray[np.generic],
    first_sample: int,
    sums: Sums,
) -> None:
    """Raise unless both tensors (N, M, pixels) hold the same integers.

    Args:
        name: of the layer that wrote the tensor.
        first_sample: which sample of the user's batch sample 0 is.
        sums: called only where they differ.

    Raises:
        VerificationError: names layer, row, column, both integers and both sums of the first
            difference, and how many there are.
    """
    if device.shape == reference.shape and np.array_equal(device, reference):
        return
    if device.shape != reference.shape:
        raise VerificationError(
            f"layer {name!r}: the device gave {device.shape}, the cpu device {reference.shape}"
        )
    wrong = np.argwhere(device != reference)
    sample, row, pixel = (int(i) for i in wrong[0])
    device_sums, reference_sums = sums(sample)
    column = f"column {first_sample + sample}"
    if device.shape[2] > 1:
        column = f"column {pixel} of sample {first_sample + sample}"
    raise VerificationError(
        f"layer {name!r}, row {row}, {column}: the device gave "
        f"{int(device[sample, row, pixel])}, the cpu device {int(reference[sample, row, pixel])} "
        f"(sums {int(device_sums[row, pixel])} and {int(reference_sums[row, pixel])}); "
        f"{len(wrong)} of {device.size} outputs of this layer differ. Equal sums point at "
        "requantisation, different ones at weights, indices or activations"
    )
