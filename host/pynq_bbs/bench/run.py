# SPDX-License-Identifier: Apache-2.0
"""A benchmark from beginning to end: open all candidates, let them take turns, compare outputs.

Scenarios are MLPerf's. Single stream: one sample a query, the next one as soon as the last is
answered; what counts is the time of a query. Offline: all samples in one query; what counts is
samples a second.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..boards import load_board
from ..pack.cycles import Memory
from ..pack.pipeline import Pipeline
from ..pack.program import Program
from .contestants import Own, open_devices, open_peers
from .layers import Cost, clocks, dense_macs
from .machine import facts, load
from .measure import Candidate, Turns, interleave
from .options import EMULATED, Options
from .peaks import measure_peaks
from .peers import (
    Form,
    Rounding,
    Verdict,
    check,
    competing,
    judge_own,
    limit_threads,
)
from .power import Meter, find_meter
from .record import Entry, Record
from .subject import Subject, batch_of, programs_of, samples_in, taken

#: Turns of an emulator, whose own time is of no interest: enough to say what it was.
_EMULATOR_TURNS = 1


def benchmark(
    subject: Subject,
    x: dict[str, NDArray[Any]],
    options: Options,
    progress: Callable[[str, float], None] | None = None,
) -> Record:
    """Measure `subject` on the batch `x`, which has `options.samples` samples.

    Args:
        progress: called with the scenario and the share of its time that is over, 0 to 1.

    Raises:
        InputError: `x` does not fit the model. BuildError: unknown board.
        DeviceError: no device at all can be opened. ToolchainError: there is no compiler.
    """
    load_board(options.board)  # an unknown one is no matter of a single device
    machine = facts()
    blas = limit_threads(options.threads)
    peaks = measure_peaks(options.threads)
    meter, energy = find_meter(options.power)
    missing: dict[str, str] = {}
    entries: list[Entry] = []
    with ExitStack() as cleanup:
        one = _queries("single-stream", x, subject.program)[0]
        own = open_devices(subject, options, one, missing, cleanup)
        forms = open_peers(subject, options, one, missing)
        for scenario in options.scenarios:
            told = partial(progress, scenario) if progress else None
            queries = _queries(scenario, x, subject.program)
            bench = _Scenario(scenario, subject, options, own, forms, queries)
            entries += bench.entries(meter, told)
    return Record(
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        _about(subject),
        machine | {"load after": load(), "energy": energy},
        {
            "threads": str(options.threads),
            "threads of numpy's BLAS": blas,
            "samples of an offline query": str(options.samples),
            "seconds of a scenario, at most": f"{options.seconds:g}",
        },
        peaks.bytes_per_second,
        peaks.macs_per_second,
        entries,
        missing,
        [*subject.notes, *_offered(forms)],
    )


def _about(subject: Subject) -> dict[str, str]:
    program = subject.program
    return {
        "file": subject.file,
        "name": program.name,
        "build": program.build.name,
        "layers": str(sum(len(part.layers) for part in programs_of(program))),
        "sparsity": f"{program.sparsity:.1%}",
        "bytes of weights and indices": str(program.weight_bytes),
        "of the dense mode": str(subject.dense.weight_bytes) if subject.dense else "the same",
    }


def _offered(forms: dict[str, list[Form]]) -> list[str]:
    return [
        f"{library}: the fastest of {', '.join(form.name for form in offered)}"
        for library, offered in forms.items()
        if len(offered) > 1
    ]


def _queries(
    scenario: str, x: dict[str, NDArray[Any]], program: Program | Pipeline
) -> list[dict[str, NDArray[Any]]]:
    """Of a single stream as few samples each as the model takes."""
    if scenario == "offline":
        return [x]
    step = batch_of(program)
    starts = range(0, samples_in(program, x), step)
    return [taken(program, x, range(start, start + step)) for start in starts]


@dataclass
class _Scenario:
    """One scenario with all who compete in it."""

    name: str
    subject: Subject
    options: Options
    own: list[Own]
    forms: dict[str, list[Form]]
    queries: list[dict[str, NDArray[Any]]]

    @property
    def samples(self) -> int:
        """Of a query."""
        return samples_in(self.subject.program, self.queries[0])

    def entries(self, meter: Meter | None, progress: Callable[[float], None] | None) -> list[Entry]:
        """Measure, and put together what was found."""
        reference = self.own[0].accelerator.run(self.queries[0])
        verdicts = {
            o.name: judge_own(check(reference, o.accelerator.run(self.queries[0])))
            for o in self.own
        }
        before = {o.name: deepcopy(o.accelerator.report()) for o in self.own}
        stamps: dict[str, list[NDArray[np.float64]]] = {o.name: [] for o in self.own}
        rounding = _rounding(self.subject.program)
        chosen = [
            peer
            for forms in self.forms.values()
            for peer in competing(forms, reference, self.queries[0], rounding)
        ]
        candidates = [self._candidate(o, stamps[o.name]) for o in self.own]
        candidates += [Candidate(form.label, self._asks(form.run)) for form, _ in chosen]
        turns = interleave(
            candidates,
            self.options.seconds,
            on_turn=meter.sample if meter else None,
            progress=progress,
        )
        joules = {name: _joules(taken, meter) for name, taken in turns.items()}
        entries = []
        for o in self.own:
            entry = self._entry(o.name, o.role, turns[o.name], verdicts[o.name])
            cost = Cost.between(before[o.name], o.accelerator.report(), stamps[o.name])
            entries.append(self._with_cost(entry, o, cost))
        for form, verdict in chosen:
            entries.append(self._entry(form.label, "peer", turns[form.label], verdict))
        return [replace(entry, joules=joules[entry.name]) for entry in entries]

    def _candidate(self, own: Own, stamps: list[NDArray[np.float64]]) -> Candidate:
        """One of ours, its clocks behind every run put into `stamps`."""
        pipeline = isinstance(own.program, Pipeline)  # whose report is made anew
        report = own.accelerator.report()
        return Candidate(
            own.name,
            self._asks(own.accelerator.run),
            _EMULATOR_TURNS if own.device == EMULATED else 0,
            lambda: stamps.append(clocks(own.accelerator.report() if pipeline else report)),
        )

    def _asks(self, run: Callable[[Any], Any]) -> Callable[[int], Any]:
        """`run` on one query after the other, from the first one again after the last."""
        queries, count = self.queries, len(self.queries)
        return lambda index: run(queries[index % count])

    def _entry(self, name: str, role: str, turns: Turns, verdict: Verdict) -> Entry:
        return Entry(
            name,
            role,
            self.name,
            self.samples,
            turns.seconds,
            verdict.words,
            verdict.same,
            verdict.wrong,
            dense_macs(self.subject.program, self.samples),
        )

    def _with_cost(self, entry: Entry, own: Own, cost: Cost) -> Entry:
        cpu, board = own.device == "cpu", load_board(self.options.board)
        return replace(
            entry,
            emulated=own.device == EMULATED,
            parts=cost.parts,
            stages=cost.stages,
            layers=cost.figures(own.program, self.samples, cpu=cpu),
            modelled=None
            if cpu
            else cost.modelled(own.program.build, board.name, Memory.of(board)),
        )


def _rounding(program: Program | Pipeline) -> Rounding:
    """Of the outputs, where all are INT8 and have no functions behind them; sums are exact."""
    if isinstance(program, Pipeline):
        return Rounding(0.0, True)
    unit, deep = 0.0, len(program.layers) > 1
    for output in program.outputs:
        if output.functions or program.tensors[output.tensor].bits > 8:
            return Rounding(0.0, deep)
        unit = max(unit, float(output.scale.max()) if output.dtype == "float32" else 1.0)
    return Rounding(unit, deep)


def _joules(turns: Turns, meter: Meter | None) -> float | None:
    """Of a query; None is unknown."""
    if meter is None:
        return None
    spent = [meter.between(*span) for span in turns.spans]
    known = [joules for joules in spent if joules is not None]
    if not known or len(known) < len(spent):
        return None
    return sum(known) / sum(map(len, turns.seconds))
