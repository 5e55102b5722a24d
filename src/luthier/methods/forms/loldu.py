"""LoLDU: the leading pivots of the weight's LDU decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.form import Form
from luthier.core.contracts.site import check_rank
from luthier.core.numerics.matrix import wide


@dataclass(frozen=True)
class LoLDU(Form):
    """W' = W + s (P L)_r diag(z - D_r) U_r, with W = P L D U

    L [d_out, k] and U [k, d_in] have unit diagonals, k = min(d_out, d_in). Trained is z [rank], which starts as the
    first `rank` pivots D_r: a no-op, and `rank` numbers a layer. Frozen are the columns of P L, the rows of U and D_r.
    A pivot of zero keeps its row of U as it is. The authors' code (SKDDJ/LoLDU) keeps P as a whole [d_out, d_out],
    subtracts the start from the weight, and trains s as well.
    """

    paper = "Shi et al. 2024, arXiv 2410.13618 (code: SKDDJ/LoLDU)"
    family = "reparameterisation"
    kinds = ("affine", "param")
    needs = ("weight",)
    frozen = ("L", "U", "D")

    rank: int = 8
    """Pivots that are trained."""
    scale: float = 1.0
    """The scale s of the change."""

    def init(self, site, stats):
        check_rank(self.name(), site, self.rank)
        p, lower, upper = torch.linalg.lu(wide(stats["weight"]))
        pivots = upper.diagonal()[: self.rank].clone()
        rows = upper[: self.rank] / torch.where(pivots == 0, 1, pivots)[:, None]
        return {"z": pivots, "D": pivots.clone(), "L": p @ lower[:, : self.rank], "U": rows}

    def post(self, p, x, y):
        """y + s (P L)_r diag(z - D_r) U_r x, with x [..., d_in] and y [..., d_out]."""
        return y + (x @ p["U"].mT * (self.scale * (p["z"] - p["D"]))) @ p["L"].mT

    def factors(self, p, w):
        return self.scale * p["L"] * (p["z"] - p["D"]), p["U"]
