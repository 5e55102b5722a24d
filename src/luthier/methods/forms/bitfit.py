"""BitFit: train the biases that the model has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros_like

from luthier.core.contracts.form import Form


@dataclass(frozen=True)
class BitFit(Form):
    """b' = b + δ

    δ has the shape of the bias and starts at 0: a no-op. It acts on parameters, by default on every one named
    `bias`, those of norms included. A model without biases (Llama) has nothing for it, and says so.
    """

    paper = "Ben Zaken, Goldberg, Ravfogel 2022, arXiv 2106.10199"
    family = "selective"
    kinds = ("param",)
    elementwise = True
    lr = 1e-3
    where = "params(*.bias)"
    needs = ("weight",)

    def init(self, site, stats):
        return {"delta": zeros_like(stats["weight"])}

    def weight(self, p, w):
        """The new bias, of w's shape."""
        return w + p["delta"]
