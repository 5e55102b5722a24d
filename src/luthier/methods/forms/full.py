"""Full fine-tuning: the parameters themselves, kept as an adapter like any other."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.form import Form


@dataclass(frozen=True)
class Full(Form):
    """W' = Θ, a copy of W that is trained

    Θ has the shape of the parameter and starts as its copy, so saving and loading are exact and the base stays
    at hand (one more copy of the weights). `where="params(model.layers.22.*)"` trains a part; tied tensors stay
    tied.
    """

    paper = "the baseline"
    family = "selective"
    kinds = ("param",)
    elementwise = True
    replaces = True
    lr = 2e-5
    where = "params(*)"
    needs = ("weight",)

    def init(self, site, stats):
        return {"theta": stats["weight"].detach().clone()}

    def weight(self, p, w):
        """Θ, of w's shape."""
        return p["theta"]
