# SPDX-License-Identifier: Apache-2.0
"""When the stages are free for a command that follows others: for the cycle model.

Cycles count from the start of the first of them. Every stage takes the commands one after the
other, so a clock each tells how far it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

#: Visits that wait before the stages (`kVisitDepth`), and the one that is worked on.
_VISITS_AHEAD = 9


@dataclass
class Arrival:
    """When the words of a tensor come out of the chain: evenly between the points."""

    words: list[float] = field(default_factory=lambda: [0.0])
    times: list[float] = field(default_factory=lambda: [0.0])

    def add(self, words: float, begin: float, end: float) -> None:
        """So many words more, from `begin` to `end`."""
        begin = max(begin, self.times[-1])
        self.words += [self.words[-1], self.words[-1] + words]
        self.times += [begin, max(begin, end)]

    def when(self, words: float) -> float:
        """So many have come."""
        return float(np.interp(words, self.words, self.times))


@dataclass
class Clocks:
    told: float = 0.0  # when the stages are told of the command
    gathered: float = 0.0  # the gathering is free
    taken: float = 0.0  # the multipliers have taken all that it has written
    columns: float = 0.0  # columns of tiles are worked out
    ahead: float = 0.0  # half of the vector buffer is free for the next command
    worked: float = 0.0  # the multipliers are free
    weights: float = 0.0  # the last weights have come
    rows: float = 0.0  # row parameters have come
    drained: float = 0.0  # outputs are made
    served: float = 0.0  # by the memory
    visits: deque[float] = field(
        default_factory=lambda: deque(maxlen=_VISITS_AHEAD)
    )  # their starts
    chain: deque[Arrival] = field(default_factory=deque)  # tensors, the next one first

    def sequenced(self) -> float:
        """When the stages have room for the last visit of the command."""
        return self.visits[0] if len(self.visits) == _VISITS_AHEAD else 0.0
