# SPDX-License-Identifier: Apache-2.0
"""Taking turns, what a list of times says, and whether two of them differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench_records import a_record, an_entry
from pynq_bbs.bench import measure
from pynq_bbs.bench.compare import (
    SlowerError,
    changes,
    check_slower,
    mann_whitney,
    text_comparison,
)
from pynq_bbs.bench.measure import Candidate, Turns, interleave, median_interval
from pynq_bbs.bench.record import Record
from pynq_bbs.errors import InputError

#: Seconds of a run of which two fill a turn, and of which float sums are exact.
SHORT = 1 / 128


class FakeClock:
    """Stands still but for what candidates take."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(measure, "time", fake)
    return fake


def taking(
    clock: FakeClock, name: str, seconds: Callable[[int], float], log: list[tuple[str, int]]
) -> Candidate:
    def run(index: int) -> None:
        log.append((name, index))
        clock.now += seconds(len(log))

    return Candidate(name, run)


def test_turns_begin_with_another_one_in_every_round(clock: FakeClock) -> None:
    log: list[tuple[str, int]] = []
    names = ["a", "b", "c"]
    turns = interleave([taking(clock, n, lambda _: SHORT, log) for n in names], seconds=1000)
    order = [name for name, _ in log[12:]]  # four runs each to see how many fill a turn
    runs = 1 + 2  # an untimed one, and 20 ms of 8 ms each
    begun = order[::runs]
    assert all(order[i : i + runs] == [begun[i // runs]] * runs for i in range(0, len(order), runs))
    assert begun[:9] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    # Constant times are known at once, and so it ends as soon as it may.
    assert [len(turns[n].seconds) for n in names] == [10] * 3
    assert all(t == [SHORT] * 2 for t in turns["b"].seconds)


def test_queries_go_on_from_turn_to_turn(clock: FakeClock) -> None:
    log: list[tuple[str, int]] = []
    finished: list[int] = []
    candidate = taking(clock, "a", lambda _: SHORT, log)
    candidate = replace(candidate, after=lambda: finished.append(log[-1][1]))
    interleave([candidate], seconds=0.04)
    assert [index for _, index in log] == [0, 1, 2, 3, 0, 0, 1, 2, 2, 3]
    assert finished == [0, 1, 2, 3]


def test_time_is_up_after_a_whole_round(clock: FakeClock) -> None:
    log: list[tuple[str, int]] = []
    slow = [taking(clock, n, lambda _: 7.0, log) for n in ("a", "b")]
    shares: list[float] = []
    turns = interleave(slow, seconds=1, progress=shares.append)
    assert [len(turns[n].seconds) for n in ("a", "b")] == [1, 1]
    assert shares == [1.0, 1.0]
    assert turns["b"].spans[0][1] - turns["b"].spans[0][0] == pytest.approx(7.0)


def test_noise_takes_more_turns(clock: FakeClock) -> None:
    rng, log = np.random.default_rng(0), []
    noisy = taking(clock, "a", lambda _: 0.03 * (1 + 0.2 * rng.random()), log)
    turns = interleave([noisy], seconds=1000)["a"]
    assert len(turns.seconds) > 50
    assert turns.summary().tight


def test_nobody_waits_for_a_limited_one(clock: FakeClock) -> None:
    rng, log = np.random.default_rng(0), []
    limited = replace(taking(clock, "b", lambda _: rng.random() + 1, log), most_turns=3)
    readings: list[float] = []
    turns = interleave(
        [taking(clock, "a", lambda _: 0.03, log), limited],
        seconds=1000,
        on_turn=lambda: readings.append(clock.now),
    )
    assert (len(turns["a"].seconds), len(turns["b"].seconds)) == (10, 3)
    assert len(readings) == 2 * (10 + 3)


@given(st.integers(1, 600), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_that_of_the_sign_test(n: int, confidence: float) -> None:
    binom = pytest.importorskip("scipy.stats").binom(n, 0.5)
    low, high = median_interval(np.arange(1, n + 1), confidence)
    tail = (1 - confidence) / 2
    if math.isinf(low):
        assert math.isinf(high) and binom.cdf(0) > tail * (1 - 1e-9)
    else:
        assert low + high == n + 1
        assert binom.cdf(low - 1) <= tail * (1 + 1e-9)
        assert low > n // 2 - 1 or binom.cdf(low) > tail * (1 - 1e-9)


def test_summary_is_numpys() -> None:
    rng = np.random.default_rng(1)
    times = rng.lognormal(size=(40, 7))
    s = Turns(times.tolist()).summary()
    assert s.median == np.median(np.median(times, axis=1))
    assert (s.p95, s.p99) == pytest.approx((np.quantile(times, 0.95), np.quantile(times, 0.99)))
    assert (s.least, s.runs) == (times.min(), times.size)
    assert s.low < s.median < s.high


def test_too_few_turns_are_never_tight() -> None:
    assert not Turns([[1.0]] * 5).summary().tight
    assert Turns([[1.0]] * 6).summary().tight


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=40),
    st.lists(st.integers(0, 12), min_size=2, max_size=40),
)
def test_u_test_is_scipys(a: list[int], b: list[int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    if len(set(a + b)) == 1:  # scipy divides by zero
        assert mann_whitney(a, b) == 1
        return
    expected = stats.mannwhitneyu(a, b, alternative="two-sided", method="asymptotic").pvalue
    assert mann_whitney(a, b) == pytest.approx(expected, rel=1e-9)


def noisy(rng: np.random.Generator, scale: float) -> list[list[float]]:
    return (scale * rng.normal(1, 0.03, (60, 4))).tolist()


def test_compare_tells_a_difference_from_noise() -> None:
    rng = np.random.default_rng(2)
    before = a_record([an_entry(n, noisy(rng, 1e-3)) for n in ("same", "slower", "faster")])
    scales = {"same": 1e-3, "slower": 1.1e-3, "faster": 0.9e-3}
    after = a_record([an_entry(n, noisy(rng, s)) for n, s in scales.items()])
    found = {c.name: c for c in changes(before, after)}
    assert {n: c.words for n, c in found.items()} == {
        "same": "noise",
        "slower": "slower",
        "faster": "faster",
    }
    assert found["slower"].share == pytest.approx(0.1, abs=0.02)
    text = text_comparison(before, after)
    assert "Mann-Whitney" in text and "slower" in text
    with pytest.raises(SlowerError, match="slower, single-stream: \\+"):
        check_slower(before, after, 5)
    check_slower(before, after, 20)


def test_a_slower_peer_is_not_our_failure() -> None:
    rng = np.random.default_rng(3)
    records = [
        a_record([replace(an_entry("p", noisy(rng, scale)), role="peer")]) for scale in (1.0, 2.0)
    ]
    assert changes(*records)[0].words == "slower"
    check_slower(*records, 0)


def test_small_differences_are_noise_however_sure() -> None:
    before = a_record([an_entry("a", [[1.0]] * 1000)])
    after = a_record([an_entry("a", [[1.005]] * 1000)])
    assert changes(before, after)[0].p == pytest.approx(0)
    assert not changes(before, after)[0].real


def test_modelled_figures_have_no_noise() -> None:
    before = a_record([an_entry("emulated", [[1.0]], modelled=2e-3)])
    after = a_record([an_entry("emulated", [[9.0]], modelled=2.1e-3)])
    assert changes(before, before)[0].words == "the same"
    change = changes(before, after)[0]
    assert (change.words, change.p) == ("slower", None)
    assert change.share == pytest.approx(0.05)
    with pytest.raises(SlowerError):
        check_slower(before, after, 4)


def test_what_differs_besides_is_said() -> None:
    before, after = a_record([an_entry("a", [[1.0]])]), a_record([an_entry("b", [[1.0]])])
    after.machine["commit"] = "other"
    text = text_comparison(before, after)
    assert "nothing was measured in both" in text
    assert "only before: a, single-stream" in text and "only after: b" in text
    assert "machine, commit: 0123 -> other" in text


def test_record_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    entries = [an_entry("cpu", noisy(rng, 1.0)), an_entry("emulated", [[1.0]], modelled=1e-3)]
    record = a_record(entries)
    record.save(tmp_path / "r.json")
    assert Record.load(tmp_path / "r.json") == record


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "no record"),
        ('{"kind": "bbs bench", "format": 99}', "format 99"),
        ('{"kind": "bbs bench", "format": 1}', "damaged"),
        ('{"kind": "bbs bench", "format": 1, "entries": [{"name": "a", "turns": []}]}', "damaged"),
        ('{"kind": "bbs bench", "format": 1, "entries": [7]}', "damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Record.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        Record.load(tmp_path / "missing.json")
