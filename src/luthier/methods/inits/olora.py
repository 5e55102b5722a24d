"""OLoRA: start in the orthonormal basis of the weight's columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.init import Init
from luthier.core.numerics.matrix import wide
from luthier.methods.inits._factors import check_form, rank_of


@dataclass(frozen=True)
class OLoRA(Init):
    """B = Q[:, :r], A = R[:r], with W = Q R; W - s B A stays frozen

    B has orthonormal columns, those of the first r columns of W.
    """

    paper = "Büyükakyüz 2024, arXiv 2406.01775"
    needs = ("weight",)
    subtract_start = True

    def statistics(self, form):
        check_form(self.name(), form)
        return ()

    def factors(self, form, site, stats):
        rank = rank_of(self.name(), form, site)
        q, r = torch.linalg.qr(wide(stats["weight"]))
        return {form.up_projection: q[:, :rank].contiguous(), form.down_projection: r[:rank].contiguous()}
