"""Labels that tell nothing apart are said before training, in every task that has labels; so are alike ones."""

from __future__ import annotations

import json

import pytest

from luthier.core.errors import LuthierError
from luthier.data import load, split
from luthier.training.classes import check_classes

TEXT, PAIR = {"text": "t"}, {"text": "t", "text_pair": "u"}
SAME = {
    "regression": [TEXT | {"label": 0.5}] * 2,
    "regression in CSV's writing": [TEXT | {"label": "0.50"}, TEXT | {"label": "0.5"}],
    "regression of pairs": [PAIR | {"label": 2.5}] * 2,
    "places": [{"question": "q", "context": "c", "answers": {"text": [], "answer_start": []}}] * 2,
    "texts": [{"anchor": "a", "positive": "p"}, {"anchor": "b", "positive": "p"}],
    "judgements": [{"prompt": "q", "completion": "a", "label": False}] * 2,
    "several classes": [TEXT | {"labels": ["x"]}] * 2,
    "a class everywhere": [TEXT | {"labels": ["x", "y"]}, TEXT | {"labels": ["x"]}],
}
OTHER = {
    "regression": TEXT | {"label": 1.5},
    "regression in CSV's writing": TEXT | {"label": "1.5"},
    "regression of pairs": PAIR | {"label": 1.5},
    "places": {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0]}},
    "texts": {"anchor": "c", "positive": "r"},
    "judgements": {"prompt": "r", "completion": "a", "label": True},
    "several classes": TEXT | {"labels": ["y"]},
    "a class everywhere": TEXT | {"labels": ["y"]},
}


def read(tmp_path, rows):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load(path, preferences=True)


@pytest.mark.parametrize("case", SAME)
def test_labels_of_one_value_are_told(tmp_path, case):
    (note,) = (told := check_classes(read(tmp_path, SAME[case])))
    assert "every row to train on has" in note and told[note] == "2 rows"
    assert check_classes(read(tmp_path, [*SAME[case], OTHER[case]])) == {}


@pytest.mark.parametrize("row", [TEXT | {"label": "x"}, PAIR | {"label": "x"}, {"tokens": ["a"], "tags": ["O"]}])
def test_a_class_without_another_is_refused(tmp_path, row):
    with pytest.raises(LuthierError, match="the only class"):
        check_classes(read(tmp_path, [row, row]))


def test_texts_of_which_none_has_a_class_are_refused(tmp_path):
    with pytest.raises(LuthierError, match=r"no row of .* has a class"):
        check_classes(read(tmp_path, [TEXT | {"labels": []}] * 2))


def test_what_is_held_out_is_no_row_to_train_on(tmp_path):
    rows = [{"text": f"t{i}", "label": "y" if i < 8 else "x"} for i in range(9)]
    examples = read(tmp_path, rows)
    parts = (split(examples, n=1, seed=seed) for seed in range(99))
    train = next(train for train, held in parts if held.rows[0].label == "x")
    (note,) = check_classes(train)
    assert "the same label (y), of 2 in all" in note


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["pos", "pos "], "'pos' and 'pos '"),
        (["Pos", "pos", "neg"], "'Pos' and 'pos'"),
        (["very good", "very  good"], "'very  good' and 'very good'"),
        (["1", "01", "2"], "'01' and '1'"),
        (["nan", "a"], "('nan')"),
        (["None", "a"], "('None')"),
        (["pos", "neg"], None),
        (["1", "2", "10"], None),
    ],
)
def test_classes_that_are_hardly_meant_as_such_are_told(tmp_path, names, told):
    notes = check_classes(read(tmp_path, [{"text": f"t{i}", "label": name} for i, name in enumerate(names)]))
    assert len(notes) == (told is not None) and all(told in note for note in notes)


def test_classes_of_one_number_have_one_order(tmp_path):
    """Their order is that of the model's outputs: it may not hang on how a process hashes words."""
    rows = [{"text": f"t{i}", "label": name} for i, name in enumerate(["1", "01", "001", "0", "00"])]
    assert read(tmp_path, rows).labels == ["0", "00", "001", "01", "1"]
