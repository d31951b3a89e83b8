# SPDX-License-Identifier: Apache-2.0
"""ONNX's own node tests, compiled: each operator on the engine, on the host, or on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynq_bbs import Accelerator
from pynq_bbs import compile as compile_model
from pynq_bbs.model.graph import Model, QuantModel
from pynq_bbs.model.onnx_file import MIN_OPSET
from pynq_bbs.model.onnx_segments import Part
from pynq_bbs.model.partition import Partition, read_model
from pynq_bbs.pipeline_accelerator import run_named
from test_operators import cases, data_of

onnx = pytest.importorskip("onnx")

#: What one layer of INT8 may be off, as a part of the largest value.
_INT8_ERROR = 0.02


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_node_compiled(case: Any) -> None:
    """What is not the first input is constant, as it is in models.

    Exact where the model is quantised, as close as the node test asks where it is all the host's,
    and to INT8 where floats are quantised.
    """
    proto = onnx.load(Path(case.model_dir) / "model.onnx")
    folder = Path(case.model_dir) / "test_data_set_0"
    feeds = data_of(folder, "input", proto.graph.input)
    if not feeds or not next(iter(feeds.values())).size or not next(iter(feeds.values())).ndim:
        pytest.skip("there is no batch")
    if any(opset.version < MIN_OPSET for opset in proto.opset_import):
        pytest.skip(f"older than operator set {MIN_OPSET}")
    proto.ir_version = max(proto.ir_version, 4)  # from there on constants are no inputs
    first, *rest = list(proto.graph.input)
    del proto.graph.input[1:]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(feeds[given.name], given.name) for given in rest
    )
    found, x = read_model(proto), feeds[first.name]
    stages = found.stages if isinstance(found, Partition) else [found]
    models = [stage.model if isinstance(stage, Part) else stage for stage in stages]
    program = compile_model(found, calibration=x)
    with Accelerator(program, "standin", verify=True) as accelerator:
        results = run_named(accelerator, {first.name: x})
    for name, expected in data_of(folder, "output", proto.graph.output).items():
        assert results[name].dtype == expected.dtype
        assert results[name].shape == expected.shape
        if any(isinstance(found, Model) for found in models):
            largest = np.abs(expected).max(initial=0)
            np.testing.assert_allclose(results[name], expected, 0, _INT8_ERROR * largest)
        elif any(isinstance(found, QuantModel) for found in models):
            np.testing.assert_array_equal(results[name], expected)
        else:
            np.testing.assert_allclose(results[name], expected, case.rtol, case.atol)
