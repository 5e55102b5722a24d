"""Elastic weight consolidation: what earlier tasks are sensitive to is held in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.penalty import Penalty


@dataclass(frozen=True)
class EWC(Penalty):
    """L + λ Σ_k Σ_i F_k,i (θ_i - θ_k,i)², F_k,i = mean over rows n of (∂ log p(y_n | x_n) / ∂θ_i)²

    F_k is the diagonal of the empirical Fisher information after task k, with the labels of the data: squares of the
    gradients of *single* rows, whose mean is not the square of a batch's gradient. θ_k is the adapter after task k.
    The sum over tasks is one quadratic, so memory does not grow: kept are Σ_k F_k and the point Σ_k F_k θ_k / Σ_k F_k,
    which differ from the sum by a constant alone. The log-probability is the mean over a row's labels, as in the loss.
    """

    paper = "Kirkpatrick et al. 2017, arXiv 1612.00796 (λ here is their λ / 2); Huszár 2018 on the sum over tasks"
    reads_rows = True

    weight: float = 0.3
    """The weight λ."""

    def finish(self, kept, running, params, fisher):
        importance, anchor = {}, {}
        for key, p in params.items():
            here = fisher[key].to(p.dtype)
            if "anchor" not in kept:
                importance[key], anchor[key] = here, p.detach().clone()
                continue
            total = kept["importance"][key] + here
            share = torch.where(total > 0, here / total.clamp(min=torch.finfo(p.dtype).tiny), 1.0)
            importance[key], anchor[key] = total, kept["anchor"][key].lerp(p.detach(), share)
        return {"importance": importance, "anchor": anchor}
