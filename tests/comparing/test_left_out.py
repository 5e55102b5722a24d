"""Meta-tuning: questions of classes as rows, areas by description, and a group that is left out."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.comparing.left_out import leave_out, read_sets
from luthier.evaluating import evaluate
from luthier.evaluating.yes_no import areas_of
from luthier.training import Run, Training
from support.tiny import save_model, write_rows


def questions(folder: Path, name: str, signs: str, group: str, count: int, **settings) -> str:
    """A set of questions: whether the text ends in a sign, asked for each by its name and the sign."""
    draw = random.Random(name)
    texts = ["".join(draw.choice("abcdefgh") for _ in range(3)) for _ in range(count)]
    rows = [{"text": f"{name}{text}{signs[i % len(signs)]}", "label": signs[i % len(signs)]}
            for i, text in enumerate(texts)]  # fmt: skip
    source = data.load(write_rows(folder / f"{name}.raw.jsonl", rows), task="classification")
    labels = "".join(f'"{sign}" = "{name}{sign}?"\n' for sign in signs)
    (folder / f"{name}.toml").write_text(f'group = "{group}"\n[labels]\n{labels}')
    by = lt.rewrites.YesNo(descriptions=str(folder / f"{name}.toml"), **settings)
    return str(lt.rewrite(None, None, source, by=by, out=folder / f"{name}.jsonl", overwrite=True).out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def sets(folder) -> list[str]:
    """What is asked of the last set, each of the first two asks a half of."""
    kinds = (("x", "+-", "parts", 40), ("y", "*/", "parts", 40), ("z", "+-*/", "both", 32))
    return [questions(folder, *each) for each in kinds]


@pytest.fixture(scope="module")
def model(folder) -> str:
    return save_model(folder / "llama", "llama")


def run_of(model: str, sets, out: Path, **training) -> Run:
    settings = {"steps": 4, "batch": 16, "lr": 3e-3, "eval_fraction": 0.0, "warmup": 0.0, "max_length": 64, **training}
    return Run(model, sets[0], lt.Full(), out=str(out), training=Training(**settings))


def test_a_group_that_was_left_out_is_known_better_by_all_sets_than_by_one_or_none(model, sets, tmp_path):
    done = leave_out(run_of(model, sets, tmp_path / "run", steps=70), sets, progress=False)
    found = done.figures["both"]
    assert done.trained_on["both"] == {"untuned": [], "one set": sets[:1], "all sets": sets[:2]}
    assert set(done.areas["both"]["all sets"]) == {f"{sets[2]}: z{sign}?" for sign in "+-*/"}
    assert found["all sets"]["auc"] > found["one set"]["auc"] + 0.05 > found["untuned"]["auc"] + 0.1
    apart = found["all sets"]["auc"] - found["untuned"]["auc"]
    assert (
        found["all sets - untuned"]["auc"] == pytest.approx(apart)
        and done.figures["all"]["untuned"]["descriptions"] == 8
    )


def test_the_untuned_base_is_the_one_that_is_trained(model, sets, tmp_path, monkeypatch):
    asked, load = [], models.load

    def seen(name, *, quantize=None, attn=None, **kwargs):
        asked.append((quantize, attn))
        return load(name, **kwargs)

    monkeypatch.setattr(models, "load", seen)
    settings = {"steps": 1, "quantize": "int8", "attn": "eager"}
    leave_out(replace(run_of(model, sets, tmp_path / "run", **settings), form=lt.LoRA(rank=2)), sets, progress=False)
    assert asked == 5 * [("int8", "eager")]  # untuned and all sets of each group, and one set where that is not all


def test_a_killed_one_goes_on_exactly(model, sets, tmp_path, monkeypatch):
    sets, true, left = sets[::2], torch.optim.AdamW.step, [4]
    whole = leave_out(run_of(model, sets, tmp_path / "whole", steps=2), sets, progress=False)

    def dying(self, *args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return true(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", dying)
    run = run_of(model, sets, tmp_path / "killed", steps=2)
    with pytest.raises(KeyboardInterrupt):
        leave_out(run, sets, progress=False)
    with pytest.raises(lt.LuthierError, match="holds another meta-tuning"):
        leave_out(run, sets[::-1], resume=True, progress=False)
    assert leave_out(run, sets, resume=True, progress=False).areas == whole.areas
    assert json.loads((tmp_path / "killed" / "left_out.json").read_text())["areas"] == whole.areas


def test_what_groups_share_raises_before_the_weights(model, sets, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    lines = [json.loads(line) for line in Path(sets[2]).read_text().splitlines()]
    first = json.loads(Path(sets[0]).read_text().splitlines()[0])

    def refused(changed: list[dict], why: str) -> None:
        file = write_rows(tmp_path / "changed.jsonl", changed)
        with pytest.raises(lt.LuthierError, match=why):
            leave_out(run_of(model, sets, tmp_path / "run"), [sets[0], file], progress=False)

    text = first["prompt"].split("\n")[1]
    refused([{**row, "from": first["from"]} for row in lines], "1 data sets of .*x.jsonl .group parts. is in")
    refused([{**row, "prompt": f"{row['task']}\n{text.upper()}\n"} for row in lines], "1 texts of")
    asked = [{**row, "task": first["task"]} for row in lines if row["task"] == "z+?"]
    refused(asked, "1 descriptions of .* such as 'x\\+\\?'")
    refused([{key: row[key] for key in row if key != "group"} for row in lines], "has rows of the groups ''")
    refused([{**row, "completion": "maybe"} for row in lines], "row 1: the answer is 'maybe'; expected yes or no")
    refused([row for row in lines if row["completion"] == "no"], "4 of 4 descriptions of .* have one answer")
    with pytest.raises(lt.LuthierError, match="all sets are of the group 'parts'"):
        read_sets(sets[:2])
    with pytest.raises(lt.LuthierError, match="none of the sets"):
        leave_out(run_of(model, sets, tmp_path / "run"), sets, single="w.jsonl", progress=False)


def test_the_area_is_the_probability_that_yes_is_surer_where_it_is_right(model, sets):
    """By description, against all pairs; sureness against one row at a time."""
    loaded, rows = models.load(model), data.load(sets[2], columns=("task",)).keep([])
    rows = rows.keep(data.load(sets[2], columns=("task",)).rows[:40])
    found = evaluate(loaded.model, loaded.processor, rows, yes_no=True, batch=7, progress=False)
    sure = np.array([line["log_odds"] for line in found.predictions])
    right = np.array([line["answer"] == "yes" for line in found.predictions])
    areas = {}
    for name in {row.meta["task"] for row in rows.rows}:
        own = np.array([row.meta["task"] == name for row in rows.rows])
        gaps = sure[own & right][:, None] - sure[own & ~right][None]
        areas[name] = float(((gaps > 0) + 0.5 * (gaps == 0)).mean())
    assert {name: each["auc"] for name, each in found.tasks.items()} == pytest.approx(areas)
    assert found.score == pytest.approx(np.mean(list(areas.values()))) and next(iter(found.metrics)) == "auc"
    prompt = rows.rows[5].messages[0]["content"]
    ends = [loaded.processor(prompt + answer + "</s>", return_tensors="pt").input_ids for answer in ("yes", "no")]
    told = []
    for ids, length in zip(ends, (4, 3), strict=True):
        logits = loaded.model(ids).logits.detach().double().log_softmax(-1)
        told.append(float(logits[0, :-1].gather(-1, ids[0, 1:, None])[-length:].sum()))
    assert sure[5] == pytest.approx(told[0] - told[1], abs=1e-4)
    tied = areas_of(
        np.array([1.0, 2, 2, 3, 9, 9, 7]), np.array([0, 0, 1, 1, 0, 1, 1]) == 1, np.array([0, 0, 0, 0, 1, 1, 2])
    )
    assert tied == {0: 0.875, 1: 0.5}


def test_a_classifier_answers_too(folder):
    rows = data.load(questions(folder, "w", "+-", "other", 12, gives="labels"), columns=("task",))
    assert rows.task == "classification" and rows.labels == ["no", "yes"]
    loaded = models.load(save_model(folder / "bert", "bert"), task="classification", labels=rows.labels)
    found = evaluate(loaded.model, loaded.processor, rows, yes_no=True, progress=False)
    assert 0 <= found.score <= 1 and set(found.tasks) == {"w+?", "w-?"} and found.loss is not None


def test_metatune_on_the_command_line(model, sets, tmp_path, capsys):
    from luthier.cli import main

    words = ["metatune", model, "--sets", *sets[::2], "--out", str(tmp_path / "run"), "--rank", "2", "--steps", "2"]
    words += ["--eval-fraction", "0", "--where", "all-linear"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "all sets - one set" in shown and "95% interval over descriptions" in shown
    assert main([*words, "--resume", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["figures"]) == {"both", "parts", "all"}
    assert main(["evaluate", model, sets[0], "--yes-no"]) == 0 and capsys.readouterr().out.startswith("auc 0.")
    assert main(["evaluate", model, sets[0], "--yes-no", "--scorer", "label"]) == 2
    assert "would be ignored" in capsys.readouterr().err
