"""New modules that a base's checkpoint lacks, such as a classification head, which hold random numbers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

MARK = "_luthier_fresh"


def mark_fresh(model: nn.Module, modules: Iterable[str]) -> None:
    """Notes on a model that the parameters of these modules (dotted paths) come from no checkpoint.

    `luthier.models.load` does so; call it for a head that you made yourself. Whatever adapts such a module trains it
    whole and is saved whole, since another base would hold other numbers there.
    """
    vars(model)[MARK] = frozenset(modules)


def fresh_modules(model: nn.Module) -> frozenset[str]:
    """The modules noted by `mark_fresh`, also under a wrapper (torch.compile, DDP); paths are those of the model."""
    return next((vars(module)[MARK] for module in model.modules() if MARK in vars(module)), frozenset())
