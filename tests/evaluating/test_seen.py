"""Chats with pictures where pairs are compared, questions are answered by yes or no, and steps are timed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import luthier as lt
from luthier import data, models
from luthier.comparing.measures import costs
from luthier.core.errors import LuthierError
from luthier.evaluating.preferences import compared
from luthier.evaluating.yes_no import sureness
from luthier.training import Run, Training
from support.seeing import picture, save_llava, write_digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def loaded(folder):
    return models.load(folder)


def pairs(tmp_path):
    file = write_digits(tmp_path / "rows", 4)
    told = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    rows = [{"prompt": [asked], "chosen": [said], "rejected": [{**said, "content": "x"}]} for asked, said in told]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_pairs_are_compared_by_what_is_seen(loaded, tmp_path):
    file = pairs(tmp_path)
    found = []
    for shown in (0, 7):
        picture(shown).save(file.parent / "0.png")
        examples = data.load(file, preferences=True)
        numbers, names = compared(
            loaded.model, loaded.processor, examples, task="causal-lm", batch=3, max_length=64, tasks=None, done=int
        )
        assert names == ["log_prob", "tokens"] and np.isfinite(numbers).all() and (numbers[..., 0] < 0).all()
        found.append(numbers[..., 0])
    assert np.allclose(found[0][1:], found[1][1:], atol=1e-5) and not np.allclose(found[0][0], found[1][0], atol=1e-5)


def test_yes_or_no_is_said_of_what_is_seen(loaded, tmp_path):
    file = write_digits(tmp_path, 4)
    found = []
    for shown in (0, 7):
        picture(shown).save(tmp_path / "0.png")
        found.append(sureness(loaded.model, loaded.processor, data.load(file), batch=2, max_length=64))
    assert np.allclose(found[0][1:], found[1][1:], atol=1e-5) and abs(found[0][0] - found[1][0]) > 1e-5


def test_a_timed_step_has_the_pictures(loaded, tmp_path):
    examples = data.load(write_digits(tmp_path, 4))
    run = SimpleNamespace(training=Training(batch=2, max_length=64), objective=lt.SFT())
    job = SimpleNamespace(run=run, data=SimpleNamespace(examples=examples, task="causal-lm", labels=None))
    (batch,) = costs._batches(job, SimpleNamespace(model=loaded.model, processor=loaded.processor), 1)  # type: ignore[arg-type]
    assert len(batch["pixel_values"]) == len(batch["input_ids"]) == 2


def test_a_reward_model_takes_no_pictures(folder, tmp_path):
    run = Run(folder, str(pairs(tmp_path)), lt.LoRA(rank=2), objective=lt.Reward(), out=str(tmp_path / "run"))
    with pytest.raises(LuthierError, match="has pictures, and reward does not take any"):
        lt.train(run)
