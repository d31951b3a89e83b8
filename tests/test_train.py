# SPDX-License-Identifier: Apache-2.0
"""Sparse training in PyTorch, where torch is there."""

from __future__ import annotations

import numpy as np
import pytest

from pynq_bbs.compress.patterns import parse_pattern
from pynq_bbs.errors import InputError

torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
train = pytest.importorskip("pynq_bbs.train")


def banks(sparsity):
    return parse_pattern("banks:16", sparsity)


def new_run(optimizer="Adam", schedule=None, seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(16, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    )
    made = getattr(torch.optim, optimizer)(
        model.parameters(), lr=1e-3, **({"momentum": 0.9} if optimizer == "SGD" else {})
    )
    schedule = schedule or train.CubicSchedule(0.75, steps=6, every=2, levels=16)
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    return model, made, train.Pruning(weights, banks, made, schedule)


def steps(model, optimizer, pruning, numbers):
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(8, 16, 4, 4, generator=generator)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        pruning.on_step_end()


def test_cubic_schedule():
    schedule = train.CubicSchedule(0.875, steps=100, every=10, levels=64)
    made = [schedule.sparsity(step) for step in range(120)]
    assert made[0] == 0 and made[100:] == [0.875] * 20 and made == sorted(made)
    assert all((s * 64).is_integer() for s in made)
    exact = train.CubicSchedule(0.8, steps=100)
    assert exact.sparsity(50) == pytest.approx(0.8 * (1 - 0.5**3))
    assert [s for s in range(130) if schedule.changes(s)] == list(range(0, 101, 10))
    with pytest.raises(InputError, match="less than 1"):
        train.CubicSchedule(1.0)


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_weights_and_moments_follow_the_masks(optimizer):
    model, made, pruning = new_run(optimizer)
    steps(model, made, pruning, range(8))
    for name, weight in pruning.weights.items():
        mask = pruning.masks[name]
        channels_last = mask.movedim(1, -1).reshape(-1, 16)
        assert (channels_last.sum(1) == 4).all()
        assert not weight[~mask].any() and weight[mask].all()
        moments = [v for v in made.state[weight].values() if v.shape == weight.shape]
        assert moments and all(not v[~mask].any() and v[mask].any() for v in moments)


def test_a_checkpoint_goes_on_where_it_was(tmp_path):
    path = tmp_path / "run.pt"
    whole = new_run()
    steps(*whole, range(8))
    begun = new_run()
    names = ("model", "optimizer", "pruning")
    assert not train.load_checkpoint(path, **dict(zip(names, begun, strict=True)))
    steps(*begun, range(5))
    train.save_checkpoint(path, **dict(zip(names, begun, strict=True)))
    resumed = new_run(seed=1)
    assert train.load_checkpoint(path, **dict(zip(names, resumed, strict=True)))
    steps(*resumed, range(5, 8))
    for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        np.testing.assert_array_equal(a.detach(), b.detach())
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    with pytest.raises(InputError, match="holds"):
        train.load_checkpoint(path, model=resumed[0])
    with pytest.raises(InputError, match="not those"):
        resumed[2].load_state_dict({"step": 0, "masks": {}})


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    class Broken:
        def state_dict(self):
            raise RuntimeError

    path = tmp_path / "run.pt"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        train.save_checkpoint(path, model=Broken())
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_distillation_loss():
    logits, labels = torch.randn(5, 4, requires_grad=True), torch.tensor([0, 1, 2, 3, 0])
    teacher = torch.randn(5, 4)
    plain = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(train.distillation_loss(logits, teacher, labels, share=0.0), plain)
    same = train.distillation_loss(logits, logits, labels, share=1.0)
    assert float(same.detach()) == pytest.approx(0, abs=1e-6)
    p, q = (torch.softmax(t.detach() / 3, 1) for t in (teacher, logits))
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    made = train.distillation_loss(logits, teacher, labels, temperature=3.0, share=1.0)
    torch.testing.assert_close(made.detach(), expected)
