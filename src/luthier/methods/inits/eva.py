"""EVA: a form starts by reading the directions in which its input varies most."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.init import Init
from luthier.core.contracts.ranks import Budget
from luthier.methods.statistics._explained import check_form, explained
from luthier.methods.statistics.pca import PCA


@dataclass(frozen=True)
class EVA(Init):
    """A = the r leading principal components of the layer's input, B = 0

    The rows of A (of whichever factor reads the input: ψ of WeGeFT) are orthonormal and explain as much of the
    input's variance as r directions can. The other factor stays zero, so the output is unchanged at the start. The
    authors' code can also divide each row by the root of its singular value (for images); that grows with the number
    of tokens read and is left out.
    """

    paper = "Paischer et al. 2024, arXiv 2410.07170 (code: ml-jku/EVA)"
    needs = ("pca",)

    tau: float = 0.99
    """A site is settled once each component's |cosine| with itself a batch earlier reaches this; at 1 all is read."""

    def statistics(self, form):
        check_form(form)
        return (PCA(Budget(form).rank, self.tau),)

    def factors(self, form, site, stats):
        check_form(form)
        rank = Budget(form).rank
        directions = explained(site, stats, rank)["pca"][:rank]
        # a copy: sites with one input share their statistics, never their factors
        return {form.down_projection: directions.to(torch.get_default_device(), copy=True)}
