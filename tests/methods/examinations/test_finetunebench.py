"""FineTuneBench: kinds apart, updates only of what was known, the generator's answers are right."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest

import luthier as lt
from luthier import data
from luthier.core.contracts.examination import Pair
from luthier.data.facts import COMPARED
from luthier.methods.examinations.finetunebench import FineTuneBench
from support.architectures import ARCHITECTURES
from support.asked import examples, row


def measured(held, before: dict[str, str], after: dict[str, str], **settings):
    """Two models that answer as told."""
    write = lambda model, prompts, most: [model.get((p.messages or [])[-1]["content"], "hm") for p in prompts]  # noqa: E731
    told = examples(held)
    pair = Pair(lambda: [], lambda: nullcontext(before), lambda: nullcontext(after), examples={"d": told}, write=write)  # type: ignore[arg-type]
    return FineTuneBench(**settings).measure(pair)


def test_kinds_are_told_apart_and_counted_by_fact():
    held = [row(n, f"q{n}", f"a{n}", kind="memorised", fact=f"f{n}") for n in range(20)]
    held += [row(50 + n, f"r{n}", f"a{n % 20}", kind="rephrased", fact=f"f{n % 20}") for n in range(40)]
    after = {f"q{n}": f"It is a{n}." for n in range(20)} | {f"r{n}": f"a{n % 20}" for n in range(10)}
    found = measured(held, {}, after)
    assert found.places["memorised"]["score"] == 1 and found.places["rephrased"]["score"] == 0.25
    assert found.summary["gap"] == 0.75 and found.effect == 1 and found.places["rephrased"]["probes"] == 40
    assert found.null["memorised"]["score"] == found.null["rephrased"]["score"] == 0
    exact = measured(held, {}, after, match="exact")
    assert exact.places["memorised"]["score"] == 0 and exact.places["rephrased"]["score"] == 0.25


def test_an_update_counts_only_where_the_old_fact_was_known():
    held = [row(n, f"capital {n}", "Zor", kind="memorised", fact=f"c{n}", old=f"Old{n}") for n in range(4)]
    held += [row(9 + n, f"is {n}", "No", kind="secondary", fact=f"c{n}", old="Yes") for n in range(4)]
    before = {"capital 0": "Old0.", "capital 1": "It is Old1", "is 3": "Yes"}
    after = {f"capital {n}": "Zor" for n in range(4)} | {"is 0": "No", "is 1": "Yes, but no"}
    found = measured(held, before, after)
    assert found.places["memorised"]["probes"] == 2 == found.places["secondary"]["probes"]  # 3 was not known
    assert found.places["memorised"]["score"] == 1 and found.places["secondary"]["score"] == 0.5
    assert "4 probes of updates were left out" in found.verdict
    with pytest.raises(lt.LuthierError, match="none of the old facts"):
        measured(held, {}, after)


def test_the_interval_is_wider_where_probes_are_of_one_fact():
    one = [row(n, f"q{n}", "a", kind="memorised", fact=f"f{n // 10}") for n in range(100)]
    each = [row(n, f"q{n}", "a", kind="memorised", fact=f"f{n}") for n in range(100)]
    after = {f"q{n}": "a" for n in range(50)}
    spans = [measured(held, {}, after).places["memorised"] for held in (one, each)]
    assert spans[0]["high"] - spans[0]["low"] > 2 * (spans[1]["high"] - spans[1]["low"])
    uneven = [row(n, f"q{n}", "a", kind="memorised", fact=f"f{n * n // 60}") for n in range(50)]
    known = measured(uneven, {}, after).places["memorised"]
    assert known["low"] < 0.95 < known["high"] == 1  # all are right, of facts with unlike many probes


def test_made_up_people_have_one_truth():
    train, probes = (data.load(f"facts:people{part}?count=5", columns=("kind", "fact")) for part in ("", ":probes"))
    truth = {each.meta["fact"]: each.answer for each in train.rows}
    assert len(train) == len(truth) == 30 and {each.meta["kind"] for each in train.rows} == {"memorised"}
    kinds = {each.meta["kind"] for each in probes.rows}
    assert kinds == {"memorised", "rephrased", "secondary", "comparison"}
    for each in probes.rows:
        asked, value = (each.messages or [])[0]["content"], truth[each.meta["fact"]]
        if each.meta["kind"] in ("memorised", "rephrased"):
            assert each.answer == value
        elif each.meta["kind"] == "comparison":
            key = each.meta["fact"].split(": ")[1]
            who = re.fullmatch(rf"{COMPARED[key]}, (.+) or (.+)\?", asked)
            assert who is not None
            best = max((who[1], who[2]), key=lambda name: int(truth[f"{name}: {key}"] or 0))
            assert each.answer == best
        elif "age" in each.meta["fact"]:
            assert each.answer == ("Yes" if int(value or 0) > 45 else "No")
        elif "city" in each.meta["fact"]:
            assert each.answer == ("Yes" if str(value) < "M" else "No")
        elif "job" in each.meta["fact"] or "colour" in each.meta["fact"]:
            assert each.answer == ("Yes" if re.search(rf"\b{value}\b", asked) else "No")


def test_events_have_no_answer_a_year_later_and_changes_know_the_old():
    events = data.load("facts:events:probes?count=6", columns=("kind", "fact")).rows
    assert len(events) == 18 and {e.answer for e in events if e.meta["kind"] == "date"} == {"None"}
    changes = data.load("facts:changes:probes", columns=("kind", "fact", "old")).rows
    france = [e for e in changes if e.meta["fact"] == "France"]
    assert all(e.answer != e.meta["old"] for e in france) and len(changes) == 60
    again = data.load("facts:changes:probes", columns=("kind", "fact", "old"), seed=5).rows
    assert [e.answer for e in again] == [e.answer for e in changes]
    other = data.load("facts:changes:probes?seed=5").rows
    assert [e.answer for e in other] != [e.answer for e in changes]
    for wrong in (
        "facts:peple",
        "facts:people:prob",
        "facts:people?size=3",
        "facts:people?count=x",
        "facts:changes?count=99",
    ):
        with pytest.raises(lt.LuthierError):
            data.load(wrong)


def test_a_file_per_kind_needs_no_column():
    pair = {kind: examples([row(n, f"{kind} {n}", "a") for n in range(3)]) for kind in ("memorised", "rephrased")}
    write = lambda model, prompts, most: ["a" if "mem" in p.messages[-1]["content"] else "b" for p in prompts]  # noqa: E731
    model = ARCHITECTURES["llama"].build()
    found = FineTuneBench().measure(
        Pair(lambda: [], lambda: nullcontext(model), lambda: nullcontext(model), examples=pair, write=write)
    )
    assert {kind: each["score"] for kind, each in found.places.items()} == {"memorised": 1, "rephrased": 0}
    assert found.effect == 0
