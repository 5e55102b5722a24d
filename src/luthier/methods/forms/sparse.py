"""A sparse change: few entries of a tensor, the others untouched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import zeros

from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Sparse(Form):
    """W' = W + S, S with k entries: S[index] = values

    `index` holds k flat positions of the tensor (a linear layer's is [d_out, d_in]), drawn at random at the start and
    fixed; `values` are trained from 0. It is also how a sparse change is kept: the k positions and numbers of a
    tensor, and nothing of its size.
    """

    paper = "Ansell et al. 2022, arXiv 2110.07560; a random support: the baseline of sparse fine-tuning"
    family = "selective"
    kinds = ("affine", "param")
    elementwise = True
    frozen = ("index",)
    depends: ClassVar = {"density": ("k", None)}

    density: float = 0.01
    """The number of entries k as a share of the tensor's entries, at least one."""
    k: int | None = None
    """Entries of each tensor. Default: as `density` says."""

    def check(self):
        super().check()
        self.above("density", 0, 1)

    def with_rank(self, rank):
        """The form with that many entries, which are to it what a rank is to factors."""
        return replace(self, k=rank, density=type(self).density)

    def init(self, site, stats):
        k = count(self.density, site.entries) if self.k is None else self.k
        if k > site.entries:
            raise LuthierError(f"sparse.k is {k:,}, and {site} has {site.entries:,} entries; expected at most as many.")
        index = torch.randperm(site.entries)[:k]
        return {"index": index.sort().values, "values": zeros(len(index))}

    def entries(self, p):
        return p["index"].long(), p["values"]

    def weight(self, p, w):
        """The tensor with its entries moved, of w's shape."""
        flat = torch.zeros_like(w).reshape(-1)
        return w + flat.scatter_add(0, p["index"].long(), p["values"].to(w.dtype)).reshape(w.shape)


def count(density: float, size: int) -> int:
    """Returns k for a tensor of `size` entries."""
    return max(1, round(density * size))
