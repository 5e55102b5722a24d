"""S3FT: whose answer each row learns, by what the judge says."""

from __future__ import annotations

import pytest

import luthier as lt
from luthier import data, models
from luthier.evaluating import generate
from luthier.evaluating.texts import figures, foretold
from support.tiny import TEMPLATE, save_model, sums, write_rows


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return models.load(save_model(tmp_path_factory.mktemp("model") / "llama", "llama", TEMPLATE))


@pytest.fixture
def examples(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    talk = [*turns, {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    path = write_rows(tmp_path / "talk.jsonl", [{"messages": talk}, {"messages": talk[:2]}])
    plain = write_rows(tmp_path / "plain.jsonl", [{**row, "completion": row["completion"] * 9} for row in sums(7)])
    return data.load(path), data.load(plain)


def encoded(rows, loaded) -> list[tuple]:
    return [(f["input_ids"], f["labels"]) for f in data.encode_all(rows, loaded.processor, max_length=200)]


def made(loaded, examples, tmp_path, judge, **more):
    return lt.rewrite(
        loaded.model, loaded.processor, examples, by="s3ft", judge=judge, out=tmp_path / "made.jsonl",
        max_new_tokens=5, batch=3, overwrite=True, **more,
    )  # fmt: skip


def test_a_judge_that_always_says_no_gives_the_rows_of_fine_tuning(loaded, examples, tmp_path):
    for given in examples:
        found = made(loaded, given, tmp_path, lambda *_: False)
        assert found.origins == {"gold": len(given)} and found.unjudged == 0
        assert encoded(data.load(found.out), loaded) == encoded(given, loaded)


def test_a_judge_that_always_says_yes_gives_the_models_own_answers(loaded, examples, tmp_path):
    given = examples[1]
    found = made(loaded, given, tmp_path, lambda *_: True)
    rows = data.load(found.out, columns=("from",))
    own = generate(loaded.model, loaded.processor, [row.messages[:-1] for row in given.rows], max_new_tokens=5, batch=3)
    assert found.origins == {"own": 7} and [row.answer for row in rows.rows] == own
    assert [row.meta["from"]["row"] for row in rows.rows] == list(range(1, 8))
    assert {row.meta["from"]["source"] for row in rows.rows} == {given.source}
    of = {name: figures(foretold(loaded.model, loaded.processor, each, batch=4))["loss"]
          for name, each in (("gold", given), ("own", rows))}  # fmt: skip
    assert of["own"] <= of["gold"]


def test_a_paraphrase_is_tried_where_the_own_answer_is_wrong(loaded, examples, tmp_path):
    seen: list[str] = []

    def second(prompt, answer, reference):
        seen.append(prompt)
        return seen.count(prompt) == 2

    found = made(loaded, examples[1], tmp_path, second)
    assert found.origins == {"paraphrase": 7}
    assert made(loaded, examples[1], tmp_path, lambda *_: False, patience=1).origins == {"gold": 7}


def test_a_judge_that_does_not_answer_loses_no_row_and_is_told(loaded, examples, tmp_path):
    def broken(prompt, answer, reference):
        if reference.startswith("1"):
            raise ValueError("no idea")
        return None if reference.startswith("2") else float("nan")

    found = made(loaded, examples[1], tmp_path, broken, patience=1000)
    assert found.rows == 7 and found.origins == {"gold": 7} and found.unjudged == sum(found.why.values()) == 14
    assert all(row.meta["from"]["unjudged"] for row in data.load(found.out, columns=("from",)).rows)
    with pytest.raises(lt.LuthierError, match=r"answers in a row unjudged .*0 of 7 rows are done"):
        made(loaded, examples[1], tmp_path, broken, patience=3)


def test_a_stopped_file_goes_on_to_be_the_same(loaded, examples, tmp_path):
    def judge(prompt, answer, reference):
        return len(reference) > 18

    whole = made(loaded, examples[1], tmp_path, judge).out.read_bytes()
    calls: list[int] = []

    def killed(prompt, answer, reference):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return judge(prompt, answer, reference)

    killed.__qualname__ = judge.__qualname__
    told = {"by": "s3ft", "out": tmp_path / "cut.jsonl", "max_new_tokens": 5, "batch": 3}
    work = (loaded.model, loaded.processor, examples[1])
    with pytest.raises(KeyboardInterrupt):
        lt.rewrite(*work, judge=killed, **told)
    assert not (tmp_path / "cut.jsonl").exists()
    with open(tmp_path / ".cut.jsonl.part", "ab") as file:
        file.write(b'{"torn":')
    with pytest.raises(lt.LuthierError, match="was begun before"):
        lt.rewrite(*work, judge=judge, **told)
    with pytest.raises(lt.LuthierError, match="begun with another judge"):
        lt.rewrite(*work, judge="number", resume=True, **told)
    found = lt.rewrite(*work, judge=judge, resume=True, **told)
    assert found.out.read_bytes() == whole and found.rows == 7


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"judge": None}, "s3ft needs a judge"),
        ({"judge": "nothing.py:judge"}, "no file nothing.py"),
        ({"judge": "no_scorer"}, "no scorer 'no_scorer'"),
        ({"critics": ["self"]}, "s3ft has no critics"),
        ({"out": "rows.csv"}, "is to be a .jsonl file"),
    ],
)
def test_what_cannot_be_done_is_refused(loaded, examples, tmp_path, more, why):
    told = {"by": "s3ft", "judge": "exact_match", "out": tmp_path / "out.jsonl", **more}
    with pytest.raises(lt.LuthierError, match=why):
        lt.rewrite(loaded.model, loaded.processor, examples[1], **told)


def test_a_function_of_a_file_judges(loaded, examples, tmp_path):
    (tmp_path / "judges.py").write_text("def short(prompt, answer, reference):\n    return len(answer) < 4\n")
    found = made(loaded, examples[1], tmp_path, f"{tmp_path / 'judges.py'}:short")
    assert sum(found.origins.values()) == 7
    with pytest.raises(lt.LuthierError, match="has no function 'long'"):
        made(loaded, examples[1], tmp_path, f"{tmp_path / 'judges.py'}:long")
