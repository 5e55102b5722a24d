"""Freezing the bottom of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError
from luthier.methods.updates._layers import check_layered


@dataclass(frozen=True)
class Freeze(Update):
    """active(t) = blocks above the bottom K, and what stands behind the blocks

    The embeddings are frozen with the bottom blocks, so the backward pass ends at block K. Telly picks K where the
    representations of the layers below hardly change in fine-tuning. K = 0 freezes nothing.
    """

    paper = "Shi et al. 2023 (ISSTA), arXiv 2304.05216 (code: DeepSoftwareAnalytics/Telly)"
    family = "selective"
    neutral: ClassVar = {"bottom": 0}

    bottom: int = 0
    """K: blocks that are frozen, counted from the embeddings."""

    def check(self):
        self.within("bottom", 0)

    def check_form(self, form, sites):
        check_layered(self, form, sites)
        blocks = 1 + max(site.layer for site in sites if site.layer is not None)
        if self.bottom >= blocks:
            raise LuthierError(f"freeze.bottom is {self.bottom}, and the sites end with block {blocks - 1}; lower it.")

    def active(self, plan, step):
        return [group for group in plan.groups if not self.bottom or group.level > self.bottom]
