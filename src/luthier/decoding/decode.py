"""The function `decode`: it generates text with several models that choose every token together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.decoding import Decoding
from luthier.core.errors import LuthierError
from luthier.decoding.members import Member, Members, Spoken, labelled, members_of

if TYPE_CHECKING:
    import torch

    from luthier.decoding.loop import Written
    from luthier.engine.settings import Sampling
    from luthier.evaluating.generate import Messages


@dataclass(frozen=True)
class Answer:
    """The answer that the models generated together."""

    text: str
    tokens: int
    """How many, with the one that stopped."""
    drafted: int
    """How many of them a small model proposed; 0 without a draft."""
    accepted: int
    """How many of those stayed."""


def decode(
    by: Decoding,
    roles: Mapping[str, Spoken | Sequence[Spoken]],
    prompts: Sequence[str | Messages],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch: int = 8,
    draft: int = 0,
    dtype: str = "float32",
) -> list[str]:
    """One answer to each prompt, in their order, without special tokens.

    `roles` gives every role of `by` its model (one or more where a role takes `several`): a `Member`, or `MODEL` or
    `MODEL@ADAPTER`, loaded in `dtype`. Prompts are as `luthier.generate` takes them, in the words of the first role's
    tokenizer; all members read the same tokens. `draft` tokens at a time are written ahead by the decoding's small
    model and read by all in one pass (one prompt at a time): greedily the same text, sampled the same distribution.
    Modes, adapters and the global random state are left as they were. Raises `LuthierError` as `members_of` does.
    """
    from luthier.engine.settings import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    refuse_draft(by, draft)
    members = members_of(by, roles, dtype=dtype)
    return [answer.text for answer in answers(by, members, prompts, sampling, batch=batch, draft=draft)]


def refuse_draft(by: Decoding, draft: int) -> None:
    """Raises where no model can draft."""
    if draft < 0:
        raise LuthierError(f"draft is {draft}; expected 0 (none) or how many tokens to write ahead.")
    if draft and by.draft is None:
        raise LuthierError(f"{by.name()} has no small model that could draft; decode without --draft.")


def answers(
    by: Decoding,
    members: Members,
    prompts: Sequence[str | Messages],
    sampling: Sampling,
    *,
    batch: int = 8,
    draft: int = 0,
    watch: Callable[[Sequence[list[int]]], Iterable[list[int]]] = iter,
) -> list[Answer]:
    """Returns `decode` with members that are ready; `watch` hands the batches on and may tell how far it is."""
    import torch

    from luthier.core.sites.probe import eval_mode
    from luthier.decoding.vocabulary import common_width
    from luthier.engine.stops import stop_ids, text_of
    from luthier.evaluating.generate import tokenised

    refuse_draft(by, draft)
    if batch < 1:
        raise LuthierError(f"batch is {batch}; expected at least 1.")
    led = members[by.led()][0]
    ids = tokenised(led.model, led.tokenizer, prompts, template=led.template)
    stops = stop_ids(led.model, led.tokenizer)
    if empty := [number for number, each in enumerate(ids, 1) if not each]:
        raise LuthierError(f"prompt {empty[0]} has no tokens; models need at least one to go on from.")
    width = common_width(labelled(members, lambda member: member.model), led.tokenizer)
    found: list[Answer | None] = [None] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    size = 1 if draft else batch
    generator = torch.Generator(led.model.device).manual_seed(sampling.seed)
    with ExitStack() as stack:
        for model in {id(m.model): m.model for given in members.values() for m in given}.values():
            stack.enter_context(eval_mode(model))
        stack.enter_context(torch.inference_mode())
        for chosen in watch([order[start : start + size] for start in range(0, len(order), size)]):
            written = _written(by, members, [ids[i] for i in chosen], sampling, stops, width, generator, draft)
            for i, each in zip(chosen, written, strict=True):
                text = text_of(led.tokenizer, each.ids, stops)
                found[i] = Answer(text, len(each.ids), each.drafted, each.accepted)
    return [each for each in found if each is not None]


def _written(
    by: Decoding,
    members: Members,
    prompts: list[list[int]],
    sampling: Sampling,
    stops: list[int],
    width: int,
    generator: torch.Generator,
    draft: int,
) -> list[Written]:
    """What follows the prompts of one batch; only a single one can be drafted for."""
    from luthier.decoding.loop import plain, speculative
    from luthier.decoding.reader import Ensemble

    led = members[by.led()][0]
    inputs = padded(prompts, led)
    ensemble = Ensemble(by, members, inputs["input_ids"].shape[1], width, rewinds=bool(draft))
    if draft:
        return [speculative(ensemble, inputs["input_ids"], sampling, stops, generator, draft)]
    return plain(ensemble, inputs["input_ids"], inputs["attention_mask"], sampling, stops, generator)


def padded(prompts: Sequence[list[int]], led: Member) -> dict[str, Any]:
    """Returns `input_ids` and `attention_mask` [batch, columns], padded on the left, where the led model is."""
    from luthier.data import Collator

    tokenizer = led.tokenizer
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    inputs = Collator(pad, "left")([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in prompts])
    return {name: inputs[name].to(led.model.device) for name in ("input_ids", "attention_mask")}
