# SPDX-License-Identifier: Apache-2.0
"""Bank-balanced sparse INT8 inference on PYNQ boards, emulated bit for bit on the host.

program = compile("model.onnx", sparsity=0.875, bank_size=64, calibration=samples)
with Accelerator(program, verify=True) as accelerator:
    y = accelerator.run(x)
    print(accelerator.report())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .accelerator import Accelerator as Accelerator
    from .builds import load_build as load_build
    from .compiler import compile as compile
    from .compress.prune import bank_prune as bank_prune
    from .device.session import open_device as open_device
    from .errors import BbsError as BbsError
    from .model.onnx_import import load_onnx as load_onnx
    from .model.torch_import import load_torch as load_torch
    from .noise import sensitivity as sensitivity
    from .pack.program import Program as Program

#: Name -> module. Imported at first use: the command line starts at once, and a board, which has
#: no onnx, never reaches the module that needs it.
_PLACES = {
    "Accelerator": "accelerator",
    "BbsError": "errors",
    "Program": "pack.program",
    "bank_prune": "compress.prune",
    "compile": "compiler",
    "load_build": "builds",
    "load_onnx": "model.onnx_import",
    "load_torch": "model.torch_import",
    "open_device": "device.session",
    "sensitivity": "noise",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return getattr(import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
