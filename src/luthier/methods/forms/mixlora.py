"""MixLoRA: feed-forward experts that share the base's weights, of which a token gets the best few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, zeros

from luthier.core.contracts.form import dropout, kaiming, rank_scale
from luthier.core.contracts.router import ROUTE, Routed
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.kernels._grouped import Few, Sent


@dataclass(frozen=True)
class MixLoRA(Routed):
    """y' = Σ_k w_k FFN(x; W + s B_k A_k) over the `top` experts of softmax(G x); L = L_obj + β E Σ_e f_e p_e

    An expert is the whole feed-forward module with a LoRA change of each of its linear layers; w are the probabilities
    of the experts chosen, made to sum to 1. The base's products are shared: what reads x (gate, up) is computed once
    for all experts, and the last layer (down), which is linear, acts once on the weighted sum of what the experts
    hand it. In the balance loss f_e is the share of tokens that are sent to e, summed over the `top` choices, and p_e
    the mean probability, over the real tokens of all layers together: `top` where all is even. The authors train LoRA
    of the attention's layers along (the recipe does).
    """

    paper = "Li et al. 2024, arXiv 2404.15159 (code: TUDB-Labs/MixLoRA, TUDB-Labs/MoE-PEFT)"
    family = "hybrid"
    kinds = ("stream",)
    where = "output(mlp)"
    router = ("gate",)
    lr = 2e-4
    neutral: ClassVar = {"experts": 1, "top": 1}

    experts: int = 8
    """Experts of each feed-forward module."""
    top: int = 2
    """Experts that a token is sent to."""
    rank: int = 16
    """Rank of each change."""
    alpha: float = 32.0
    """Numerator of the scale s = alpha / rank."""
    dropout: float = 0.0
    """Dropout on what enters each A."""
    beta: float = 1e-3
    """β, the weight of the balance loss (0: none)."""
    spread: float = 0.02
    """Standard deviation of the gate's start."""

    def check(self):
        super().check()
        if self.top > self.experts:
            raise LuthierError(
                f"mixlora.top is {self.top}, and there are {self.experts} experts to send a token to; lower top, or "
                "give more experts."
            )
        self.within("beta", 0)
        self.above("spread", 0)
        if self.train != "all":
            raise LuthierError(
                "mixlora.train=router has nothing to choose among: its experts start alike. Leave it out."
            )

    @property
    def scale(self) -> float:
        """The scale s."""
        return rank_scale(self.alpha, self.rank, "lora")

    def known(self):
        return ()

    def sends(self):
        return self.experts, self.top

    def init(self, site, stats):
        down_of(site)
        found = {"gate": self.spread * torch.randn(self.experts, site.d_in)}
        for name, d_in, d_out in site.inside:
            found[f"A_{name}"] = kaiming(self.experts, self.rank, d_in)
            found[f"B_{name}"] = zeros(self.experts, d_out, self.rank)
        return found

    def route(self, p, x):
        return x @ p["gate"].mT

    def weights(self, logits):
        values, places = self.chosen(logits)
        return torch.zeros_like(logits).scatter(-1, places, values)

    def chosen(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (weights, experts) of each token's choices, [..., top] each."""
        values, places = logits.topk(self.top, -1)
        return probabilities(values).to(logits.dtype), places  # which are those of all experts, made to sum to 1

    def inside(self, p, x, run):
        """The output of the module, x [..., d]; `run` is the base's own pass with other functions as its layers."""
        w, places = self.chosen(p[ROUTE].flatten(0, -2))
        sent = Sent.by(places, self.experts)
        w = sent.weights(w)
        names = [key[2:] for key in p if key.startswith("A_")]
        last = next(name for name in names if p[f"B_{name}"].shape[1] == x.shape[-1] != p[f"A_{name}"].shape[-1])
        edits = {name: self.widened(p, name, sent) for name in names if name != last}
        edits[last] = self.summed(p, last, sent, w, x.shape[:-1].numel())
        return run(x.flatten(0, -2), edits).view(x.shape)

    def widened(self, p, name: str, sent: Sent | Few) -> Callable[..., Tensor]:
        """Returns a layer that reads tokens and gives a row for each pair: the base's product is made once a token."""

        def edit(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
            read = dropout(sent.spread(x), self.dropout)
            return sent.added(sent.spread(layer(x)), read, p[f"A_{name}"], p[f"B_{name}"], self.scale)

        return edit

    def summed(self, p, name: str, sent: Sent | Few, w: Tensor, tokens: int) -> Callable[..., Tensor]:
        """Returns the layer that reads pairs and gives tokens: the base's product is made of their weighted sum."""

        def edit(h: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
            weighted = w * h  # the change is linear as well, so it reads what is weighed already
            y = layer(sent.summed(weighted, tokens))
            inner = self.scale * sent.times(dropout(weighted, self.dropout), p[f"A_{name}"].mT)
            return y + sent.summed(sent.times(inner, p[f"B_{name}"].mT), tokens)

        return edit

    def balance(self, routed, batch):
        if not self.beta:
            return None
        logits = torch.cat([batch.tokens(each) for each in routed])
        p = probabilities(logits)
        sent = torch.nn.functional.one_hot(p.topk(self.top, -1).indices, self.experts).sum(-2).to(p.dtype)
        return self.beta * self.experts * (sent.mean(0) * p.mean(0)).sum()


def probabilities(logits: Tensor) -> Tensor:
    """Returns the softmax over the experts, in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)


def down_of(site: Site) -> str:
    """Returns the name of the layer that gives the module's output; raises for what is not a feed-forward module."""
    found = [name for name, d_in, d_out in site.inside if d_out == site.d_out and d_in != site.d_out]
    first = [name for name, d_in, _ in site.inside if d_in == site.d_in and name not in found]
    if len(found) != 1 or len(found) + len(first) != len(site.inside) or not first:
        held = ", ".join(f"{name} ({a} -> {b})" for name, a, b in site.inside) or "no linear layer"
        raise LuthierError(
            f"mixlora's experts are feed-forward modules: one linear layer gives the output, all others read the "
            f"input; {site} holds {held}. Choose such modules (where), as output(mlp)."
        )
    return found[0]
