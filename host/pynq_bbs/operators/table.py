# SPDX-License-Identifier: Apache-2.0
"""Every operator of the host by name, and one way to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from . import pointwise, pools, products, reductions, resizing, shapes
from .call import Array, Call

#: Operators of ONNX's own domain.
OPERATORS = {
    **pointwise.OPERATORS,
    **pools.OPERATORS,
    **products.OPERATORS,
    **reductions.OPERATORS,
    **resizing.OPERATORS,
    **shapes.OPERATORS,
}


def refusal(op: str, domain: str, attributes: Mapping[str, Any], outputs: int = 1) -> str:
    """Why the host does not run a node of so many outputs; empty where it does."""
    if domain not in ("", "ai.onnx"):
        return f"operators of domain {domain!r} are not supported"
    if op not in OPERATORS:
        return f"operator {op} is not supported"
    if attributes.get("training_mode", 0):
        return "it is in training mode; export the model for inference"
    if op == "MaxPool" and outputs > 1:
        return "only its first output is supported"
    for name in ("to", "output_dtype"):
        kind = attributes.get(name, 0)
        if kind and kind not in shapes.DTYPES:
            return f"{name} is ONNX type {kind}, which numpy has not"
    return ""


def run_operator(name: str, op: str, call: Call, inputs: Sequence[Array | None]) -> list[Array]:
    """The outputs of one node, named `name` in errors.

    Args:
        op: one that `refusal` does not refuse.
        inputs: in the node's order, None where an optional one is left out.

    Raises:
        InputError: the inputs' shapes, types or values do not fit the operator.
    """
    try:
        with np.errstate(all="ignore"):  # infinities and NaN are results as others
            results = OPERATORS[op](call, *inputs)
    except (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError) as error:
        given = ", ".join("none" if x is None else f"{x.dtype} {x.shape}" for x in inputs)
        raise InputError(f"node {name!r} ({op}) cannot take {given}: {error}") from None
    several = results if isinstance(results, tuple) else (results,)
    return [np.asarray(result) for result in several]
