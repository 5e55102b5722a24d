"""Padded rows, and what a model that computes them in several ways is compared by."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import luthier as lt
from luthier.core.adapters.control import tensors
from support.architectures import ARCHITECTURES

TEXT = [name for name, each in ARCHITECTURES.items() if each.kind in ("decoder", "encoder")]
LENGTHS = (9, 4, 20, 1, 13)
ALIKE = 1e-6


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of several lengths, with prompts of other lengths, padded on the right."""
    drawn, columns = torch.Generator().manual_seed(seed), torch.arange(max(LENGTHS))
    mask = columns < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(mask, torch.randint(3, 97, mask.shape, generator=drawn), 0)
    prompts = torch.tensor([n // 3 for n in LENGTHS])[:, None]
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "labels": torch.where(mask & (columns >= prompts), ids, -100),
    }


def answers_to_one_prompt() -> dict[str, torch.Tensor]:
    """The same, where three rows open with one prompt, and a fourth with its beginning."""
    rows = batch()
    rows["input_ids"][:3, :3] = rows["input_ids"][1, :3]
    rows["input_ids"][3, 0] = rows["input_ids"][1, 0]
    columns, ends = torch.arange(max(LENGTHS)), torch.tensor([3, 3, 3, 0, 4])[:, None]
    asked = rows["attention_mask"].bool() & (columns >= ends)
    return rows | {"labels": torch.where(asked, rows["input_ids"], -100)}


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the loss has of them in what the adapter trains; zero where it does not reach."""
    own = {key: p for key, p in tensors(model).items() if p.requires_grad}
    found = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    return {key: torch.zeros_like(p) if g is None else g for (key, p), g in zip(own.items(), found, strict=True)}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float = ALIKE) -> None:
    """Raises unless gradients are alike, by the largest of them."""
    size = max(float(g.norm()) for g in two.values())
    apart = {key: float((one[key] - two[key]).norm()) / max(size, 1e-30) for key in two}
    assert max(apart.values()) <= tolerance, max(apart.items(), key=lambda each: each[1])


def perturb(model: nn.Module) -> None:
    """Moves what is trained away from its start."""
    drawn = torch.Generator().manual_seed(5)
    for p in lt.trainable(model).values():
        p.data += 0.1 * torch.randn(p.shape, generator=drawn).to(p.dtype)


def without_dropout(model: nn.Module) -> Any:
    """Draws none: those of a packed batch are other ones."""
    for module in model.modules():
        for key, value in vars(module).items():
            if "dropout" in key or (isinstance(module, nn.Dropout) and key == "p"):
                vars(module)[key] = 0.0 if isinstance(value, float) else value
    return model
