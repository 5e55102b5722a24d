"""Prefix tuning: learned keys and values before those of every attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import randn, zeros

from luthier.core.contracts.form import Form


@dataclass(frozen=True)
class Prefix(Form):
    """Attn' = (1 - λ) Attn + λ softmax(q P_kᵀ) P_v

    λ is the attention's mass on the prefix. P_k and P_v are [heads, length, d_head] for each attention: k
    normal (.02), v zeros; it takes mass from the first step on, so it does not start as a no-op. They are
    trained directly, without the reparametrising MLP of the paper, as P-Tuning v2 does. Real tokens keep their
    positions, and nothing enters the cache. Models whose attention does not go through transformers' attention
    interface (BLOOM, Falcon, DeBERTa) are refused.
    """

    paper = "Li, Liang 2021, arXiv 2101.00190; He et al. 2022, arXiv 2110.04366"
    family = "prompt"
    kinds = ("cache",)
    lr = 5e-3
    where = "attention"
    linear = False
    identity = False

    length: int = 16
    """Number of prefix positions."""

    def init(self, site, stats):
        shape = site.d_out, self.length, site.d_in
        return {"k": 0.02 * randn(*shape), "v": zeros(*shape)}

    def cache(self, p):
        """(k, v), each [heads, length, d_head]."""
        return p["k"], p["v"]
