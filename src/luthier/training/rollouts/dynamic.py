"""Dynamic sampling: prompts whose answers all have one reward give way to other prompts of the training rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.engine.sampler import Drawn
from luthier.training.rollouts.rewards import Answered

Feature = dict[str, Any]
Values = dict[str, float | str]
"""The rewards of an answer by name, each a number or the reason why there is none."""


@dataclass(frozen=True)
class Group:
    """The answers to one prompt, and what they are worth; nothing of the latter where there are no rewards."""

    feature: Feature
    answers: list[Drawn]
    said: list[Answered]
    values: list[Values]
    rewards: list[float]
    """The weighted sums; NaN where one is not known."""

    def lines(self) -> Iterator[tuple[Answered, Drawn, Values, float]]:
        """Returns each answer with all that is known of it."""
        return zip(self.said, self.answers, self.values, self.rewards, strict=True)

    @property
    def flat(self) -> bool:
        """Whether all answers have one reward, so that nothing is learned of them; those without one do not count."""
        known = [reward for reward in self.rewards if reward == reward]
        return max(known, default=0.0) == min(known, default=0.0)


def replaced(
    groups: Sequence[Group],
    pool: Sequence[Feature],
    rounds: int,
    seed: int,
    draw: Callable[[Sequence[Feature]], list[Group]],
) -> tuple[list[Group], list[Group]]:
    """Returns the groups with flat ones replaced where other prompts of `pool` gave better ones, and what gave way.

    In each of at most `rounds` rounds as many prompts as are flat are drawn from those not asked yet, by the seed; a
    group that is flat again gives way in the next. What is flat after the last round stays (Yu et al. 2025, equation
    11, goes on until none is; a bound keeps a task that is solved, or hopeless, from sampling for ever).
    """
    groups, gone, order = list(groups), [], random.Random(seed)
    asked = {group.feature["row"] for group in groups}
    for _ in range(rounds):
        flat = [place for place, group in enumerate(groups) if group.flat]
        left = [place for place, feature in enumerate(pool) if feature["row"] not in asked] if flat else []
        if not left:
            break
        chosen = [pool[place] for place in order.sample(left, min(len(flat), len(left)))]
        asked |= {feature["row"] for feature in chosen}
        for place, group in zip(flat, draw(chosen), strict=False):
            gone.append(groups[place])
            groups[place] = group
    return groups, gone
