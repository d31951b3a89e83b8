# SPDX-License-Identifier: Apache-2.0
"""Which tensors a model needs: only those that a linear operator or an output reads."""

from __future__ import annotations

from collections.abc import Callable

from .onnx_reader import Key, Reading
from .onnx_values import Base, Linear, ModelInput, Step, Value

#: Cuts a value's steps in two: what is part of a tensor, and what its reader does.
Split = Callable[[Value], tuple[tuple[Step, ...], tuple[Step, ...]]]


class Plan:
    """The bases that the outputs depend on, in an order in which they can run, and the forms
    (steps) in which each is needed."""

    def __init__(self, reading: Reading, split: Split) -> None:
        self.split = split
        self.forms: dict[Base, list[tuple[Step, ...]]] = {}
        self._names = reading.names
        self._used = set(reading.names.values())
        self._layers: set[str] = set()
        waiting = list(reading.outputs.values())
        while waiting:
            value = waiting.pop()
            steps, _ = split(value)
            forms = self.forms.setdefault(value.base, [])
            if steps not in forms:
                forms.append(steps)
                if len(forms) == 1 and isinstance(value.base, Linear):
                    waiting.append(value.base.source)
        # Nodes are read in an order in which they can run, so names are in that order too.
        order = list(dict.fromkeys(base for base, _ in reading.names))
        self.inputs = [b for b in order if isinstance(b, ModelInput) and b in self.forms]
        self.linears = [b for b in order if isinstance(b, Linear) and b in self.forms]

    def tensor(self, base: Base, steps: tuple[Step, ...]) -> str:
        """The tensor's name: the file's where it has one."""
        key: Key = (base, steps)
        if key not in self._names:
            self._names[key] = _unused(_title(base), self._used)
        return self._names[key]

    def layer(self, linear: Linear) -> str:
        """A name for one more layer made from this operator."""
        return _unused(linear.node, self._layers)


def _title(base: Base) -> str:
    if isinstance(base, ModelInput):
        return base.name
    return base.node if isinstance(base, Linear) else "tensor"


def _unused(name: str, used: set[str]) -> str:
    """`name`, with a number where it is taken; taken from now on."""
    unique, count = name, 1
    while unique in used:
        count += 1
        unique = f"{name}_{count}"
    used.add(unique)
    return unique
