"""LoRA-XS: a small square matrix between the weight's own singular vectors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros

from luthier.core.contracts.form import Form, dropout
from luthier.core.contracts.site import check_rank
from luthier.core.numerics.matrix import leading


@dataclass(frozen=True)
class LoRAXS(Form):
    """W' = W + s B R A, with B = U_r S_r and A = V_rᵀ of the SVD of W

    Only R [rank, rank] is trained; A [rank, d_in] and B [d_out, rank] are frozen. R starts at zero, a no-op whose
    gradient s Bᵀ G Aᵀ is not zero; the paper draws it from a normal distribution of deviation 1e-5. The authors' code
    (MohammadrezaBanaei/LoRA-XS) decomposes Wᵀ, so that S lies in A. A quantised base is decomposed as it computes.
    """

    paper = "Bałazy, Banaei, Aberer, Tabor 2024, arXiv 2405.17604 (code: MohammadrezaBanaei/LoRA-XS)"
    family = "reparameterisation"
    kinds = ("affine", "param")
    needs = ("weight",)
    frozen = ("A", "B")
    lr = 4e-3

    rank: int = 8
    """The rank, which is the side of the square matrix R."""
    scale: float = 1.0
    """The scale s of the change."""
    dropout: float = 0.0
    """Dropout on x before A."""

    def init(self, site, stats):
        check_rank(self.name(), site, self.rank)
        u, s, vt = leading(stats["weight"], self.rank)
        return {"A": vt, "B": u * s, "R": zeros(self.rank, self.rank)}

    def post(self, p, x, y):
        """y + s B R A x, with x [..., d_in] and y [..., d_out]."""
        inner = dropout(x, self.dropout) @ p["A"].mT @ (self.scale * p["R"]).mT
        return y + inner @ p["B"].mT

    def factors(self, p, w):
        return self.scale * p["B"] @ p["R"], p["A"]
