# SPDX-License-Identifier: Apache-2.0
"""Who takes part: our programs on open devices, and the forms of other libraries.

Each has run a sample here; who cannot is named, with the reason, and left out.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from ..accelerator import Accelerator
from ..errors import BuildError, DeviceError
from ..pack.pipeline import Pipeline
from ..pack.program import Program
from .options import Options
from .peers import SAME, Form, library_forms
from .subject import Subject


@dataclass(frozen=True)
class Own:
    """A program on an open device."""

    name: str
    role: str
    device: str
    program: Program | Pipeline
    accelerator: Accelerator


def open_devices(
    subject: Subject,
    options: Options,
    one: dict[str, NDArray[Any]],
    missing: dict[str, str],
    cleanup: ExitStack,
) -> list[Own]:
    """Ours, those that can run `one` sample."""
    programs: list[tuple[str, str, Program | Pipeline]] = [("device", "", subject.program)]
    if subject.dense:
        programs.append(("dense", " dense", subject.dense))
    elif "dense" in options.against:
        missing["dense"] = "nothing is pruned: what is measured is our dense mode"
    own = []
    for device in options.devices:
        for role, suffix, program in programs:
            try:
                accelerator = cleanup.enter_context(
                    Accelerator(
                        program,
                        device,
                        board=options.board,
                        bitfile=options.bitfile,
                        threads=options.threads,
                    )
                )
                accelerator.run(one)
            # The other devices can be measured without this one.
            except (DeviceError, BuildError) as error:
                missing[device + suffix] = str(error)
                continue
            own.append(Own(device + suffix, role, device, program, accelerator))
    if not own:
        raise DeviceError("; ".join(f"{name}: {why}" for name, why in missing.items()))
    return own


def open_peers(
    subject: Subject, options: Options, one: dict[str, NDArray[Any]], missing: dict[str, str]
) -> dict[str, list[Form]]:
    """The forms of every library that can run `one` sample."""
    forms: dict[str, list[Form]] = {}
    for library in options.against:
        if library == "dense":
            continue
        # A library that is there may still fail at this model in ways of its own.
        try:
            found = library_forms(
                library, subject.chain, subject.why_no_chain, subject.model, options.threads
            )
        except ImportError as error:
            missing[library] = f"not installed ({error})"
            continue
        except Exception as error:
            missing[library] = f"cannot run this model: {_first_line(error)}"
            continue
        for form in found:
            try:
                form.run(one)
            except Exception as error:
                missing[form.label] = f"cannot run this model: {_first_line(error)}"
                continue
            if form.library == "onnxruntime":  # it runs the file
                form = replace(form, arithmetic=_of_the_file(subject, form.arithmetic))
            forms.setdefault(form.library, []).append(form)
    return forms


def _of_the_file(subject: Subject, arithmetic: str) -> str:
    if subject.dense:
        return f"{arithmetic}, not pruned"
    return SAME if subject.quantised else arithmetic


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
