# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules, through torch's own ONNX export.

Needs torch and onnxscript, which are imported when a module is given and never before.
"""

from __future__ import annotations

import warnings
from typing import Any

from ..errors import InputError, ModelError
from .graph import Model, QuantModel
from .onnx_file import read_graph
from .onnx_sequences import batch_axes
from .partition import Partition, read_model


def load_torch(module: Any, example_input: Any) -> Model | QuantModel | Partition:
    """What a PyTorch module computes at inference, as `read_model` gives it.

    It is exported in evaluation mode, and left as it was. The batch is kept open where the module
    lets torch do so, else the model's is that of the example; either way programs run any batch.

    Args:
        module: a `torch.nn.Module` whose `forward` takes tensors.
        example_input: a tensor or array as `forward` takes it, or a tuple of them.

    Raises:
        InputError: the example is no tensor, or an empty one.
        ModelError: torch cannot export the module.
        UnsupportedModelError: it has operators that cannot run; all are listed at once.
    """
    examples = _examples(example_input)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        return read_model(_exported(module, examples))
    finally:
        for part, training in modes:
            part.training = training


def _examples(given: Any) -> tuple[Any, ...]:
    import torch

    made = []
    for number, example in enumerate(given if isinstance(given, (tuple, list)) else (given,)):
        try:
            tensor = torch.as_tensor(example)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"example input {number} is not a tensor: {error}") from None
        if tensor.ndim == 0 or tensor.numel() == 0:
            raise InputError(
                f"example input {number} has shape {tuple(tensor.shape)}; give one of the shape "
                "that the module takes, with a batch"
            )
        made.append(tensor)
    return tuple(made)


def _exported(module: Any, examples: tuple[Any, ...]) -> Any:
    """An `onnx.ModelProto`, its batch open where that works."""
    import torch

    fixed = None
    axes = [0] * len(examples)
    if any(isinstance(part, (torch.nn.LSTM, torch.nn.GRU)) for part in module.modules()):
        # Which axis is the batch, the graph tells.
        fixed = _export(module, examples, None)
        axes = list(batch_axes(read_graph(fixed)).values())
    if len(axes) == len(examples):
        # Torch takes a batch of one for a constant.
        several = tuple(
            torch.cat([example, example], axis) if example.shape[axis] == 1 else example
            for example, axis in zip(examples, axes, strict=True)
        )
        batch = torch.export.Dim("batch")
        try:
            return _export(module, several, tuple({axis: batch} for axis in axes))
        except ModelError:
            pass  # something in it depends on the batch, or a constant is broadcast over it
    return _export(module, examples, None) if fixed is None else fixed


def _export(module: Any, examples: tuple[Any, ...], dynamic_shapes: Any) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how torch is written
            program = torch.onnx.export(
                module, examples, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False
            )
    except ImportError as error:
        raise ModelError(
            f"exporting a module needs {error.name}: pip install 'pynq-bbs[torch]'."
        ) from None
    except Exception as error:  # whatever stands in the way of torch's exporter
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[0] if lines else type(error).__name__)[:300]
        raise ModelError(
            f"torch cannot export {type(module).__name__}: {reason} "
            "(torch.onnx.export(..., dynamo=True) says more)"
        ) from None
    return program.model_proto
