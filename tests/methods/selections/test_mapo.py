"""MAPO: its minimax against a linear programme over all policies, its play, and what it asks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from luthier import data
from luthier.core.contracts.component import find, names
from luthier.core.contracts.selection import Pool, Selection
from luthier.core.errors import LuthierError
from luthier.methods.selections._cells import Cells, Played, Votes, Worlds, tree
from luthier.methods.selections._minimax import Enumerated, Game, Table, nested
from luthier.methods.selections.mapo import MAPO
from support.tiny import write_rows

ASKING = [name for name in names("selections") if find("selections", name, Selection).query is not Selection.query]
MEANS = torch.tensor(
    [[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.9, 0.5, 0.5], [0.5, 0.9, 0.5], [0.5, 0.5, 0.9],
     [0.6, 0.5, 0.1], [0.1, 0.6, 0.5]], dtype=torch.float64,
)  # fmt: skip
CLASSES = [torch.arange(3), torch.arange(6), torch.arange(8)]


def best_arm() -> Game:
    """Two pulls of three arms, then one is named by its mean (with a pseudo-count); it costs what the best one adds."""

    def loss(histories):
        found = []
        for history in histories:
            wins, pulls = torch.full((3,), 0.5, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
            for arm, won in history:
                wins[arm] += won
                pulls[arm] += 1
            found.append(MEANS.max(1).values - MEANS[:, int((wins / pulls).argmax())])
        return torch.stack(found)

    return Game(2, torch.stack([1 - MEANS, MEANS], -1), loss)


def programme(values: np.ndarray, classes, floors) -> float:
    """min over mixtures of the deterministic policies [policies, instances] of the worst regret."""
    from scipy.optimize import linprog

    count = len(values)
    bounds = [np.r_[values[:, i], -1] for members in classes for i in members.tolist()]
    most = [floor for members, floor in zip(classes, floors, strict=True) for _ in members]
    found = linprog(
        np.r_[np.zeros(count), 1], A_ub=np.array(bounds), b_ub=most, A_eq=[np.r_[np.ones(count), 0]], b_eq=[1],
        bounds=[(0, None)] * count + [(None, None)],
    )  # fmt: skip
    return float(found.fun)


def test_the_minimax_of_an_enumerated_game():
    """Two questions, three arms: within .02 of the linear programme, for each class alone and for the nested ones."""
    game = best_arm()
    every = Enumerated(game)
    deterministic = []
    for first, *second in itertools.product(range(3), repeat=3):
        follows = [h[0][0] == first and h[1][0] == second[h[0][1]] for h in every.all]
        deterministic.append(every.weighed[torch.tensor(follows)].sum(0).numpy())
    values = np.array(deterministic)
    wanted = [programme(values, [members], [0.0]) for members in CLASSES]
    regret = programme(values, CLASSES, wanted)
    policy, floors, found = nested(every, lambda: Table(game), CLASSES, steps=150)
    assert np.abs(np.array(floors) - wanted).max() < 0.02 and abs(found - regret) < 0.02
    with torch.no_grad():  # what is said of the policy is what it does
        losses = every(policy)
    assert float(
        torch.stack([losses[m].max() - f for m, f in zip(CLASSES, floors, strict=True)]).max()
    ) == pytest.approx(found)
    uniform = every(Table(game))  # the untrained policy is not near it
    assert (
        float(torch.stack([uniform[m].max() - f for m, f in zip(CLASSES, wanted, strict=True)]).max()) > regret + 0.02
    )


def test_every_history_has_its_chance():
    every = Enumerated(
        Game(2, torch.stack([1 - MEANS, MEANS], -1), lambda h: torch.ones(len(h), 8, dtype=torch.float64))
    )
    assert torch.allclose(every(Table(every.game)), torch.ones(8, dtype=torch.float64))
    assert every.game.small() and not Game(30, every.game.answers, every.game.loss).small()


def test_worlds_are_nested_and_change_over_the_edges_of_the_tree():
    draw = torch.Generator().manual_seed(0)
    at = torch.rand(9, 2, generator=draw)
    cells = Cells(torch.full((9,), 1 / 9), torch.cdist(at, at))
    edges = tree(cells.distance)
    assert len(edges) == 8 and {new for _, new in edges} == set(range(1, 9))
    worlds = Worlds.drawn(cells, 4, 0)
    changes = [sum(int(y[a] != y[b]) for a, b in edges) for y in worlds.labels]
    assert changes == [1] * 4 + [2] * 4 + [5] * 4 and [len(m) for m in worlds.classes] == [4, 8, 12]


def test_play_costs_what_its_errors_weigh():
    """One question in two cells: the one not asked gets the label of the other."""
    cells = Cells(torch.tensor([0.7, 0.3]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    worlds = Worlds(torch.tensor([[0, 1], [1, 1]]), torch.zeros(2, 2))
    first = Always(0)
    played = Played(cells, worlds, 1, 16, torch.Generator().manual_seed(0))
    assert played(first).tolist() == pytest.approx([0.3, 0.0]) and played(Always(1)).tolist() == pytest.approx(
        [0.7, 0.0]
    )
    noisy = Played(cells, Worlds(worlds.labels, torch.tensor([[0.5, 0.0], [0.0, 0.0]])), 1, 400, played.draw)
    # half of the answers of cell 0 mislead; its own rows cannot be told apart by any label
    assert float(noisy(first)[0].detach()) == pytest.approx(0.15, abs=0.03)


def test_the_gradient_of_play_is_that_of_the_expectation():
    cells = Cells(torch.tensor([0.7, 0.3]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    chance = Always(0, weight=0.4)
    Played(cells, Worlds(torch.tensor([[0, 1]]), torch.zeros(1, 2)), 1, 20000, torch.Generator().manual_seed(0))(
        chance
    ).sum().backward()
    p = torch.softmax(torch.tensor([0.4, 0.0]), 0)[0]
    assert float(chance.weight.grad) == pytest.approx(float((0.3 - 0.7) * p * (1 - p)), abs=0.01)  # type: ignore[arg-type]


class Always(torch.nn.Module):
    """Asks cell `which`, or by a softmax of (weight, 0)."""

    def __init__(self, which: int, weight: float = 50.0) -> None:
        super().__init__()
        self.weight, self.which = torch.nn.Parameter(torch.tensor(weight)), which

    def forward(self, features):
        logits = torch.stack([self.weight, torch.zeros(())])
        return torch.log_softmax(logits if self.which == 0 else logits.flip(0), 0).expand(len(features), 2)


def test_votes():
    votes = Votes.none(1, 3, 2)
    distance = torch.tensor([[0.0, 0.2, 1.0], [0.2, 0.0, 0.5], [1.0, 0.5, 0.0]])
    for cell, label in ((0, 1), (2, 0), (2, 0), (2, 1)):
        votes.add(torch.tensor([cell]), torch.tensor([label]))
    assert votes.decided(distance)[0].tolist() == [1, 1, 0]  # of the middle one, the nearer neighbour's


@pytest.fixture
def pool(tmp_path):
    words = {"a": "ship sail wave", "b": "oven flour sugar", "c": "judge court jury"}
    rows = [{"text": f"{words[name]} {i % 4}", "label": name} for i in range(12) for name in words]
    return Pool(data.load(write_rows(tmp_path / "rows.jsonl", rows)), seed=1)


def settings(name: str) -> dict[str, Any]:
    return {"cells": 4, "worlds": 2, "games": 2, "rounds": 3} if name == "mapo" else {}


@pytest.mark.parametrize("name", ASKING)
def test_it_asks_for_rows_without_a_label(name, pool):
    """Every row once, the same for the same labels."""
    chosen: Any = find("selections", name)(**settings(name))
    known: dict[int, str] = {}
    for left in range(len(pool.examples), 0, -1):
        place = chosen.query(pool, known, left)
        assert place not in known and (left % 9 or place == chosen.query(pool, dict(known), left))
        known[place] = pool.examples.rows[place].label
    assert len(known) == len(pool.examples)


def test_a_part_of_the_pool_keeps_its_cells(pool):
    """A row that is passed over does not have the policy trained again."""
    from luthier.methods.selections import mapo

    chosen = MAPO(**settings("mapo"))
    chosen.query(pool, {}, 5)
    before = mapo._LAID[chosen, pool.seed]
    part = Pool(pool.examples.keep(pool.examples.rows[3:]), seed=pool.seed)
    chosen.query(part, {}, 5)
    assert mapo._LAID[chosen, pool.seed] is before


def test_how_long_and_on_what_it_is_trained_counts(pool):
    """Settings that the law of settings leaves as they are, for time."""
    from luthier.methods.selections.mapo import _laid, _policy

    def trained(**more):
        chosen = MAPO(**{**settings("mapo"), **more})
        return torch.cat([p.flatten() for p in _policy(chosen, _laid(chosen, pool), 2, 0).parameters()])

    base = trained()
    for key, value in (("rounds", 4), ("worlds", 3), ("games", 3)):
        assert not torch.equal(base, trained(**{key: value})), key


def test_margin_asks_where_two_classes_are_close(tmp_path):
    rows = [{"text": t, "label": "x"} for t in ("ship sail", "oven flour", "ship sail wave", "ship oven", "oven sugar")]
    pool = Pool(data.load(write_rows(tmp_path / "rows.jsonl", rows)))
    assert find("selections", "margin")().query(pool, {0: "sea", 1: "kitchen"}, 3) == 3  # type: ignore[attr-defined]


def test_what_cannot_be_asked_is_refused(pool, tmp_path):
    with pytest.raises(LuthierError, match="does not say which row to label next"):
        find("selections", "bm25")().query(pool, {}, 3)  # type: ignore[attr-defined]
    alike = data.load(write_rows(tmp_path / "alike.jsonl", [{"text": "the same", "label": "x"}] * 5))
    with pytest.raises(LuthierError, match="these are all alike"):
        MAPO(rounds=1).query(Pool(alike), {}, 2)
    with pytest.raises(LuthierError, match=r"mapo\.cells is 1"):
        MAPO(cells=1)
