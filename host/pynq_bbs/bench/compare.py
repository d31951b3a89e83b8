# SPDX-License-Identifier: Apache-2.0
"""Two records compared: what changed, and whether that is more than noise.

The test is Mann and Whitney's U over the medians of turns, two-sided, by the normal distribution
with correction for ties and continuity: that of `scipy.stats.mannwhitneyu(method="asymptotic")`,
in a few lines of our own, because boards have no scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import BbsError
from ..report import table
from .measure import Turns
from .record import Entry, Record
from .report_text import seconds_text

#: Differences that chance makes less often than this are called real, if they are also larger
#: than `LEAST`: with thousands of turns, nothing is too small to be significant.
LEVEL = 0.01
LEAST = 0.01


class SlowerError(BbsError):
    """A measurement got slower by more than the user allows."""

    exit_code = 13


@dataclass(frozen=True)
class Change:
    """One candidate in one scenario: seconds of a query before and after.

    `p` is the chance of such a difference between equals; None of modelled figures, which have no
    noise.
    """

    name: str
    scenario: str
    before: float
    after: float
    p: float | None

    @property
    def share(self) -> float:
        """How much more time it takes, 0.1 is 10 % more."""
        return self.after / self.before - 1

    @property
    def real(self) -> bool:
        """Whether the change is more than noise."""
        if self.p is None:
            return self.after != self.before
        return self.p < LEVEL and abs(self.share) > LEAST

    @property
    def words(self) -> str:
        """What it means."""
        if not self.real:
            return "the same" if self.p is None else "noise"
        return "slower" if self.share > 0 else "faster"


def mann_whitney(
    a: Sequence[float] | NDArray[np.float64], b: Sequence[float] | NDArray[np.float64]
) -> float:
    """The chance that samples of one distribution differ in rank as much as `a` and `b` do."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    both = np.concatenate([x, y])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m, total = len(x), len(y), len(both)
    u = ranks[:n].sum() - n * (n + 1) / 2
    ties = float((counts.astype(np.float64) ** 3 - counts).sum())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:  # all are equal
        return 1.0
    z = (max(u, n * m - u) - n * m / 2 - 0.5) / math.sqrt(variance)
    return min(1.0, math.erfc(z / math.sqrt(2)))


def changes(before: Record, after: Record) -> list[Change]:
    """Of every candidate that is in both records, with as many samples a query."""
    found = {_key(entry): entry for entry in before.entries}
    result = []
    for entry in after.entries:
        old = found.get(_key(entry))
        if old is None:
            continue
        p = None
        if not entry.emulated:
            p = mann_whitney(Turns(old.turns).medians(), Turns(entry.turns).medians())
        result.append(Change(entry.name, entry.scenario, old.seconds, entry.seconds, p))
    return result


def text_comparison(before: Record, after: Record) -> str:
    """What `bbs bench compare` prints."""
    found = changes(before, after)
    rows = [("candidate", "scenario", "before", "after", "change", "p", "what it is")]
    rows += [
        (
            c.name,
            c.scenario,
            seconds_text(c.before),
            seconds_text(c.after),
            f"{c.share:+.1%}",
            "modelled" if c.p is None else f"{c.p:.2g}",
            c.words,
        )
        for c in found
    ]
    parts = [table(rows)] if found else ["nothing was measured in both records"]
    parts.append(
        f"slower, faster: p below {LEVEL:g} by Mann-Whitney U over the medians of turns (our own "
        f"lines, as scipy's asymptotic method), and more than {LEAST:.0%}; modelled figures have "
        "no noise. A machine that was busier in one of the runs makes a real difference too: see "
        "whether the peers changed as well."
    )
    both = {_key(e) for e in before.entries} & {_key(e) for e in after.entries}
    for words, record in (("before", before), ("after", after)):
        only = [f"{e.name}, {e.scenario}" for e in record.entries if _key(e) not in both]
        parts += [f"only {words}: {'; '.join(only)}"] if only else []
    parts += _different(before, after)
    return "\n".join(parts)


def check_slower(before: Record, after: Record, percent: float) -> None:
    """Raises SlowerError where one of our own devices got really slower by more than `percent`."""
    own = {_key(entry) for entry in after.entries if entry.role != "peer"}
    worst = [
        c for c in changes(before, after)
        if c.real and 100 * c.share > percent and (c.name, c.scenario) in {k[:2] for k in own}
    ]  # fmt: skip
    if worst:
        texts = [f"{c.name}, {c.scenario}: {c.share:+.1%}" for c in worst]
        raise SlowerError(f"slower by more than {percent:g} %: {'; '.join(texts)}")


def _key(entry: Entry) -> tuple[str, str, int]:
    return entry.name, entry.scenario, entry.samples


def _different(before: Record, after: Record) -> list[str]:
    """Facts that are not the same: what may be behind a change."""
    lines = []
    for kind in ("model", "machine", "settings"):
        old, new = getattr(before, kind), getattr(after, kind)
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                lines.append(f"{kind}, {name}: {old.get(name, '-')} -> {new.get(name, '-')}")
    return lines
