"""Averaged gradient episodic memory: no step may raise the loss of rows of earlier tasks, to first order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.update import Update
from luthier.core.numerics.wide import widened


@dataclass(frozen=True)
class AGEM(Update):
    """g' = g where g · r ≥ 0, else g - (g · r / r · r) r, r the gradient on rows of earlier tasks

    Over all trained tensors as one vector, before clipping; afterwards g' · r ≥ 0. The products are taken in float64.
    """

    paper = "Chaudhry et al. 2019, arXiv 1812.00420"
    rehearses = True

    def project(self, grads, reference):
        shared = [key for key in grads if key in reference]
        product = sum((widened(grads[key]) * widened(reference[key])).sum() for key in shared)
        length = sum(widened(reference[key]).square().sum() for key in shared)
        if not shared or not torch.as_tensor(product) < 0:
            return grads
        share = product / length
        return {
            key: (widened(g) - share * widened(reference[key])).to(g.dtype) if key in reference else g
            for key, g in grads.items()
        }
