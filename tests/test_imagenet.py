# SPDX-License-Identifier: Apache-2.0
"""Networks of the size that people bring: compiled in bounds, and run whole, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from imagenet import CLASSES, NETWORKS, images
from pynq_bbs import Accelerator, load_onnx
from pynq_bbs import compile as compile_model
from pynq_bbs.compress.activations import run_float
from pynq_bbs.pack.fits import least_use

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", NETWORKS)
def test_one_image_verified(name: str) -> None:
    """Image memory in bands of rows, 112 x 112 depthwise, clips, an average of 7 x 7, 1000 rows;
    and the integers are the network's, as far as INT8 shows it."""
    model = load_onnx(NETWORKS[name]())
    x = images(2)
    program = compile_model(model, calibration=x)
    use = least_use(program)
    assert 2 * use.activations < use.unshared
    with Accelerator(program, "standin", verify=True) as accelerator:
        y = accelerator.run(x[:1])
        assert accelerator.report().verified_columns == 1
    floats = run_float(model, x[:1])[model.outputs[0].tensor]
    assert y.shape == floats.shape == (1, CLASSES)
    assert np.corrcoef(y[0], floats[0])[0, 1] > 0.9
    with Accelerator(program, "standin") as accelerator:  # activations share memory
        np.testing.assert_array_equal(accelerator.run(x[:1]), y)


def test_resnet18_compiles_within_30_seconds_and_2_gb() -> None:
    """On any machine that is not overloaded: it takes a tenth of both on an idle one."""
    command = [sys.executable, str(BENCHMARKS / "imagenet.py"), "resnet18", "--samples", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    _, load, compiled, weights, megabytes, _ = done.stdout.splitlines()[-1].split()
    assert float(weights) == 11.7
    assert float(load) + float(compiled) < 30
    assert float(megabytes) < 2000
