"""DEALRec: the influence by LiSSA against the inverse and against leaving rows out; strata and budgets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from luthier import data
from luthier.core.contracts.selection import Pool
from luthier.core.errors import LuthierError
from luthier.methods.selections.dealrec import DEALRec, stratified, words
from support.tiny import sums, write_rows


def problem(rows: int = 60, width: int = 8, outputs: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, width)) * np.linspace(0.3, 1.5, width)
    return x, x @ draw.normal(size=(width, outputs)) + 0.5 * draw.normal(size=(rows, outputs))


def ridge(x: np.ndarray, y: np.ndarray, damping: float) -> np.ndarray:
    """The minimum of ½ mean ‖x W - y‖² + ½ λ ‖W‖²."""
    return np.linalg.solve(x.T @ x / len(x) + damping * np.eye(x.shape[1]), x.T @ y / len(x))


def test_lissa_is_the_damped_inverse():
    x, y = problem()
    h, v = x.T @ x / len(x), x.T @ y / len(x)
    found = DEALRec(tolerance=1e-9).lissa(h, v, 0.05)
    wanted = np.linalg.solve(h + 0.05 * np.eye(len(h)), v)
    assert np.abs(found - wanted).max() < 1e-6
    assert np.abs(found - np.linalg.solve(h + 0.06 * np.eye(len(h)), v)).max() > 1e-3  # the damping counts


def test_an_unfinished_lissa_is_told():
    x, y = problem()
    with pytest.warns(UserWarning, match="LiSSA has not converged after 3 steps"):
        DEALRec(depth=3, damping=1e-4).influence(x, y)


def test_influence_orders_rows_as_leaving_them_out_does():
    """The rise of the mean loss over all rows when the ridge is fitted without a row."""
    x, y = problem()
    chosen = DEALRec(damping=0.1)
    damping = 0.1 * float(np.linalg.eigvalsh(x.T @ x / len(x))[-1])
    whole = ridge(x, y, damping)
    loss = lambda w: 0.5 * float(((x @ w - y) ** 2).sum(1).mean())  # noqa: E731
    out = [loss(ridge(np.delete(x, i, 0), np.delete(y, i, 0), damping)) - loss(whole) for i in range(len(x))]
    found = chosen.influence(x, y)
    order = np.stack([np.argsort(np.argsort(each)) for each in (found, out)])
    assert np.corrcoef(order)[0, 1] > 0.9
    assert np.corrcoef(found / len(x), out)[0, 1] > 0.9 and 0.7 < np.std(found) / len(x) / np.std(out) < 1.4


def test_gradients_as_a_surrogate():
    g = np.random.default_rng(1).normal(size=(40, 6)) + 0.3
    damping = 0.01 * float(np.linalg.eigvalsh(g.T @ g / 40)[-1])
    inverse = np.linalg.inv(g.T @ g / 40 + damping * np.eye(6))
    assert np.allclose(DEALRec().influence_of_gradients(g), g @ inverse @ g.mean(0), atol=1e-6)


def test_budgets_of_strata():
    """Strata of 2, 3 and 95 rows and a budget of 30: 2 and 3 whole, then 25, which is min(|G|, m / #G) in turn."""
    scores = np.concatenate([[1.0, 1.0], [0.5, 0.5, 0.5], np.linspace(0, 0.09, 95)])
    taken = stratified(range(100), scores, 10, 30, seed=0)
    assert len(taken) == len(set(taken)) == 30 and {0, 1, 2, 3, 4} <= set(taken)
    even = stratified(range(100), np.repeat(np.arange(5.0), 20), 5, 33, seed=0)
    assert sorted(np.bincount(np.array(even) // 20)) == [6, 6, 7, 7, 7]
    for budget in range(1, 101, 7):
        assert len(stratified(range(100), scores, 10, budget, seed=1)) == budget


class Effort:
    def __init__(self, norms):
        self.norms = norms

    def gradients(self, examples, size, seed):
        return np.outer(self.norms[: len(examples)], np.eye(1, size)[0])

    def figures(self, examples):
        raise AssertionError("no figure is asked for")


@pytest.fixture
def rows(tmp_path):
    return data.load(write_rows(tmp_path / "rows.jsonl", sums(100)))


def test_the_hardest_go_and_effort_counts(rows):
    norms = np.arange(100.0)
    pool = Pool(rows, model=Effort(norms))
    taken = data.choose(DEALRec(effort=50.0), pool, 40)
    assert not set(taken.places) & set(range(90, 100)) and len(taken.places) == 40
    assert max(taken.places) > 80 and min(taken.places) < 10  # from every stratum
    words_alone = DEALRec(effort=0.0).score(dataclasses.replace(pool, model=None))
    combined = DEALRec(effort=2.0).score(pool)
    assert np.allclose(combined, words_alone + 2 * norms / 99) and words_alone.min() == 0 and words_alone.max() == 1
    with pytest.raises(LuthierError, match="leaves out the 10 hardest of 100 rows, and 95 of the other 90"):
        data.choose(DEALRec(effort=0.0), pool, 95)


def test_the_words_that_it_reads(rows):
    asked, answered = words(rows.rows)
    assert asked.shape == (100, 256) and answered.shape == (100, 64)
    assert np.allclose(np.linalg.norm(asked, axis=1), 1) and np.allclose(np.linalg.norm(answered, axis=1), 1)


@pytest.mark.parametrize("wrong", [{"size": 1000}, {"drop": 1.0}, {"damping": 0.0}, {"strata": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(LuthierError, match=f"dealrec.{next(iter(wrong))} is"):
        DEALRec(**wrong)
