# SPDX-License-Identifier: Apache-2.0
"""What a window sees at each of its places over an image of any rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .call import Array, Call

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """A kernel that goes over an image; a number for each axis.

    `beyond` is what the last place may need behind the padding (`ceil_mode`).
    """

    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    pads: tuple[tuple[int, int], ...]
    beyond: Sizes

    @classmethod
    def of(cls, call: Call, image: Sizes, kernel: Sizes) -> Windows:
        """The windows that a node's attributes describe."""
        rank = len(kernel)
        if len(image) != rank:
            raise ValueError(f"a kernel of {rank} dimensions over an image of {len(image)}")
        strides = tuple(call.get("strides") or [1] * rank)
        dilations = tuple(call.get("dilations") or [1] * rank)
        reach = [(taps - 1) * by + 1 for taps, by in zip(kernel, dilations, strict=True)]
        mode, pads = call.get("auto_pad", "NOTSET"), [(0, 0)] * rank
        if mode == "NOTSET":
            given = call.get("pads") or [0] * (2 * rank)
            pads = list(zip(given[:rank], given[rank:], strict=True))
        elif mode != "VALID":
            needs = [
                max((-(-size // stride) - 1) * stride + span - size, 0)
                for size, stride, span in zip(image, strides, reach, strict=True)
            ]
            pads = [(n // 2, n - n // 2) for n in needs]
            pads = [pad[::-1] for pad in pads] if mode == "SAME_LOWER" else pads
        beyond = [0] * rank
        if call.get("ceil_mode", 0):
            for axis, (before, after) in enumerate(pads):
                size, stride = image[axis] + before + after, strides[axis]
                places = -(-(size - reach[axis]) // stride) + 1
                if (places - 1) * stride >= image[axis] + before:  # would see padding only
                    places -= 1
                beyond[axis] = max((places - 1) * stride + reach[axis] - size, 0)
        return cls(kernel, strides, dilations, tuple(pads), tuple(beyond))

    @property
    def taps(self) -> Sizes:
        """The axes of a window's taps in what `see` gives."""
        rank = len(self.kernel)
        return tuple(range(2 + rank, 2 + 2 * rank))

    def padded(self) -> Windows:
        """The same over an image that has its padding."""
        return replace(self, pads=((0, 0),) * len(self.pads))

    def see(self, x: Array, pad: Any) -> Array:
        """(N, C, places..., taps...) of images (N, C, ...), `pad` beside them."""
        around = [(a, b + more) for (a, b), more in zip(self.pads, self.beyond, strict=True)]
        padded = np.pad(x, [(0, 0), (0, 0), *around], constant_values=pad)
        sizes = zip(self.kernel, self.dilations, strict=True)
        reach: Any = tuple((taps - 1) * by + 1 for taps, by in sizes)
        axes: Any = tuple(range(2, 2 + len(self.kernel)))
        seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axes)
        steps = tuple(slice(None, None, by) for by in (*self.strides, *self.dilations))
        return seen[(slice(None), slice(None), *steps)]
