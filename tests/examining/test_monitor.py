"""Monitoring: alike is told alike, planted drifts are found where they are, the page and the log are safe."""

from __future__ import annotations

import json
import random
import stat
import warnings

import pytest

import luthier as lt
from luthier.cli import main
from luthier.examining.monitor import monitor
from luthier.examining.monitor.measures import area, holm, repeated
from luthier.serving.http.answers import Chat, Choice, Completion
from luthier.serving.http.log import AnswerLog, refuse_unwritable
from support.tiny import write_rows

THINGS = [
    "price",
    "order",
    "parcel",
    "invoice",
    "address",
    "return",
    "refund",
    "delivery",
    "account",
    "password",
    "colour",
    "size",
]


def talk(count: int, seed: int, words: list[str] = THINGS, tail: str = "") -> list[dict]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        thing, other = draw.choice(words), draw.choice(words)
        asked = f"where is my {thing} {draw.choice(['today', 'now', 'please'])} and the {other}"
        found.append((asked, f"your {thing} is {draw.choice(['ready', 'late', 'here'])} {tail}".strip()))
    return found


def logged(pairs: list, model: str = "base", finish: str = "stop") -> list[dict]:
    return [
        {
            "time": f"2026-11-{1 + n % 5:02d}T10:00:00+00:00",
            "model": model,
            "finish": finish,
            "tokens": 5,
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
        }
        for n, (asked, said) in enumerate(pairs)
    ]


@pytest.fixture
def train(tmp_path):
    return write_rows(tmp_path / "train.jsonl", [{"prompt": a, "completion": b} for a, b in talk(120, 0)])


def found(tmp_path, train, rows, **settings):
    return monitor(write_rows(tmp_path / "log.jsonl", rows), train, permutations=150, **settings)


def test_what_is_alike_is_told_alike(tmp_path, train):
    made = found(tmp_path, train, logged(talk(80, 1)))
    assert made.drifted == [] and made.code == 0 and "No drift" in made.sentence
    assert [each.name for each in made.inputs][-1] == "content (AUC)" and abs(made.inputs[-1].seen - 0.5) < 0.2
    assert sum(count for count, _ in made.days.values()) == 80 and len(made.days) == 5


def test_training_data_in_order_are_no_drift(tmp_path):
    """Sorted by topic, the halves of the training data differ; what is logged of all topics is none the less alike."""
    pairs = [*talk(60, 0, THINGS[:4]), *talk(60, 1, THINGS[8:], tail="and nothing else")]
    rows = [{"prompt": a, "completion": b} for a, b in pairs]
    assert found(tmp_path, write_rows(tmp_path / "sorted.jsonl", rows), logged(pairs[20:100])).drifted == []


def test_drift_is_found_where_it_was_planted(tmp_path, train):
    other = ["tumour", "dosage", "symptom", "fever", "allergy", "vaccine"]
    asks = found(
        tmp_path, train, logged([(a, b) for (a, _), (_, b) in zip(talk(80, 1, other), talk(80, 2), strict=True)])
    )
    assert "inputs: content (AUC)" in asks.drifted and "inputs: unknown words" in asks.drifted
    assert not any(each.startswith("answers") for each in asks.drifted) and asks.code == 3
    loops = found(tmp_path, train, logged(talk(80, 1, tail="and so on and so on and so on"), finish="length"))
    assert "answers: repetition" in loops.drifted and "answers: words" in loops.drifted and loops.cut == 1
    assert not any(each.startswith("inputs") for each in loops.drifted)


def test_the_area_is_scikit_learns():
    np = pytest.importorskip("numpy")
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    scores, labels = draw.integers(0, 9, (3, 40)).astype(float), draw.integers(0, 2, (3, 40))
    wanted = [metrics.roc_auc_score(each, score) for each, score in zip(labels, scores, strict=True)]
    assert area(scores, labels).tolist() == pytest.approx(wanted)


def test_figures_and_adjustment():
    assert repeated("a b c d e") == 0 and repeated("a b c a b c") == pytest.approx(1 / 4) and repeated("") == 0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_command_writes_a_page_that_escapes_what_was_logged(tmp_path, train, capsys):
    rows = logged(talk(30, 1)) + logged(talk(30, 3), model="sums")
    log = write_rows(tmp_path / "<b>log.jsonl", rows)
    out = tmp_path / "out"
    words = ["monitor", log, "--data", train, "--model", "sums", "--permutations", "120", "--out", str(out)]
    assert main(words) in (0, 3) and "p, adjusted" in capsys.readouterr().out
    page = (out / "monitor.html").read_text()
    assert "&lt;b&gt;log" in page and "<b>log" not in page and "script" not in page
    assert json.loads((out / "monitor.json").read_text())["answers"] == 30


def test_what_cannot_be_compared_is_refused(tmp_path, train):
    for rows, why in (
        (logged(talk(5, 1)), "holds 5 answers"),
        ([{"question": "a"}] * 30, "no messages and no completion"),
        (logged(talk(30, 1)), "no answers of 'other'"),
    ):
        with pytest.raises(lt.LuthierError, match=why):
            found(tmp_path, train, rows, model="other" if "other" in why else None)


# --- the log ---------------------------------------------------------------------------------------


def ended(kind, text: str, finish: str | None = "stop", count: int = 1):
    return kind("base", False, 3, [Choice(text=text, finish=finish, generated=4) for _ in range(count)])


def test_complete_answers_are_logged_for_the_owner_alone(tmp_path):
    file = tmp_path / "answers.jsonl"
    refuse_unwritable(file)
    log, turns = AnswerLog(file), [{"role": "user", "content": "hé"}]
    log.write(ended(Chat, "yes", count=2), [turns])
    log.write(ended(Chat, "broken", finish=None), [turns])
    log.write(ended(Completion, "on", count=2), ["a", "b"])
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [line.get("prompt") for line in lines] == [None, None, "a", "b"]
    assert lines[0]["messages"] == [*turns, {"role": "assistant", "content": "yes"}] and lines[0]["tokens"] == 4
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(lt.LuthierError, match="cannot be written"):
        refuse_unwritable(tmp_path)
    with pytest.warns(UserWarning, match="no longer logged"):
        AnswerLog(tmp_path).write(ended(Chat, "yes"), [turns])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failing = AnswerLog(tmp_path)
        failing._failed = True
        failing.write(ended(Chat, "yes"), [turns])  # told once
