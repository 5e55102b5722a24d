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
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from luthier.core.adapters.swap import adapters_of
from luthier.core.sites.structure import is_sharded
from luthier.methods.objectives._chunks import each, summed
from luthier.methods.shared_pass import SharedPass

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
    if isinstance(model, SharedPass):
        return -model.token_log_probs(batch)[0].sum() / batch["labels"][:, 1:].ne(-100).sum()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if not (isinstance(inner, PreTrainedModel) and isinstance(batch.get("labels"), Tensor) and chunks(inner)):
        return model(**batch).loss
    loss = _by_chunks(model, inner, batch, _mean)
    return model(**batch).loss if loss is None else loss


def divisible(model: PreTrainedModel) -> bool:
    """Whether `answers_in_chunks` may be asked: each token's gradient is kept, and that of a trained head is too large
    to be kept for each."""
    return chunks(model) and not (torch.is_grad_enabled() and _trained(model))


def answers_in_chunks(model: nn.Module, inner: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor | None:
    """The log-probability of each row's labels, [rows]; None for a model that turns out to be built otherwise."""
    return _by_chunks(model, inner, batch, _row_sums)


def tokens_in_chunks(
    model: nn.Module, inner: PreTrainedModel, batch: Mapping[str, Any], temperature: float, entropy: bool
) -> Tensor | None:
    """log p of each label and the entropy of its distribution (0 unless asked for), [2, rows, T - 1], 0 where there is
    no label; None as `answers_in_chunks`. Logits are divided by the temperature."""
    return _by_chunks(model, inner, batch, partial(_tokens, temperature, entropy))


def targets_in_chunks(
    model: nn.Module,
    inner: PreTrainedModel,
    batch: Mapping[str, Any],
    targets: Tensor,
    temperature: float,
    entropy: bool,
) -> Tensor | None:
    """The same of `targets` [rows, T], each at the place of the token that it follows, [2, rows, T]."""
    given = {**batch, "labels": batch["input_ids"], "shift_labels": targets}
    return _by_chunks(model, inner, given, partial(_targets, temperature, entropy))


def _by_chunks(
    model: nn.Module, inner: PreTrainedModel, batch: Mapping[str, Any], made_of: Callable[..., Tensor]
) -> Tensor | None:
    with _in_chunks(inner, made_of):
        found = model(**batch, logits_to_keep=_fewest(inner, batch["labels"].device)).loss
    if found is None:  # its forward pass goes round the body, as OPT's does
        _WHOLE.add(inner)
    return found


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
def _in_chunks(model: PreTrainedModel, made_of: Callable[..., Tensor]) -> Iterator[None]:
    """The model's loss function, while the context lasts, is `made_of` what its body returned and not the logits."""
    name = model.base_model_prefix
    body, held = model._modules[name], []
    assert body is not None
    hook = body.register_forward_hook(lambda module, args, output: held.append(output))

    def loss(logits, labels, *args, **kwargs):
        hook.remove()
        return made_of(_end(model, name, held.pop(), labels, **kwargs)) if held else None

    before = vars(model).get("_loss_function")
    model.loss_function = loss
    try:
        yield
    finally:
        hook.remove()
        del model._loss_function
        if before is not None:
            model.loss_function = before


@dataclass(frozen=True)
class _End:
    """The tokens of a batch that are in the loss, at the end of the model's body."""

    logits_of: Callable[[Tensor], Tensor]
    """Logits [n, V] of last hidden states [n, d]."""
    hidden: Tensor
    """[N, d]."""
    targets: Tensor
    places: Tensor
    """Their places among the tokens of the batch, [N]."""
    shape: torch.Size
    """(rows, tokens of a row)."""
    size: int
    """Tokens whose logits exist at a time."""
    weights: list[Tensor]
    """What is trained of the head."""
    count: Tensor | int
    """What the sum of their losses is divided by."""


def _end(
    model: PreTrainedModel,
    name: str,
    output: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **_: Any,
) -> _End:
    """Of the body's `output`; the arguments are those of transformers' ForCausalLMLoss."""
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    hidden = output[0].flatten(0, 1)
    targets = shift_labels.reshape(-1).to(hidden.device)
    places = (targets != ignore_index).nonzero()[:, 0]
    forward = _plain_class(model).forward

    def logits_of(rows: Tensor) -> Tensor:
        model._modules[name], body = _Given(output, rows[None]), model._modules[name]
        try:
            return forward(model).logits.flatten(0, 1)  # picking the one row would copy it in the backward pass
        finally:
            model._modules[name] = body

    size = max(FEW // model.config.get_text_config().vocab_size, CHUNK.get(hidden.device.type, CHUNK_ELSEWHERE))
    rows = hidden.index_select(0, places)
    count = len(places) if num_items_in_batch is None else num_items_in_batch
    return _End(logits_of, rows, targets[places], places, shift_labels.shape, size, _trained(model), count)


def _trained(model: PreTrainedModel) -> list[Tensor]:
    """What is trained of the head and of what belongs to it, each tensor once."""
    return list({id(p): p for end in _ends(model) for p in end.parameters() if p.requires_grad}.values())


def _mean(end: _End) -> Tensor:
    """transformers' ForCausalLMLoss."""
    total = summed(end.logits_of, end.hidden, end.targets, end.size, end.weights)
    return total / torch.as_tensor(end.count, device=total.device)


def _row_sums(end: _End) -> Tensor:
    """The log-probability of each row's labels, [rows]."""
    losses = each(end.logits_of, end.hidden, end.targets, end.size)
    row = end.places.div(end.shape[1], rounding_mode="floor")
    return -losses.new_zeros(end.shape[0]).index_add(0, row, losses)


def _tokens(temperature: float, entropy: bool, end: _End) -> Tensor:
    """log p of each label and its distribution's entropy, [2, rows, T - 1]; the entropy has no gradient."""
    return _targets(temperature, entropy, end)[..., :-1]


def _targets(temperature: float, entropy: bool, end: _End) -> Tensor:
    """The same at every token, [2, rows, T]."""

    def logits_of(rows: Tensor) -> Tensor:
        return end.logits_of(rows) if temperature == 1 else end.logits_of(rows) / temperature

    losses = each(logits_of, end.hidden, end.targets, end.size)
    spans = (end.hidden[i : i + end.size] for i in range(0, len(end.targets), end.size))
    with torch.no_grad():
        found = [entropies(logits_of(rows)) if entropy else losses.new_zeros(len(rows)) for rows in spans]
    both = torch.stack([-losses, torch.cat([losses.new_zeros(0), *found])])
    places = end.places.expand(2, -1)
    return both.new_zeros(2, end.shape.numel()).scatter(1, places, both).view(2, *end.shape)


def entropies(logits: Tensor) -> Tensor:
    """Returns - Σ_v p_v log p_v of softmax(logits), float32 at least; [..., V] -> [...]."""
    logs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return -(logs.exp() * logs).sum(-1)


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
