# SPDX-License-Identifier: Apache-2.0
"""Faults in device memory, and what the message about one says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pynq_bbs.device.engine import EngineProgram
from pynq_bbs.errors import VerificationError
from pynq_bbs.pack.plan import Plan


def damage(monkeypatch: pytest.MonkeyPatch, word: int, bits: int) -> None:
    """From now on a word of every image is wrong once it is in device memory."""
    true_load = EngineProgram._load

    def load(self: EngineProgram, plan: Plan) -> None:
        true_load(self, plan)
        np.asarray(self._block)[word] = self._program.image[word] ^ np.uint64(bits)
        self._block.flush()

    monkeypatch.setattr(EngineProgram, "_load", load)


def sums_of(error: VerificationError) -> tuple[int, int]:
    """The device's and the cpu device's sum that a message names."""
    found = re.search(r"\(sums (-?\d+) and (-?\d+)\)", str(error))
    assert found is not None
    return int(found[1]), int(found[2])
