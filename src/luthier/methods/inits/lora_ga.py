"""LoRA-GA: start so that the first step goes where full fine-tuning would."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.init import Init
from luthier.core.numerics.matrix import leading
from luthier.methods.inits._factors import check_form, rank_of
from luthier.methods.statistics.gradient import Gradient


@dataclass(frozen=True)
class LoRAGA(Init):
    """A = ζ V[:, :r]ᵀ, B = ζ U[:, r:2r] of the gradient U S Vᵀ, with ζ = d_out^¼ / γ^½; W - s B A stays frozen

    With these the first step of gradient descent moves W by the best approximation of rank 2r of its gradient. peft's
    `lora_ga` is not this start: its first step is further away.
    """

    paper = "Wang, Yu, Li 2024, arXiv 2407.05000 (code: Outsider565/LoRA-GA)"
    needs = ("gradient",)
    subtract_start = True

    gamma: float = 16.0
    """γ: the larger, the smaller the factors."""

    def check(self) -> None:
        self.above("gamma", 0)

    def statistics(self, form):
        check_form("lora_ga", form)
        return (Gradient(),)

    def factors(self, form, site, stats):
        rank = rank_of("lora_ga", form, site, times=2)
        u, _, vt = leading(stats["gradient"], 2 * rank)
        size = site.d_out**0.25 / self.gamma**0.5
        return {form.up_projection: size * u[:, rank:], form.down_projection: size * vt[:rank]}
