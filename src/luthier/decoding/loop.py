"""The decoding loop: token by token, or speculative with a small model that drafts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.decoding.reader import Ensemble
from luthier.engine.settings import Sampling


@dataclass
class Written:
    """What followed one prompt."""

    ids: list[int]
    drafted: int = 0
    accepted: int = 0
    """How many of the drafted tokens stayed."""


def probabilities(scores: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that tokens are drawn from, [..., vocabulary]; at temperature 0, all on the best score."""
    if not sampling.temperature:
        return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
    found = (scores / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, index = found.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        found = found.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), 0)
    return found / found.sum(-1, keepdim=True)


def draw(found: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each row of [batch, vocabulary], [batch]."""
    return torch.multinomial(found, 1, generator=generator)[:, 0]


def plain(
    ensemble: Ensemble, ids: Tensor, mask: Tensor, sampling: Sampling, stops: list[int], generator: torch.Generator
) -> list[Written]:
    """Token by token, a whole batch: `ids` and `mask` are prompts [batch, columns], padded on the left."""
    start, ends = ids.shape[1], torch.tensor(stops, dtype=torch.long, device=ids.device)
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(sampling.max_new_tokens):
        scores = ensemble.scores(ids, mask)[:, -1]
        refuse_undefined(scores)
        token = draw(probabilities(scores, sampling), generator)
        ids = torch.cat([ids, token[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        going &= ~torch.isin(token, ends)
        if not going.any():
            break
    return [Written(until(row, stops)) for row in ids[:, start:].tolist()]


def until(ids: list[int], stops: list[int]) -> list[int]:
    """Returns the tokens up to the first that stops, which stays."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def refuse_undefined(scores: Tensor) -> None:
    """Raises where a row scores NaN or nothing at all."""
    if bool((scores.isnan().any(-1) | (scores == -torch.inf).all(-1)).any()):
        raise LuthierError("the models' logits do not combine: a score is NaN, or every one is -inf.")


def speculative(
    ensemble: Ensemble, ids: Tensor, sampling: Sampling, stops: list[int], generator: torch.Generator, ahead: int
) -> Written:
    """One prompt, [1, columns]: the drafting member writes `ahead` tokens, then all members read them in one pass.

    The tokens follow the very distribution of `plain` (Leviathan et al. 2023, arXiv 2211.17192): a drafted token of
    probability q stays with min(1, p / q), and the first one that does not is drawn anew from (p - q)+. At
    temperature 0, p and q are on one token each, so that the text is that of `plain`, token for token.
    """
    role = ensemble.by.draft
    assert role is not None
    drafter, start = ensemble.readers[role][0], ids.shape[1]
    done = Written([])
    while len(done.ids) < sampling.max_new_tokens and not set(stops) & set(done.ids):
        count = min(ahead, sampling.max_new_tokens - len(done.ids) - 1)
        known, guesses = ids.shape[1], []
        for _ in range(count):
            guess = drafter(ids, torch.ones_like(ids))[:, -1, : ensemble.width].to(ids.device)
            guesses.append(probabilities(guess, sampling))
            ids = torch.cat([ids, draw(guesses[-1], generator)[:, None]], 1)
        drafter.crop(known - 1)  # it reads its own draft again, as the others do: one pass, the same logits
        scores = ensemble.scores(ids, torch.ones_like(ids), count + 1)[0]
        refuse_undefined(scores)
        wanted = probabilities(scores, sampling)
        kept, token = verified(wanted, guesses, ids[0, known:], generator)
        ensemble.crop(known + kept)
        ids = torch.cat([ids[:, : known + kept], token[None]], 1)
        done = Written(until(ids[0, start:].tolist(), stops), done.drafted + count, done.accepted + kept)
    return done


def verified(wanted: Tensor, guesses: list[Tensor], drafted: Tensor, generator: torch.Generator) -> tuple[int, Tensor]:
    """Returns how many of the drafted tokens stay, and the token behind them, [1].

    `wanted` is [drafted + 1, vocabulary], `guesses` hold [1, vocabulary] each, `drafted` is [drafted].
    """
    for place, (token, guess) in enumerate(zip(drafted.tolist(), guesses, strict=True)):
        p, q = wanted[place], guess[0].to(wanted.dtype)
        chance = torch.rand((), generator=generator, device=p.device, dtype=p.dtype)
        if not bool(chance * q[token] < p[token]):
            return place, draw((p - q).clamp(min=0)[None], generator)
    return len(guesses), draw(wanted[-1:], generator)
