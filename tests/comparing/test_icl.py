"""In-context learning as a method of a study, beside fine-tuned ones."""

from __future__ import annotations

import json

import pytest

from luthier.comparing import compare
from luthier.comparing.methods import described, redescribed, resolve
from luthier.comparing.plan import checked
from luthier.comparing.shots import shown
from luthier.comparing.study import Settings, Study
from luthier.core.errors import LuthierError
from support.tiny import save_model, write_rows

TRAINING = {"steps": 2, "batch": 2, "max_length": 64, "eval_fraction": 0.1, "warmup": 0.0}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, str]:
    """Test rows, each with one training row that shares its rare word and another answer."""
    folder = tmp_path_factory.mktemp("icl")
    words = [f"w{i}x" for i in range(20)]
    train = [{"prompt": f"the {word} is", "completion": f"a{i}"} for i, word in enumerate(words)]
    test = [{"prompt": f"say the {word} now", "completion": f"b{i}"} for i, word in enumerate(words[:4])]
    paths = {"train": write_rows(folder / "train.jsonl", train), "test": write_rows(folder / "test.jsonl", test)}
    return paths | {"same": write_rows(folder / "same.jsonl", [*train, *test])}


def study(llama: str, rows: dict[str, str], *methods: str, **more) -> Study:
    data = {"data": {"words": {"train": rows["train"], "test": rows["test"], "max_new_tokens": 3}}}
    given = {"models": llama, "methods": list(methods), "seeds": [0], "training": TRAINING, "others": 0, "timing": 0}
    return Study.from_dict(given | data | more)


def test_it_is_compared_with_what_is_trained(llama, rows, tmp_path):
    done = compare(study(llama, rows, "base", "icl:k=2", "lora"), out=tmp_path / "study", progress=False)
    by_name = {each.method: each for each in done.records}
    assert set(by_name) == {"base", "icl:k=2", "lora"} and by_name["icl:k=2"].trainable == 0 < by_name["lora"].trainable
    assert "2 training rows before each prompt, found by bm25" in " ".join(by_name["icl:k=2"].notes)
    told = [sample["answer"] for sample in by_name["icl:k=2"].samples]
    assert told != [sample["answer"] for sample in by_name["base"].samples]  # the prompts are others
    assert (tmp_path / "study" / "runs" / "llama" / "words" / "icl-k=2").is_dir()
    again = compare(tmp_path / "study" / "study.json", out=tmp_path / "study", progress=False)
    assert len(again.records) == 3 and again.report is not None


def test_shots_are_the_planted_neighbours_and_never_the_row_itself(llama, rows):
    """Of the training rows of the run, without those held out; the nearest stands next to the prompt."""
    planned = checked(study(llama, rows, "icl:k=3"))
    job = planned.jobs[0]
    parts = shown(job.data, job.method, job.run)
    found = 0
    for before, row in zip(job.data.tests["words"].rows, parts["words"].rows, strict=True):
        turns = [turn["content"] for turn in row.messages or []]
        assert len(turns) == 8 and turns[-2:] == [turn["content"] for turn in before.messages or []]
        assert before.messages is not None and turns[-2] not in turns[:-2]
        word = before.messages[0]["content"].split()[2]
        found += turns[4] == f"the {word} is"
    assert found >= 3  # one training row of twenty is held out
    every = [turn for row in parts["words"].rows for turn in (row.messages or [])[:-2:2]]
    held = {f"the w{i}x is" for i in range(20)} - {turn["content"] for turn in every}
    assert held  # and is shown to nobody
    by_chance = checked(study(llama, rows, "icl:k=3&by=random")).jobs[0]
    assert shown(by_chance.data, by_chance.method, by_chance.run) != parts


@pytest.mark.parametrize(
    "name, told",
    [
        ("icl:8", "write icl:k=8"),
        ("icl:k=0", "that is base"),
        ("icl:k=2&by=got_d", "got_d finds no rows near a prompt"),
        ("icl:k=2&to=3", "write icl:k=8"),
        ("icl:k=19", "cannot show 19 of the 18 rows"),
    ],
)
def test_what_cannot_be_shown_is_told_in_the_plan(llama, rows, name, told):
    with pytest.raises(LuthierError, match=told):
        checked(study(llama, rows, name, "lora"))


def test_prompts_that_the_model_has_no_positions_for(rows, tmp_path):
    model = save_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(LuthierError, match=r"tokens with 17 shots, and 3 are to follow: the model has positions for"):
        checked(study(model, rows, "icl:k=17"))


def test_settings_that_it_would_ignore_are_refused(llama, rows):
    with pytest.raises(LuthierError, match="trains nothing, so its settings"):
        checked(study(llama, rows, "icl:k=2", settings={"icl:k=2": {"where": "all-linear"}}))
    method = resolve("icl:k=2", Settings(), "1%")
    assert method.budget is None and redescribed(json.loads(json.dumps(described(method)))) == described(method)


def test_classifiers_have_no_prompt(bert, tmp_path):
    train = write_rows(tmp_path / "c.jsonl", [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(20)])
    given = Study.from_dict(
        {"models": bert, "data": {"c": {"train": train}}, "methods": ["icl:k=2"], "seeds": 1, "training": TRAINING}
    )
    with pytest.raises(LuthierError, match="classification does not have"):
        checked(given)
