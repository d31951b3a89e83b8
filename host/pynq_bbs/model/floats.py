# SPDX-License-Identifier: Apache-2.0
"""What the layers of a float model compute, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .graph import Float, Layer, Window


def layer_sums(layer: Layer, x: Float) -> Float:
    """What a layer gives before functions and addition, (N, features), from x (N, features)."""
    window = layer.window
    if window is None:
        sums: Float = x @ layer.weights.T + layer.bias
        return sums
    tap = window_taps(window, x, -np.inf if layer.maximum else 0.0)
    taps = [(ky, kx) for ky in range(window.kernel[0]) for kx in range(window.kernel[1])]
    if layer.maximum:
        largest = tap(0, 0)
        for place in taps[1:]:
            largest = np.maximum(largest, tap(*place))
        return largest.reshape(len(x), -1)
    rows, pixels = len(layer.weights), window.out_height * window.out_width
    of_taps = np.ascontiguousarray(layer.weights.transpose(2, 3, 0, 1))  # as numpy multiplies fast
    of_taps = of_taps.reshape(*window.kernel, layer.groups, rows // layer.groups, -1)
    out = np.zeros((len(x), layer.groups, rows // layer.groups, pixels), np.float32)
    # numpy multiplies matrices of one column slowly: a depthwise layer's.
    product = np.multiply if layer.weights.shape[1] == 1 else np.matmul
    for place in taps:
        out += product(of_taps[place], tap(*place).reshape(len(x), layer.groups, -1, pixels))
    out += layer.bias.reshape(layer.groups, -1, 1)
    return out.reshape(len(x), -1)


def window_taps(window: Window, x: Float, pad: float) -> Callable[[int, int], Float]:
    """What every place of the window sees at one of its taps, (N, C, out height, out width)."""
    top, left, bottom, right = window.pads
    images = x.reshape(-1, window.channels, window.height, window.width)
    around = ((0, 0), (0, 0), (top, bottom), (left, right))
    padded = np.pad(images, around, constant_values=pad)

    def tap(ky: int, kx: int) -> Float:
        slices = [
            slice(first, first + (count - 1) * stride + 1, stride)
            for first, count, stride in (
                (ky * window.dilations[0], window.out_height, window.strides[0]),
                (kx * window.dilations[1], window.out_width, window.strides[1]),
            )
        ]
        return padded[:, :, slices[0], slices[1]]

    return tap
