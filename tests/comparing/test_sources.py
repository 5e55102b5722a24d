"""What a study reads: problems that are tested on are not learned from, and a study's rows stay what they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.comparing.plan import checked
from luthier.comparing.sources import Sourced, _apart, sourced
from luthier.comparing.study import DataSet, Study
from luthier.core.errors import LuthierError
from luthier.data import Example
from luthier.data.table import Table
from luthier.training import Training
from support.tiny import sums, write_rows


def prompts(source: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in Path(source).read_text().splitlines()]


def read(tmp_path, given: DataSet, seeds=(0,)) -> Sourced:
    return sourced("sums", given, Training(), seeds, tmp_path / "study")


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """A test whose first three problems stand in training, typed a little otherwise, and one in validation."""
    test = [{"prompt": f"What is {i} - {i + 1}?", "completion": "-1"} for i in range(8)]
    again = [{"prompt": f"what is {i}-{i + 1} ?", "completion": "-1"} for i in range(3)]
    near = [{"prompt": f"What is {i} + {i + 1}?", "completion": str(2 * i + 1)} for i in range(6)]
    parts = {"train": [*near, *again], "test": test, "validation": [near[5] | {"prompt": "What?"}, test[7]]}
    return {name: write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in parts.items()}


def test_what_is_tested_on_is_not_learned(files, tmp_path):
    found = read(tmp_path, DataSet([files["train"]], {"sums": files["test"]}, files["validation"]))
    assert prompts(found.train) == prompts(files["train"])[:6] and len(found.examples) == 6
    assert found.validation is not None and prompts(found.validation) == ["What?"]
    assert found.notes == (
        "3 of 9 training rows of sums are problems of its tests, and were left out",
        "1 of 2 validation rows of sums are problems of its tests, and were left out",
    )
    assert len(found.tests["sums"]) == 8


def test_rows_that_share_nothing_are_read_where_they_are(additions, tmp_path):
    found = read(tmp_path, DataSet([additions["train"]], {"sums": additions["test"]}))
    assert found.train == additions["train"] and found.notes == () and not (tmp_path / "study").exists()


def test_a_test_of_the_training_rows_is_refused(additions, tmp_path):
    with pytest.raises(LuthierError, match=r"every row of .* is tested on"):
        read(tmp_path, DataSet([additions["train"]], {"sums": additions["train"]}))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("What is 3 - 1?", "what is 3-1", True),
        ("A  cat .", "a cat", True),
        ("３ + 1", "3 + 1", True),
        ("3 - 1", "3 + 1", False),
        ("1 2", "12", False),
        ("-3", "3", False),
    ],
)
def test_problems_are_told_apart_by_what_they_ask(first, second, same):
    assert (Example(1, text=first).problem() == Example(2, text=second).problem()) is same


def test_seeds_may_be_added_where_rows_are_drawn(additions, tmp_path):
    given = DataSet([additions["train"]], {"sums": additions["test"]}, rows=20)
    prints = [read(tmp_path, given, seeds).fingerprints() for seeds in ((0,), (2, 0))]
    assert prints[0] == prints[1]


def test_a_study_keeps_its_rows(files, tmp_path):
    given = DataSet([files["train"]], {"sums": files["test"]})
    made = Path(read(tmp_path, given).train)
    before = made.read_text()
    (tmp_path / "study" / "study.json").write_text("{}")
    write_rows(Path(files["train"]), [*sums(5), {"prompt": "What is 0 - 1?", "completion": "-1"}])
    with pytest.raises(LuthierError, match="have changed"):
        read(tmp_path, given)
    assert made.read_text() == before


def test_the_runs_read_what_was_left(llama, files):
    values = {"train": files["train"], "test": files["test"], "validation": files["validation"]}
    runs = checked(Study.from_dict({"models": llama, "data": {"sums": values}, "methods": ["lora"], "seeds": 1})).jobs
    assert runs[0].run.data.endswith("sums.training.unseen.jsonl")
    assert (runs[0].run.eval_data or "").endswith("sums.validation.unseen.jsonl")


def test_classes_of_a_hub_keep_their_names():
    table = Table([], folder=Path("/there"), classes={"label": ["no", "yes"]})
    row, wanted = {"text": "a", "label": 1, "image": "b.png"}, {"text": "a", "label": "yes", "image": "/there/b.png"}
    assert _apart(row, table, DataSet(["x"])) == wanted
    row, wanted = {"label": 1, "file": "b.png"}, {"label": "yes", "file": "/there/b.png"}
    assert _apart(row, table, DataSet(["x"], columns="image=file")) == wanted
