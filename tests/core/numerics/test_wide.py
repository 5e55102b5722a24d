"""On a device without float64, as Apple's GPU is, what runs on it asks for none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import luthier as lt
from luthier.core.numerics import wide
from luthier.core.sites.answers import answers
from luthier.core.sites.packable import apart
from luthier.engine.sampling import choose, drawing
from luthier.methods.objectives.masked_thought import _drawn
from luthier.training.figures import FigureSums
from luthier.training.trainer import Trainer
from support.architectures import ARCHITECTURES


class NoFloat64(TorchDispatchMode):
    """Refuses what such a device refuses; a generator's numbers are drawn on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        drawn = func is torch.ops.aten.rand.generator
        if any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 and not drawn for t in tree_leaves(found)):
            raise TypeError(f"{func}: Cannot convert a MPS Tensor to float64 dtype")
        return found


def sampled() -> list[int]:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    return [each.token for each in choose(logits, [drawing(1.0, 0.9, seed, None) for seed in range(4)]) if each]


def summed() -> float:
    figures = FigureSums((("accuracy",),))
    figures.add({"accuracy": torch.tensor([1.0, 0.0, 1.0])})
    return figures.sums["accuracy"][0]


def projected() -> torch.Tensor:
    project = lt.find("updates", "agem")().project  # type: ignore[attr-defined]
    return project({"a": torch.tensor([1.0, -2.0])}, {"a": torch.tensor([0.0, 1.0])})["a"]


def answered() -> float:
    model = ARCHITECTURES["llama"].build()
    ids = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with torch.no_grad():
        return float(answers(model, [batch]).loss.mean())


WORK = {
    "sampling": sampled,
    "figures": summed,
    "projection": projected,
    "answers": answered,
    "stand-ins": lambda: _drawn(torch.tensor([[5]]), torch.zeros(1, 3)).shape,
    "packing": lambda: apart(torch.ones(2, 3), torch.ones(2, 3)),
}


@pytest.mark.parametrize("name", WORK)
def test_nothing_asks_for_float64_where_there_is_none(name, monkeypatch):
    usual = WORK[name]()
    monkeypatch.setattr(wide, "LACKING", ("cpu",))
    with NoFloat64():
        found = WORK[name]()
    if isinstance(usual, float | torch.Tensor):
        assert torch.allclose(torch.as_tensor(found), torch.as_tensor(usual, dtype=torch.as_tensor(found).dtype))
    else:
        assert found == usual


def test_sums_of_an_evaluation_stay_where_float64_is():
    """The mean losses of a run in one process are not moved to its device, here one that holds no values."""
    trainer = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1), args=SimpleNamespace(device="meta"))
    sums = torch.tensor([1.5, 2.0], dtype=torch.float64)
    assert Trainer._over_processes(trainer, sums).tolist() == [1.5, 2.0]  # type: ignore[arg-type]


def test_precise_work_goes_to_the_cpu(monkeypatch):
    monkeypatch.setattr(wide, "LACKING", ("meta",))
    assert wide.widest(torch.device("meta")) == torch.float32 and wide.widest(torch.device("cpu")) == torch.float64
    assert wide.exact(torch.ones(2)).dtype == torch.float64
    with pytest.raises(NotImplementedError, match="meta"):  # a tensor without values cannot be copied to it
        wide.exact(torch.ones(2, device="meta"))
