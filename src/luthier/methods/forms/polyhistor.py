"""Polyhistor: one bottleneck adapter for many tasks, of kernels that they share and factors from their embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, zeros

from luthier.core.contracts.form import dropout, kaiming
from luthier.core.contracts.router import ROUTE_TASKS, Routed
from luthier.core.errors import LuthierError
from luthier.methods.forms.bottleneck import ACTIVATIONS


@dataclass(frozen=True)
class Polyhistor(Routed):
    """y' = y + s U σ(D h), D = K_D ⊗ T_D(t), U = K_U ⊗ T_U(t), T(t) = (P e_t) (Q e_t) of the task t of the row

    K [parts, parts] is the layer's, shared by the tasks; T(t) [dim / parts, d / parts] is a task's, of rank `rank`,
    given by linear maps P and Q (the hypernetwork) of the task's embedding e_t. A further task costs one embedding. The
    Kronecker product is never built: (K ⊗ T) x is K X Tᵀ with x folded into X [parts, d / parts]. K_U starts at zero,
    so the adapter starts as a no-op.

    Rebuilt from the paper, whose code is not public. There the hypernetwork and the embeddings are one for all layers
    and only K is a layer's own; here a site has its own of all three (a form's parameters are a site's), which makes
    the sum linear in layers and as little in tasks. Name the tasks as the column `task` has them.
    """

    paper = "Liu, Ma, Tian, He, Kira 2022 (NeurIPS), arXiv 2210.03265 (rebuilt: no public code)"
    family = "additive"
    kinds = ("stream",)
    where = "stream"
    by_task = True
    router = ("embedding",)
    neutral: ClassVar = {"tasks": ()}

    dim: int = 32
    """Width of the bottleneck."""
    parts: int = 4
    """Size of the kernels K; it must divide the bottleneck and the width of the sites."""
    rank: int = 4
    """Rank of each task's factor T."""
    size: int = 8
    """Numbers of a task's embedding."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, as the column task has them. Default: all rows are of one."""
    insertion: Literal["parallel", "sequential"] = "sequential"
    """What the adapter reads: the input or the output of the module."""
    activation: Literal["gelu", "relu"] = "gelu"
    """The nonlinearity σ."""
    scale: float = 1.0
    """The scale s of the adapter's output."""
    dropout: float = 0.0
    """Dropout on h."""

    def check(self):
        super().check()
        if len(set(self.tasks)) < len(self.tasks):
            raise LuthierError(f"polyhistor.tasks are {', '.join(self.tasks)}; expected each once.")
        if self.dim % self.parts:
            raise LuthierError(f"polyhistor.dim is {self.dim}; expected a multiple of the {self.parts} parts.")
        if self.train != "all":
            raise LuthierError("polyhistor.train=router would leave an adapter that does nothing; leave it out.")

    def known(self):
        return self.tasks

    def init(self, site, stats):
        if site.d_out % self.parts or site.d_in % self.parts:
            raise LuthierError(f"polyhistor: the width of {site} ({site.d_out}) cannot be divided into {self.parts}.")
        wide, thin, kernel = site.d_out // self.parts, self.dim // self.parts, (self.parts, self.parts)
        return {
            "embedding": torch.randn(max(1, len(self.tasks)), self.size),
            "down_kernel": torch.randn(kernel) / self.parts**0.5,
            "down_p": kaiming(thin, self.rank, self.size),
            "down_q": kaiming(self.rank, wide, self.size),
            "up_kernel": zeros(kernel),
            "up_p": kaiming(wide, self.rank, self.size),
            "up_q": kaiming(self.rank, thin, self.size),
        }

    def route(self, p, x):
        count = len(p["embedding"])
        told = p.get(ROUTE_TASKS, torch.zeros(1, dtype=torch.long, device=x.device))
        return torch.nn.functional.one_hot(told, count).to(x.dtype)[:, None]

    def weights(self, logits):
        return logits

    def post(self, p, x, y):
        """The output with the adapter of each row's task, x and y [rows, ..., d]."""
        e = p["embedding"][p[ROUTE_TASKS]] if ROUTE_TASKS in p else p["embedding"][:1]
        h = dropout(y if self.insertion == "sequential" else x, self.dropout)
        inner = ACTIVATIONS[self.activation](kronecker(p, "down", e, h))
        return y + self.scale * kronecker(p, "up", e, inner)


def kronecker(p, which: str, e: Tensor, x: Tensor) -> Tensor:
    """Returns (K ⊗ T) x, [rows, ..., parts · out], never built; e [rows or 1, size], x [rows, ..., parts · d]."""
    kernel, outer, inner = p[f"{which}_kernel"], p[f"{which}_p"], p[f"{which}_q"]
    q = torch.einsum("rqs,ns->nrq", inner, e)
    t = torch.einsum("ors,ns->nor", outer, e)
    folded = x.unflatten(-1, (len(kernel), -1))
    low = times(folded, q)
    return (kernel @ times(low, t)).flatten(-2)


def times(x: Tensor, m: Tensor) -> Tensor:
    """Returns x mᵀ with the matrix of each row, x [rows, ..., d], m [rows or 1, out, d]."""
    return x @ (m[0] if len(m) == 1 else m.view(len(m), *[1] * (x.dim() - 3), *m.shape[1:])).mT
