"""CoFiTune's soft mask: rows that general ability rests on learn less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.core.contracts.update import ParameterGroup, TrainingPlan, Update
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import features
from luthier.methods.forms.full import Full


@dataclass(frozen=True)
class SoftMask(Update):
    """g'_i = (1 - λ I_i) g_i for each row i of a weight,  I = |tanh((h - mean h) / std h)|,  h = ∂ KL(p₁ ‖ p₂) / ∂ m

    p₁ and p₂ are the model's answers in two passes with dropout over the same rows, and m, all ones, multiplies the
    outputs of a layer; h is summed over `batches` of them before the first step, and z-scored within each layer. A bias
    learns as its row does. Norms, embeddings and new heads are not masked. `where` says
    which layers train at all, such as "params(*mlp*) & layers(10, 19)": λ = 0 is plain fine-tuning of these.

    Dropout at `dropout` acts on the inputs of the measured layers, as well as the model's own, since many models have
    none (the authors': their model's own alone; they measure on other rows, with masks of heads, FFN channels and FFN
    outputs). AdamW divides gradients by their own size: a row learns less by a factor that changes, and by one that
    stays it moves almost as far as without, unless that is 0. So under AdamW, here as in the authors' code, λ acts on
    rows with I near 1 and little else.
    """

    paper = "Zhang et al. 2024 (Findings of ACL), arXiv 2404.10306 (code: rattlesnakey/CoFiTune)"
    family = "selective"
    neutral: ClassVar = {"strength": 0.0}
    decays = False

    strength: float = 1.0
    """λ: how much of the importance is taken off."""
    batches: int = 8
    """Batches of the training rows that it is measured on."""
    dropout: float = 0.1
    """Dropout on the inputs of the layers in these passes."""

    def check(self):
        self.within("strength", 0, 1)
        self.within("batches", 1)
        self.above("dropout", 0, 0.9)

    def check_form(self, form, sites):
        if not isinstance(form, Full):
            raise LuthierError(f"soft_mask masks rows of weights, and {form.name()} adds to them; use full.")
        if not any(site.d_out > 1 for site in sites):
            raise LuthierError(f"soft_mask masks rows of linear layers, and none of the {len(sites)} sites is of one.")

    def check_plan(self, plan):
        if self.strength and not self.masked(plan):
            raise LuthierError("soft_mask masks rows of linear layers, and no weight of one is trained here.")

    def check_beside(self, form, sites):
        """Other forms of the adapter are trained as they are."""

    def masked(self, plan: TrainingPlan) -> dict[str, list[ParameterGroup]]:
        """Returns the groups of weights and biases of linear layers, by the layer."""
        found: dict[str, list[ParameterGroup]] = {}
        for group in plan.groups:
            if isinstance(group.form, Full) and features(group.module):
                found.setdefault(group.site.module, []).append(group)
        return found

    def begin(self, plan):
        if not self.strength or plan.logits is None:
            return {}
        layers = self.masked(plan)
        sums = measured(plan, {path: groups[0].module for path, groups in layers.items()}, self.batches, self.dropout)
        if not any(bool(h.any()) for h in sums.values()):
            raise LuthierError("soft_mask found no difference between two passes with dropout, so no row is important.")
        return {group.name: {"rows": importance(sums[path])} for path, groups in layers.items() for group in groups}

    def update(self, grads, state, group):
        if "rows" not in state:
            return grads
        kept = 1 - self.strength * state["rows"]
        return {key: g * kept.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1)) for key, g in grads.items()}


def importance(h: Tensor) -> Tensor:
    """Returns |tanh| of the z-scores of h [rows]; zeros where all are equal."""
    spread = h.std()
    return torch.zeros_like(h) if not spread > 0 else torch.tanh((h - h.mean()) / spread).abs()


def measured(plan: TrainingPlan, layers: dict[str, nn.Module], batches: int, rate: float) -> dict[str, Tensor]:
    """Returns h of each layer, [d_out], summed over batches; random numbers that others draw stay what they were."""
    assert plan.logits is not None
    device = next(iter(next(iter(layers.values())).parameters())).device
    masks = {path: torch.ones(features(m)[1], device=device, requires_grad=True) for path, m in layers.items()}  # type: ignore[index]
    sums = {path: torch.zeros_like(mask) for path, mask in masks.items()}
    with torch.random.fork_rng(), torch.enable_grad(), hooked(layers, masks, rate):
        torch.manual_seed(plan.seed)
        for number in range(batches):
            first, second = (wide(plan.logits(number)).flatten(0, -2) for _ in range(2))
            loss = functional.kl_div(first.log_softmax(-1), second.softmax(-1), reduction="batchmean")
            found = torch.autograd.grad(loss, list(masks.values()), allow_unused=True)
            for path, grad in zip(masks, found, strict=True):
                sums[path] += 0 if grad is None else grad
    return sums


def wide(logits: Tensor) -> Tensor:
    """Returns logits in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def hooked(layers: dict[str, nn.Module], masks: dict[str, Tensor], rate: float) -> Iterator[None]:
    """Drops inputs of the layers and multiplies their outputs while the context lasts."""

    def drop(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (functional.dropout(args[0], rate, training=True), *args[1:])

    def multiply(mask: Tensor, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        return y * mask.to(y.dtype)

    with ExitStack() as stack:
        for path, module in layers.items():
            for handle in (
                module.register_forward_pre_hook(drop),
                module.register_forward_hook(partial(multiply, masks[path])),
            ):
                stack.callback(handle.remove)
        yield
