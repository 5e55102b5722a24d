"""Gradients of single rows: the batched pass against one row at a time, and where it must not be believed."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.training import row_gradients
from support.architectures import ARCHITECTURES


def adapted(name: str, form) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = lt.attach(ARCHITECTURES[name].build(dtype=torch.float64), form)
    for parameter in lt.trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.randint(4, 40, (4, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[2, 3:] = 0
    classes = name == "bert"
    labels = torch.tensor([0, 1, 1, 0]) if classes else ids.masked_fill(mask == 0, -100)
    return model, {"input_ids": ids, "attention_mask": mask, "labels": labels}


def alone(model, batch) -> dict[str, torch.Tensor]:
    """The gradient of each row by itself, without padding."""
    found = []
    model.eval()
    for row in range(4):
        width = int(batch["attention_mask"][row].sum())
        given = {key: t[row : row + 1, :width] if t.dim() == 2 else t[row : row + 1] for key, t in batch.items()}
        model.zero_grad()
        logits, label = model(**{key: t for key, t in given.items() if key != "labels"}).logits, given["labels"]
        shifted = (logits[0, :-1], label[0, 1:]) if label.dim() == 2 else (logits, label)
        torch.nn.functional.cross_entropy(*shifted).backward()  # the model's own is float32 whatever it is given
        found.append({key: p.grad.clone() for key, p in lt.trainable(model).items()})
    return {key: torch.stack([row[key] for row in found]) for key in found[0]}


@pytest.mark.parametrize("name, form", [("llama", lt.LoRA(rank=2)), ("bert", lt.LoRA(rank=2)), ("llama", lt.LoReFT())])
def test_rows_of_a_padded_batch_have_the_gradients_that_they_have_alone(name, form):
    model, batch = adapted(name, form)
    (found,) = row_gradients.row_gradients(model, [batch], row_gradients.log_loss)
    wanted = alone(model, batch)
    assert max(float(t.abs().max()) for t in wanted.values()) > 1e-3
    for key, expected in wanted.items():
        torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=1e-9)


def test_fisher_is_the_mean_of_squares_and_not_the_square_of_the_mean():
    model, batch = adapted("bert", lt.LoRA(rank=2))
    found, wanted = row_gradients.fisher_diagonal(model, [batch]), alone(model, batch)
    for key, rows in wanted.items():
        torch.testing.assert_close(found[key], rows.square().mean(0), rtol=1e-6, atol=1e-12)
    apart = sum(float((found[key] - rows.mean(0).square()).abs().sum()) for key, rows in wanted.items())
    assert apart > 0.1 * sum(float(t.sum()) for t in found.values())


def test_a_batched_pass_that_differs_is_not_believed(monkeypatch):
    """Positions such as f7+l7 follow from the mask, which the batched pass hides: rows are then gone through alone."""
    model, batch = adapted("bert", lt.LoRA(rank=2))
    true = row_gradients._batched
    monkeypatch.setattr(row_gradients, "_batched", lambda *args: {k: 1.01 * g for k, g in true(*args).items()})
    (found,) = row_gradients.row_gradients(model, [batch], row_gradients.log_loss)
    for key, expected in alone(model, batch).items():
        torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=1e-9)


def test_modes_and_gradients_are_left_as_they_were():
    model, batch = adapted("bert", lt.LoRA(rank=2))
    model.train()
    model.zero_grad()
    list(row_gradients.row_gradients(model, [batch], row_gradients.log_loss))
    assert model.training and all(p.grad is None for p in lt.trainable(model).values())
