# SPDX-License-Identifier: Apache-2.0
"""Device against cpu device, bit for bit, layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .errors import VerificationError

#: Column -> the device's and the cpu device's INT32 sums (M,) of the layer that differs.
Sums = Callable[[int], tuple[NDArray[np.int32], NDArray[np.int32]]]


def compare_layer(
    name: str,
    device: NDArray[np.generic],
    reference: NDArray[np.generic],
    first_column: int,
    sums: Sums,
) -> None:
    """Raise unless both tensors (N, M) hold the same integers.

    Args:
        name: of the layer that wrote the tensor.
        first_column: which sample of the user's batch column 0 is.
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
    column, row = (int(i) for i in wrong[0])
    device_sums, reference_sums = sums(column)
    raise VerificationError(
        f"layer {name!r}, row {row}, column {first_column + column}: the device gave "
        f"{int(device[column, row])}, the cpu device {int(reference[column, row])} "
        f"(sums {int(device_sums[row])} and {int(reference_sums[row])}); "
        f"{len(wrong)} of {device.size} outputs of this layer differ. Equal sums point at "
        "requantisation, different ones at weights, indices or activations"
    )
