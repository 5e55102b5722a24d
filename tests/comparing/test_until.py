"""Seeds until methods are told apart: error rates by simulation, power against scipy, and whole studies."""

from __future__ import annotations

import dataclasses
import json
import math
from statistics import NormalDist

import numpy as np
import pytest

import luthier as lt
from comparing.test_compare import QUICK, figures
from comparing.test_statistics import run, runs
from luthier.comparing import Study
from luthier.comparing.measures import power
from luthier.comparing.measures.foresight import foreseen
from luthier.comparing.measures.looks import Looks, decisions, level_of_a_look, outcome, said, wanting
from luthier.comparing.measures.significance import Interval, over_seeds, paired, winner
from luthier.comparing.record import FILE, RUNS, write
from luthier.comparing.report.summary import sensitivity
from luthier.comparing.report.table import JSON, save
from luthier.core.errors import LuthierError
from luthier.core.numerics import student


@pytest.mark.parametrize(
    ("freedom", "level", "wanted"), [(1, 0.95, 0.8), (2, 0.95, 0.8), (4, 0.99, 0.9), (19, 0.999, 0.8)]
)
def test_power_is_scipys_noncentral_t(freedom, level, wanted):
    stats = pytest.importorskip("scipy.stats")
    mean, critical = student.noncentrality(level, freedom, wanted), student.quantile(level, freedom)
    found = stats.nct.sf(critical, freedom, mean) + stats.nct.cdf(-critical, freedom, mean)
    assert found == pytest.approx(wanted, abs=2e-4)


def test_a_difference_as_large_as_detectable_is_seen_four_times_in_five():
    draw = np.random.default_rng(0)
    detectable = power.by_seeds([0.0, 1.0, -1.0, 0.5, -0.5], 0.95)  # n 5
    spread = np.std([0.0, 1.0, -1.0, 0.5, -0.5], ddof=1)
    samples = draw.normal(detectable, spread, (20_000, 5))
    t = samples.mean(1) / samples.std(1, ddof=1) * math.sqrt(5)
    assert (np.abs(t) > student.quantile(0.95, 4)).mean() == pytest.approx(0.8, abs=0.01)


def test_what_a_pair_could_have_shown_is_by_seeds_and_rows_together():
    first, second = runs("a", 0.8, seeds=4), runs("b", 0.7, seeds=4, shift=1)
    found = paired(first, second)
    differences = [a.score - b.score for a, b in zip(first, second, strict=True)]
    rows = (1.959964 + 0.841621) * (found.by_row.high - found.by_row.low) / (2 * 1.959964)
    seeds = power.by_seeds(differences, 0.95)
    assert found.detectable == pytest.approx(math.hypot(rows, seeds), rel=0.05)
    assert paired(first, second, tests=10).detectable > found.detectable
    assert math.isnan(paired(first[:1], second[:1]).detectable) is False  # rows alone say something


def test_what_has_no_spread_could_have_shown_nothing(tmp_path):
    """Differences that agree up to rounding, and redrawn rows that are alike: no figure, and not 0.000."""
    assert math.isnan(power.by_rows(np.full(100, 0.3), 0.95)) and math.isnan(power.by_rows(np.zeros(0), 0.95))
    assert math.isnan(power.by_seeds([0.3 - 0.2, 0.2 - 0.1], 0.95))
    same = {name: [run(name, seed, [1.0] * 12) for seed in range(2)] for name in "ab"}
    assert math.isnan(paired(same["a"], same["b"]).detectable) and not sensitivity(winner(same))
    for each in (*same["a"], *same["b"]):
        write(each.to_dict(), tmp_path / RUNS / "m" / "d" / each.method / str(each.seed) / FILE)
    save(tmp_path)
    assert json.loads((tmp_path / JSON).read_text())[0]["tests"][0]["detectable"] is None


def test_methods_that_neither_seeds_nor_rows_tell_of_are_not_told_apart():
    still = [run(name, seed, [], score) for name, score in (("x", 0.5), ("y", 0.4)) for seed in range(2)]
    assert [each.outcome for each in decisions(still, 0.2, Looks(2, 5))] == ["rows"]


def test_the_level_of_a_look_is_that_of_one_test_where_there_is_one_look():
    assert level_of_a_look(Looks(3, 3), 0.05) == pytest.approx(0.05, abs=0.002)
    assert level_of_a_look(Looks(2, 20), 0.05) < 0.02


def looked(differences: np.ndarray, looks: Looks, margin: float, level: float, spread: float) -> str:
    """The outcome of one pair: the first look that says anything; `spread` is the standard error over the rows."""
    reach = NormalDist().inv_cdf(1 - level / 2) * spread
    for count in range(looks.first, looks.last + 1):
        found = over_seeds(differences[:count].tolist(), 1 - level)
        rows = Interval(found.value, found.value - reach, found.value + reach, "rows")
        seen = outcome(found, rows, margin)
        if seen != "open":
            return seen
    return "open"


@pytest.mark.parametrize("spread", [0.0, 0.6])
@pytest.mark.parametrize(("truth", "margin", "wrong"), [(0.0, 1e-9, "apart"), (0.5, 0.5, "level")])
def test_a_thousand_studies_err_in_one_of_twenty_at_the_most(truth, margin, wrong, spread):
    """Three methods, three pairs: no difference at all is called one, or one as large as the margin level, in 5%;
    also where the test rows suit a method by chance, about as much as the seeds do."""
    looks = Looks(3, 10)
    level = level_of_a_look(looks, 0.05 / 3)
    draw = np.random.default_rng(1)
    errors = 0
    for _ in range(1000):
        scores = draw.normal(0, 1, (3, looks.last)) + draw.normal(0, 2, looks.last)  # seeds that suit all alike
        scores += draw.normal(0, spread / math.sqrt(2), (3, 1))  # of the rows, the same for all seeds
        scores[1:] -= truth * np.array([[1.0], [2.0]])
        pairs = [(0, 1), (1, 2)] if truth else [(0, 1), (1, 2), (0, 2)]
        errors += any(looked(scores[a] - scores[b], looks, margin, level, spread) == wrong for a, b in pairs)
    assert errors <= 1000 * 0.05 + 2 * math.sqrt(1000 * 0.05 * 0.95)


def test_what_a_look_says():
    def looked(value: float, seeds: float, rows: float) -> str:
        return outcome(*(Interval(value, value - w, value + w, "") for w in (seeds, rows)), margin=0.05)

    assert looked(0.1, 0.07, 0.07) == "apart" and looked(0.1, 0.08, 0.08) == "open"  # √2 · 0.08 > 0.1
    assert looked(0.0, 0.03, 0.03) == "level" and looked(0.0, 0.04, 0.04) == "open"
    assert looked(0.0, 0.01, 0.2) == "rows" and looked(0.0, 0.2, 0.01) == looked(0.0, math.nan, 0.01) == "open"
    assert looked(0.1, 0.05, math.nan) == "apart"
    assert said(0.01, 0.02, 0.05) == {"apart", "level"} and said(-0.1, 0.1, 0.05) == set()


def test_methods_that_no_seed_changes_are_decided_by_their_rows():
    still = [run("base", seed, [1.0, 0.0] * 200) for seed in range(3)]
    worse = [run("icl", seed, [0.0, 0.0] * 200) for seed in range(3)]
    assert [each.outcome for each in decisions([*still, *worse], 0.1, Looks(2, 5))] == ["apart"]
    coarse = [run("x", seed, [1.0, 0.0] * 200, score=0.5 + 0.1 * seed) for seed in range(2)]
    other = [run("y", seed, [1.0, 0.0] * 200, score=0.4 + 0.1 * seed) for seed in range(2)]
    found = decisions([*coarse, *other], 0.1, Looks(2, 5))
    assert [each.outcome for each in found] == ["open"] and wanting(found) == {("m", "d", "x"), ("m", "d", "y")}


def test_what_all_seeds_could_show_is_foreseen_from_two():
    hits = {"a": [1.0, 0.0] * 100, "b": [1.0] * 100 + [0.0] * 100}
    pilot = [
        run(name, seed, hits[name], score)
        for name, *both in (("a", 0.8, 0.7), ("b", 0.7, 0.8))
        for seed, score in enumerate(both)
    ]
    (few,), (many,) = foreseen(pilot, 3), foreseen(pilot, 30)
    shown = [float(line.split("difference of ")[1].split(" ")[0]) for line in (few, many)]
    assert "what limits it most is the seeds" in few and shown[1] < shown[0]
    assert not foreseen(pilot[:1], 3)
    (seeds,) = foreseen([dataclasses.replace(each, hits={}) for each in pilot], 3)
    assert "by the seeds alone" in seeds and "rows alone" not in seeds


@pytest.fixture(scope="module")
def study(llama, additions) -> Study:
    data = {"train": additions["train"], "test": additions["test"], "max_new_tokens": 3}
    return Study.from_dict(
        {
            "models": llama,
            "data": {"sums": data},
            "methods": ["base", "icl:k=1", "lora"],
            "seeds": 2,
            "training": QUICK,
            "timing": 0,
            "until_told": 0.2,
            "most_seeds": 3,
        }
    )


def test_seeds_are_added_for_what_is_open_alone(study, tmp_path, capsys):
    done = lt.compare(study, out=tmp_path / "s")
    seeds = {name: sorted(r.seed for r in done.records if r.method == name) for name in study.methods}
    look = json.loads((tmp_path / "s" / "until.json").read_text())
    assert look["looks"] == {"first": 2, "last": 3} and len(look["decisions"]) == 3
    assert "2 seeds" in (told := capsys.readouterr().err) and "less lora is" in told
    final = {(each["first"], each["second"]): each["outcome"] for each in look["decisions"]}
    assert final["base", "icl:k=1"] != "open"  # no seed changes either
    open_ones = {name for names, said in final.items() if said == "open" for name in names}
    assert all(seeds[name] == [0, 1, 2] for name in open_ones)
    assert "less lora is" in (tmp_path / "s" / "results.md").read_text()
    assert "Seeds were added until" in (tmp_path / "s" / "report.html").read_text()
    before = figures(tmp_path / "s")
    lt.compare(study, out=tmp_path / "s", progress=False)
    assert figures(tmp_path / "s") == before and json.loads((tmp_path / "s" / "until.json").read_text()) == look
    with pytest.raises(LuthierError, match="does not keep its error rate"):
        lt.compare(dataclasses.replace(study, until_told=0.1), out=tmp_path / "s", progress=False)


def test_it_stops_where_the_seeds_end(study, tmp_path, capsys):
    asked = dataclasses.replace(study, methods=["base", "lora"], until_told=1e-9, most_seeds=2)
    done = lt.compare(asked, out=tmp_path / "s")
    assert {run.seed for run in done.records} == {0, 1}
    told = " ".join(capsys.readouterr().err.split())
    assert "stopped before all were told (base, lora)" in told or "the test has too few rows" in told


def test_methods_that_are_wrong_on_every_row_are_not_proved_level():
    """On 12 rows a share of 1 - .05^(1/12), about a fifth, may differ and show no difference."""
    none = [run(name, seed, [0.0] * 12) for name in ("a", "b") for seed in range(2)]
    (found,) = decisions(none, 0.1, Looks(2, 5))
    assert found.outcome == "rows"
    many = [run(name, seed, [0.0] * 12000) for name in ("a", "b") for seed in range(2)]
    assert [each.outcome for each in decisions(many, 0.1, Looks(2, 5))] == ["level"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"until_told": 0.0}, "more than 0"),
        ({"until_told": 0.1, "hours": -1.0}, "more than 0"),
        ({"until_told": None, "hours": 1.0}, "until_told"),
        ({"most_seeds": 1}, "most_seeds is 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(study, given, said):
    with pytest.raises(LuthierError, match=said):
        dataclasses.replace(study, **given)
