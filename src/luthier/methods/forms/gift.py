"""GIFT: WeGeFT's earlier form, with a small network between the two projections of the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, zeros
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention

from luthier.core.contracts.form import Form, Params, kaiming


def _mlp(p: Params, c: Tensor) -> Tensor:
    hidden = gelu(normalize(c, dim=-1) @ p["up"].mT + p["up_bias"])
    return c + hidden @ p["down"].mT + p["down_bias"]


def _transformer(p: Params, c: Tensor) -> Tensor:
    """One head over the d_out rows, then the MLP; both residual, on rows of unit length."""
    q, k, v = (normalize(c, dim=-1) @ p["qkv"].mT + p["qkv_bias"]).chunk(3, dim=-1)
    mixed = scaled_dot_product_attention(q[None], k[None], v[None])[0]
    return _mlp(p, c + mixed @ p["proj"].mT + p["proj_bias"])


BLOCKS: dict[str, Callable[[Params, Tensor], Tensor]] = {
    "identity": lambda p, c: c,
    "sigmoid": lambda p, c: c.sigmoid(),
    "softmax": lambda p, c: c.softmax(-1),
    "gelu": lambda p, c: gelu(c),
    "mlp": _mlp,
    "transformer": _transformer,
}


@dataclass(frozen=True)
class GIFT(Form):
    """W' = W + s g(W φ) ψ

    φ is d_in x rank (Kaiming uniform), ψ is rank x d_in (zeros): a no-op at the start. s is 1, as in the authors' code
    (savadikarc/gift), which has none, so that their learning rates mean their steps; alpha gives s = alpha / rank. The
    block g acts on the d_out x rank matrix Wφ: identity, sigmoid, softmax (over the rank), gelu, an MLP (hidden
    width 2 rank, rows of unit length, residual), or one transformer block with one head whose tokens are the
    d_out rows, as in that code, whose blocks' biases do not start at zero, as ours do. With g = identity, `wegeft` does
    the same at less cost and from the other start.
    """

    paper = "Savadikar, Song, Wu 2023, arXiv 2312.00700"
    family = "reparameterisation"
    kinds = ("affine", "param")

    rank: int = 8
    """Rank of the generator."""
    alpha: float | None = None
    """Numerator of the scale: s = alpha / rank. Default: s = 1."""
    block: Literal["identity", "sigmoid", "softmax", "gelu", "mlp", "transformer"] = "identity"
    """The block g between φ and ψ."""

    @property
    def scale(self) -> float:
        """The scale s."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def init(self, site, stats):
        r = self.rank
        p = {"phi": kaiming(r, site.d_in).mT.contiguous(), "psi": zeros(r, site.d_in)}
        if self.block == "transformer":
            p |= {"qkv": kaiming(3 * r, r), "qkv_bias": zeros(3 * r)}
            p |= {"proj": kaiming(r, r), "proj_bias": zeros(r)}
        if self.block in ("mlp", "transformer"):
            p |= {"up": kaiming(2 * r, r), "up_bias": zeros(2 * r)}
            p |= {"down": kaiming(r, 2 * r), "down_bias": zeros(r)}
        return p

    def weight(self, p, w):
        """The new weight [d_out, d_in]."""
        return w + self.scale * BLOCKS[self.block](p, w @ p["phi"]) @ p["psi"]

    def factors(self, p, w):
        with torch.no_grad():
            return self.scale * BLOCKS[self.block](p, w @ p["phi"]), p["psi"]
