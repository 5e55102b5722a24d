"""Adapters in an audio encoder (PETL of AST): places and insertions, and a start from which the projections learn."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import luthier as lt
from support.architectures import ARCHITECTURES

AST = next(name for name, each in ARCHITECTURES.items() if each.kind == "spectrogram")
PLACES = {"pfeiffer": ("output(mlp)",), "houlsby": ("output(attention)", "output(mlp)")}


def build():
    return ARCHITECTURES[AST].build(dtype=torch.float64)


def inputs():
    return ARCHITECTURES[AST].inputs(3, dtype=torch.float64)


def adapted(places: str, insertion: str):
    model = build()
    for number, where in enumerate(PLACES[places]):
        lt.attach(model, lt.Bottleneck(dim=4, insertion=insertion, activation="gelu"), where, f"at{number}")  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("insertion", ["sequential", "parallel"])
@pytest.mark.parametrize("places", list(PLACES))
def test_it_starts_as_a_no_op_and_the_down_projection_learns_from_step_two_on(places, insertion):
    """Their start, both projections at zero, leaves every projection without a gradient for good."""
    model, labels = adapted(places, insertion), torch.tensor([0, 1, 1])
    assert torch.equal(model(**inputs()).logits, build()(**inputs()).logits)
    optimizer, norms = torch.optim.AdamW(lt.trainable(model).values(), lr=1e-2), []
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(**inputs()).logits, labels).backward()
        norms.append({k: float(p.grad.norm()) for k, p in lt.trainable(model).items() if p.grad is not None})
        optimizer.step()
    downs = [key for key in norms[0] if key.endswith(".down")]
    assert len(downs) == len(PLACES[places]) * len(lt.select(build(), "stream"))
    assert all(norms[0][key] == 0 and norms[1][key] > 0 for key in downs)
    assert all(norms[0][key.replace(".down", ".up")] > 0 for key in downs)
    both = adapted(places, insertion)
    for parameter in lt.trainable(both).values():
        parameter.data.zero_()
    functional.cross_entropy(both(**inputs()).logits, labels).backward()
    moved = {k.rpartition(".")[2] for k, p in lt.trainable(both).items() if p.grad is not None and p.grad.any()}
    assert moved == {"up_bias"}
