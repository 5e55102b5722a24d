"""A pool as a few cells of like rows, and the game of labelling them: worlds, a policy's view, what errors cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

FEATURES = 7
"""Numbers by which a policy sees a cell."""
CUT = (0.1, 0.3, 0.6)
"""Share of the tree's edges over which labels change, at most, in each class of worlds."""
NOISE = (0.0, 0.15, 0.3)
"""Share of a cell's rows that has another label than most, at most."""


@dataclass(frozen=True)
class Cells:
    """The cells of a pool."""

    share: Tensor
    """Of the rows in each, [cells], sum 1."""
    distance: Tensor
    """Between their centres, [cells, cells], the largest 1."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.share)


@dataclass
class Votes:
    """The labels of cells so far, in many games at a time."""

    counts: Tensor
    """By class, [games, cells, classes]."""

    @classmethod
    def none(cls, games: int, cells: int, classes: int) -> Votes:
        """Returns the votes before the first."""
        return cls(torch.zeros(games, cells, classes))

    def add(self, cell: Tensor, label: Tensor) -> None:
        """Adds one label to each game."""
        self.counts[torch.arange(len(cell)), cell, label] += 1

    def decided(self, distance: Tensor) -> Tensor:
        """Returns the class of each cell: its majority, or that of the nearest labelled one, [games, cells]."""
        labelled = self.counts.sum(-1) > 0
        far = distance[None].masked_fill(~labelled[:, None, :], 9.0)
        nearest = far.argmin(-1)
        return self.counts.argmax(-1).gather(1, nearest)

    def seen(self, cells: Cells, left: float) -> Tensor:
        """Returns the features of each cell, [games, cells, FEATURES]; `left` is the share of the budget left."""
        n = self.counts.sum(-1)
        top = self.counts.sort(-1, descending=True).values
        margin = (top[..., 0] - top[..., 1]) / n.clamp(min=1)
        labelled = n > 0
        far = cells.distance[None].masked_fill(~labelled[:, None, :], 1.0)
        own = torch.eye(cells.count, dtype=torch.bool)[None]
        others, who = far.masked_fill(own, 1.0).min(-1)
        major = self.counts.argmax(-1)
        differs = (major.gather(1, who) != major) & labelled & labelled.gather(1, who)
        share = (cells.share * cells.count).log1p()[None].expand_as(n)
        given = [n.log1p(), labelled.float(), margin, others, differs.float(), share, torch.full_like(n, left)]
        return torch.stack(given, -1)


class Scorer(nn.Module):
    """A policy: one small network f for every cell, π(cell | votes) ∝ exp(f(features of the cell))."""

    def __init__(self, seed: int, width: int = 16) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.inner, self.outer = nn.Linear(FEATURES, width), nn.Linear(width, 1)
        with torch.no_grad():
            for layer in (self.inner, self.outer):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw) / layer.in_features**0.5)
                layer.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """log π, [games, cells]."""
        return torch.log_softmax(self.outer(torch.tanh(self.inner(features)))[..., 0], -1)


@dataclass
class Worlds:
    """Labellings of the cells: those of class k are the first `ends[k]`, so that classes are nested."""

    labels: Tensor
    """The majority of each cell, 0 or 1, [worlds, cells]."""
    noise: Tensor
    """Share of each cell with the other label, [worlds, cells]."""
    ends: list[int] = field(default_factory=list)

    @classmethod
    def drawn(cls, cells: Cells, each: int, seed: int) -> Worlds:
        """Draws `each` worlds for every class: labels change over a share of the edges of the cells' shortest tree."""
        draw = torch.Generator().manual_seed(seed)
        edges, labels, noise, ends = tree(cells.distance), [], [], []
        for cut, most in zip(CUT, NOISE, strict=True):
            for _ in range(each):
                allowed = max(1, round(cut * len(edges)))
                cuts = set(torch.randperm(len(edges), generator=draw)[:allowed].tolist())
                labels.append(_coloured(edges, cuts, cells.count))
                noise.append(most * torch.rand(cells.count, generator=draw))
            ends.append(len(labels))
        return cls(torch.stack(labels), torch.stack(noise), ends)

    @property
    def classes(self) -> list[Tensor]:
        """The worlds of each class."""
        return [torch.arange(end) for end in self.ends]


def tree(distance: Tensor) -> list[tuple[int, int]]:
    """The shortest tree through all cells, as (cell that is in it, cell that joins), by Prim's algorithm."""
    inside, edges = [0], []
    while len(inside) < len(distance):
        rest = [i for i in range(len(distance)) if i not in inside]
        part = distance[inside][:, rest]
        best = int(part.argmin())
        edges.append((inside[best // len(rest)], rest[best % len(rest)]))
        inside.append(edges[-1][1])
    return edges


def _coloured(edges: Sequence[tuple[int, int]], cuts: set[int], count: int) -> Tensor:
    found = torch.zeros(count, dtype=torch.long)
    for number, (known, new) in enumerate(edges):
        found[new] = found[known] ^ (number in cuts)
    return found


@dataclass(frozen=True)
class Played:
    """Plays a policy in every world and says what its errors cost: losses [worlds], with REINFORCE's gradient."""

    cells: Cells
    worlds: Worlds
    horizon: int
    games: int
    draw: torch.Generator

    def __call__(self, policy: nn.Module) -> Tensor:
        """The mean loss of each world, over its games."""
        labels, noise = (each.repeat_interleave(self.games, 0) for each in (self.worlds.labels, self.worlds.noise))
        votes, log_p = Votes.none(len(labels), self.cells.count, 2), torch.zeros(len(labels))
        for t in range(self.horizon):
            found = policy(votes.seen(self.cells, 1 - t / self.horizon))
            cell = torch.multinomial(found.detach().exp(), 1, generator=self.draw)
            flip = torch.rand(len(labels), 1, generator=self.draw) < noise.gather(1, cell)
            votes.add(cell[:, 0], (labels.gather(1, cell) ^ flip.long())[:, 0])
            log_p = log_p + found.gather(1, cell)[:, 0]
        wrong = (votes.decided(self.cells.distance) != labels).float()
        cost = (wrong * (1 - 2 * noise) * self.cells.share).sum(-1).view(-1, self.games)
        if not torch.is_grad_enabled():
            return cost.mean(1)
        surrogate = (log_p.view(-1, self.games) * (cost - cost.mean(1, keepdim=True))).mean(1)
        return cost.mean(1) + surrogate - surrogate.detach()
