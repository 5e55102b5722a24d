"""Patching: activations of one pass put into another, and masks over heads that are fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from luthier.core.contracts.examination import Batch
from luthier.core.numerics.wide import widened
from luthier.core.sites.answers import spoken
from luthier.core.sites.heads import Replaced, heads, refuse_headless
from luthier.core.sites.structure import base_modules

Outputs = dict[str, Tensor]
"""What heads give, by the path of their attention: [rows, positions, heads, width]."""
Masks = dict[str, Tensor]
"""The share of each head that is replaced, by the path of its attention: [heads]."""
Head = tuple[str, int]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the mean loss of a batch's labels, in nats."""
    logits, labels, _ = spoken(model, batch)
    return nn.functional.cross_entropy(widened(logits), labels)


def read(model: nn.Module, batch: Batch) -> tuple[Outputs, float]:
    """Returns (what every head gives, the loss)."""
    with heads(model) as seen:
        found = float(loss(model, batch))
    refuse_headless(seen, model)
    return dict(seen.outputs), found


def rolled(outputs: Mapping[str, Tensor]) -> Outputs:
    """Returns the outputs with every row's taken from the next row of the batch."""
    return {path: each.roll(-1, 0) for path, each in outputs.items()}


def one(outputs: Outputs, head: Head) -> Masks:
    """Returns the masks that replace one head."""
    made = zeros(outputs)
    made[head[0]][head[1]] = 1.0
    return made


def zeros(outputs: Outputs, value: float = 0.0) -> Masks:
    """Returns masks of one value for every head."""
    return {path: widened(each.new_full((each.shape[2],), value)) for path, each in outputs.items()}


def replacing(outputs: Outputs, masks: Masks) -> Replaced:
    """Returns what `heads` replaces: every attention with its masks."""
    return {path: (outputs[path], masks[path]) for path in masks}


def patched(model: nn.Module, batch: Batch, outputs: Outputs, masks: Masks) -> Tensor:
    """Returns the loss with the masked share of heads replaced by `outputs`."""
    with heads(model, replacing(outputs, masks)):
        return loss(model, batch)


def direct(model: nn.Module, batch: Batch, clean: Outputs, other: Outputs, head: Head) -> float:
    """Path patching to the logits: the loss with one head's output from `other` and all further heads held at `clean`.

    What the head tells later heads does not count; feed-forward layers are recomputed.
    """
    return float(patched(model, batch, held(clean, other, head), zeros(clean, 1.0)))


def held(clean: Outputs, other: Outputs, head: Head) -> Outputs:
    """Returns the clean outputs with one head's from the other pass."""
    path, place = head
    made = clean[path].clone()
    made[:, :, place] = other[path][:, :, place]
    return {**clean, path: made}


def path_effect(model: nn.Module, batch: Batch, clean: Outputs, other: Outputs, sender: Head, receiver: Head) -> float:
    """Path patching to a head: the loss where the receiver alone hears the sender's output from `other`.

    First all other heads are held at `clean` and the receiver's query, key and value are noted; then a clean pass gives
    them to the receiver.
    """
    with heads(model, replacing(held(clean, other, sender), zeros(clean, 1.0))) as seen:
        loss(model, batch)
    path, place = receiver
    with heads(model, inputs={path: (seen.inputs[path], place)}):
        return float(loss(model, batch))


def fit_masks(
    model: nn.Module,
    batches: Sequence[tuple[Batch, Outputs]],
    cost: float,
    steps: int,
    lr: float,
    watch: Callable = lambda text, items: items,
) -> Masks:
    """Desiderata-based masks: the shares m in [0, 1] of heads that minimise loss(patched) + cost Σ m, by Adam.

    They start at ½, are clamped after each step, and are not rounded here.
    """
    masks = {path: each.requires_grad_() for path, each in zeros(batches[0][1], 0.5).items()}
    optimiser = torch.optim.Adam(list(masks.values()), lr=lr)
    for step in watch("fitting the masks of heads", list(range(steps))):
        batch, outputs = batches[step % len(batches)]
        optimiser.zero_grad()
        with torch.enable_grad():
            total = patched(model, batch, outputs, masks) + cost * sum(each.sum() for each in masks.values())
            found = torch.autograd.grad(total, list(masks.values()))
        for mask, gradient in zip(masks.values(), found, strict=True):
            mask.grad = gradient
        optimiser.step()
        with torch.no_grad():
            for mask in masks.values():
                mask.clamp_(0, 1)
    return {path: each.detach() for path, each in masks.items()}


# --- everything ------------------------------------------------------------------------------------------


@contextmanager
def noting(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Notes the first output of every module of the base that owns parameters."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path, module in owners(model):

            def note(module, args, output, path=path):
                if isinstance(output, Tensor):
                    found.setdefault(path, output)

            stack.callback(module.register_forward_hook(note).remove)
        yield found


@contextmanager
def giving(model: nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Modules give these outputs instead of their own."""
    with ExitStack() as stack:
        for path, module in owners(model):
            if path in outputs:
                hook = lambda module, args, output, value=outputs[path]: value.to(output)  # noqa: E731
                stack.callback(module.register_forward_hook(hook).remove)
        yield


def owners(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the modules of the base that own parameters, with their paths."""
    return [(path, module) for path, module in base_modules(model) if path and module._parameters]
