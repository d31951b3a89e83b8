# SPDX-License-Identifier: Apache-2.0
"""What works on this machine: every line is found out by doing it."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass

from .errors import BbsError


@dataclass(frozen=True)
class Finding:
    """One thing that was tried; without a `needed` one nothing runs."""

    name: str
    good: bool
    text: str
    needed: bool = False


def examine() -> list[Finding]:
    """Try everything this package uses, in the order in which it is needed."""
    found = [Finding("python", True, f"{platform.python_version()} on {platform.machine()}")]
    found += [_module("numpy", "", needed=True), _module("cffi", "", needed=True)]
    found += [_compiler(), *_devices(), _self_test()]
    found.append(_module("onnx", "models cannot be compiled here; pip install 'pynq-bbs[onnx]'"))
    found.append(_module("tqdm", "no progress bars; pip install tqdm"))
    return found


def _module(name: str, otherwise: str, needed: bool = False) -> Finding:
    try:
        version = getattr(importlib.import_module(name), "__version__", "installed")
    except Exception as error:  # half-broken installations fail in many ways
        return Finding(name, False, f"{error}: {otherwise}", needed)
    return Finding(name, True, str(version), needed)


def _compiler() -> Finding:
    from .toolchain import find_compiler

    try:
        return Finding("C++ compiler", True, " ".join(find_compiler()), needed=True)
    except BbsError as error:
        return Finding("C++ compiler", False, str(error), needed=True)


def _devices() -> list[Finding]:
    from .device.session import describe

    return [Finding(f"device {a.kind}", a.available, a.reason) for a in describe()]


def _self_test() -> Finding:
    """A small layer through the driver, compared with the cpu device and with numpy."""
    import numpy as np

    from .accelerator import Accelerator
    from .compiler import compile as compile_model
    from .model.graph import QuantInput, QuantLayer, QuantModel, QuantOutput

    weights = ((np.arange(64 * 16) * 37) % 255 - 127).astype(np.int8).reshape(16, 64)
    layer = QuantLayer("layer", "x", "y", weights, np.zeros(16, np.int32), 0, None)
    model = QuantModel(
        "self-test",
        [QuantInput("x", "x", (64,), "int8", np.float32(1), 0)],
        [layer],
        [QuantOutput("y", "y", (16,), "int32")],
    )
    x = ((np.arange(40 * 64) * 91) % 256 - 128).astype(np.int8).reshape(40, 64)
    name = "self-test, emulated and verified"
    try:
        with Accelerator(compile_model(model), "emulated", verify=True) as accelerator:
            y = accelerator.run(x)
    except BbsError as error:
        return Finding(name, False, str(error), needed=True)
    good = np.array_equal(y, x.astype(np.int32) @ weights.T.astype(np.int32))
    return Finding(name, good, "bit-exact" if good else "differs from numpy", needed=True)
