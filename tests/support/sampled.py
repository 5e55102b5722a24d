"""Batches of sampled answers as the trainer makes them, without sampling."""

from __future__ import annotations

import torch

from luthier.core.contracts.objective import (
    ADVANTAGE,
    OLD_TOKENS,
    REFERENCE_TOKENS,
    SAMPLED,
    SAMPLED_FIGURES,
    Objective,
    Scored,
)
from luthier.data import Collator
from luthier.methods.log_probs import reference_token_log_probs, token_log_probs
from luthier.training.rollouts.features import answered, in_parts

PROMPTS, GROUP = ((5, 6, 7, 8), (9, 10, 11)), 3


def scored(equal: bool = False) -> Scored:
    """Rewards of two groups, of answers of which some are nearly as long as is allowed by default."""
    draw = torch.Generator().manual_seed(1)
    rewards = torch.randn(len(PROMPTS), GROUP, generator=draw, dtype=torch.float64)
    lengths = torch.tensor([[128, 127, 126], [125, 110, 3]], dtype=torch.float64)
    kl = 0.3 * torch.randn(rewards.shape, generator=draw, dtype=torch.float64)
    return Scored(rewards * 0 + 1 if equal else rewards, lengths, lengths.eq(128), kl)


def rows_of(chosen: Objective, equal: bool = False) -> list[dict]:
    """Sampled answers of two prompts with the objective's own advantages."""
    draw = torch.Generator().manual_seed(1)
    advantages = chosen.advantages(scored(equal)).flatten().tolist()
    found = []
    for place, advantage in enumerate(advantages):
        ids = torch.randint(4, 60, (2 + place % 4,), generator=draw).tolist()
        found.append(answered(PROMPTS[place // GROUP], ids, place) | {ADVANTAGE: advantage})
    return found


def batch_of(rows: list[dict], chosen: Objective, model, side: str = "right", multiple: int | None = None) -> dict:
    """The batch, with what the objective compares with."""
    rollouts = chosen.rollouts(99, 0)
    assert rollouts is not None
    if rollouts.beside:
        own = [answered(PROMPTS[0], (12, 13, 14), 9) | {ADVANTAGE: 0.0}]
        parts = in_parts(rows, own)
        rows = [part | {ADVANTAGE: row[ADVANTAGE]} for part, row in zip(parts, [*rows, *own], strict=True)]
    made = Collator(0, side, multiple)(rows)  # type: ignore[arg-type]
    made[SAMPLED] = torch.zeros(len(made.pop("rows")), len(SAMPLED_FIGURES))
    plain = {key: made[key] for key in ("input_ids", "attention_mask", "labels")}
    if rollouts.reference:
        made[REFERENCE_TOKENS] = _widened(reference_token_log_probs(model, plain))
    if rollouts.old:
        made[OLD_TOKENS] = _widened(token_log_probs(model, plain)[0] - 0.05)
    return made


def _widened(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(values.detach(), (0, 1))
