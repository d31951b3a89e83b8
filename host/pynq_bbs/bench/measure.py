# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing, and what a list of times says.

Whoever is measured takes turns with the others: a machine that gets slower for a while gets slower
for all of them. A turn is one untimed run, which brings caches back, and some timed ones. Runs of a
turn share its luck, so the median and its interval are those of the turns' own medians; the tail is
that of all runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Of the interval of the median.
CONFIDENCE = 0.95
#: Half the interval's width at most, as a share of the median, for a measurement to be tight.
TIGHT = 0.01
#: Seconds that a turn takes, about, and runs of one at most.
_TURN_S = 0.02
_MOST_RUNS = 32
_WARM_UPS = 4
#: Who takes longer at the first time is not warmed up further.
_SLOW_S = 0.2
_LEAST_TURNS = 10
_MOST_TURNS = 2000


@dataclass(frozen=True)
class Summary:
    """Seconds. `low` and `high` are the interval of the median; infinite with too few turns."""

    median: float
    low: float
    high: float
    p95: float
    p99: float
    least: float
    runs: int

    @property
    def tight(self) -> bool:
        """Whether the median is known well enough to stop."""
        return self.high - self.low <= 2 * TIGHT * self.median


@dataclass
class Turns:
    """All that was timed of one candidate: by turn when it began and ended (seconds since the
    epoch, the untimed run left out) and how long every run took."""

    seconds: list[list[float]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)

    def medians(self) -> NDArray[np.float64]:
        """One number a turn: the repeats that count as independent."""
        return np.array([float(np.median(turn)) for turn in self.seconds])

    def summary(self) -> Summary:
        """What the turns say.

        Raises:
            ValueError: there is no turn.
        """
        medians, every = self.medians(), np.concatenate([np.array(t) for t in self.seconds])
        low, high = median_interval(medians)
        p95, p99 = (float(v) for v in np.quantile(every, (0.95, 0.99)))
        return Summary(
            float(np.median(medians)), low, high, p95, p99, float(every.min()), len(every)
        )


@dataclass(frozen=True)
class Candidate:
    """Whoever takes turns: `run(i)` runs the i-th query, `after` is called behind every timed run,
    when the clock has stopped. `most_turns` 0 is as many as there are; a limit is for those whose
    time is of no interest, and nobody waits for theirs to be tight."""

    name: str
    run: Callable[[int], Any]
    most_turns: int = 0
    after: Callable[[], None] | None = None


def median_interval(
    values: Sequence[float] | NDArray[np.float64], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The interval of the median that holds for any distribution: the k-th value from either end.

    k is the largest with P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2, and the interval is
    without bounds where there is none, as with five values or fewer at 95 %.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    k = _order(len(ordered), (1 - confidence) / 2)
    if k == 0:
        return -math.inf, math.inf
    return float(ordered[k - 1]), float(ordered[-k])


def _order(n: int, tail: float) -> int:
    """The largest k with P(Binomial(n, 1/2) <= k - 1) <= tail, 0 if there is none."""
    cumulated, k = 0.0, 0
    log_half = n * math.log(0.5)
    while k < n // 2:
        choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        cumulated += math.exp(choose + log_half)
        if cumulated > tail:
            break
        k += 1
    return k


def interleave(
    candidates: Sequence[Candidate],
    seconds: float,
    *,
    on_turn: Callable[[], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Turns]:
    """Times of every candidate, by name; all have run before, so that nothing is built in a turn.

    In every round each takes a turn, and who begins moves on by one. It ends with the round in
    which `seconds` are over, or all medians are tight; each candidate has one turn at least.

    Args:
        on_turn: called before and after every turn, outside of what is timed.
        progress: called after every turn with the share of `seconds` that is over, 0 to 1.
    """
    runs = {c.name: _runs_of_a_turn(c) for c in candidates}
    turns = {c.name: Turns() for c in candidates}
    queries = dict.fromkeys(runs, 0)
    start, rounds = time.perf_counter(), 0
    while rounds < _MOST_TURNS:
        for place in range(len(candidates)):
            candidate = candidates[(rounds + place) % len(candidates)]
            taken = turns[candidate.name]
            if candidate.most_turns and len(taken.seconds) >= candidate.most_turns:
                continue
            if on_turn:
                on_turn()
            _turn(candidate, runs[candidate.name], queries, taken)
            if on_turn:
                on_turn()
            if progress:
                progress(min((time.perf_counter() - start) / seconds, 1.0))
        rounds += 1
        over = time.perf_counter() - start >= seconds
        if over or (rounds >= _LEAST_TURNS and _all_tight(candidates, turns)):
            break
    return turns


def _runs_of_a_turn(candidate: Candidate) -> int:
    """How many runs of a candidate fill a turn, by the fastest of some, which warm it up."""
    least = float("inf")
    for index in range(_WARM_UPS):
        start = time.perf_counter()
        candidate.run(index)
        least = min(least, time.perf_counter() - start)
        if index == 0 and least > _SLOW_S:
            return 1
    return int(min(max(_TURN_S / max(least, 1e-9), 1), _MOST_RUNS))


def _turn(candidate: Candidate, runs: int, queries: dict[str, int], taken: Turns) -> None:
    query, clock, run = queries[candidate.name], time.perf_counter, candidate.run
    if runs > 1:  # a run that fills a turn by itself is not worth running twice
        run(query)
    begun, times = time.time(), []
    for index in range(query, query + runs):
        start = clock()
        run(index)
        times.append(clock() - start)
        if candidate.after:
            candidate.after()
    taken.spans.append((begun, time.time()))
    taken.seconds.append(times)
    queries[candidate.name] = query + runs


def _all_tight(candidates: Sequence[Candidate], turns: Mapping[str, Turns]) -> bool:
    return all(turns[c.name].summary().tight for c in candidates if not c.most_turns)
