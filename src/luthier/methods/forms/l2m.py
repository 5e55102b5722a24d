"""L2M: a pool of LoRAs with keys; a row takes the one whose key is nearest to its prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, einsum, zeros
from torch.nn.functional import normalize, one_hot

from luthier.core.contracts.form import dropout, kaiming, rank_scale
from luthier.core.contracts.router import ROUTE, ROUTE_QUERY, Routed
from luthier.core.errors import LuthierError

BELOW = 4.0
"""What lowers the logits of the entries that are not taken: more than any two cosines differ."""


@dataclass(frozen=True)
class L2M(Routed):
    """y' = y + s B_i A_i x, i = argmax_j score_j, score = cos(k_j, q), in training (cos + 1)/2 · u_j; L - β cos(k_i, q)

    The query q is the mean, over the prompt's real tokens, of what enters the first block: the tokens' embeddings
    (with their positions, where a model adds these to them). A is [pool, rank, d_in], B [pool, d_out, rank], zeros;
    the keys k [pool, d] start uniform in ±1. u_j is the inverse, made to sum to 1, of the share 1e-6 + c_j of rows that
    took entry j before this task: an entry that earlier tasks used is hardly taken for a new one, and gets no gradient.
    In the first task all u are alike. c is a mean over the steps of all training, kept in the adapter; a task is a
    run (`luthier train --from` and each task of `luthier continue` are further ones, a resumed run is not).

    Which entry is taken has no gradient: the keys learn by their own loss alone. Its gradient joins in the backward
    pass of any loss, whatever that weighs (so accumulated batches add up), and the loss that a run tells includes its
    value. A model has one set of keys, of which each site holds a copy: they start alike and are given the same
    gradients, so all sites take the same entry. The authors' query is of the state tokens of a trajectory, the keys
    and the usage are as here.
    """

    paper = "Schmied, Hofmarcher, Paischer, Pascanu, Hochreiter 2023 (NeurIPS), arXiv 2306.14884 (code: ml-jku/L2M)"
    family = "hybrid"
    by_prompt = True
    gathers = True
    router = ("keys",)
    frozen = ("counts", "steps", "before")
    lr = 1e-4
    neutral: ClassVar = {"pool": 1}

    pool: int = 30
    """LoRAs in the pool."""
    rank: int = 8
    """Rank of each."""
    alpha: float = 16.0
    """Numerator of the scale s = alpha / rank."""
    beta: float = 0.5
    """β, the weight of the keys' loss."""
    usage: bool = True
    """Whether training shuns entries that earlier tasks used."""
    dropout: float = 0.0
    """Dropout on x before A."""

    def check(self):
        super().check()
        self.within("beta", 0)
        if self.train != "all":
            raise LuthierError("l2m.train=router would leave a pool that does nothing; leave it out.")

    @property
    def scale(self) -> float:
        """The scale s."""
        return rank_scale(self.alpha, self.rank, "lora")

    def eval_mode(self):
        return replace(super().eval_mode(), usage=False)

    def known(self):
        return ()

    def gather(self, model, sites):
        from luthier.core.sites.select import select
        from luthier.core.sites.structure import decoder_path

        if decoder_path(model) is not None:
            raise LuthierError("l2m goes by the mean of the prompt, and the decoder of an encoder-decoder has none.")
        width = select(model, "stream")[0].d_in
        keys = torch.empty(self.pool, width).uniform_(-1, 1)
        return {site.path: {"keys": keys} for site in sites}

    def init(self, site, stats):
        a = kaiming(self.pool, self.rank, site.d_in)
        keys = stats["keys"].to(a, copy=True) if "keys" in stats else torch.empty(self.pool, site.d_in).uniform_(-1, 1)
        used = {"counts": zeros(self.pool), "steps": zeros(1), "before": zeros(self.pool)}
        return {"A": a, "B": zeros(self.pool, site.d_out, self.rank), "keys": keys} | used

    def route(self, p, x):
        query = p.get(ROUTE_QUERY)
        query = x.flatten(1, -2).mean(1) if query is None else query
        keys = p["keys"].to(torch.promote_types(p["keys"].dtype, torch.float32))
        cosines = normalize(query.to(keys.dtype), dim=-1) @ normalize(keys, dim=-1).mT
        score = cosines.detach()
        score = (score + 1) / 2 * unused(p["before"].to(score.dtype)) if self.usage else score
        taken = one_hot(score.argmax(-1), self.pool).bool()
        found = torch.where(taken, cosines, cosines.detach() - BELOW)
        return found.view(len(found), *[1] * (x.dim() - 2), self.pool)

    def weights(self, logits):
        return one_hot(logits.argmax(-1), self.pool).to(logits.dtype)

    def post(self, p, x, y):
        """The output with the LoRA that each row takes, x [rows, ..., d_in] and y [rows, ..., d_out]."""
        logits = p[ROUTE].flatten(0, -2)
        taken = logits.argmax(-1).expand(len(x))
        inner = einsum("n...d,nrd->n...r", dropout(x, self.dropout), p["A"][taken])
        new = y + self.scale * einsum("n...r,nor->n...o", inner, p["B"][taken])
        pulls = self.beta and logits.requires_grad
        return Pulled.apply(new, -self.beta * logits.amax(-1).mean()) if pulls else new

    def balance(self, routed, batch):
        if not self.beta:
            return None
        return -self.beta * torch.stack([logits.detach().amax(-1).mean() for logits in routed]).mean()

    def at_start(self, p):
        return {"before": p["counts"].clone()}

    def after_step(self, p, load):
        count = p["steps"] + 1
        return {"steps": count, "counts": p["counts"] + (load.to(p["counts"]) - p["counts"]) / count}


def unused(shares: Tensor) -> Tensor:
    """Returns the inverses of shares [pool], made to sum to 1; none is divided by zero."""
    inverse = 1 / (shares.clamp(min=0) + 1e-6)
    return inverse / inverse.sum()


class Pulled(torch.autograd.Function):
    """Returns y as it is; in the backward pass the loss beside it gets a gradient of 1."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor) -> Tensor:
        ctx.of = loss.dtype, loss.device
        return y.clone()  # a view could not be added to in place, as some models do

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        dtype, device = ctx.of
        return grads[0], torch.ones((), dtype=dtype, device=device)
