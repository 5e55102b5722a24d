"""IA3, which is (IA)³: rescale activations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import ones

from luthier.core.contracts.form import Form


@dataclass(frozen=True)
class IA3(Form):
    """y' = l ⊙ y

    l [d] starts at 1: a no-op. The paper's places are keys, values and the inner activation of the MLP: for a
    Llama `where="k_proj, v_proj, input(down_proj)"`. On linear layers it folds into the weight.
    """

    paper = "Liu et al. 2022, arXiv 2205.05638"
    family = "additive"
    kinds = ("affine", "stream", "input", "embedding")
    lr = 5e-3

    def init(self, site, stats):
        return {"l": ones(site.d_out)}

    def post(self, p, x, y):
        """The rescaled activation, y [..., d]."""
        return p["l"] * y
