"""Depth first: each fact until it is known, one after another and once, as editing pipelines do."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.editing import Editing


@dataclass(frozen=True)
class DepthFirst(Editing):
    """L = - mean over the target's tokens and EOS of log p, one fact at a time until L < stop, in one pass

    The baseline that fine-tuning is measured by elsewhere (`ft` of EasyEdit): later facts undo earlier ones.
    """

    paper = "the single-pass pipeline that arXiv 2509.22072 compares with"

    steps: int = 25
    """Most steps on a fact."""
    stop: float = 1e-2
    """The loss below which the next fact comes."""

    def check(self):
        super().check()
        self.within("steps", 1)
        self.within("stop", 0.0)

    def rounds(self, count, seed):
        for fact in range(count):
            yield [[fact]] * self.steps

    def skips(self, loss):
        return loss < self.stop

    def round_over(self, loss):
        return loss < self.stop
