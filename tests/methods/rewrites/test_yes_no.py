"""Yes/no questions of labelled rows: which are asked of which row, and what is refused."""

from __future__ import annotations

import json

import pytest

import luthier as lt
from luthier import data
from luthier.cli import main
from support.tiny import write_rows

TOML = 'group = "mood"\n[labels]\ngood = ["Is it good?", "Is it not bad?"]\nbad = "Is it bad?"\nmixed = ["Is it bad?"]'
ROWS = [{"text": f"t{i}", "label": label} for i, label in enumerate(("good", "bad", "mixed", "good"))]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "mood.toml").write_text(TOML)
    return data.load(write_rows(tmp_path / "rows.jsonl", ROWS), task="classification")


def made(source, tmp_path, **settings) -> list[dict]:
    by = lt.rewrites.YesNo(descriptions=str(tmp_path / "mood.toml"), **settings)
    found = lt.rewrite(None, None, source, by=by, out=tmp_path / "out.jsonl", overwrite=True, batch=3)
    return [json.loads(line) for line in found.out.read_text().splitlines()]


def test_every_question_is_asked_of_every_row(source, tmp_path):
    rows = made(source, tmp_path)
    told = [(row["prompt"], row["completion"], row["task"]) for row in rows[:6]]
    asked = ("Is it good?", "Is it not bad?", "Is it bad?")
    wanted = [(f"{q}\nt{i}\n", a, q) for i, said in enumerate(("yyn", "nny")) for q, a in
              zip(asked, ({"y": "yes", "n": "no"}[c] for c in said), strict=True)]  # fmt: skip
    assert told == wanted and len(rows) == 12 and {row["group"] for row in rows} == {"mood"}
    assert rows[8]["completion"] == "yes" and rows[8]["from"]["row"] == 3  # one question of two classes
    assert made(source, tmp_path, gives="labels")[0] | {"from": None} == {
        "text": "Is it good?\nt0", "label": "yes", "task": "Is it good?", "group": "mood", "from": None
    }  # fmt: skip


def test_questions_are_drawn_by_the_row_and_the_seed(source, tmp_path):
    rows = made(source, tmp_path, negatives=1)
    by = [[row["completion"] for row in rows if row["from"]["row"] == i] for i in (1, 2, 3, 4)]
    assert all(sorted(each) == ["no", "yes"] for each in by)
    assert made(source.keep(source.rows[2:]), tmp_path, negatives=1) == rows[4:]
    assert any(made(source, tmp_path, negatives=1, seed=seed) != rows for seed in range(1, 9))
    assert {row["completion"] for row in made(source, tmp_path, negatives=0)} == {"yes"}


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        ("group = 3", "names no group"),
        ('group = "g"', "describes no class"),
        ('group = "g"\n[labels]\ngood = []', "labels.good is"),
        ('group = "g"\n[label]\ngood = "q"', "did you mean|It may hold"),
        ("group = ", "cannot be read as descriptions"),
        ('group = "g"\n[labels]\ngood = "q"', "describes no class 'bad'"),
        ('group = "g"\n[labels]\ngood = "q"\nbad = "q"\nmixed = "q"', "has one question"),
    ],
)
def test_descriptions_that_do_not_serve_are_refused(source, tmp_path, toml, why):
    (tmp_path / "mood.toml").write_text(toml)
    with pytest.raises(lt.LuthierError, match=why):
        made(source, tmp_path)


def test_what_would_be_ignored_is_refused(source, tmp_path, capsys):
    by = lt.rewrites.YesNo(descriptions=str(tmp_path / "mood.toml"))
    for more, why in (({"judge": "label"}, "has nothing to judge"), ({"critics": ["self"]}, "has no critics")):
        with pytest.raises(lt.LuthierError, match=why):
            lt.rewrite(None, None, source, by=by, out=tmp_path / "out.jsonl", **more)
    with pytest.raises(lt.LuthierError, match="asks no model"):
        lt.rewrite(object(), None, source, by=by, out=tmp_path / "out.jsonl")
    with pytest.raises(lt.LuthierError, match="needs descriptions"):
        lt.rewrite(None, None, source, by="yes_no", out=tmp_path / "out.jsonl")
    with pytest.raises(lt.LuthierError, match="nothing is drawn"):
        lt.rewrites.YesNo(seed=3)
    words = [str(tmp_path / "rows.jsonl"), "--by", "yes_no", "--descriptions", str(tmp_path / "mood.toml")]
    out = ["--out", str(tmp_path / "made.jsonl")]
    for first, more, why in (("smollm2-135m", [], "asks no model"), ("none", ["--measure"], "--measure would be")):
        assert main(["rewrite", first, *words, *out, *more]) == 2 and why in capsys.readouterr().err
    assert main(["rewrite", "none", str(tmp_path / "rows.jsonl"), "--judge", "label"]) == 2
    assert "s3ft asks a model" in capsys.readouterr().err
    assert main(["rewrite", "none", *words, *out]) == 0 and "12 rows, made of 4" in capsys.readouterr().out


def test_other_descriptions_are_another_work(source, tmp_path, monkeypatch):
    by = lt.rewrites.YesNo(descriptions=str(tmp_path / "mood.toml"))
    true, calls = lt.rewrites.YesNo.rows, []

    def dying(self, examples, voices):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return true(self, examples, voices)

    monkeypatch.setattr(lt.rewrites.YesNo, "rows", dying)
    told = {"by": by, "out": tmp_path / "out.jsonl", "batch": 2}
    with pytest.raises(KeyboardInterrupt):
        lt.rewrite(None, None, source, **told)
    (tmp_path / "mood.toml").write_text(TOML.replace("not bad", "fine"))
    with pytest.raises(lt.LuthierError, match="begun with another settings"):
        lt.rewrite(None, None, source, resume=True, **told)
    (tmp_path / "mood.toml").write_text(TOML)
    assert lt.rewrite(None, None, source, resume=True, **told).rows == 12
