"""What training changes of a model while it lasts, and gives back."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier import models
from luthier.training import Run, Training
from luthier.training.context import training_context


def recomputes(model) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_the_model_is_as_it_was_even_after_a_failure(llama):
    model = lt.attach(models.load(llama).model, lt.LoRA(rank=2))
    run = Run(llama, "none.jsonl", lt.LoRA(rank=2), training=Training(gradient_checkpointing=True))
    trained, cached = lt.trainable(model), model.config.use_cache
    with pytest.raises(KeyError), training_context(run, model):
        assert recomputes(model) and not model.config.use_cache
        model.train()
        next(iter(trained.values())).requires_grad_(False)  # as an update lets it rest
        raise KeyError
    assert not recomputes(model) and model.config.use_cache == cached and not model.training
    assert lt.trainable(model).keys() == trained.keys()


def test_a_model_that_cannot_recompute_is_refused_and_left(llama, monkeypatch):
    model = lt.attach(models.load(llama).model, lt.LoRA(rank=2))
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    cached = model.config.use_cache
    run = Run(llama, "none.jsonl", lt.LoRA(rank=2), training=Training(gradient_checkpointing=True))
    with pytest.raises(lt.LuthierError, match="cannot recompute activations"), training_context(run, model):
        pytest.fail("it began")
    assert model.config.use_cache == cached


def test_gradients_of_recomputed_blocks_go_no_lower_than_what_is_trained(llama):
    model = lt.attach(models.load(llama).model, lt.LoRA(rank=2), where="layers(2) & all-linear")
    run = Run(llama, "none.jsonl", lt.LoRA(rank=2), training=Training(gradient_checkpointing=True))
    ids, seen = torch.tensor([[1, 2, 3, 4]]), []
    plain = model(input_ids=ids, labels=ids).loss
    hook = model.model.layers[1].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    with training_context(run, model):
        model.train()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    hook.remove()
    assert seen == [False] and torch.equal(loss, plain)
    assert all(p.grad is not None for p in lt.trainable(model).values())
