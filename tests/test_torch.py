# SPDX-License-Identifier: Apache-2.0
"""Models from PyTorch: files that both of its exporters wrote, and modules where torch is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_build import onnx
from oracle import run_onnxruntime
from pynq_bbs import Accelerator, load_onnx, load_torch
from pynq_bbs import compile as compile_model
from pynq_bbs.errors import InputError, ModelError, UnsupportedModelError
from pynq_bbs.model.onnx_import import check_onnx
from pynq_bbs.model.partition import Partition

FILES = sorted((Path(__file__).parent / "models").glob("*.onnx"))
#: How far what comes out may be off: inputs are normal, weights as torch begins with.
ALLOWED = 0.05


def feeds_of(proto: Any, samples: int) -> dict[str, Any]:
    """Random inputs; states lie within 1."""
    rng, feeds = np.random.default_rng(0), {}
    for number, spec in enumerate(proto.graph.input):
        dims = spec.type.tensor_type.shape.dim
        shape = [d.dim_value or samples for d in dims]
        feeds[spec.name] = rng.standard_normal(shape).astype(np.float32)
        if number:
            feeds[spec.name] = np.tanh(feeds[spec.name])
    return feeds


def first(proto: Any, feeds: dict[str, Any], samples: int) -> dict[str, Any]:
    """Of these the first samples."""
    axes = {
        spec.name: [d.dim_value for d in spec.type.tensor_type.shape.dim].index(0)
        for spec in proto.graph.input
    }
    return {name: x.take(range(samples), axes[name]) for name, x in feeds.items()}


def outputs(program: Any, feeds: dict[str, Any]) -> list[Any]:
    """On the emulated engine, every layer compared with the cpu device."""
    with Accelerator(program, device="standin", verify=True, strict=True) as accelerator:
        made = accelerator.run(feeds)
    return list(made.values()) if isinstance(made, dict) else [made]


def build_of(proto: Any) -> str:
    recurrent = any(node.op_type in ("LSTM", "GRU") for node in proto.graph.node)
    return "32x4x1" if recurrent else "8x32"


def test_both_exporters_wrote_every_model() -> None:
    names = [path.stem.rsplit("-", 1) for path in FILES]
    assert len(names) == 16 and all(path.stat().st_size < 150_000 for path in FILES)
    assert {kind for _, kind in names} == {"dynamo", "script"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_exported_models(path: Path) -> None:
    proto = onnx.load(path)
    assert "unsupported" not in {c.runs for c in check_onnx(path)}
    calibration = feeds_of(proto, 40)
    program = compile_model(path, calibration=calibration, build=build_of(proto))
    for samples in (1, 2, 5):
        feeds = first(proto, calibration, samples)
        wanted = run_onnxruntime(proto, feeds, optimise=False)
        for made, want in zip(outputs(program, feeds), wanted, strict=True):
            assert made.shape == want.shape
            assert np.abs(made - want).max() <= ALLOWED


@pytest.mark.parametrize("path", [p for p in FILES if "lstm2-" in p.stem or "gru2-" in p.stem],
                         ids=lambda path: path.stem)  # fmt: skip
def test_exported_models_pruned(path: Path) -> None:
    proto = onnx.load(path)
    feeds = feeds_of(proto, 4)
    program = compile_model(path, calibration=feeds, build="32x4x1", sparsity=0.5, bank_size=4)
    assert all(2 * la.keep == la.bank_size for la in program.layers if la.cell)
    assert all(np.isfinite(made).all() for made in outputs(program, feeds))


def test_torch_is_not_imported() -> None:
    code = (
        "import pynq_bbs, sys; pynq_bbs.load_torch; pynq_bbs.compile; print('torch' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "False"


def test_an_example_is_for_modules() -> None:
    with pytest.raises(
        InputError, match="example_input is for PyTorch modules, the model is a Pos"
    ):
        compile_model(FILES[0], np.zeros((1, 5), np.float32))


# -- where torch is installed --------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    pytest.importorskip("onnxscript")
    module = pytest.importorskip("torch")
    module.manual_seed(0)
    return module


@pytest.mark.parametrize(
    ("kind", "layers", "more", "shape"),
    [
        ("LSTM", 2, {}, (5, 2, 3)),
        ("LSTM", 1, {"batch_first": True, "bidirectional": True}, (2, 5, 3)),
        ("GRU", 2, {"batch_first": True}, (1, 5, 3)),
        ("GRU", 1, {"bias": False}, (5, 1, 3)),
    ],
)
def test_recurrent_modules(torch: Any, kind: str, layers: int, more: Any, shape: Any) -> None:
    """Y and the last values, with samples from one to more than the example has."""

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = getattr(torch.nn, kind)(3, 7, layers, **more)

        def forward(self, x: Any) -> Any:
            y, last = self.cells(x)
            return (y, *last) if isinstance(last, tuple) else (y, last)

    module, axis = Module(), 0 if more.get("batch_first") else 1
    sizes = list(shape)
    sizes[axis] = 30
    program = compile_model(
        module, torch.randn(shape), calibration=torch.randn(sizes), build="32x4x1"
    )
    assert module.training and module.cells.training
    for samples in (1, 3, 6):
        sizes[axis] = samples
        x = torch.randn(sizes)
        wanted = [w.detach().numpy() for w in module(x)]
        for made, want in zip(outputs(program, {"x": x.numpy()}), wanted, strict=True):
            assert made.shape == want.shape and np.abs(made - want).max() <= ALLOWED


def test_a_convolution_in_training(torch: Any) -> None:
    """It is exported for inference, and trains on."""
    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(4 * 25, 6),
    )  # fmt: skip
    module[3].eval()
    x = torch.randn(64, 2, 7, 7)
    module(x)
    before = [part.training for part in module.modules()]
    model = load_torch(module, x[:1])
    assert [part.training for part in module.modules()] == before
    (made,) = outputs(compile_model(model, calibration=x), {model.inputs[0].name: x[:9].numpy()})
    module.eval()
    want = module(x[:9]).detach().numpy()
    assert np.sqrt(np.mean((made - want) ** 2)) <= 0.03 * want.std()


def test_a_batch_that_cannot_be_open(torch: Any) -> None:
    """A constant as large as the example's batch: torch refuses an open one."""

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            return self.linear(x.view(2, 4))

    x = torch.randn(2, 4)
    (made,) = outputs(compile_model(Module(), x, calibration=x), {"x": x.numpy()})
    assert made.shape == (2, 3)


def test_refused_modules(torch: Any) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ModelError, match="torch cannot export Branching: "):
        load_torch(Branching(), torch.zeros(1, 2))

    class Determinant(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.det(x)

    assert isinstance(load_torch(torch.nn.LayerNorm(4), torch.zeros(1, 4)), Partition)
    with pytest.raises(UnsupportedModelError, match="has no Det"):
        load_torch(Determinant(), torch.zeros(1, 2, 2))
    with pytest.raises(InputError, match="needs an example of its input"):
        compile_model(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="example input 0 is not a tensor"):
        load_torch(torch.nn.Linear(2, 2), "x")
    with pytest.raises(InputError, match=r"example input 0 has shape \(0, 2\)"):
        load_torch(torch.nn.Linear(2, 2), torch.zeros(0, 2))


def test_files_are_what_the_script_writes(torch: Any) -> None:
    """Names, shapes and weights; how torch writes nodes changes from release to release."""
    sys.path.insert(0, str(FILES[0].parent))
    try:
        from export import models
    finally:
        sys.path.pop(0)
    made = models()
    assert {path.stem.rsplit("-", 1)[0] for path in FILES} == set(made)
    for name, (module, examples, axes) in made.items():
        proto = onnx.load(FILES[0].parent / f"{name}-script.onnx")
        feeds = [e.numpy() for e in examples]
        named = dict(zip([i.name for i in proto.graph.input], feeds, strict=True))
        wanted = run_onnxruntime(proto, named, optimise=False)
        module.eval()
        got = module(*examples)
        got = got if isinstance(got, tuple) else (got,)
        for g, w in zip(got, wanted, strict=True):
            np.testing.assert_allclose(g.detach().numpy(), w, atol=1e-5)
        assert load_onnx(proto).inputs[0].batch_axis == axes[0]
