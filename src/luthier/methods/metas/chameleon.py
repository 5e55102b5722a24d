"""Chameleon: masks of a kind that was never seen, from a few pictures that have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.core.contracts.meta import MaskMeta
from luthier.core.errors import LuthierError
from luthier.methods.metas._matching import Matcher
from luthier.methods.metas.fomaml import gradient

TUNED = tuple(MaskMeta.matcher + name for name in ("alpha", "norm."))
"""What of the network is fine-tuned on the support, beside the task's biases."""


@dataclass(frozen=True)
class Chameleon(MaskMeta):
    """y = g(z₁ … z₄), z_l = softmax(Q_l K_lᵀ / √d) V_l, Q_l, K_l = Σ_m softmax(α_l / τ)_m f_m(x; b_t), V_l = e_l(mask)

    f_m are four levels of the frozen backbone's states under the biases b_t of the task, of pictures asked (Q) and
    shown (K); e encodes the shown masks and g decodes. Shown pictures are a set: their order changes nothing. Every
    task learned has its own b_t, and a step moves those of its tasks alone; e, g, α and the projections are shared.
    There is no inner loop in training: a step's loss, binary cross-entropy, is that of an episode. A task to come
    starts from the mean of the learned biases and fine-tunes them, α and the norm before matching by Adam, on halves
    of its support of which one is shown and the other asked.

    Ours: the backbone's weights stay frozen, its levels may differ in width and are projected to `dim` first, α is
    shared by all tasks, the label encoder is four blocks rather than a ViT-L, a decoder without re-assembled strides;
    no augmentation and no dropout. Biases are an adapter of each task (BitFit), so any other form can take its place.
    """

    paper = "Kim, Cho, Kim, Hong 2024 (ECCV), arXiv 2404.18459; code GitGyun/chameleon"
    form: ClassVar[str] = "bitfit"

    inner_lr: float = 1e-3
    """Learning rate of the fine-tuning on the support, by Adam."""
    inner_steps: int = 20
    """Steps of the fine-tuning on the support."""
    dim: int = 64
    """Width of the tokens that are matched."""
    heads: int = 4
    """Heads of the matching."""
    temperature: float = 0.05
    """The temperature τ of the weights of levels."""

    def check(self):
        super().check()
        self.within("dim", 1)
        self.within("heads", 1)
        self.above("temperature", 0.0)
        if self.dim % self.heads:
            raise LuthierError(f"chameleon.dim is {self.dim}; expected a multiple of the {self.heads} heads.")

    def network(self, widths, side):
        if side % self.grid:
            raise LuthierError(f"masks have {side} pixels a side; expected a multiple of chameleon.grid ({self.grid}).")
        return Matcher(widths, side, self.grid, self.dim, self.heads, self.temperature)

    def adapt(self, loss, params, shown, draw):
        now = {key: p.detach().clone() for key, p in params.items()}
        own = {
            key: p.requires_grad_()
            for key, p in now.items()
            if not key.startswith(self.matcher) or key.startswith(TUNED)
        }
        adam = torch.optim.Adam(own.values(), lr=self.inner_lr)
        for _ in range(self.inner_steps if self.inner_lr else 0):
            slopes = torch.autograd.grad(loss(now, shown.parted(draw)), list(own.values()), allow_unused=True)
            for p, slope in zip(own.values(), slopes, strict=True):
                p.grad = slope
            adam.step()
        return {key: p.detach() for key, p in now.items()}

    def outer(self, loss, params, shown, asked, draw):
        return gradient(loss, params, asked)
