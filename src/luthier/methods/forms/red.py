"""RED: scale and shift the hidden state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import ones, zeros

from luthier.core.contracts.form import Form


@dataclass(frozen=True)
class RED(Form):
    """Φ(h) = a ⊙ h + b

    a [d] starts at 1 and b [d] at 0: a no-op. On every position unless told otherwise.
    """

    paper = "Wu et al. 2024, arXiv 2402.15179"
    family = "additive"
    kinds = ("stream", "input", "affine", "embedding")
    lr = 1e-3
    where = "stream"

    def init(self, site, stats):
        return {"a": ones(site.d_out), "b": zeros(site.d_out)}

    def post(self, p, x, y):
        """The edited hidden state, y [..., d]."""
        return p["a"] * y + p["b"]
