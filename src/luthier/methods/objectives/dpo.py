"""Direct preference optimisation: the chosen answer gains on the rejected one, measured from a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.contracts.objective import BASE
from luthier.core.errors import LuthierError
from luthier.methods.objectives._pairs import Pairs, Sides, against, answers, figures, preferred

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DPO(Pairs):
    """L = - mean over the pairs of log σ(β h), h = log π(y_w|x)/π_ref(y_w|x) - log π(y_l|x)/π_ref(y_l|x)

    y_w is the chosen answer, y_l the rejected one; the log-probability of an answer is the sum over its tokens, its end
    included. `hinge` is max(0, 1 - β h) (SLiC), `ipo` is (h' - 1/(2β))² with the mean over its tokens as the
    log-probability of an answer, as the authors of IPO did and TRL does; their paper has sums. ε, `smoothing`, is the
    share of pairs that are the wrong way round: -(1 - ε) log σ(β h) - ε log σ(-β h); TRL 1.16 has it under CPO and
    (unbiased) as `robust`, no longer under `sigmoid`. The reference is the base, or the adapter `reference` on it:
    the same model, of which there is no second copy. The reward of an answer is β log π(y|x)/π_ref(y|x). The figure
    `kl` is the mean of log π_ref(y|x)/π(y|x) over both answers: KL(π_ref ‖ π) where they were sampled from π_ref.
    """

    paper = (
        "Rafailov et al. 2023, arXiv 2305.18290; IPO: Azar et al. 2023, arXiv 2310.12036; "
        "SLiC: Zhao et al. 2023, arXiv 2305.10425"
    )
    compares = True
    curves = (*Pairs.curves, ("kl",))

    beta: float = 0.1
    """β: how strongly the model is held to the reference."""
    variant: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """The published loss."""
    smoothing: float = 0.0
    """ε, the share of the pairs that are taken to be the wrong way round, below a half; sigmoid alone has it."""
    reference: str | None = None
    """A run or adapter folder of the same base that is the reference, or base. Default: what training starts from: the
    adapter that the run goes on from, else the base."""

    def check(self) -> None:
        self.within("beta", 0)
        self.within("smoothing", 0, 0.5)
        if self.variant == "ipo":
            self.above("beta", 0)
        if self.variant != "sigmoid" and self.smoothing:
            raise LuthierError(f"smoothing belongs to sigmoid; the variant {self.variant} would ignore it.")

    def reference_adapter(self):
        return None if self.reference == BASE else self.reference

    def loss_and_figures(self, model, batch):
        logps, tokens = answers(model, batch)
        ratios = logps.less(against(model, batch, self.reference_adapter()))
        rewards = Sides(self.beta * ratios.chosen, self.beta * ratios.rejected)
        kl = -(ratios.chosen + ratios.rejected).detach() / 2
        return self.of(ratios, tokens).mean(), figures(rewards, tokens) | {"kl": kl}

    def of(self, ratios: Sides, tokens: Sides) -> Tensor:
        """Returns the loss of each pair, from log π(y|x)/π_ref(y|x) and the lengths of both answers."""
        if self.variant == "sigmoid":
            return preferred(self.beta * ratios.margin, self.smoothing)
        if self.variant == "hinge":
            return (1 - self.beta * ratios.margin).relu()
        return (ratios.over(tokens).margin - 1 / (2 * self.beta)).square()
