"""LoRA-SB: LoRA-XS that starts with the first step of full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.init import Init
from luthier.core.contracts.site import check_rank
from luthier.core.errors import LuthierError
from luthier.core.numerics.matrix import leading
from luthier.methods.forms.loraxs import LoRAXS
from luthier.methods.statistics.gradient import Gradient


@dataclass(frozen=True)
class LoRASB(Init):
    """B = U_r, R = diag(S_r), A = V_rᵀ of the SVD of the first step -η sign(G)

    G is the mean gradient, and -η sign(G) what Adam's first step of rate η does to W, so that B R A is the best of
    rank r of it. B and A stay frozen with orthonormal columns and rows, and only R [r, r] is trained. The model starts
    after that step: its output changes, and nothing is subtracted. The scale of the form must be 1, else both that
    step and the gradient would be scaled. The authors take as η the learning rate over the number of warm-up steps (the
    recipe has theirs; the default is ours).
    """

    paper = "Ponkshe et al. 2024, arXiv 2411.19557 (code: RaghavSinghal10/lora-sb)"
    needs = ("gradient",)
    identity = False

    eta: float = 1e-4
    """η, the size of the first step."""

    def check(self) -> None:
        self.above("eta", 0)

    def statistics(self, form):
        self._check(form)
        return (Gradient(),)

    def factors(self, form, site, stats):
        self._check(form)
        rank = form.to_dict()["rank"]
        check_rank("lora_sb", site, rank)
        u, s, vt = leading(-self.eta * stats["gradient"].sign(), rank)
        return {"B": u, "R": s.diag(), "A": vt}

    def _check(self, form) -> None:
        if not isinstance(form, LoRAXS):
            raise LuthierError(f"lora_sb starts loraxs, whose frozen factors it chooses, and not {form.name()}.")
        if form.scale != 1 or form.share is not None:
            raise LuthierError(
                f"lora_sb needs scale=1 and share=none, and loraxs has scale={form.scale} and share={form.share!r}; "
                "leave both out."
            )
