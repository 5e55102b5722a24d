"""PiSSA: train the principal part of the weight itself."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.init import Init
from luthier.core.numerics.matrix import leading
from luthier.methods.inits._factors import balanced, check_form, rank_of


@dataclass(frozen=True)
class PiSSA(Init):
    """s B A = U_r S_r V_rᵀ, the leading part of the SVD of W; the rest of W stays frozen

    B = U_r S_r^½ / s^½ and A = S_r^½ V_rᵀ / s^½. A quantised base is decomposed as it computes and stays as it is
    (QPiSSA quantises the rest anew, which loses less).
    """

    paper = "Meng, Wang, Zhang 2024, arXiv 2404.02948 (code: GraphPKU/PiSSA)"
    needs = ("weight",)
    subtract_start = True

    niter: int | None = None
    """Subspace iterations of a randomised SVD, for large models. Default: the exact SVD."""

    def check(self) -> None:
        self.within("niter", 0)

    def statistics(self, form):
        check_form(self.name(), form)
        return ()

    def factors(self, form, site, stats):
        rank = rank_of(self.name(), form, site)
        return balanced(form, *leading(stats["weight"], rank, self.niter))
