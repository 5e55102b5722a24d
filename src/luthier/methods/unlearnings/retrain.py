"""Retraining: the adapter is trained again, without the rows to forget."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.unlearning import Unlearning


@dataclass(frozen=True)
class Retrain(Unlearning):
    """θ = train(retained rows), with the settings that the adapter was trained with

    The oracle that the others are measured by: it is exact, and costs a whole training.
    """

    paper = "the definition of exact unlearning"
    retrains = True
