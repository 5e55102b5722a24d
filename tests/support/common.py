"""Small models, trained by an update in a loop of one's own."""

from __future__ import annotations

from dataclasses import replace

import torch

import luthier as lt
from luthier.core.adapters.control import tensors
from support.architectures import ARCHITECTURES
from support.calibrated import batches


def llama(layers: int = 3, name: str = "llama"):
    settings = dict(ARCHITECTURES[name].settings, num_hidden_layers=layers)
    return replace(ARCHITECTURES[name], settings=settings).build(dtype=torch.float64)


def full(layers: int = 3, where: str = "params(*)"):
    return lt.attach(llama(layers), lt.Full(), where)


def run(model, optimizer, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        model(**batches(1, seed=step)[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def copies(model) -> dict[str, torch.Tensor]:
    return {key: t.detach().clone() for key, t in tensors(model).items()}


def moments(optimizer) -> int:
    """Numbers that AdamW holds beside the parameters."""
    return sum(t.numel() for held in optimizer.state.values() for key, t in held.items() if key != "step")
