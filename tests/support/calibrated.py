"""Padded batches for a small model, and what a calibration pass over them finds."""

from __future__ import annotations

import torch

import luthier as lt
from luthier.core.sites.collect import collect
from support.architectures import ARCHITECTURES


def build(**settings):
    return ARCHITECTURES["llama"].build(**settings)


def batches(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Rows of 8 to 24 tokens after a law of word frequency, prompts of 4 tokens, padded on the right."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        often = torch.arange(1, 95.0) ** -1.3
        ids = 3 + torch.multinomial(often, 8 * 24, replacement=True, generator=generator).view(8, 24)
        mask = torch.arange(24) < torch.randint(8, 25, (8, 1), generator=generator)
        labels = torch.where((torch.arange(24) < 4) | ~mask, -100, ids)
        found.append({"input_ids": ids, "attention_mask": mask.long(), "labels": labels})
    return found


def measured(model, *statistics, count: int = 3, answers: bool = False, where: str = "all-linear"):
    return collect(model, batches(count), lt.select(model, where), statistics, answers=answers)
