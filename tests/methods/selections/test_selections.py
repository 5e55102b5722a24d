"""Selections of data: the laws of the registry, and what each one is to find."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from luthier import data
from luthier.core.contracts.component import find, names
from luthier.core.contracts.selection import Pool, Selection
from luthier.core.errors import LuthierError
from luthier.data.select import as_row
from luthier.data.texts import prompt_text
from luthier.methods.selections.bm25 import BM25
from luthier.methods.selections.got_d import GOTD
from luthier.methods.selections.random import Random
from support.architectures import ARCHITECTURES
from support.tiny import TEMPLATE, tokenizer, write_rows

SELECTIONS = names("selections")
SCORING = [name for name in SELECTIONS if find("selections", name, Selection).score is not Selection.score]
ASKING = [name for name in SELECTIONS if find("selections", name, Selection).query is not Selection.query]
TOPICS = {
    "sea": ["ship", "sail", "harbour", "wave", "anchor", "tide", "captain", "deck"],
    "kitchen": ["flour", "oven", "butter", "sugar", "whisk", "bowl", "bake", "dough"],
    "law": ["court", "judge", "appeal", "clause", "contract", "statute", "verdict", "jury"],
}


def write(topic: str, draw: random.Random) -> dict[str, str]:
    return {"prompt": " ".join(draw.choices(TOPICS[topic], k=6)), "completion": draw.choice(TOPICS[topic])}


def examples(tmp_path, counts: dict[str, int], name: str, seed: int = 0) -> data.Examples:
    draw = random.Random(seed)
    rows = [write(topic, draw) | {"topic": topic} for topic, count in counts.items() for _ in range(count)]
    draw.shuffle(rows)
    return data.load(write_rows(tmp_path / f"{name}.jsonl", rows), columns=("topic",))


def topics(rows: data.Examples) -> list[str]:
    return [row.meta["topic"] for row in rows.rows]


class Reader:
    """What a model might say of rows: gradients by what they say, figures at random."""

    def gradients(self, examples, size, seed):
        made = [np.random.default_rng(zlib.crc32(prompt_text(row).encode())) for row in examples.rows]
        return np.stack([draw.normal(size=size) for draw in made])

    def figures(self, examples):
        return {"loss": self.gradients(examples, 1, 0)[:, 0], "tokens": np.ones(len(examples))}


@pytest.fixture
def pool(tmp_path) -> Pool:
    candidates = examples(tmp_path, {"sea": 60, "kitchen": 60, "law": 30}, "pool")
    return Pool(candidates, examples(tmp_path, {"sea": 5, "law": 25}, "target", seed=1), seed=3, model=Reader())


@pytest.mark.parametrize("name", SELECTIONS)
def test_it_states_its_equation_and_source(name):
    cls = find("selections", name)
    assert issubclass(cls, Selection) and len(cls.equation()) > 5 and cls.paper


@pytest.mark.parametrize("name", SELECTIONS)
def test_it_asks_for_hidden_states_only_where_it_says_so(name, pool):
    def states(rows):
        raise AssertionError("it asked")

    chosen: Any = find("selections", name)()
    assert not chosen.reads_states
    with contextlib.suppress(LuthierError):  # of one that does not score
        chosen.score(dataclasses.replace(pool, states=states, model=pool.model if chosen.reads_rows else None))


@pytest.mark.parametrize("name", SELECTIONS)
def test_it_says_what_it_reads_with_a_model(name, pool):
    chosen: Any = find("selections", name)()
    if chosen.reads_rows:
        with pytest.raises(LuthierError, match=f"{name} reads the rows with a model"):
            data.choose(chosen, dataclasses.replace(pool, model=None), 3)


@pytest.mark.parametrize("name", SCORING)
def test_it_scores_rows_whatever_their_order(name, pool):
    """The same rows of the pool are taken when it is handed over backwards (by chance: as many)."""
    chosen = find("selections", name)()
    taken = data.choose(chosen, pool, 40)  # type: ignore[arg-type]
    turned = Pool(pool.examples.keep(pool.examples.rows[::-1]), pool.target, pool.seed, model=pool.model)
    again = data.choose(chosen, turned, 40)  # type: ignore[arg-type]
    assert len(taken.examples) == 40 == len(set(taken.places)) and np.isfinite(taken.scores).all()
    assert (taken.scores[taken.places][:-1] >= taken.scores[taken.places][1:]).all()
    if chosen.targeted:  # type: ignore[attr-defined]
        assert {row.row for row in taken.examples.rows} == {row.row for row in again.examples.rows}
    assert taken.examples.fingerprint != pool.examples.fingerprint


@pytest.mark.parametrize("name", [name for name in SELECTIONS if not find("selections", name, Selection).takes()])
def test_what_takes_no_rows_says_so(name, pool):
    with pytest.raises(LuthierError, match=f"{name} takes no rows to learn from"):
        data.choose(find("selections", name)(), Pool(pool.examples), 3)  # type: ignore[arg-type]


def test_what_cannot_be_chosen_is_refused(pool):
    with pytest.raises(LuthierError, match="cannot take 151 of the 150 rows"):
        data.choose(Random(), pool, 151)
    with pytest.raises(LuthierError, match="name them"):
        data.choose(GOTD(), Pool(pool.examples), 3)
    with pytest.raises(LuthierError, match="states reads"):
        data.choose(GOTD(embedding="states"), pool, 3)
    with pytest.raises(LuthierError, match="finds none near a prompt"):
        data.with_shots(GOTD(), pool.examples, pool, 2)


# --- GOT-D ------------------------------------------------------------------------------------------


def transport(cost, weights, epsilon: float) -> float:
    """OT_ε of weighted rows to even targets, with the entropy of the plan relative to the product of its sides."""
    from scipy import special

    logsumexp: Any = special.logsumexp
    left, right = np.log(weights), np.full(cost.shape[1], -np.log(cost.shape[1]))
    f, g = np.zeros(cost.shape[0]), np.zeros(cost.shape[1])
    for _ in range(5000):
        f = -epsilon * logsumexp((g - cost) / epsilon + right, axis=1)
        before, g = g, -epsilon * logsumexp((f[:, None] - cost) / epsilon + left[:, None], axis=0)
        if abs(g - before).max() < 1e-14:
            break
    return float(weights @ f + np.exp(right) @ g)


def test_scores_are_the_derivative_of_the_transport():
    """Of moving weight from all rows to one, by central differences."""
    draw = np.random.default_rng(0)
    cost = ((draw.normal(size=(9, 1, 2)) - draw.normal(size=(1, 6, 2)) - 0.5) ** 2).sum(-1)
    cost /= cost.mean()
    potential = GOTD(tolerance=1e-12, iterations=20000).potential(cost)
    gradient, even, step = potential - potential.mean(), np.full(9, 1 / 9), 1e-4
    for i in range(9):
        towards = np.eye(9)[i] - even
        slope = (transport(cost, even + step * towards, 0.1) - transport(cost, even - step * towards, 0.1)) / (2 * step)
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_weight_on_the_rows_taken_lowers_the_transport_most(tmp_path):
    """More than weight on random rows, and than on those nearest to the target, of which the pool has enough."""
    candidates = examples(tmp_path, {"law": 60, "sea": 30, "kitchen": 30}, "pool")
    pool = Pool(candidates, examples(tmp_path, {"law": 16, "sea": 14}, "target", seed=1))
    chosen = GOTD()
    cost = chosen.cost(pool)
    count, moved = 30, 0.2
    sets = {
        "taken": data.choose(chosen, pool, count).places,
        "random": data.choose(Random(), pool, count).places,
        "nearest": np.argsort(cost.mean(1))[:count],
    }
    even = np.full(len(cost), 1 / len(cost))
    after = {}
    for name, places in sets.items():
        weights = (1 - moved) * even
        weights[places] += moved / count
        after[name] = transport(cost, weights, chosen.epsilon)
    assert set(sets["taken"]) != set(sets["nearest"])
    assert after["taken"] < min(after["random"], after["nearest"], transport(cost, even, chosen.epsilon))


def test_it_takes_what_the_target_needs(pool):
    """The law, of which the pool has a fifth and the target five sixths."""
    taken = topics(data.choose(GOTD(), pool, 30).examples)
    assert taken.count("law") > 25 and "kitchen" not in taken


def test_states_of_a_model(pool):
    model = ARCHITECTURES["llama"].build()
    found = data.states_of(model, tokenizer(TEMPLATE), pool.examples, batch=4)
    assert found.shape == (150, 32)
    words = "\n".join(m["content"] for m in pool.examples.rows[7].messages or [])
    with torch.no_grad():
        alone = model.model(torch.tensor([tokenizer(TEMPLATE)(words)["input_ids"]])).last_hidden_state[0].mean(0)
    assert np.allclose(found[7], alone.numpy(), atol=1e-5)
    assert GOTD(embedding="states").reads_states
    known = Pool(pool.examples, pool.target, states=lambda part: data.states_of(model, tokenizer(TEMPLATE), part))
    assert len(data.choose(GOTD(embedding="states"), known, 10).examples) == 10


def test_an_unsolved_transport_is_told(pool):
    with pytest.warns(UserWarning, match="not solved after 3 iterations"):
        data.choose(GOTD(iterations=3, epsilon=0.005), pool, 10)


# --- BM25 -------------------------------------------------------------------------------------------


def test_scores_are_the_formula(pool):
    rows = [prompt_text(row).split() for row in pool.examples.rows]
    query, mean = prompt_text(pool.examples.rows[0]).split(), float(np.mean([len(row) for row in rows]))
    own = Pool(pool.examples, pool.examples.keep(pool.examples.rows[:1]))
    found = BM25(k1=1.2, b=0.6).score(own)
    for row, score in zip(rows, found, strict=True):
        total = 0.0
        for word in query:
            held = sum(word in other for other in rows)
            often = row.count(word)
            rare = np.log(1 + (len(rows) - held + 0.5) / (held + 0.5))
            total += rare * often / (often + 1.2 * (1 - 0.6 + 0.6 * len(row) / mean))
        assert score == pytest.approx(total, rel=1e-4)


def test_the_planted_neighbour_is_found_and_never_the_row_itself(pool, tmp_path):
    draw = random.Random(5)
    rows = [write("sea", draw) for _ in range(40)]
    rows[11] = {"prompt": "rare walrus whisk", "completion": "one"}
    rows[30] = {"prompt": "rare walrus sail", "completion": "two"}
    rows[35] = {"prompt": "rare walrus whisk", "completion": "the same, answered otherwise"}
    found = data.load(write_rows(tmp_path / "planted.jsonl", rows))
    near = BM25().nearest([found.rows[11]], Pool(found), 3)[0]
    assert near[0] == 30 and not {11, 35} & set(near)
    for query, places in zip(found.rows, BM25().nearest(found.rows, Pool(found), 5), strict=True):
        assert all(found.rows[i].key() != query.key() for i in places)


@pytest.mark.parametrize("chosen", [BM25(), Random()])
def test_shots_stand_before_the_prompt_and_are_not_learned(chosen, pool):
    queries = pool.target
    assert queries is not None
    shown = data.with_shots(chosen, queries, pool, 3)
    for query, row in zip(queries.rows, shown.rows, strict=True):
        assert row.messages is not None and query.messages is not None
        assert len(row.messages) == 8 and row.messages[-2:] == query.messages and row.answer == query.answer
        feature = data.encode(row, tokenizer(TEMPLATE), max_length=None)
        learned = [i for i in feature["labels"] if i != -100]
        assert tokenizer().decode(learned, skip_special_tokens=True) == query.messages[-1]["content"]
    assert as_row(shown.rows[0])["completion"] == (queries.rows[0].messages or [])[-1:]
    if isinstance(chosen, BM25):  # the nearest shot is next to the prompt
        best = chosen.nearest(queries.rows[:1], pool, 1)[0][0]
        assert (shown.rows[0].messages or [])[4:6] == pool.examples.rows[best].messages
