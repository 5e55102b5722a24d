"""Adapt-∞: duplicates, entropies, budgets; rows that arrive over time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from luthier import data
from luthier.core.contracts.selection import Pool
from luthier.core.errors import LuthierError
from luthier.data.arriving import arriving
from luthier.methods.row_model import Reader
from luthier.methods.selections.adapt_inf import AdaptInf, best_scorer, budgets, ccs, entropy
from support.tiny import TEMPLATE, save_model, sums, write_rows


class Planted:
    """Three skills in directions of their own; rows 4 and 9 are one."""

    def gradients(self, examples, size, seed):
        draw = np.random.default_rng(0)
        skills = np.arange(len(examples)) % 3
        found = np.eye(3, size)[skills] * 4 + draw.normal(size=(len(examples), size)) * 0.3
        found[9] = found[4] * 1.5 if len(found) > 9 else found[-1]
        return found

    def figures(self, examples):
        draw = np.random.default_rng(1)
        n = len(examples)
        spike = np.r_[np.zeros(n - 1), 1.0]
        return {"loss": spike, "entropy": draw.random(n), "error": np.zeros(n), "tokens": np.ones(n)}


@pytest.fixture
def pool(tmp_path):
    return Pool(data.load(write_rows(tmp_path / "rows.jsonl", sums(60))), model=Planted())


def test_a_planted_pair_loses_exactly_one(pool):
    chosen = AdaptInf(clusters=3, size=16)
    taken = chosen.take(pool, 30)
    assert taken.redundant == [9] and len(taken.places) == len(set(taken.places)) == 30 and 9 not in taken.places
    skills = np.bincount(np.array(taken.places) % 3)
    assert skills.tolist() == [10, 10, 10]
    assert AdaptInf(clusters=3, size=16, same=1.0).take(pool, 60).redundant == []
    with pytest.raises(LuthierError, match="cannot take 60 rows: 59 are left"):
        chosen.take(pool, 60)
    assert len(chosen.take(pool, 59).places) == 59


def test_a_chain_loses_what_is_near_a_kept_row():
    """The second is near the first and goes; the third is near the second only, and stays."""
    from luthier.methods.selections.adapt_inf import redundant

    angles = np.array([0.0, 0.1, 0.2])
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert redundant(points, float(np.cos(0.15))) == [1]
    draw = np.random.default_rng(0).normal(size=(300, 3))
    draw /= np.linalg.norm(draw, axis=1, keepdims=True)
    kept = np.delete(draw, redundant(draw, 0.99), axis=0)
    assert (np.tril(kept @ kept.T, -1) <= 0.99).all() and redundant(kept, 0.99) == []  # what is left has left for good
    assert (np.max(draw @ kept.T, axis=1) > 0.99).all()  # and what is gone is near what stayed


def test_the_scorer_of_most_entropy_is_taken():
    n = 200
    even, spike = np.linspace(0, 1, n), np.r_[np.zeros(n - 1), 1.0]
    assert entropy(np.ones(n)) == 0 and entropy(spike) == pytest.approx(0.0454, abs=1e-3)
    assert entropy(even) == pytest.approx(np.log2(50), abs=0.01)
    assert entropy(even * 1000 + 5) == pytest.approx(entropy(even))  # of the shape, not of the scale
    assert best_scorer({"a": spike, "b": even, "c": np.ones(n)}, np.arange(n))[0] == "b"


def test_budgets_sum_exactly():
    draw = np.random.default_rng(0)
    for _ in range(50):
        sizes = draw.integers(0, 40, 9).tolist()
        budget = int(draw.integers(0, sum(sizes) + 1))
        found = budgets(sizes, budget, sum(sizes))
        assert sum(found) == budget and all(f <= s for f, s in zip(found, sizes, strict=True))
        spare = [f for f, s in zip(found, sizes, strict=True) if f < s]
        assert not spare or max(spare) >= max(found) - 1  # who is not exhausted gets as much as anybody


def test_ccs_covers_the_range_and_cuts_its_ends():
    values = np.r_[np.full(80, 0.5), np.linspace(0, 1, 120)]
    found = ccs(values, 60, 10, 0.05, np.random.default_rng(0))
    order = np.argsort(values, kind="stable")
    assert len(found) == len(set(found)) == 60 and not set(found) & {*order[:10], *order[-10:]}
    assert np.histogram(values[found], 10, (order[10] and values[order[10]], values[order[-11]]))[0].min() >= 5
    assert len(ccs(values, 195, 10, 0.05, np.random.default_rng(0))) == 195


def test_rows_that_arrive(tmp_path):
    """The pool keeps its rows on disk; what is redundant goes for good, and a source that comes again adds nothing."""
    first, second = (write_rows(tmp_path / f"{i}.jsonl", sums(20, seed=i)) for i in (1, 2))
    with arriving(tmp_path / "pool", first) as arrived:
        assert arrived.new == arrived.left == len(data.load(str(arrived.file)))
        arrived.drop([3])
    rows = (tmp_path / "pool" / "rows.jsonl").read_text().splitlines()
    assert len(rows) == arrived.left == arrived.new - 1
    gone = set(map(json.dumps, sums(20, seed=1))) - set(rows)
    assert len(gone) == 1
    with arriving(tmp_path / "pool", first) as again:
        assert again.new == 0 and again.left == len(rows)
    with arriving(tmp_path / "pool", second) as more:
        assert more.new > 0 and more.left == len(rows) + more.new
    state = json.loads((tmp_path / "pool" / "state.json").read_text())
    assert [each["redundant"] for each in state["pools"]] == [1, 0, 0] and state["redundant"] == list(gone)
    with pytest.raises(RuntimeError), arriving(tmp_path / "pool", first):
        raise RuntimeError("stopped")
    assert json.loads((tmp_path / "pool" / "state.json").read_text()) == state
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("")
    with pytest.raises(LuthierError, match="something else than a pool"), arriving(tmp_path / "other", first):
        pass


def test_a_model_reads_the_rows(tmp_path):
    """Gradients and figures by a tiny model; the same words have the same gradient, in whatever batch."""
    model = save_model(tmp_path / "llama", "llama", TEMPLATE, vocab_size=120)
    rows = sums(12)
    rows[7] = dict(rows[2])
    examples = data.load(write_rows(tmp_path / "rows.jsonl", rows))
    reader = Reader(model, batch=5)
    found, figures = reader.gradients(examples, 64, 0), reader.figures(examples)
    assert found.shape == (12, 64) and np.allclose(found[2], found[7], rtol=1e-3, atol=1e-6)
    assert np.allclose(figures["tokens"], [len(row["completion"]) + 1 for row in rows])
    assert np.allclose(figures["loss"], [Reader(model).figures(examples.keep([e]))["loss"][0] for e in examples.rows],
                       rtol=1e-4)  # fmt: skip
    assert ((figures["error"] > 0) & (figures["error"] < 2**0.5)).all() and (figures["entropy"] < np.log(120)).all()
    taken = AdaptInf(clusters=2, size=64, strata=3).take(Pool(examples, model=reader), 6)
    assert 7 in taken.redundant and 2 not in taken.redundant and len(taken.places) == 6
