"""LoRAMoE: LoRA experts in linear layers, of which every token gets a soft mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, zeros

from luthier.core.contracts.form import dropout, kaiming, rank_scale
from luthier.core.contracts.router import ROUTE, Routed
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class LoRAMoE(Routed):
    """y' = y + s Σ_i w_i B_i A_i x, w = softmax(G x); L = L_obj + β Σ_layers CV²(Q ∘ I)

    Every expert acts on every token (no top k), so a layer has one gate G [experts, d_in] and A [experts, rank, d_in],
    B [experts, d_out, rank]; B starts at zero, s = alpha / rank. The authors take the feed-forward layers, as the
    recipe does. Q_ri is the weight that expert i has over the tokens of row r, and CV² the squared coefficient of
    variation (unbiased variance) over all rows and experts of Q ∘ I.

    I_ri is 1 + δ where row r is of the type of expert i and 1 - δ elsewhere: the experts are divided evenly, in order,
    among `types` (the column `task` names a row's type); without types I = 1, which is plain balance. Evening out
    Q ∘ I makes Q larger where I is *smaller*: with δ > 0 a row leans to the experts that are **not** of its type, by
    (1 + δ) to (1 - δ) at the optimum. That is what the authors' code does, with their sign; a negative δ gives each
    type its own experts, as the paper's figure shows it. Their sum over a row takes padding along; here it does not.
    """

    paper = "Dou et al. 2023 (ACL 2024), arXiv 2312.09979 (code: Ablustrund/LoRAMoE)"
    family = "hybrid"
    router = ("gate",)
    mixed = ("A", "B")
    lr = 2e-4
    neutral: ClassVar = {"experts": 1}

    experts: int = 8
    """Experts of each layer."""
    rank: int = 4
    """Rank of each expert."""
    alpha: float = 32.0
    """Numerator of the scale s = alpha / rank."""
    dropout: float = 0.0
    """Dropout on x before A."""
    beta: float = 0.0
    """β, the weight of the balance loss."""
    delta: float = 0.0
    """δ: positive, a row leans to experts of other types; negative, to those of its own."""
    types: tuple[str, ...] = ()
    """Types of rows, as the column task has them, among which the experts are divided. Default: there are none."""

    def check(self):
        super().check()
        self.within("beta", 0)
        if not -1 < self.delta < 1:
            raise LuthierError(f"loramoe.delta is {self.delta:g}; expected a number between -1 and 1.")
        if len(set(self.types)) < len(self.types) or (self.types and self.experts % len(self.types)):
            raise LuthierError(
                f"loramoe.types are {', '.join(self.types)}; expected different names, of a number that divides the "
                f"{self.experts} experts."
            )
        if self.delta and not (self.types and self.beta):
            raise LuthierError(
                f"loramoe.delta is {self.delta:g} and would be ignored: it tells types apart in the balance loss; name "
                "the types (types) and give the loss a weight (beta), or leave delta out."
            )
        if self.types and not self.delta:
            raise LuthierError("loramoe.types would be ignored: without delta all types count alike; leave one out.")

    @property
    def scale(self) -> float:
        """The scale s."""
        return rank_scale(self.alpha, self.rank, "lora")

    def known(self):
        return self.types

    def asks_tasks(self):
        return bool(self.types)

    def init(self, site, stats):
        count, rank = self.experts, self.rank
        experts = {"A": kaiming(count, rank, site.d_in), "B": zeros(count, site.d_out, rank)}
        return {"gate": kaiming(count, site.d_in)} | experts

    def route(self, p, x):
        return x @ p["gate"].mT

    def weights(self, logits):
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide).softmax(-1).to(logits.dtype)

    def post(self, p, x, y):
        """The output with the mixture of experts, x [..., d_in] and y [..., d_out]."""
        inner = (dropout(x, self.dropout) @ p["A"].flatten(0, 1).mT).unflatten(-1, (self.experts, self.rank))
        mixed = (inner * self.weights(p[ROUTE])[..., None]).flatten(-2)
        return y + mixed @ (self.scale * p["B"]).mT.flatten(0, 1)

    def balance(self, routed, batch):
        if not self.beta or self.experts == 1:
            return None
        mass = [self.mass(logits, batch.real) for logits in routed]
        return self.beta * torch.stack([cv_squared(q * self.importance(q, batch.tasks)) for q in mass]).sum()

    def mass(self, logits: Tensor, real: Tensor | None) -> Tensor:
        """Returns Q, the weight of each expert over the real tokens of each row, [rows, experts]."""
        weights = self.weights(logits).float() if logits.dtype.itemsize < 4 else self.weights(logits)
        if weights.dim() == 2:
            return weights
        return (weights if real is None else weights * real[..., None]).sum(1)

    def importance(self, mass: Tensor, tasks: Tensor | None) -> Tensor:
        """Returns I, [rows, experts]; 1 where rows have no type."""
        if not self.types or tasks is None:
            return torch.ones_like(mass)
        whose = torch.arange(self.experts, device=mass.device) // (self.experts // len(self.types))
        return torch.where(whose == tasks[:, None], 1 + self.delta, 1 - self.delta).to(mass.dtype)


def cv_squared(values: Tensor) -> Tensor:
    """Returns the squared coefficient of variation, variance (unbiased) over squared mean, of all values."""
    return values.var() / (values.mean().square() + 1e-10) if values.numel() > 1 else values.sum() * 0
