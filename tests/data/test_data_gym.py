"""Procedural problems: exact scores, and splits that share nothing."""

from __future__ import annotations

import pytest

from luthier.core.errors import LuthierError
from luthier.data import load, split_gym

pytest.importorskip("reasoning_gym")
SUMS = "gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"


def test_problems_come_with_their_own_scorer():
    examples = load(f"{SUMS}&size=7")
    assert len(examples) == 7 and examples.layout == "question-answer"
    example = examples.rows[0]
    assert [m["role"] for m in example.messages] == ["user", "assistant"]
    assert examples.scorer is not None and examples.scorer.name == "gym"
    assert examples.scorer.score(f" {example.answer}\n", example) == 1.0
    assert examples.scorer.score("nonsense", example) < 0.1


def test_a_seed_fixes_the_problems_and_a_split_draws_others():
    first, again, other = load(SUMS, limit=50), load(SUMS, limit=50), load(SUMS, limit=50, split="test")
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert load(SUMS, limit=50, seed=1).rows[0].key() == first.rows[1].key()  # problem i comes from seed + i
    assert load(f"{SUMS}&seed=1", limit=50).rows[0].key() == first.rows[1].key()


def test_no_test_problem_occurs_in_training():
    train, test = split_gym(SUMS, train=60, test=30)
    assert (len(train), len(test)) == (60, 30)
    keys = [e.key() for e in test.rows]
    assert len(set(keys)) == 30 and not set(keys) & {e.key() for e in train.rows}
    assert {e.key() for e in load(SUMS, limit=60, split="test").rows} & {e.key() for e in train.rows}


def test_a_task_with_too_few_problems_says_so():
    with pytest.raises(LuthierError, match="do not occur among 2000 training problems; 200 are needed"):
        split_gym(SUMS, train=2000, test=200)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gym:chain_sums", "did you mean 'chain_sum'"),
        ("gym:chain_sum?min_term=2", "no setting 'min_term'; did you mean 'min_terms'"),
        ("gym:chain_sum?min_terms=0", "refuses these settings"),
        ("gym:chain_sum?min_terms", "expected gym:chain_sum"),
        ("gym:chain_sum?size=0", "size 0"),
        ("gym:chain_sum?size=many", "size is 'many'; expected a whole number"),
        ("gym:chain_sum?seed=1.5", "seed is 1.5; expected a whole number"),
        ("gym:chain_sum?min_terms=two", "refuses these settings"),
        ("gym:graph_color?size=2", "gives none to learn from"),
    ],
)
def test_bad_tasks_and_settings(source, message):
    with pytest.raises(LuthierError) as error:
        load(source)
    assert message in str(error.value)


def test_an_unknown_split():
    with pytest.raises(LuthierError, match="no split 'tests'; did you mean 'test'"):
        load(SUMS, split="tests")
