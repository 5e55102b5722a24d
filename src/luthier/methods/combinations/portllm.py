"""PortLLM: the patch of an old base on its successor."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.combination import Combination, weighted


@dataclass(frozen=True)
class PortLLM(Combination):
    """W' = W_new + s B A, with s B A fitted on W_old

    The patch of each input is the change that it made of the old base; it goes onto the new one as it is, without
    data or training. The neglected part is what fitting anew would change, of the size of (W_new - W_old) times the
    patch; the report gives ‖W_new - W_old‖. Old and new must have the same shapes and vocabulary, and one must have
    grown out of the other.
    """

    paper = "Khan et al. 2024 (ICLR 2025), arXiv 2410.10870"
    moves = True

    def merge(self, deltas, weights, at):
        return weighted(deltas, weights)
