"""LIFT: the entries that a weight's leading directions make large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from luthier.core.contracts.update import ParameterGroup, TrainingPlan, Update
from luthier.core.errors import LuthierError
from luthier.methods.forms.full import Full


@dataclass(frozen=True)
class LIFT(Update):
    """W_ij trains where |Ŵ_ij| is among the k largest; Ŵ = rank-reduced W, k = min((m + n) r, m n)

    Ŵ is the best approximation of W of rank `filter_rank`, taken anew every `interval` steps; entries that stay keep
    their moments, newcomers start at zero, and what has left keeps the value that it reached. Of the base's weights,
    only matrices of the blocks train, each expert's its own k entries, and moments exist for these k alone. A head that
    is new and further forms of the adapter are no weights of the base: they train whole. A filter of full rank picks
    by magnitude. At the end the adapter holds the entries that moved. (The authors train with β₂ = 0.95; here AdamW's
    own 0.999 stands.)
    """

    paper = "Liu et al. 2025 (ICML), arXiv 2506.00772 (code: zihanghliu/LIFT)"
    family = "selective"
    neutral: ClassVar = {"lora_rank": 10**6}
    sparse = True
    decays = False

    lora_rank: int = 128
    """The rank r at which LoRA would train as many parameters."""
    filter_rank: int = 128
    """The rank to which W is reduced."""
    interval: int = 400
    """The steps between choices of the entries."""

    def check(self):
        for key in ("lora_rank", "filter_rank", "interval"):
            self.within(key, 1)

    def check_form(self, form, sites):
        if not isinstance(form, Full):
            raise LuthierError(f"lift chooses among the entries of weights, and {form.name()} adds factors; use full.")
        if not any(site.layer is not None and site.d_out > 1 for site in sites):
            raise LuthierError(f"lift trains matrices of the blocks, and none of the {len(sites)} sites is one.")

    def active(self, plan, step):
        return [*self.matrices(plan), *(group for group in plan.groups if not isinstance(group.form, Full))]

    def matrices(self, plan: TrainingPlan) -> list[ParameterGroup]:
        """Weights of the base of which entries are chosen."""
        inside = (p for p in plan.groups if isinstance(p.form, Full) and 1 <= p.level <= plan.depth)
        return [group for group in inside if all(p.dim() > 1 for p in group.params.values())]

    def entries(self, plan, step):
        return self.chosen(plan, step) if step % self.interval == 0 else None

    def chosen(self, plan: TrainingPlan, step: int) -> dict[str, Tensor]:
        """The entries of every matrix as it is now."""
        groups = self.matrices(plan)
        return {group.key(key): self.principal(p.detach()) for group in groups for key, p in group.params.items()}

    def principal(self, w: Tensor) -> Tensor:
        """Flat indices, sorted, of the principal entries of w [..., m, n]."""
        matrices = w.reshape(-1, *w.shape[-2:])
        k = min(sum(w.shape[-2:]) * self.lora_rank, matrices[0].numel())
        found = [i * each.numel() + reduced(each, self.filter_rank).abs().flatten().topk(k).indices.sort().values
                 for i, each in enumerate(matrices)]  # fmt: skip
        return torch.cat(found)


def reduced(w: Tensor, rank: int) -> Tensor:
    """Returns the best approximation of w [m, n] of a rank."""
    if rank >= min(w.shape):
        return w
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]
