"""MeteoRA: finished adapters as experts, chosen for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, zeros

from luthier.core.contracts.form import dropout, kaiming
from luthier.core.contracts.router import ROUTE, Routed
from luthier.core.errors import LuthierError
from luthier.kernels._grouped import Sent

MANY = 16
"""From so many experts on the products of all of them cost more than sorting the tokens."""


@dataclass(frozen=True)
class MeteoRA(Routed):
    """y' = y + s Σ_i w_i B_i A_i x, w = softmax over the `top` largest of G x, divided by T

    The gate G [experts, d_in] of a layer reads what enters it. The authors' code starts its entries normal of deviation
    1 (spread = 1, as the recipe has it): a token is then sent firmly to some experts, and unlearning that takes their
    thousands of steps. Without `spread` it starts as a linear layer does, which short runs do better with. Experts bear
    the names of their tasks, and `task=folder` starts one from a finished adapter of any form whose change is of low
    rank, its scale in B_i; without a folder an expert starts as LoRA does. A is [experts, rank, d_in], B [experts,
    d_out, rank]; lower ranks are filled up with zeros. The paper trains the gates alone (train = router), the authors'
    code the experts as well; both tell each gate the task (objective routing). T acts outside training: their README
    takes 15 to 30 where a text holds several tasks.

    Fewer tokens than experts gather the factors of those they are sent to. For more of them all experts are one
    product, in which those not chosen weigh 0: gathered, each token would hold factors of its own. From 16 experts on
    tokens are sorted by expert, and each meets only its own.
    """

    paper = "Xu, Lai, Huang 2024 (ICLR 2025), arXiv 2405.13053 (code: NJUDeepEngine/meteora)"
    family = "hybrid"
    router = ("gate",)
    mixed = ("A", "B")
    named = True
    eval_only = ("temperature",)
    neutral: ClassVar = {"experts": ("only",), "top": 1}

    experts: tuple[str, ...] = ("first", "second", "third")
    """The experts by their tasks, as boolq=run1 (a finished adapter's folder) or boolq (from the start)."""
    rank: int = 8
    """Rank of each expert."""
    top: int = 2
    """Experts that a token is sent to."""
    temperature: float = 1.0
    """T, outside training: a high one lets those chosen weigh alike."""
    scale: float = 1.0
    """The scale s of the experts."""
    spread: float | None = None
    """Standard deviation of the gate's start. Default: a linear layer's own start, of deviation 1 / sqrt(3 d_in)."""
    dropout: float = 0.0
    """Dropout on x before A."""

    def check(self):
        super().check()
        if not self.top <= len({name for name in self.known() if name}) == len(self.experts):
            found = ", ".join(self.experts) or "none"
            raise LuthierError(f"meteora.experts are {found}; expected at least {self.top} (top), of different names.")
        for key in ("temperature", "spread"):
            self.above(key, 0)
        if self.sources() and len(self.sources()) < len(self.experts):
            raise LuthierError("meteora.experts: give all of them a folder, or none.")

    def known(self):
        return tuple(each.partition("=")[0].strip() for each in self.experts)

    def sources(self):
        return tuple(folder.strip() for each in self.experts if (folder := each.partition("=")[2]))

    def gather(self, model, sites):
        if not self.sources():
            return {}
        from luthier.core.storage.experts import stacked

        return stacked(model, self.sources(), sites, self.rank)

    def sends(self):
        return len(self.experts), self.top

    def init(self, site, stats):
        count = len(self.experts)
        fresh = {"A": kaiming(count, self.rank, site.d_in), "B": zeros(count, site.d_out, self.rank)}
        gate = kaiming(count, site.d_in) if self.spread is None else self.spread * torch.randn(count, site.d_in)
        return {"gate": gate} | {key: stats.get(key, tensor) for key, tensor in fresh.items()}

    def route(self, p, x):
        return x @ p["gate"].mT

    def weights(self, logits):
        values, chosen = self.chosen(logits)
        return torch.zeros_like(logits).scatter(-1, chosen, values)

    def chosen(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (weights, places) of the experts that each token is sent to, [..., top] each."""
        values, places = logits.topk(self.top, -1)
        wide = torch.promote_types(values.dtype, torch.float32)
        return (values.to(wide) / self.temperature).softmax(-1).to(values.dtype), places

    def post(self, p, x, y):
        """The output with the experts of each token, x [..., d_in] and y [..., d_out]."""
        x, logits = dropout(x, self.dropout), p[ROUTE]
        few, many = logits[..., 0].numel() < len(self.experts), len(self.experts) >= MANY
        mix = gathered if few else grouped if many and not torch.compiler.is_compiling() else together
        return y + self.scale * mix(self, p, x, logits)


def gathered(form: MeteoRA, p, x: Tensor, logits: Tensor) -> Tensor:
    """Σ_i w_i B_i A_i x of the experts that each token is sent to, by their own factors."""
    weights, places = form.chosen(logits)
    inner = (p["A"][places] @ x[..., None, :, None]) * weights[..., None, None]
    return (p["B"][places] @ inner).squeeze(-1).sum(-2)


def grouped(form: MeteoRA, p, x: Tensor, logits: Tensor) -> Tensor:
    """Returns the same with the tokens sorted by expert, one grouped product for each factor."""
    weights, places = form.chosen(logits.flatten(0, -2))
    sent, flat = Sent.by(places, len(form.experts)), x.flatten(0, -2)
    inner = sent.times(sent.spread(flat), p["A"].mT) * sent.weights(weights)
    return sent.summed(sent.times(inner, p["B"].mT), len(flat)).unflatten(0, x.shape[:-1])


def together(form: MeteoRA, p, x: Tensor, logits: Tensor) -> Tensor:
    """Returns the same by the factors of all experts, those that are not chosen at weight 0."""
    inner = (x @ p["A"].flatten(0, 1).mT).unflatten(-1, (len(form.experts), form.rank))
    return (inner * form.weights(logits)[..., None]).flatten(-2) @ p["B"].mT.flatten(0, 1)
