"""Policies against the worst case: which of a few arms to ask next, trained by play against an adversary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

History = tuple[tuple[int, int], ...]
"""(arm, answer) of every question so far."""
LARGEST = 20000
"""Histories up to which a game is enumerated."""


@dataclass(frozen=True)
class Game:
    """A question of `horizon` answers: arms are asked, each answers by chance as the instance has it, then one pays.

    `answers` [instances, arms, outcomes] are probabilities; `loss(histories)` gives [histories, instances]: what the
    final decision after each history costs under each instance.
    """

    horizon: int
    answers: Tensor
    loss: Callable[[list[History]], Tensor]

    @property
    def arms(self) -> int:
        """How many things can be asked."""
        return self.answers.shape[1]

    def histories(self) -> list[History]:
        """Returns every full history; only of small games."""
        pairs = list(itertools.product(range(self.arms), range(self.answers.shape[2])))
        return list(itertools.product(pairs, repeat=self.horizon))

    def small(self) -> bool:
        """Whether every history can be gone through."""
        return (self.arms * self.answers.shape[2]) ** self.horizon <= LARGEST


class Table(nn.Module):
    """A policy of an own number for every history and arm."""

    def __init__(self, game: Game) -> None:
        super().__init__()
        pairs = list(itertools.product(range(game.arms), range(game.answers.shape[2])))
        nodes = [h for t in range(game.horizon) for h in itertools.product(pairs, repeat=t)]
        self.place = {history: i for i, history in enumerate(nodes)}
        self.logits = nn.Parameter(torch.zeros(len(nodes), game.arms, dtype=game.answers.dtype))

    def forward(self, histories: Sequence[History]) -> Tensor:
        """log π(arm | history), [histories, arms]."""
        return torch.log_softmax(self.logits[[self.place[h] for h in histories]], -1)


class Enumerated:
    """A game all of whose histories are gone through: the expected loss under each instance, exactly."""

    def __init__(self, game: Game) -> None:
        self.game, self.all = game, game.histories()
        chance = torch.ones(len(self.all), len(game.answers), dtype=game.answers.dtype)
        for t in range(game.horizon):
            arms, said = zip(*(h[t] for h in self.all), strict=True)
            chance = chance * game.answers[:, list(arms), list(said)].mT
        self.weighed = chance * game.loss(self.all)
        self.prefixes = [[h[:t] for h in self.all] for t in range(game.horizon)]
        self.asked = [torch.tensor([[h[t][0]] for h in self.all]) for t in range(game.horizon)]

    def __call__(self, policy: nn.Module) -> Tensor:
        """Returns the expected loss of each instance, [instances]."""
        steps = zip(self.prefixes, self.asked, strict=True)
        log_p = sum((policy(before).gather(1, arm)[:, 0] for before, arm in steps), torch.zeros(()))
        return log_p.exp() @ self.weighed


def worst(losses: Tensor, classes: Sequence[Tensor], floors: Tensor) -> Tensor:
    """max_k (max over class k of the loss - floor_k); with one class and floor 0 the worst loss."""
    return torch.stack([losses[members].max() for members in classes]).sub(floors).max()


SHARPNESS = (10.0, 1000.0)
"""β of the smooth maximum at the first and at the last step; losses are shares, from 0 to 1."""


def solve(
    value: Callable[[nn.Module], Tensor],
    policy: nn.Module,
    classes: Sequence[Tensor],
    floors: Sequence[float],
    *,
    steps: int,
    lr: float = 0.1,
    exact: bool = True,
) -> tuple[nn.Module, float]:
    """Trains the policy by descent on (1/β) log Σ exp(β regret), β rising; returns (it, worst regret).

    The adversary's answer to a policy, softmax(β regret) over the instances of all classes, sharpens to the worst one.
    `value` gives losses of the instances, [instances]; `classes` are nested sets of their places and `floors` what each
    class costs at best. Where `value` is `exact`, the parameters with the least worst case on the way are kept, else
    the last, and the regret is a mean over the last tenth of the steps.
    """
    low = torch.tensor(floors, dtype=torch.float64)
    members = [m.long() for m in classes]
    optimiser = torch.optim.Adam(policy.parameters(), lr)
    best, kept, last = math.inf, None, []
    for step in range(steps + 1):
        losses = value(policy)
        found = float(worst(losses.detach().double(), members, low))
        last.append(found)
        if found < best and exact:
            best, kept = found, {k: v.clone() for k, v in policy.state_dict().items()}
        if step == steps:
            break
        regrets = torch.cat([losses[m].double() - floor for m, floor in zip(members, low, strict=True)])
        beta = SHARPNESS[0] * (SHARPNESS[1] / SHARPNESS[0]) ** (step / steps)
        optimiser.zero_grad()
        (torch.logsumexp(beta * regrets, 0) / beta).backward()
        for group in optimiser.param_groups:
            group["lr"] = lr * (1.01 - step / steps)
        optimiser.step()
    if kept is None:
        tail = last[-max(1, steps // 10) :]
        return policy, sum(tail) / len(tail)
    policy.load_state_dict(kept)
    return policy, best


def nested(
    value: Callable[[nn.Module], Tensor], made: Callable[[], nn.Module], classes: Sequence[Tensor], **settings: Any
) -> tuple[nn.Module, list[float], float]:
    """Returns (the policy of the least worst regret, what each class costs by a policy of its own, that regret).

    First a policy for each class alone against its worst instance; then one for all, by its regrets to these.
    """
    floors = [solve(value, made(), [members], [0.0], **settings)[1] for members in classes]
    policy, regret = solve(value, made(), classes, floors, **settings)
    return policy, floors, regret
