"""What a step costs is measured on a model that stays as it is."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import transformers

import luthier as lt
from luthier.comparing.fitted import Fitted
from luthier.comparing.measures import costs
from luthier.core.adapters.control import disabled
from luthier.kernels import sparse
from luthier.methods.objectives.sft import SFT
from support.shipped import build


def test_running_statistics_stay(monkeypatch):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2)
    model = transformers.ResNetForImageClassification(config)
    lt.attach(model, lt.Full(), "params(classifier.*)")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 0, 1])}
    monkeypatch.setattr(costs, "_batches", lambda job, fitted, repeats: [batch] * repeats)
    fitted = Fitted(model, None, nullcontext, 18, 99, 0, [], [], 0.0, "")
    found = costs.costs(SimpleNamespace(run=SimpleNamespace(objective=SFT())), fitted, 2)  # type: ignore[arg-type]
    assert found.seconds and found.peak
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_frozen_base_of_a_model_with_an_encoder_is_timed(monkeypatch):
    """Gradients go back to both modules that hold its table."""
    model = build("t5")
    lt.attach(model, lt.LoRA(rank=2))
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[4, 3]])}
    monkeypatch.setattr(costs, "_batches", lambda job, fitted, repeats: [batch] * repeats)
    fitted = Fitted(model, None, partial(disabled, model), 18, 99, 0, [], [], 0.0, "")
    found = costs.costs(SimpleNamespace(run=SimpleNamespace(objective=SFT())), fitted, 2)  # type: ignore[arg-type]
    assert found.seconds and found.ratio and found.peak


def test_what_the_last_step_left_is_not_counted(monkeypatch):
    model = build("t5")
    lt.attach(model, lt.Full(), "params(*)")
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[4, 3]])}
    monkeypatch.setattr(costs, "_batches", lambda job, fitted, repeats: [batch] * repeats)
    job: Any = SimpleNamespace(run=SimpleNamespace(objective=SFT()))
    names = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    whole, some = (
        costs.costs(job, Fitted(model, None, partial(disabled, model), 18, 99, 0, [], [], 0.0, "", left), 1).peak
        for left in ((), names[1:])
    )
    assert whole and some and some < 0.5 * whole
    assert tuple(name for name, p in model.named_parameters() if p.requires_grad) == names


def test_memory_is_counted_where_matrices_are_sparse():
    dy, x, index = torch.randn(6, 30), torch.randn(6, 40), torch.tensor([3, 500, 900])
    with costs.Allocated() as seen:
        sparse._gradients(dy, x, index)
    assert seen.peak > 0
