"""Gradients of single rows with respect to an adapter's tensors, by one batched pass (torch.func)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from luthier.core.adapters.control import trainable
from luthier.core.contracts.kernel import reference_implementation
from luthier.core.sites.probe import eval_mode

Output = Callable[[Tensor, Tensor], Tensor]
"""A scalar of one row: of its logits ([T, V], or [classes]) and its labels ([T], or a scalar)."""
MOST = 2**26
"""Entries of gradients that are held at a time (256 MiB in float32)."""
CLOSE = 1e-3
"""The largest relative difference from an ordinary backward pass at which the batched one is believed."""


def log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the loss of one row: the mean of -log p over its labels, shifted for tokens; of a number, (y - f)²."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if labels.dim():
        wanted = labels[1:]
        losses = nn.functional.cross_entropy(logits[:-1], wanted, reduction="none")
        return losses.sum() / wanted.ne(-100).sum().clamp(min=1)
    if labels.is_floating_point():
        return (logits.squeeze(-1) - labels).square()
    return nn.functional.cross_entropy(logits[None], labels[None])


def fisher_diagonal(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], done: Callable[[int], Any] = int
) -> dict[str, Tensor]:
    """Returns the mean over rows of the squared gradient of each row's log-probability, by tensor name.

    With the labels of the data (the empirical Fisher information); `batches` are collated, `done(rows)` is told of
    progress.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for gradients in row_gradients(model, batches, log_loss):
        rows = len(next(iter(gradients.values())))
        for key, g in gradients.items():
            squares = g.square().sum(0)
            sums[key] = sums[key] + squares if key in sums else squares
        count += rows
        done(rows)
    return {key: total / count for key, total in sums.items()}


@dataclass
class Trust:
    """Whether the batched pass of a model is believed; None until it was compared."""

    batched: bool | None = None


def row_gradients(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], output: Output, trust: Trust | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yields the gradients of `output` of each row, [rows, *shape] by tensor name, batch by batch and in order.

    In evaluation mode. The first batch is compared with an ordinary backward pass: where the batched pass cannot be run
    (a model with control flow that looks at its inputs) or differs, rows are gone through one at a time. With one
    `trust` for several calls, the comparison is made once.
    """
    trust = trust or Trust()
    params = trainable(model)
    size = max(1, MOST // max(1, sum(p.numel() for p in params.values())))
    with _plain(model):
        for batch in batches:
            for part in _parts(batch, size):
                if trust.batched is None:
                    trust.batched = _agrees(model, params, part, output)
                yield (_batched if trust.batched else _one_by_one)(model, params, part, output)


@contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without what torch.func cannot look into."""
    with eval_mode(model), torch.enable_grad(), reference_implementation(), sdpa_kernel(SDPBackend.MATH):
        yield


def _parts(batch: Mapping[str, Any], size: int) -> Iterator[dict[str, Tensor]]:
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    for start in range(0, len(tensors["labels"]), size):
        yield {key: value[start : start + size] for key, value in tensors.items()}


def _agrees(model: nn.Module, params: Mapping[str, nn.Parameter], part: Mapping[str, Tensor], output: Output) -> bool:
    """Whether the batched pass gives, summed, what an ordinary backward pass gives on these rows."""
    try:
        found = {key: g.sum(0) for key, g in _batched(model, params, part, output).items()}
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError, IndexError):
        return False
    logits = model(**_inputs(part, model)).logits
    labels = part["labels"].to(logits.device)
    total = torch.stack([output(row, label) for row, label in zip(logits, labels, strict=True)]).sum()
    plain = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    known = {key: torch.zeros_like(found[key]) if g is None else g for key, g in zip(params, plain, strict=True)}
    apart = sum(float((found[key] - g).square().sum()) for key, g in known.items())
    return apart <= CLOSE**2 * sum(float(g.square().sum()) for g in known.values())


def _inputs(part: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in part.items() if key != "labels"}


def _batched(
    model: nn.Module, params: Mapping[str, nn.Parameter], part: Mapping[str, Tensor], output: Output
) -> dict[str, Tensor]:
    paths = {id(p): path for path, p in model.named_parameters()}
    named = {paths[id(p)]: key for key, p in params.items()}
    own = {paths[id(p)]: p.detach() for p in params.values()}
    given = _inputs(part, model)
    if "attention_mask" in given and given["attention_mask"].dim() == 2 and "decoder_input_ids" not in given:
        given["attention_mask"] = _wide_mask(given["attention_mask"], _is_causal(model), next(model.parameters()).dtype)
    labels = part["labels"].to(next(model.parameters()).device)

    def one(own: dict[str, Tensor], given: dict[str, Tensor], label: Tensor) -> Tensor:
        out = functional_call(model, own, kwargs={key: value[None] for key, value in given.items()})
        return output(out.logits[0], label)

    found = vmap(grad(one), in_dims=(None, 0, 0))(own, given, labels)
    return {named[path]: g.detach() for path, g in found.items()}


def _one_by_one(
    model: nn.Module, params: Mapping[str, nn.Parameter], part: Mapping[str, Tensor], output: Output
) -> dict[str, Tensor]:
    found: list[list[Tensor]] = []
    for place in range(len(part["labels"])):
        row = {key: value[place : place + 1] for key, value in part.items()}
        value = output(model(**_inputs(row, model)).logits[0], row["labels"][0].to(next(model.parameters()).device))
        plain = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        found.append([torch.zeros_like(p) if g is None else g for p, g in zip(params.values(), plain, strict=True)])
    return {key: torch.stack([row[i] for row in found]) for i, key in enumerate(params)}


def _is_causal(model: nn.Module) -> bool:
    return any(getattr(module, "is_causal", False) for module in model.modules())


def _wide_mask(mask: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    """What is added to scores, [rows, 1, T, T], of a mask [rows, T]: models look into the latter, which no batched
    pass can."""
    width = mask.shape[1]
    seen = mask.bool()[:, None, None, :].expand(-1, 1, width, width)
    if causal:
        seen = seen & torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)
