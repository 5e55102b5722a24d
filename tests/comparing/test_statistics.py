"""What the statistics say, against scipy where it says the same."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from luthier.comparing.measures.bootstrap import RESAMPLES, redrawn
from luthier.comparing.measures.significance import (
    Interval,
    holm,
    over_both,
    over_seeds,
    paired,
    row_p,
    score_of,
    seed_p,
    winner,
)
from luthier.comparing.record import Record
from luthier.core.errors import LuthierError
from luthier.core.numerics import student
from luthier.core.numerics.agreement import agreement, closeness
from luthier.core.numerics.confidence import calibration_error
from luthier.core.numerics.resampling import exact_interval, unseen


def run(method: str, seed: int, hits: list[float], score: float | None = None) -> Record:
    value = float(np.mean(hits)) if score is None else score
    return Record(
        model="m", data="d", method=method, seed=seed, metric="accuracy", score=value, metrics={"accuracy": value},
        tests={"d": {"accuracy": value}}, rows=len(hits), hits={"d": hits}, losses=[], eval_losses=[], trainable=1,
        total=2, bytes=4, seconds=1.0, step_seconds=None, step_ratio=None, peak_bytes=None,
    )  # fmt: skip


def runs(method: str, rate: float, seeds: int = 5, rows: int = 400, shift: int = 0) -> list[Record]:
    draw = np.random.default_rng(shift)
    return [run(method, seed, (draw.random(rows) < rate).astype(float).tolist()) for seed in range(seeds)]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 8, 29, 100])
def test_student_is_scipys(freedom):
    stats = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.3, 1.0, 2.5, 10.0):
        assert student.two_sided(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-12)
    assert student.quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_seeds_are_scipys_t():
    stats = pytest.importorskip("scipy.stats")
    scores = [0.81, 0.84, 0.79, 0.9]
    found = over_seeds(scores)
    low, high = stats.t.interval(0.95, 3, np.mean(scores), stats.sem(scores))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(scores), low, high))
    assert seed_p([0.1, 0.3, -0.05]) == pytest.approx(stats.ttest_1samp([0.1, 0.3, -0.05], 0).pvalue)
    assert math.isnan(over_seeds([0.5]).low) and math.isnan(seed_p([0.5]))


def test_rows_are_scipys_bootstrap():
    stats = pytest.importorskip("scipy.stats")
    hits = (np.random.default_rng(1).random(300) < 0.7).astype(float)
    theirs = stats.bootstrap((hits,), np.mean, method="percentile", rng=np.random.default_rng(2), n_resamples=10_000)
    found = score_of([run("a", 0, hits.tolist())])
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)


def test_parts_weigh_the_same_whatever_their_rows():
    two = dataclasses.replace(run("a", 0, [], 0.5), hits={"a": [1.0] * 900, "b": [0.0] * 100})
    found = score_of([two])
    ends = [exact_interval(np.asarray(part)) or (0.0, 0.0) for part in two.hits.values()]
    assert (found.value, found.low, found.high) == pytest.approx((0.5, *np.mean(ends, axis=0)))


@pytest.mark.parametrize("right", [0.0, 1.0])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_score_of_rows_that_are_all_alike_is_exact_whatever_the_seeds(right, seeds):
    found = score_of([run("a", seed, [right] * 20) for seed in range(seeds)])
    assert (found.low, found.high) == pytest.approx(exact_interval(np.full(20, right))) and found.over == "rows"


def test_seeds_that_agree_to_the_digit_are_told_by_their_rows():
    """Such as those of a base that no seed changes; where no rows are kept, nothing is told."""
    same = [run("a", seed, [1.0, 0.0] * 50) for seed in range(3)]
    several, one = score_of(same), score_of(same[:1])
    assert several.over == "rows" and (several.low, several.high) == pytest.approx((one.low, one.high))
    assert math.isnan(score_of([run("a", seed, [], 0.25) for seed in range(3)]).low)


def test_methods_that_differ_alike_on_all_rows_have_an_interval_and_the_sign_tests_p():
    """On none of 12 rows; and on all of 5, which a coin does in one of 16 studies."""
    same = {name: [run(name, s, [1.0] * 12) for s in range(2)] for name in "ab"}
    none = paired(same["a"], same["b"])
    assert winner(same).reason == "a and b score the same"
    assert (
        none.difference == 0 and none.by_row.high == -none.by_row.low == pytest.approx(unseen(12, 0.05)) and none.p == 1
    )
    every = paired([run("a", s, [1.0] * 5) for s in range(2)], [run("b", s, [0.0] * 5) for s in range(2)])
    assert every.by_row.high == 1 and every.by_row.low == pytest.approx(1 - 2 * unseen(5)) and every.p == 2 / 2**5
    at = paired(
        [run("a", s, [1.0] * 5) for s in range(2)], [run("b", s, [0.0] * 5) for s in range(2)], 1 - 2 / 2**5
    ).by_row
    assert at.low == pytest.approx(0)


def test_one_seed_is_told_by_its_rows():
    assert score_of([run("a", 0, [1.0, 0.0] * 50)]).over == "rows"
    assert score_of(runs("a", 0.5)).over == "seeds"


def test_rows_p_is_small_for_a_real_difference_alone():
    draw = np.random.default_rng(0)
    assert row_p(*redrawn([run("a", 0, draw.normal(0.5, 1, 200).tolist())])) < 0.001
    assert row_p(*redrawn([run("a", 0, draw.normal(0.0, 1, 200).tolist())])) > 0.05
    assert row_p(*redrawn([run("a", 0, [0.0] * 20)])) == 1.0 and math.isnan(row_p(np.zeros(0)))


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([math.nan, 0.01]) == pytest.approx([1.0, 0.02])


def test_paired_takes_the_seeds_in_common():
    left, right = runs("a", 0.9, seeds=4), runs("b", 0.5, seeds=3, shift=1)
    found = paired(left, right)
    assert found.seeds == 3 and found.difference == pytest.approx(np.mean([a.score for a in left[:3]]) - np.mean(
        [b.score for b in right]))  # fmt: skip
    assert found.by_seed.low > 0 and found.by_row.low > 0 and found.p < 0.05


def test_both_seeds_and_rows_must_agree():
    """Seeds that agree to the digit, on too few rows; and rows without end, on seeds that do not agree."""
    few_rows = paired([run("a", s, [1, 1, 1, 0]) for s in range(3)], [run("b", s, [1, 1, 0, 0]) for s in range(3)])
    assert math.isnan(seed_p([0.25] * 3)) and few_rows.p > 0.05
    wild = [1.0, 0.2, 0.9]
    seeds = [run("a", s, (np.arange(5000) < 5000 * wild[s]).astype(float).tolist()) for s in range(3)]
    assert paired(seeds, [run("b", s, [0.0, 1.0] * 2500) for s in range(3)]).p > 0.05


def test_where_seeds_and_rows_vary_as_much_one_of_twenty_errs():
    """2,000 differences of nought over ten seeds, beside rows that suit a method by chance; of intervals that each
    leave out nought by itself, one of ten would be wrong."""
    draw, apart, each = np.random.default_rng(0), 0, 0
    for row in draw.normal(0, 1, 2000):
        seeds = over_seeds((row + draw.normal(0, math.sqrt(10), 10)).tolist())
        rows = Interval(seeds.value, seeds.value - 1.96, seeds.value + 1.96, "rows")
        found = [not each.low < 0 < each.high for each in (over_both(seeds, rows), seeds, rows)]
        apart, each = apart + found[0], each + (found[1] and found[2])
    assert apart <= 2000 * 0.05 + 2 * math.sqrt(2000 * 0.05 * 0.95) and each > 200


def test_p_is_where_the_interval_leaves_out_nought():
    first, second = runs("a", 0.8, seeds=4), runs("b", 0.7, seeds=4, shift=1)
    p = paired(first, second).p
    inside, outside = (paired(first, second, 1 - p * each).both for each in (0.999, 1.001))
    assert inside.low < 0 < outside.low or inside.high > 0 > outside.high
    assert p > max(seed_p([a.score - b.score for a, b in zip(first, second, strict=True)]), 0)


def test_a_winner_needs_a_lead_over_every_other():
    clear = winner({"a": runs("a", 0.95), "b": runs("b", 0.6, shift=1), "c": runs("c", 0.5, shift=2)})
    assert clear.winner == "a" and "a beats every other" in clear.reason
    close = winner({"a": runs("a", 0.95), "b": runs("b", 0.945, shift=1), "c": runs("c", 0.5, shift=2)})
    assert close.winner is None and close.best in "ab" and "may be chance" in close.reason
    alone = winner({"a": runs("a", 0.95, seeds=1), "b": runs("b", 0.5, seeds=1, shift=1)})
    assert alone.winner is None and "fewer than two seeds" in alone.reason


def test_what_is_not_known_is_no_proof():
    """NaN in, NaN out; and differences without a spread say nothing of it, whatever their size."""
    assert math.isnan(student.two_sided(math.nan, 3)) and math.isnan(seed_p([0.1, math.nan, 0.2]))
    assert not len(*redrawn([run("a", 0, [1.0, math.nan])]))
    assert math.isnan(seed_p([0.3 - 0.2, 0.2 - 0.1]))  # equal but for rounding
    ahead, behind = ([run(name, s, [], at + 0.1 * s) for s in range(2)] for name, at in (("a", 0.6), ("b", 0.5)))
    assert math.isnan(paired(ahead, behind).p) and math.isnan(paired(ahead, behind).by_seed.low)
    found = winner({"a": ahead, "b": behind})
    assert found.winner is None and found.best == "a" and found.tests[0].adjusted == 1.0
    assert "no spread" in found.reason


def test_few_wins_by_chance():
    """Among equal methods at most one study in twenty names a winner (the bound is loose for 60 studies)."""
    found = 0
    for study in range(60):
        made = {name: runs(name, 0.7, seeds=3, rows=80, shift=10 * study + i) for i, name in enumerate("abc")}
        found += winner(made).winner is not None
    assert found <= 6


def test_a_lead_is_corrected_for_its_choice_among_all():
    """Equal methods, known by their seeds alone: of the best, something is said in one study of twenty at most."""
    draw, found = np.random.default_rng(0), 0
    for _ in range(200):
        made = {name: [run(name, s, [], float(draw.normal())) for s in range(3)] for name in "abcdefghi"}
        found += any(test.adjusted < 0.05 for test in winner(made).tests)
    assert found <= 16


def answered(method: str, seed: int, metric: str, truths: list, predictions: list) -> Record:
    value = MEASURES[metric](np.asarray(predictions), np.asarray(truths))[metric]
    pairs = list(zip(truths, predictions, strict=True))
    return dataclasses.replace(run(method, seed, [], value), metric=metric, hits={}, answers={"d": pairs})


MEASURES = {"mcc": agreement, "pearson": closeness}


def answers(metric: str, right: float, seed: int = 0, rows: int = 60) -> Record:
    """A run that knows the share `right` of the answers."""
    draw = np.random.default_rng(seed)
    names = np.asarray([0.5, 1.5, 2.0]) if metric == "pearson" else np.asarray(["no", "yes", "why"])
    truths, other = (names[draw.integers(0, 3, rows)] for _ in range(2))
    found = np.where(draw.random(rows) < right, truths, other)
    return answered("a" if right > 0.5 else "b", seed, metric, truths.tolist(), found.tolist())


@pytest.mark.parametrize("metric", MEASURES)
def test_metrics_that_are_no_means_are_those_of_the_redrawn_rows(metric, monkeypatch):
    """Draws small enough that all of their rows can be scored one draw at a time."""
    made, kept = answers(metric, 0.7), []
    monkeypatch.setattr("luthier.comparing.measures.bootstrap.ENTRIES", 60 * RESAMPLES)

    class Draw:
        def integers(self, low, high, size):
            kept.append(np.random.default_rng(0).integers(low, high, size))
            return kept[0]

    monkeypatch.setattr(
        np.random, "default_rng", lambda seed, make=np.random.default_rng: Draw() if seed == 7 else make(seed)
    )
    (found,) = redrawn([made], seed=7)
    truths, predictions = (np.asarray(side) for side in zip(*made.answers["d"], strict=True))
    expected = [MEASURES[metric](predictions[rows], truths[rows])[metric] for rows in kept[0][:200]]
    assert found[:200] == pytest.approx(expected)


@pytest.mark.parametrize("metric", MEASURES)
def test_such_metrics_are_tested_by_rows_too(metric):
    good = [answers(metric, 0.9, seed) for seed in range(2)]
    bad = [answers(metric, 0.1, seed) for seed in range(2)]
    assert paired(good, bad).by_row.low > 0 and score_of(good[:1]).over == "rows"
    near = [dataclasses.replace(each, method="b", score=each.score - 0.01 - 1e-4 * each.seed) for each in good]
    for number, each in enumerate(near):  # one answer is another
        truth, found = each.answers["d"][0]
        other = next(name for name, _ in each.answers["d"] if name != found)
        near[number] = dataclasses.replace(each, answers={"d": [(truth, other), *each.answers["d"][1:]]})
    assert seed_p([0.01, 0.0101]) < 0.05 < paired(good, near).p  # the seeds agree, and the rows know nothing
    assert Record.from_dict(json.loads(json.dumps(good[0].to_dict()))).answers == good[0].answers


@pytest.mark.parametrize("metric", MEASURES)
def test_such_metrics_have_no_bounds_where_redrawn_rows_have_no_spread(metric):
    """Right on all rows, Matthews' correlation is 1 of every draw; a difference may be 2, and no share of rows."""
    truths = [0.5, 1.5] * 6
    every = [answered("a", seed, metric, truths, truths) for seed in range(2)]
    none = [dataclasses.replace(each, method="b") for each in every]
    score, found = score_of(every[:1]), paired(every, none)
    assert score.value == pytest.approx(1) and math.isnan(score.low) and score.over == "nothing"
    assert math.isnan(found.by_row.low) and math.isnan(found.both.low) and math.isnan(found.p)
    assert math.isnan(found.detectable) and "nothing can be said" in winner({"a": every, "b": none}).reason
    at = [dataclasses.replace(each, score=each.score - 0.1 - 0.01 * each.seed) for each in none]
    found = paired(every, at)  # seeds with a spread decide alone
    assert found.p == seed_p([0.1, 0.11]) and (found.both.low, found.both.high) == (
        found.by_seed.low,
        found.by_seed.high,
    )


def test_a_score_whose_rows_all_have_half_has_no_bounds():
    assert math.isnan(score_of([run("a", 0, [0.5] * 20)]).low)


@pytest.mark.parametrize("leads", [(0.05, 0.09, 0.07), (0.3, 0.31, 0.33), (0.6, 0.8, 0.7)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_p_and_the_interval_say_the_same(leads, noise):
    """At the level 1 - p the interval ends at nought, also where methods differ alike on all rows."""
    spread = noise * np.random.default_rng(0).uniform(-1, 1, 12)
    left = [run("a", seed, (0.15 + lead + spread).tolist()) for seed, lead in enumerate(leads)]
    right = [run("b", seed, [0.15] * 12) for seed in range(3)]
    found = paired(left, right)
    assert (found.p < 0.05) == (found.both.low > 0 or found.both.high < 0)
    ends = paired(left, right, 1 - found.p).both
    assert found.p < 1e-3 or min(abs(ends.low), abs(ends.high)) == pytest.approx(0, abs=1e-3)


def test_calibration_error():
    assert calibration_error([0.95, 0.95, 0.95, 0.95], [1, 1, 1, 0]) == pytest.approx(0.2)
    assert calibration_error([1.0, 1.0], [1, 1]) == 0.0
    assert calibration_error([0.9, 0.6], [1, 0]) == pytest.approx((0.1 + 0.6) / 2)


@pytest.mark.parametrize("change", [
    {"score": {}}, {"seed": "1"}, {"method": 1.5}, {"trainable": {}}, {"hits": {"d": [[1]]}}, {"rows": True},
    {"metrics": {"accuracy": "1"}}, {"losses": [[1, []]]}, {"total": 10**400}, {"notes": "a"}, {"hits": []},
])  # fmt: skip
def test_a_record_whose_figures_are_none_is_told(change):
    """Runs are put in order and averaged: what stands there has to be of its kind."""
    whole = run("a", 0, [1.0, 0.0]).to_dict()
    assert Record.from_dict(json.loads(json.dumps(whole))) == run("a", 0, [1.0, 0.0])
    with pytest.raises(LuthierError, match=f"its {next(iter(change))} is|damaged"):
        Record.from_dict(whole | change)
