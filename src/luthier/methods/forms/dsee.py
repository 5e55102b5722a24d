"""DSEE: low rank and few entries, on a weight that may be pruned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, zeros

from luthier.core.contracts.form import Form, kaiming, rank_scale
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class DSEE(Form):
    """W' = K ⊙ (W + (α/r) (B A + S)), S with k entries where W - U V is largest; K ones until W is pruned

    A is r x d_in (Kaiming uniform), B is d_out x r and zero, S holds k numbers, zero at first, at fixed positions:
    those that GreBsmo (Zhou, Tao 2013) finds sparse when it parts W into U V of rank `support_rank` and a sparse rest,
    with U and V growing greedily, a few directions at a time. K, [d_out, d_in], is kept with `prunable`; the update
    `prune` sets its zeros, and then W' is zero there in training, merged and saved alike.

    The authors mask W alone when they prune; here the pruned entries of W' are zero, so that they may be left out.
    """

    paper = "Chen et al. 2023 (ACL), arXiv 2111.00160 (code: VITA-Group/DSEE)"
    family = "reparameterisation"
    kinds = ("affine",)
    needs = ("weight",)
    frozen = ("index", "keep")
    train_only = ()

    rank: int = 16
    """Rank r of B A."""
    alpha: float = 16.0
    """Numerator of the scale."""
    entries_each: int = 64
    """k: entries of S in each weight."""
    support_rank: int = 16
    """Rank of U V, beside which the support of S is sought."""
    prunable: bool = False
    """Keep a mask of the weight, for the update `prune`: a byte for each of its numbers."""

    @property
    def scale(self):
        return rank_scale(self.alpha, self.rank, "lora")

    def init(self, site, stats):
        if self.entries_each > site.entries:
            raise LuthierError(
                f"dsee.entries_each is {self.entries_each:,}, and {site} has {site.entries:,} numbers; expected at "
                "most as many."
            )
        weight = stats["weight"]
        found = {
            "A": kaiming(self.rank, site.d_in),
            "B": zeros(site.d_out, self.rank),
            "index": grebsmo(weight, self.entries_each, self.support_rank),
            "values": zeros(self.entries_each),
        }
        kept = torch.ones(site.d_out, site.d_in, dtype=torch.uint8)
        return found | ({"keep": kept} if self.prunable else {})

    def change(self, p, shape: torch.Size) -> Tensor:
        """Returns B A + S, [d_out, d_in]."""
        ba = p["B"] @ p["A"]
        flat = torch.zeros_like(ba).reshape(-1)
        return ba + flat.scatter_add(0, p["index"].long(), p["values"].to(ba.dtype)).reshape(shape)

    def weight(self, p, w):
        """The weight with its change, pruned where K is zero, [d_out, d_in]."""
        moved = w + self.scale * self.change(p, w.shape).to(w.dtype)
        return torch.where(p["keep"].bool(), moved, 0) if "keep" in p else moved


def grebsmo(w: Tensor, k: int, rank: int, growths: int = 4, rounds: int = 4) -> Tensor:
    """Returns the sorted flat positions of the k entries of w [m, n] that are least like a matrix of low rank.

    w is parted into U V + S: U spans (w - S) Vᵀ, V = Uᵀ (w - S), S keeps the k largest entries of w - U V. The rank
    grows `growths` times, by the directions in which the rest is large, with `rounds` of these steps at each rank.
    """
    if w.is_meta:
        return torch.empty(k, dtype=torch.int64, device=w.device)
    w = w.detach().float() if w.dtype in (torch.float16, torch.bfloat16) else w.detach()
    rank = min(rank, *w.shape)
    draw = torch.Generator().manual_seed(0)
    rest, sparse, v = w, torch.zeros_like(w), w.new_zeros(0, w.shape[1])
    each = -(-rank // growths)
    while len(v) < rank:
        new = torch.randn(min(each, rank - len(v)), w.shape[0], generator=draw, device="cpu").to(w)
        v = torch.cat([v, new @ rest])
        for _ in range(rounds):
            u = torch.linalg.qr((w - sparse) @ v.mT)[0]
            v = u.mT @ (w - sparse)
            rest = w - u @ v
            found = rest.flatten().abs().topk(k).indices
            sparse = w.new_zeros(w.numel()).index_put_((found,), rest.flatten()[found]).view(w.shape)
    return rest.flatten().abs().topk(k).indices.sort().values
