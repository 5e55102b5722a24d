"""EM@k and pass@k: the estimator against all draws, monotone in k; several answers of a model."""

from __future__ import annotations

import itertools

import pytest

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.evaluating import evaluate
from luthier.evaluating.samples import at_k, named, sizes


@pytest.mark.parametrize("right", range(6))
def test_at_k_is_the_share_of_draws_that_hold_a_right_answer(right):
    answers = [True] * right + [False] * (5 - right)
    values = []
    for k in range(1, 6):
        draws = list(itertools.combinations(answers, k))
        values.append(at_k(right, 5, k))
        assert values[-1] == pytest.approx(sum(map(any, draws)) / len(draws))
    assert values == sorted(values) and values[0] == pytest.approx(right / 5)


def test_the_k_that_are_told():
    assert sizes(1) == [1] and sizes(10) == [1, 2, 5, 10] and sizes(64) == [1, 2, 5, 10, 20, 50, 64]
    found = named("exact_match", [0, 3, 10], 10)
    assert list(found) == ["exact_match@1", "exact_match@2", "exact_match@5", "exact_match@10"]
    assert [sum(row) for row in found.values()] == sorted(sum(row) for row in found.values())
    with pytest.raises(LuthierError, match="of 3 answers, 1 right, 4 cannot"):
        at_k(1, 3, 4)


def test_several_answers_of_a_model(llama, additions):
    loaded = models.load(llama, task="causal-lm")
    examples = data.load(additions, limit=4)
    scorer = data.scorer_for(examples)

    def run(**more):
        return evaluate(
            loaded.model, loaded.processor, examples, scorer=scorer, max_new_tokens=2, progress=False, batch=5, **more
        )

    found = run(samples=4, temperature=2.0)
    assert list(found.metrics) == ["number@1", "number@2", "number@4"] and found.count == 4
    assert list(found.metrics.values()) == sorted(found.metrics.values())
    assert all(len(line["prediction"]) == 4 for line in found.predictions)
    assert any(len(set(line["prediction"])) > 1 for line in found.predictions)
    assert run(samples=4, temperature=2.0).predictions == found.predictions
    assert run(samples=4, temperature=2.0, seed=1).predictions != found.predictions
    assert list(run().metrics) == ["number"]
    for wrong, told in (({"samples": 0}, "at least 1"), ({"samples": 2}, "would all be the same")):
        with pytest.raises(LuthierError, match=told):
            run(**wrong)
