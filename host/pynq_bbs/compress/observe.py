# SPDX-License-Identifier: Apache-2.0
"""Scales from samples: what a float model's tensors reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from ..model.arithmetic import Scale
from ..model.graph import Concat, Float, Function, Model
from ..model.recurrent import HIDDEN_SCALE
from ..model.recurrent_floats import FloatRecurrent
from .activations import activations, batches, is_int8, model_inputs, observed_name
from .borders import float_output, joined
from .calibrate import Observer, make_observer

#: Output scale and zero point of functions whose range is known.
_FIXED_SCALES: dict[str, Scale] = {
    "sigmoid": (np.float32(1 / 256), -128),
    "tanh": (np.float32(1 / 128), 0),
}


def observe(
    model: Model,
    calibration: Iterable[Any],
    *,
    method: str = "minmax",
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """What one pass over the samples shows; see `quantize`."""
    observed = Calibration(model, method)
    for batch in batches(model, calibration):
        observed.see(batch)
        if progress:
            progress(observed.samples)
    return observed


class Calibration:
    """Sees a float model's tensors batch by batch, in constant memory, and finds their scales.

    `samples` counts what it has seen.
    """

    def __init__(self, model: Model, method: str = "minmax") -> None:
        """
        Raises:
            InputError: unknown method.
        """
        self.model = model
        self.samples = 0
        read = read_tensors(model)
        self._observers: dict[str, Observer] = {}
        for graph_input in model.inputs:
            self._observers[graph_input.tensor] = make_observer(method)
        for layer in model.layers:
            if isinstance(layer, FloatRecurrent):
                continue
            if is_int8(layer, read):
                self._observers[observed_name(layer)] = make_observer(method)
            if layer.other or not has_fixed_scale(layer.functions):
                self._observers[layer.output] = make_observer(method)
        for view in model.views:
            if isinstance(view, Concat):
                self._observers[view.output] = make_observer(method)

    def update(self, inputs: Mapping[str, Any]) -> dict[str, Float]:
        """See a batch; the model's outputs in float32 (N, *shape), by name.

        Args:
            inputs: (N, *shape) by input name.

        Raises:
            InputError: an input is missing, unknown, of a wrong shape or dtype, or not finite.
        """
        shown = self.see(model_inputs(self.model, inputs))
        outputs = self.model.outputs
        return joined(outputs, [float_output(output, shown[output.tensor]) for output in outputs])

    def see(self, batch: Mapping[str, Float]) -> dict[str, Float]:
        """The same of checked inputs (N, features); gives the tensors of the outputs."""
        names = {output.tensor for output in self.model.outputs}
        shown: dict[str, Float] = {}
        for tensor, values in activations(self.model, batch):
            if tensor in self._observers:
                self._observers[tensor].update(values)
            if tensor in names:
                shown[tensor] = values
        self.samples += len(next(iter(batch.values())))
        return shown

    def scales(self) -> dict[str, Scale]:
        """Scale and zero point of every tensor, such as fit what was seen.

        Raises:
            InputError: nothing was seen.
        """
        if not self.samples:
            raise InputError("calibration holds no samples; give at least one.")
        observed = {t: o.quantisation() for t, o in self._observers.items()}
        _share(self.model, observed)
        return observed | _initial_scales(self.model)


def read_tensors(model: Model) -> set[str]:
    """What layers and views read."""
    read = {name for layer in model.layers for name in layer.reads}
    return read | {name for view in model.views for name in view.reads}


def has_fixed_scale(functions: tuple[Function, ...]) -> bool:
    """Whether a function's range, or that of none, need not be calibrated."""
    curved = [f.name for f in functions if not f.clamps]
    return not curved or curved[-1] in _FIXED_SCALES


def fixed_scale(functions: tuple[Function, ...]) -> Scale:
    """Clamps behind a function only narrow its range, so the last other function decides."""
    return _FIXED_SCALES[[f for f in functions if not f.clamps][-1].name]


def _initial_scales(model: Model) -> dict[str, Scale]:
    """Of inputs that recurrent layers start from."""
    scales: dict[str, Scale] = {
        layer.initial_h: (HIDDEN_SCALE, 0)
        for layer in model.layers
        if isinstance(layer, FloatRecurrent)
    }
    for spec in model.inputs:
        if spec.state_bits:
            scales[spec.tensor] = np.float32(2.0**-spec.state_bits), 0
    return scales


def _share(model: Model, observed: dict[str, Scale]) -> None:
    """Give tensors that are joined the scale of the joined one, so that they can lie in it. Not
    inputs, maxima and curves, which have theirs."""
    given = {spec.tensor for spec in model.inputs}
    for view in reversed(model.views):
        if isinstance(view, Concat):
            for name in view.inputs:
                if name in observed and name not in given:
                    observed[name] = observed[view.output]
