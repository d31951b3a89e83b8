# SPDX-License-Identifier: Apache-2.0
"""Device against cpu device, bit for bit, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import VerificationError
from .model.recurrent import GATES
from .pack.program import Program

if TYPE_CHECKING:
    from .cpu.device import CpuDevice
    from .device.engine import EngineProgram

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


class Verifier:
    """Every layer of a program on a device against the cpu device."""

    def __init__(self, program: Program, engine: EngineProgram, cpu: CpuDevice) -> None:
        self._program = program
        self._engine = engine
        self._cpu = cpu
        #: What `check` must be given: all that layers write, and the outputs.
        written = [name for layer in program.layers for name in layer.outputs]
        self.tensors = list(dict.fromkeys([*(o.tensor for o in program.outputs), *written]))

    def check(
        self,
        tensors: dict[str, NDArray[np.generic]],
        results: dict[str, NDArray[np.generic]],
        first_column: int,
        lengths: NDArray[np.int64] | None,
    ) -> None:
        """Compares `results`, the device's for inputs `tensors`, with the cpu device's.

        Args:
            first_column: which sample of the user's batch sample 0 is.
            lengths: steps of each sample (N,), where the program takes them.

        Raises:
            VerificationError: see `compare_layer`.
        """
        reference = self._cpu.run(tensors, lengths)
        for index, layer in enumerate(self._program.layers):
            backwards = layer.cell is not None and layer.cell.reverse
            for name in layer.outputs:
                target = self._program.tensors[name]
                # What is worked on one after the other stands last.
                shape = (-1, target.steps, target.features, target.pixels)
                device, cpu = (
                    values[name].reshape(shape).transpose(0, 2, 1, 3)[:, :, :: 1 - 2 * backwards]
                    for values in (results, reference)
                )
                rows = slice(layer.first_row, layer.first_row + layer.rows)
                every = range(target.steps)
                compare_layer(
                    layer.name,
                    device[:, rows].reshape(len(device), -1, target.steps * target.pixels),
                    cpu[:, rows].reshape(len(cpu), -1, target.steps * target.pixels),
                    first_column,
                    # Layers before this one agree, so both devices read the same input.
                    partial(self._sums, index, name, reference, lengths),
                    (every[::-1] if backwards else every) if target.steps > 1 else (),
                )

    def _sums(
        self,
        index: int,
        name: str,
        reference: dict[str, NDArray[np.generic]],
        lengths: NDArray[np.int64] | None,
        sample: int,
        row: int,
        place: int,
    ) -> tuple[str, str]:
        """The device's and the cpu device's INT32 sum behind a value of tensor `name`, which layer
        `index` wrote; of a recurrent layer the sums of the unit's gates in that step."""
        layer = self._program.layers[index]
        target = self._program.tensors[name]
        if layer.cell:
            step = target.steps - 1 - place if layer.cell.reverse else place
            length = self._program.tensors[layer.input].steps
            length = length if lengths is None else int(lengths[sample])
            if name != layer.output:
                step = 0 if layer.cell.reverse else length - 1
            own = {tensor: values[sample : sample + 1] for tensor, values in reference.items()}
            features = self._cpu.step_features(index, own, step, length)
            gates = slice(GATES * row, GATES * (row + 1))
            device, cpu = (
                of.sums(index, features)[0, gates].tolist() for of in (self._engine, self._cpu)
            )
            return str(device), str(cpu)
        x, weights = reference[layer.input].astype(np.int8, copy=False), None
        if layer.weight_tensor:
            # A product takes all samples at once: one tensor's are the other's weights.
            weights = reference[layer.weight_tensor].astype(np.int8, copy=False)
        else:
            x, sample = x[sample : sample + 1], 0
        step, pixel = divmod(place, target.pixels)
        at = (sample, step, row, pixel)
        device, cpu = self._engine.sums(index, x, weights), self._cpu.sums(index, x)
        shape = (len(x), target.steps, -1, target.pixels)
        return str(device.reshape(shape)[at]), str(cpu.reshape(shape)[at])
