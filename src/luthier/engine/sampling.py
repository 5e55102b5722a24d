"""The next token of every row, each chosen in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.numerics.wide import widened
from luthier.engine.shaping import PLAIN, Shaper, Shaping, shaped

LIKELY = 256
"""A nucleus is looked for among so many tokens before a whole vocabulary is sorted."""


@dataclass(frozen=True, eq=False)
class Draw:
    """How the tokens of a row are chosen; one number of its own generator decides each."""

    temperature: float
    top_p: float
    generator: torch.Generator
    logprobs: int | None = None
    shaping: Shaping = PLAIN
    shaper: Shaper | None = None
    """What the row's tokens so far make of its logits; None: nothing."""


@dataclass(frozen=True)
class Choice:
    """A token, and where they were asked for, log-probabilities of the model itself (temperature 1, no nucleus)."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def drawing(
    temperature: float,
    top_p: float,
    seed: int | None,
    logprobs: int | None,
    shaping: Shaping = PLAIN,
    shaper: Shaper | None = None,
) -> Draw:
    """Returns a row's draw; without a seed, from one that the system gives."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed % (1 << 64))
    return Draw(temperature, top_p, generator, logprobs, shaping, shaper)


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[Choice | None]:
    """Returns a token for each row of `logits` [rows, vocabulary]; None where they are NaN or infinite, and where a
    row's grammar leaves no token.

    Rows do not know of each other: a row's token is the same in any batch, up to rounding of its logits.
    """
    logits = logits.float()
    wanted = shaped(logits, [draw.shaper for draw in draws])
    best, ids = wanted.max(-1)
    sound, tokens = best.isfinite().tolist(), ids.tolist()
    drawn = [i for i, draw in enumerate(draws) if draw.temperature and sound[i]]
    if drawn:
        for i, token in zip(drawn, _drawn(wanted[drawn], [draws[i] for i in drawn]), strict=True):
            tokens[i] = token
    told = {i: draw.logprobs for i, draw in enumerate(draws) if draw.logprobs is not None and sound[i]}
    found: dict[int, Choice] = {}
    if told:
        found = _told(logits[list(told)], [tokens[i] for i in told], told)
    return [found.get(i, Choice(token)) if sound[i] else None for i, token in enumerate(tokens)]


def _drawn(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """By the inverse of the distribution function, in the order of the vocabulary."""
    column = lambda values: torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]  # noqa: E731
    logits = logits - logits.max(-1, keepdim=True).values  # so that no temperature overflows
    chances = (logits / column([draw.temperature for draw in draws])).softmax(-1)
    if few := [i for i, draw in enumerate(draws) if draw.shaping.top_k]:
        chances[few] = likeliest(chances[few], [draws[i].shaping.top_k for i in few])
    narrow = [i for i, draw in enumerate(draws) if draw.top_p < 1]
    if narrow:
        chances[narrow] = nucleus(chances[narrow], column([draws[i].top_p for i in narrow]))
    if tall := [i for i, draw in enumerate(draws) if draw.shaping.min_p]:
        least = column([draws[i].shaping.min_p for i in tall]) * chances[tall].amax(-1, keepdim=True)
        chances[tall] = chances[tall].where(chances[tall] >= least, 0)
    mass = widened(chances).cumsum(-1)
    numbers = [torch.rand(1, generator=draw.generator, dtype=torch.float64).item() for draw in draws]
    shares = torch.tensor(numbers, dtype=mass.dtype, device=mass.device)[:, None]
    found = torch.searchsorted(mass, shares * mass[:, -1:], right=True)
    last = (mass < mass[:, -1:]).sum(-1, keepdim=True)  # the last token with a chance
    return torch.minimum(found, last)[:, 0].tolist()


def likeliest(chances: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns `chances` [rows, vocabulary] of the `counts` likeliest tokens of each row and ties, summing to 1."""
    most = min(max(counts), chances.shape[1])
    index = torch.tensor([min(count, most) - 1 for count in counts], device=chances.device)[:, None]
    kept = chances.where(chances >= chances.topk(most).values.gather(1, index), 0)
    return kept / kept.sum(-1, keepdim=True)


def nucleus(chances: Tensor, top_p: Tensor) -> Tensor:
    """Returns `chances` [rows, vocabulary] without those outside the smallest set that reaches `top_p` [rows, 1]."""
    kept = torch.zeros_like(chances)
    open_rows = torch.arange(len(chances), device=chances.device)
    for count in (min(LIKELY, chances.shape[1]), chances.shape[1]):
        values, index = chances[open_rows].topk(count)
        mass = widened(values).cumsum(-1)
        inside = mass - values < top_p[open_rows]
        kept[open_rows] = torch.zeros_like(kept[open_rows]).scatter(1, index, values * inside)
        open_rows = open_rows[mass[:, -1] < top_p[open_rows, 0]]
        if not len(open_rows):
            break
    return kept


def _told(logits: Tensor, tokens: list[int], counts: dict[int, int]) -> dict[int, Choice]:
    logs = logits.log_softmax(-1)
    own = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    most = logs.topk(min(max(counts.values()), logs.shape[1])) if any(counts.values()) else None
    found = {}
    for place, (row, count) in enumerate(counts.items()):
        top = [] if most is None else [t[place, :count].tolist() for t in (most.indices, most.values)]
        found[row] = Choice(tokens[place], own[place], tuple(zip(*top, strict=True)))
    return found
