"""Layer-wise decay of the learning rate: the lower a layer, the less it moves."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import torch
from torch import Tensor, nn

from luthier.core.adapters.container import AdapterContainer
from luthier.core.contracts.update import ParameterGroup, TrainingPlan, Update
from luthier.core.errors import LuthierError
from luthier.methods.forms.full import Full
from luthier.methods.updates._layers import check_layered

SPREAD = 0.02
"""Standard deviation of fresh matrices, as BERT begins."""


@dataclass(frozen=True)
class LayerDecay(Update):
    """η_l = η d^(L - l)

    l = 0 for the embeddings, 1 to L for the blocks; final norm and head learn at η as the top block does. `reinit`
    starts the top blocks anew (matrices normal with deviation 0.02, norms and biases as the model's own
    initialisation has them: Gemma's norms compute 1 + w and start at 0), which needs the form full.
    The default d is ELECTRA's (0.9 for its large model).
    """

    paper = "Tinn et al. 2023 (Patterns), arXiv 2112.07869; decay: Clark et al. 2020 (ELECTRA), arXiv 2003.10555"
    neutral: ClassVar = {"decay": 1.0}

    decay: float = 0.8
    """The decay d: the learning rate of a layer over that of the one above."""
    reinit: int = 0
    """The number of top blocks that are initialised again."""

    def check(self):
        self.within("decay", 0.0, 1.0)
        self.within("reinit", 0)

    def check_form(self, form, sites):
        check_layered(self, form, sites)
        blocks = 1 + max(site.layer for site in sites if site.layer is not None)
        if self.reinit and not isinstance(form, Full):
            raise LuthierError(
                f"layer_decay.reinit starts weights anew, which {form.name()} leaves as they are; use full."
            )
        if self.reinit > blocks:
            raise LuthierError(f"layer_decay.reinit is {self.reinit}, and there are {blocks} blocks.")

    def rate(self, plan, group, key):
        return self.decay ** max(0, plan.depth - group.level)

    def values(self, plan, step):
        top = range(plan.depth - self.reinit + 1, plan.depth + 1)
        return {
            group.key(key): fresh(plan, group, parameter)
            for group in plan.groups
            if step == 0 and group.level in top
            for key, parameter in group.params.items()
        }


def fresh(plan: TrainingPlan, group: ParameterGroup, like: Tensor) -> Tensor:
    """A tensor as it is before any training, drawn by the seed and the tensor's name."""
    if like.dim() < 2:
        return _as_initialised(group, like)
    generator = torch.Generator().manual_seed(crc32(f"{plan.seed} {group.name}".encode()))
    return SPREAD * torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _as_initialised(group: ParameterGroup, like: Tensor) -> Tensor:
    """A vector as its model's own initialisation starts it, found on a copy of its module."""
    from transformers import PreTrainedModel  # --help does without

    counterpart, why = _blank(group.module), f"{type(group.owner).__name__} has no initialisation of its own"
    if isinstance(group.owner, PreTrainedModel):
        group.owner._init_weights(counterpart)
        found = counterpart._parameters[group.site.path.rpartition(".")[2]]
        if found is not None and not bool(found.isnan().any()):
            return found.detach().to(like.device, like.dtype)
        why = f"{type(group.owner).__name__}'s own initialisation leaves it"
    raise LuthierError(f"layer_decay.reinit cannot tell how {group.site} starts: {why}. Leave reinit 0.")


def _blank(module: nn.Module) -> nn.Module:
    """A copy without adapters whose vectors hold no number yet, and whose matrices no memory."""
    counterpart = copy.copy(module)
    counterpart.__class__ = getattr(type(module), "_luthier_base", type(module))
    inside = {key: child for key, child in module._modules.items() if not isinstance(child, AdapterContainer | None)}
    vars(counterpart)["_modules"] = {key: _blank(child) for key, child in inside.items()}
    vars(counterpart)["_parameters"] = {key: None if p is None else _empty(p) for key, p in module._parameters.items()}
    vars(counterpart)["_buffers"] = {key: None if b is None else b.clone() for key, b in module._buffers.items()}
    return counterpart


def _empty(parameter: Tensor) -> nn.Parameter:
    new = torch.empty_like(parameter, device="meta") if parameter.dim() > 1 else torch.full_like(parameter, torch.nan)
    return nn.Parameter(new, requires_grad=False)
