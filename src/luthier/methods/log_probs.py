"""The log-probability of each row's answer, by the model under training and by the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from luthier.core.adapters.control import disabled
from luthier.core.contracts.objective import REFERENCE
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.methods.objectives._cross_entropy import (
    answers_in_chunks,
    divisible,
    entropies,
    targets_in_chunks,
    tokens_in_chunks,
)
from luthier.methods.shared_pass import SharedPass


def log_probs(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns (Σ_t log p(y_t | x, y_<t) over the labels of each row, how many these are), [rows] each.

    `batch` holds a causal model's own arguments. A large vocabulary is gone through in chunks, as fine-tuning does,
    unless the head is trained; else float32 at least, the logits of the whole batch.
    """
    count = batch["labels"][:, 1:].ne(-100).sum(1)
    if isinstance(model, SharedPass):
        return model.token_log_probs(batch)[0].sum(1), count
    inner = unwrapped(model)
    if isinstance(inner, PreTrainedModel) and divisible(inner):
        found = answers_in_chunks(model, inner, batch)
        if found is not None:
            return found, count
    return of_logits(model(**batch).logits, batch["labels"]), count  # with labels, which tell where prompts end


def token_log_probs(
    model: nn.Module, batch: Mapping[str, Any], temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns (log p of each label, the entropy of its distribution), [rows, T - 1] each, 0 where there is no label.

    Column t is of the token behind the t-th. Distributions are softmax(logits / temperature); entropies have no
    gradient, and are 0 unless asked for. Chunks as in `log_probs`.
    """
    if isinstance(model, SharedPass):
        return model.token_log_probs(batch, temperature, entropy)
    inner, wanted = unwrapped(model), batch["labels"][:, 1:]
    if isinstance(inner, PreTrainedModel) and divisible(inner):
        found = tokens_in_chunks(model, inner, batch, temperature, entropy)
        if found is not None:
            return found[0], found[1].detach()
    return of_targets(model(**batch).logits[:, :-1], wanted, temperature, entropy)


def target_log_probs(
    model: nn.Module, batch: Mapping[str, Any], targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns (log p of `targets`, the entropy of its distribution), [rows, T] each, 0 where a target is -100.

    A target stands at the place of the token that it follows. Else as `token_log_probs`.
    """
    inner = unwrapped(model)
    if isinstance(inner, PreTrainedModel) and divisible(inner):
        found = targets_in_chunks(model, inner, batch, targets, temperature, entropy)
        if found is not None:
            return found[0], found[1].detach()
    return of_targets(model(**batch).logits, targets, temperature, entropy)


def of_targets(logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """Returns the same of logits [rows, T, V]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    with torch.no_grad():
        spread = entropies(logits) * targets.ne(-100) if entropy else torch.zeros_like(losses)
    return -losses, spread


def reference_token_log_probs(model: nn.Module, batch: Mapping[str, Any], temperature: float = 1.0) -> Tensor:
    """Those of the model with its adapters off, [rows, T - 1]."""
    inner = unwrapped(model)
    with eval_mode(inner), disabled(inner):
        return token_log_probs(inner, batch, temperature)[0]


def of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Σ_t log softmax(logits)[t, labels[t + 1]] over labels other than -100; [rows, T, V] and [rows, T] -> [rows]."""
    wanted = labels[:, 1:]
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    losses = nn.functional.cross_entropy(wide.flatten(0, 1), wanted.flatten(), reduction="none")
    return -losses.view(wanted.shape).sum(1)


def reference_log_probs(model: nn.Module, batch: Mapping[str, Any], named: str | None = None) -> Tensor:
    """Those of the reference, [rows]: the known ones of the batch, else those of the model with its adapters off.

    Raises `LuthierError` for a `named` adapter as the reference, whose numbers have to be known.
    """
    if REFERENCE in batch:
        return batch[REFERENCE]
    if named is not None:
        raise LuthierError(
            f"the reference is the adapter {named}, whose log-probabilities `luthier train` computes before the first "
            "step; nothing computed them here. Take the base as the reference."
        )
    inner = unwrapped(model)
    with eval_mode(inner), disabled(inner):
        return log_probs(inner, batch)[0]


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model inside DistributedDataParallel, or behind a shared pass."""
    if isinstance(model, SharedPass):
        return model.inner
    return model.module if isinstance(model, DistributedDataParallel) else model
