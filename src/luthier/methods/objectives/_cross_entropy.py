"""Cross-entropy of a causal model without the logits of a whole batch.

The logits of T tokens over V words are the largest tensor of a step: transformers' loss holds them about three times
over. Here a few tokens at a time go through the model's own end (its head with whatever adapters act on it, and what
the model does to logits: Gemma's soft cap, Cohere's and Granite's scale), their gradient is taken at once, and the
logits are dropped. Tokens that are not in the loss never meet the head.

The reference implementation is `model(**batch).loss`. Liger-Kernel has the like for GPUs only (Triton); torch 2.13's
`linear_cross_entropy` and Liger's read the head's weight, which would leave out an adapter on the head.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from luthier.core.adapters.swap import adapters_of
from luthier.core.sites.structure import is_sharded

VOCABULARY = 4096
"""From this many words on chunks are used; with fewer they save next to nothing."""
CHUNK = {"cpu": 128}
"""Tokens whose logits exist at a time, by type of device: enough to keep a matrix product busy."""
CHUNK_ELSEWHERE = 512
FEW = 2**22
"""Logits that are too few to be divided."""


def causal_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Returns `model(**batch).loss`, equal to rounding, computed in chunks where the model and its vocabulary allow it.

    `model` may be wrapped in DistributedDataParallel: its own forward pass, and every hook on it, still runs.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if not (isinstance(inner, PreTrainedModel) and isinstance(batch.get("labels"), Tensor) and chunks(inner)):
        return model(**batch).loss
    with _in_chunks(inner):
        loss = model(**batch, logits_to_keep=_fewest(inner, batch["labels"].device)).loss
    if loss is None:  # its forward pass goes round the body, as OPT's does
        _WHOLE.add(inner)
        return model(**batch).loss
    return loss


_WHOLE: WeakSet[nn.Module] = WeakSet()
"""Models that were found to have another structure than expected, each by itself: their loss is taken whole."""


def chunks(model: PreTrainedModel) -> bool:
    """Returns whether the loss of `model` is computed in chunks: a causal language model with many words, whose head is
    whole on this process and treats each token for itself."""
    head = model.get_output_embeddings()
    if head is None or getattr(model.config.get_text_config(), "vocab_size", 0) < VOCABULARY:
        return False
    return (
        model not in _WHOLE
        and _asks_for_its_loss(_plain_class(model), model.base_model_prefix)
        and model.loss_function is ForCausalLMLoss
        and _here(model, head)
        and _token_by_token(head)
    )


def _here(model: PreTrainedModel, head: nn.Module) -> bool:
    """Whether the head is whole on this process while the model runs: not sharded by tensor parallelism, nor
    gathered for each call of its own."""
    if not any(is_sharded(p) for p in head.parameters()):
        return all(p.numel() for p in head.parameters())
    from torch.distributed.fsdp import FSDPModule

    return model.tp_size is None and isinstance(model, FSDPModule) and not isinstance(head, FSDPModule)


def _plain_class(model: nn.Module) -> type[nn.Module]:
    """The class whose forward pass the adapted one wraps."""
    return getattr(type(model), "_luthier_base", type(model))


def _ends(model: PreTrainedModel) -> list[nn.Module]:
    """What the model runs besides its body: the head and what belongs to it."""
    return [child for name, child in model.named_children() if name != model.base_model_prefix]


def _fewest(model: PreTrainedModel, device: torch.device) -> Tensor:
    """The tokens whose logits the model's own pass computes, which nobody reads: none, or the first of each row
    where a form, which need not cope with no tokens, acts on the head. (An index, since a slice of bfloat16 makes
    the matrix product copy the whole head.)"""
    adapted = any(adapters_of(module) for end in _ends(model) for module in end.modules())
    return torch.zeros(int(adapted), dtype=torch.long, device=device)


@cache
def _asks_for_its_loss(cls: type[nn.Module], body: str) -> bool:
    """Whether a forward pass is body, head, `self.loss_function`, and can leave logits out."""
    forward = inspect.unwrap(cls.forward)
    wanted = {"labels", "logits_to_keep"} <= set(inspect.signature(forward).parameters)
    return wanted and {"loss_function", body} <= set(forward.__code__.co_names)


def _token_by_token(head: nn.Module) -> bool:
    """Whether no adapter on the head goes by a token's place in the batch."""
    adapters = adapters_of(head)
    return adapters is None or (adapters.current.rows is None and not any(s.positions for s in adapters.tuners()))


@contextmanager
def _in_chunks(model: PreTrainedModel) -> Iterator[None]:
    """The model's loss function, while the context lasts, reads what its body returned and not the logits."""
    name = model.base_model_prefix
    body, held = model._modules[name], []
    assert body is not None
    hook = body.register_forward_hook(lambda module, args, output: held.append(output))

    def loss(logits, labels, *args, **kwargs):
        hook.remove()
        return _loss(model, name, held.pop(), labels, **kwargs) if held else None

    before = vars(model).get("_loss_function")
    model.loss_function = loss
    try:
        yield
    finally:
        hook.remove()
        del model._loss_function
        if before is not None:
            model.loss_function = before


def _loss(
    model: PreTrainedModel,
    name: str,
    output: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """transformers' ForCausalLMLoss of the body's `output`; the arguments are its own."""
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    hidden = output[0].flatten(0, 1)
    targets = shift_labels.reshape(-1).to(hidden.device)
    places = (targets != ignore_index).nonzero()[:, 0]
    weights = {id(p): p for end in _ends(model) for p in end.parameters() if p.requires_grad}.values()
    forward = _plain_class(model).forward

    def logits_of(rows: Tensor) -> Tensor:
        model._modules[name], body = _Given(output, rows[None]), model._modules[name]
        try:
            return forward(model).logits.flatten(0, 1)  # picking the one row would copy it in the backward pass
        finally:
            model._modules[name] = body

    size = max(FEW // model.config.get_text_config().vocab_size, CHUNK.get(hidden.device.type, CHUNK_ELSEWHERE))
    rows = hidden.index_select(0, places)
    total = summed(logits_of, rows, targets[places], size, list(weights))
    count = len(places) if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device)


class _Given(nn.Module):
    """Stands for a model's body: returns what the body returned, with other last hidden states."""

    def __init__(self, output: Any, hidden: Tensor) -> None:
        super().__init__()
        self.output, self.hidden = output, hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the body's output; its arguments have had their effect."""
        if isinstance(self.output, tuple):
            return (self.hidden, *self.output[1:])
        changed = copy.copy(self.output)
        changed.last_hidden_state = self.hidden
        return changed


def summed(
    logits_of: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, size: int, weights: list[Tensor]
) -> Tensor:
    """- sum over n of log softmax(logits_of(rows))[n, targets[n]], `size` rows at a time.

    rows [N, d], targets [N] of indices; `logits_of` maps [n, d] to [n, V], each row for itself. Gradients reach
    `rows` and `weights`, which must name every trained tensor that `logits_of` reads. float32, as transformers'.
    """
    if not torch.is_grad_enabled():
        rows, weights = rows.detach(), []
    total: Any = _Summed.apply(logits_of, targets, size, rows, *weights)
    return total


class _Summed(torch.autograd.Function):
    """Takes the gradient of each chunk while its logits exist; the backward pass only scales it."""

    @staticmethod
    def forward(ctx, logits_of, targets, size, *inputs):  # pyright: ignore
        """Loss of all chunks; keeps the gradients of `inputs`, [N, d] and those of the weights."""
        needed = ctx.needs_input_grad[3:]
        total = torch.zeros((), device=targets.device)
        slopes = [torch.zeros_like(x, dtype=_wide(x)) if n else None for x, n in zip(inputs, needed, strict=True)]
        for start in range(0, len(targets), size):
            chosen = slice(start, start + size)
            chunk = inputs[0][chosen].detach().requires_grad_(needed[0])
            loss, found = _chunk(logits_of, targets[chosen], [chunk, *inputs[1:]], needed)
            total += loss
            for index, slope in enumerate(found):
                if slope is not None:
                    (slopes[index] if index else slopes[0][chosen]).add_(slope)  # pyright: ignore
        ctx.save_for_backward(*(None if s is None else s.to(x.dtype) for s, x in zip(slopes, inputs, strict=True)))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):  # pyright: ignore
        """The kept gradients, scaled."""
        return None, None, None, *(None if s is None else s * slope.to(s.dtype) for s in ctx.saved_tensors)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunk(
    logits_of: Callable, targets: Tensor, inputs: list[Tensor], needed: tuple[bool, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """(summed loss of one chunk, its gradients for `inputs`: None where not needed)."""
    with torch.set_grad_enabled(any(needed)):
        logits = logits_of(inputs[0])
    slope = torch.log_softmax(logits.detach().float(), -1)
    loss = -slope.gather(1, targets[:, None]).sum()
    if not any(needed):
        return loss, []
    slope.exp_().scatter_add_(1, targets[:, None], -slope.new_ones(len(targets), 1))
    wanted = [x for x, n in zip(inputs, needed, strict=True) if n]
    found = iter(torch.autograd.grad(logits, wanted, slope.to(logits.dtype), allow_unused=True))
    return loss, [next(found) if n else None for n in needed]
