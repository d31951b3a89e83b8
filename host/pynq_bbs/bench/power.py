# SPDX-License-Identifier: Apache-2.0
"""Energy of turns, from what the machine has: RAPL counters, a board's rails, or a meter's file.

Every source is a trace of joules over time. It counts all that the machine does meanwhile, idle
power and other programs included.
"""

from __future__ import annotations

import csv
import time
import warnings
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from ..errors import InputError

_POWERCAP = Path("/sys/class/powercap")
#: Columns of a meter's file.
_COLUMNS = ("seconds", "watts")


class Meter(ABC):
    """Joules over time; `name` says what they are of."""

    name: str

    def __init__(self) -> None:
        self._times: list[float] = []
        self._joules: list[float] = []

    @abstractmethod
    def sample(self) -> None:
        """Take a reading; called before and after every turn."""

    def between(self, begun: float, ended: float) -> float | None:
        """Joules from one time (seconds since the epoch) to another; None outside of the trace."""
        if len(self._times) < 2 or begun < self._times[0] or ended > self._times[-1]:
            return None
        first, last = np.interp((begun, ended), self._times, self._joules)
        return float(last - first)


class Rapl(Meter):
    """The energy counters of the processor packages of x86."""

    def __init__(self, root: Path = _POWERCAP) -> None:
        super().__init__()
        zones = [z for z in sorted(root.glob("intel-rapl:*")) if z.name.count(":") == 1]
        self._counters = [zone / "energy_uj" for zone in zones]
        self._ranges = [int(_read(zone / "max_energy_range_uj")) for zone in zones]
        self._before = [int(_read(counter)) for counter in self._counters]
        self._total = 0
        if not zones:
            raise OSError(f"{root} has no processor package")
        names = ", ".join(_read(zone / "name") for zone in zones)
        self.name = f"RAPL: {names}"

    def sample(self) -> None:
        """As `Meter.sample`; counters start again at their range."""
        now = [int(_read(counter)) for counter in self._counters]
        for new, old, size in zip(now, self._before, self._ranges, strict=True):
            self._total += new - old if new >= old else new - old + size
        self._before = now
        self._times.append(time.time())
        self._joules.append(1e-6 * self._total)


class Rails(Meter):
    """A board's power rails by pynq's PMBus sensors, between two readings the mean of both."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pynq's own, where there are no sensors
            import pynq

            rails = pynq.get_rails()
        self._sensors = [rail.power for rail in rails.values() if getattr(rail, "power", None)]
        if not self._sensors:
            raise OSError("pynq finds no rail with a power sensor")
        self.name = f"PMBus: {len(self._sensors)} rails"
        self._watts = 0.0

    def sample(self) -> None:
        """As `Meter.sample`."""
        now, watts = time.time(), sum(float(sensor.value) for sensor in self._sensors)
        if self._times:
            mean = (watts + self._watts) / 2
            self._joules.append(self._joules[-1] + mean * (now - self._times[-1]))
        else:
            self._joules.append(0.0)
        self._times.append(now)
        self._watts = watts


class MeterFile(Meter):
    """What another program writes of a meter: a CSV file with columns seconds (since the epoch) and
    watts, read when the measurement is over."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.name = f"meter: {path.name}"

    def sample(self) -> None:
        """Nothing: the meter samples."""

    def between(self, begun: float, ended: float) -> float | None:
        """As `Meter.between`.

        Raises:
            InputError: the file is missing or holds something else.
        """
        if not self._times:
            self._load()
        return super().between(begun, ended)

    def _load(self) -> None:
        try:
            with open(self._path, newline="", encoding="utf-8") as file:
                rows = [[float(row[name]) for name in _COLUMNS] for row in csv.DictReader(file)]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{self._path} is no meter's file ({error!r}): wanted CSV with the columns "
                f"{' and '.join(_COLUMNS)}, seconds since the epoch"
            ) from None
        if len(rows) < 2 or np.any(np.diff([row[0] for row in rows]) <= 0):
            raise InputError(f"{self._path}: wanted two rows and more, in the order of time")
        times, watts = np.array(rows).T
        joules = np.cumsum((watts[1:] + watts[:-1]) / 2 * np.diff(times))
        self._times, self._joules = times.tolist(), [0.0, *joules.tolist()]


def find_meter(csv_file: Path | None) -> tuple[Meter | None, str]:
    """The best source of energy here and what it is, or None and why energy is unknown."""
    if csv_file is not None:
        meter: Meter = MeterFile(csv_file)
        return meter, meter.name
    reasons = []
    for kind in (Rapl, Rails):
        try:
            meter = kind()
            meter.sample()
            return meter, meter.name
        # pynq without a board, or a sensor that does not answer, fails in many ways.
        except Exception as error:
            reasons.append(f"{kind.__name__}: {error}")
    return None, "unknown (" + "; ".join(reasons) + "; a meter's file can be given)"


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
