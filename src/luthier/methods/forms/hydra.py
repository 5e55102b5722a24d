"""Hydra: a low-rank branch beside the layer and one behind it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import cat, zeros

from luthier.core.contracts.form import Form, dropout, kaiming


@dataclass(frozen=True)
class Hydra(Form):
    """y' = y + s U_p D_p x + s U_s D_s y, with y = W x + b

    The parallel branch D_p [rank, d_in], U_p [d_out, rank] is LoRA; the sequential one D_s [rank, d_out],
    U_s [d_out, rank] recombines what the layer gives. Both D are Kaiming uniform and both U zero: a no-op at the start.
    It folds into W' = W + s (U_p D_p + U_s D_s W) and b' = b + s U_s D_s b. The authors' code for language is so, with
    a rank for each branch; that for vision also has biases in the branches and starts D by Xavier, and its merge of the
    attention's projection reads the MLP's weight.
    """

    paper = "Kim et al. 2023, arXiv 2309.06922 (code: extremebird/Hydra)"
    family = "reparameterisation"
    down_projection = "D_p"
    up_projection = "U_p"
    down_projections = ("D_p", "D_s")

    rank: int = 8
    """Rank of each branch."""
    scale: float = 1.0
    """The scale s of both branches."""
    dropout: float = 0.0
    """Dropout inside both branches, behind D."""

    def init(self, site, stats):
        r, d_in, d_out = self.rank, site.d_in, site.d_out
        parallel = {"D_p": kaiming(r, d_in), "U_p": zeros(d_out, r)}
        return parallel | {"D_s": kaiming(r, d_out), "U_s": zeros(d_out, r)}

    def post(self, p, x, y):
        """The output with both branches, x [..., d_in] and y [..., d_out]."""
        parallel = dropout(x @ p["D_p"].mT, self.dropout) @ (self.scale * p["U_p"]).mT
        sequential = dropout(y @ p["D_s"].mT, self.dropout) @ (self.scale * p["U_s"]).mT
        return y + parallel + sequential

    def factors(self, p, w):
        return self.scale * cat([p["U_p"], p["U_s"]], 1), cat([p["D_p"], p["D_s"] @ w], 0)
