"""Runs over sampled answers: the log, exact resumption, rewards that fail, what is refused before training."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.engine.sampler import Ask, Sampler
from luthier.evaluating import evaluate, generate
from luthier.evaluating.generate import tokenised
from luthier.methods.objectives.amft import AMFT, meta_gradient
from luthier.methods.objectives.grpo import GRPO
from luthier.methods.objectives.rloo import RLOO
from luthier.training import Run, Training, metrics, train
from luthier.training.checkpoint import checkpoints
from luthier.training.command import command
from luthier.training.rollouts import log
from luthier.training.rollouts.dynamic import Group, replaced
from luthier.training.rollouts.reward_model import RewardModel
from luthier.training.rollouts.rewards import Answered
from support.tiny import TEMPLATE, pairs, save_model, sums, write_rows

OWN = Path(__file__).parents[1] / "support" / "rewards.py"
SETTINGS = Training(
    steps=4, batch=2, accumulate=2, eval_every=4, save_every=100, keep=20, lr=1e-2, eval_fraction=0.2, warmup=0
)


def scored(*rewards: str, **settings) -> GRPO:
    return GRPO(reward=rewards or (f"{OWN}:digits",), **{"group": 3, "max_tokens": 6, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("rollouts")
    return Run(
        save_model(folder / "llama", "llama", TEMPLATE),
        write_rows(folder / "rows.jsonl", sums(20)),
        lt.LoRA(rank=4, dropout=0.1),
        out=str(folder / "grpo"),
        objective=scored(),
        training=SETTINGS,
    )


@pytest.fixture(scope="module")
def done(run):
    return train(run, progress=False)


def again(run: Run, name: str, **changes):
    return train(replace(run, out=f"{run.out}-{name}", **changes), progress=False)


def test_answers_and_rewards_are_logged(done):
    lines = log.read(done.folder)
    assert len(lines) == 4 * 4 * 3 and {line["step"] for line in lines} == {1, 2, 3, 4}
    line = lines[0]
    digits = sum(c.isdigit() for c in line["answer"]) / max(1, len(line["answer"]))
    assert line["reward"] == line["rewards"][f"{OWN}:digits"] == pytest.approx(digits)
    assert line["prompt"].endswith("=</s><a>") and line["finish"] in ("stop", "length") and line["learned"]
    group = lines[:3]
    assert sum(each["advantage"] for each in group) == pytest.approx(0, abs=1e-9)
    told = [each for each in metrics.read(done.folder) if "loss" in each]
    mean = sum(each["reward"] for each in lines if each["step"] == 2) / 12
    assert told[1]["reward"] == pytest.approx(mean) and told[1]["kl"] >= 0 and told[1]["entropy"] > 0
    assert 0 <= told[1]["truncated"] <= 1 and told[1]["failed"] == 0
    held = [each["eval_reward"] for each in metrics.read(done.folder) if "eval_reward" in each]
    assert held and done.eval_loss is None
    assert "| reward | advantage |" in (done.folder / "rollouts.md").read_text()


def test_it_resumes_exactly(run):
    """Between two steps on the same answers, and behind both of them: losses, answers and adapter."""
    chosen, settings = scored(variant="dapo", iterations=2), replace(SETTINGS, save_every=1)
    whole = again(run, "resumed", objective=chosen, training=settings)
    text = (whole.folder / log.FILE).read_text()
    adapter = (whole.adapter / "adapter.safetensors").read_bytes()
    assert len({line["step"] for line in log.read(whole.folder)}) == 2
    for last in (3, 2):
        for path in checkpoints(whole.folder / "checkpoints"):
            if int(path.name[5:]) > last:
                (path / "manifest.json").unlink()
        same = replace(run, out=str(whole.folder), objective=chosen, training=settings)
        new = train(same, resume=True, progress=False)
        assert new.losses == whole.losses and (whole.folder / log.FILE).read_text() == text
        assert (new.adapter / "adapter.safetensors").read_bytes() == adapter


def test_further_steps_on_the_same_answers_clip(run):
    result = again(run, "clip", objective=scored(iterations=2, epsilon=0.01, epsilon_high=0.01, beta=0.0))
    told = [line["clipped"] for line in metrics.read(result.folder) if "loss" in line]
    assert told[1] > 0 and told[3] > 0


def test_prompts_whose_answers_are_all_alike_give_way(run):
    """The reward is one number for the prompts of odd sums, so that these are replaced, and kept in the log."""
    chosen, settings = scored(f"{OWN}:even_sums", variant="dapo"), replace(SETTINGS, eval_fraction=0.0)
    result = again(run, "dynamic", objective=chosen, training=settings)
    lines = log.read(result.folder)
    groups = [lines[place : place + 3] for place in range(0, len(lines), 3)]
    gone = [group for group in groups if group[0]["advantage"] is None]
    assert gone and all(len({each["reward"] for each in group}) == 1 for group in gone)
    assert not any(each["learned"] for group in gone for each in group)
    for step in range(1, 5):
        rows = [group[0]["row"] for group in groups if group[0]["step"] == step]
        assert len(rows) == len(set(rows))  # no prompt is asked twice
        assert sum(group[0]["advantage"] is not None for group in groups if group[0]["step"] == step) == 4
    flat = [line["flat"] for line in metrics.read(result.folder) if "loss" in line]
    plain = again(run, "undynamic", objective=replace(chosen, dynamic=0), training=settings)
    before = [line["flat"] for line in metrics.read(plain.folder) if "loss" in line]
    assert sum(flat) < sum(before) and all(line["advantage"] is not None for line in log.read(plain.folder))


def test_groups_are_replaced_as_far_as_there_are_prompts():
    def group(row: int, *rewards: float) -> Group:
        return Group({"row": row}, [], [], [], list(rewards))

    pool = [{"row": row} for row in range(6)]
    first = [group(0, 1.0, 1.0), group(1, 0.0, 1.0), group(2, float("nan"), 0.5)]
    drawn: list[list[int]] = []

    def draw(features):
        drawn.append([each["row"] for each in features])
        return [group(each["row"], 0.0, 1.0 if each["row"] == 3 else 0.0) for each in features]

    kept, gone = replaced(first, pool, 9, 7, draw)
    assert sorted(row for each in drawn for row in each) == [3, 4, 5] and len(drawn) == 2  # then none is left
    assert kept[1] is first[1] and 3 in {each.feature["row"] for each in kept} and len(gone) == 3
    assert replaced(first, pool, 0, 7, draw) == (first, [])


def test_a_reward_is_learned(run):
    """Short answers are wanted, and answers get short: three seeds of it would be a benchmark, this is one."""
    settings = replace(SETTINGS, steps=25, batch=4, accumulate=1, lr=2e-2, save_every=100, schedule="constant")
    chosen = scored(f"{OWN}:short", group=8, beta=0.0)
    result = again(run, "learned", form=lt.LoRA(rank=4), objective=chosen, training=settings)
    told = [line["reward"] for line in metrics.read(result.folder) if "loss" in line]
    assert sum(told[-3:]) / 3 > sum(told[:3]) / 3 + 1.5


def test_the_adapter_under_training_decodes(done, run):
    """Greedy samples are what `generate` writes with the adapter, and not what the base writes."""
    model, words = done.model, done.processor
    examples = data.load(run.data).rows[:5]
    prompts = [list(each.messages[:1]) for each in examples if each.messages]
    ids = tokenised(model, words, prompts)
    drawn = Sampler(model, words, "default")([Ask(tuple(each), 0, 6) for each in ids], 0.0, 1.0)
    assert [each.text for each in drawn] == generate(model, words, prompts, max_new_tokens=6)
    base = models.load(run.model)
    assert [each.text for each in drawn] != generate(base.model, base.processor, prompts, max_new_tokens=6)
    states = torch.random.get_rng_state()
    ask = [Ask(tuple(ids[0]), seed, 6) for seed in range(8)]
    sampler = Sampler(model, words, "default")
    assert sampler(ask, 1.0, 1.0) == sampler(ask, 1.0, 1.0)
    assert len({each.ids for each in sampler(ask, 1.0, 1.0)}) > 1
    assert torch.equal(states, torch.random.get_rng_state())


def test_a_reward_that_fails_is_told_and_counted(run):
    """Answers without a reward are left out and never 0; where none has one, the run stops."""
    chosen = scored(f"{OWN}:half_broken", group=4)
    with pytest.warns(UserWarning, match="half_broken failed on an answer to row"):
        result = again(run, "failing", objective=chosen)
    lines = log.read(result.folder)
    bad = [line for line in lines if line["problems"]]
    assert bad and len(bad) < len(lines)
    assert all(line["reward"] is None and not line["learned"] and line["advantage"] == 0 for line in bad)
    whys = {why.split(":")[0] for line in bad for why in line["problems"].values()}
    assert whys == {"KeyError", "ValueError"}
    told = [line["failed"] for line in metrics.read(result.folder) if "loss" in line]
    assert sum(told) / len(told) == pytest.approx(len(bad) / len(lines))
    with pytest.raises(lt.LuthierError, match=r"none of the 12 answers of step 1 could be scored.*out of order"):
        again(run, "broken", objective=scored(f"{OWN}:broken"))
    with pytest.raises(lt.LuthierError, match=r"none of the 12 answers of step 1 could be scored.*SystemExit"):
        again(run, "leaving", objective=scored(f"{OWN}:leaves"))


def test_several_rewards_are_weighed(run):
    chosen = scored(f"2*{OWN}:digits", "-0.5 * regex:^[a-z]", "0.1*number")
    result = again(run, "several", objective=chosen)
    for line in log.read(result.folder):
        digits, small, right = line["rewards"].values()
        assert line["reward"] == pytest.approx(2 * digits - 0.5 * small + 0.1 * right)
    assert f"--reward '2*{OWN}:digits' --reward" in command(replace(run, objective=chosen))


REFUSED = {
    "no file": (scored("nowhere.py:good"), "there is no file nowhere.py"),
    "no function": (scored(f"{OWN}:dgits"), "has no function 'dgits'.*digits"),
    "not a function": (scored(f"{OWN}:NUMBER"), "has no function 'NUMBER'"),
    "no scorer": (scored("numbr"), "no reward 'numbr'.*number"),
    "of two arguments": (scored(f"{OWN}:of_two"), "cannot be called as NAME.prompt, answer, example"),
    "no pattern": (scored("regex:("), "not a regular expression"),
    "any answer": (scored("regex:[0-9]*"), "is found in every answer"),
    "no run": (scored("model:nowhere"), "nowhere"),
    "no weight": (scored("0*number"), "has no effect"),
    "twice": (scored("number", "2*number"), "named twice"),
    "no room": (scored(max_tokens=2000), "leave no room for answers of 2000 tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_training(run, name, monkeypatch):
    chosen, message = REFUSED[name]
    monkeypatch.setattr(models, "load", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(lt.LuthierError, match=message):
        again(run, "refused", objective=chosen)
    assert not Path(f"{run.out}-refused").exists()


def test_forms_and_launches_that_cannot_be_are_refused(run, monkeypatch):
    with pytest.raises(lt.LuthierError, match="goes by the task of each row"):
        again(run, "tasks", form=lt.forms.MHR(tasks=("a", "b"), rank=2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    from luthier.training.prepare import prepare
    from luthier.training.rollouts.online import check_online

    with pytest.raises(lt.LuthierError, match="and here are 2"):
        check_online(run, prepare(run))


def test_rows_need_no_answer(run, tmp_path):
    """Prompts alone, with a reference in the column `answer`, or with none; a scorer that needs one says so."""
    bare = write_rows(tmp_path / "bare.jsonl", [{"prompt": row["prompt"]} for row in sums(8)])
    told = write_rows(
        tmp_path / "told.jsonl", [{"prompt": r["prompt"], "answer": int(r["completion"])} for r in sums(8)]
    )
    settings = replace(SETTINGS, steps=1, eval_fraction=0.0)
    again(run, "bare", data=bare, training=settings)
    result = again(run, "told", data=told, training=settings, objective=scored("0.5*exact_match", f"{OWN}:digits"))
    assert {line["rewards"]["exact_match"] for line in log.read(result.folder)} <= {0.0, 1.0}
    assert log.read(result.folder)[0]["prompt"].startswith("<u>")
    for name in ("number", "data"):
        with pytest.raises(lt.LuthierError, match="no reference answer"):
            again(run, "lacking", data=bare, training=settings, objective=scored(name))
    with pytest.raises(lt.LuthierError, match="fit no layout"):
        again(run, "sft", data=bare, training=settings, objective=lt.SFT())
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "abc"}] * 4)
    with pytest.raises(lt.LuthierError, match="texts without a prompt"):
        again(run, "texts", data=texts, training=settings)


def test_a_reward_model_scores(run, tmp_path):
    """By what `evaluate` finds it to give, on the very tensors of the base; another adapter is refused."""
    source = write_rows(tmp_path / "pairs.jsonl", pairs(12))
    settings = replace(SETTINGS, steps=6, lr=2e-2, eval_fraction=0.0)
    shared = {"form": lt.LoRA(rank=2), "data": source, "training": settings}
    judge = again(run, "judge", objective=lt.Reward(), **shared)
    result = again(run, "judged", objective=scored(f"model:{judge.folder}"), training=replace(SETTINGS, steps=2))
    lines = log.read(result.folder)
    assert len({line["reward"] for line in lines if line["reward"] is not None}) > 3
    base = models.load(run.model)
    model = RewardModel(str(judge.folder), run)
    model.open(lt.attach(base.model, lt.LoRA(rank=2)))
    assert model.shared > 0.85 * sum(
        p.numel() * p.element_size() for p in base.model.parameters() if not p.requires_grad
    )
    examples = data.load(source, preferences=True, task="reward")
    found = evaluate(judge.model, judge.processor, examples)
    said = [Answered(row, "", row.answer or "") for row in examples.rows]
    wanted = [line["chosen"]["reward"] for line in found.predictions]
    assert model(said) == pytest.approx(wanted, rel=1e-4)
    assert isinstance(model([Answered(examples.rows[0], "", " ")])[0], str)
    with pytest.raises(lt.LuthierError, match="not a reward model"):
        again(run, "no-judge", objective=scored(f"model:{result.folder}"))


def test_the_students_own_answers_are_distilled(run, tmp_path):
    """On-policy: the rows' answers play no part, the teacher's hint is read before the student's answer."""
    hinted = [row | {"hint": "Say it backwards."} for row in sums(16)]
    other = [row | {"completion": "zzz"} for row in hinted]
    found = []
    for name, rows in (("own", hinted), ("other", other)):
        chosen = lt.Distill(own=1.0, max_tokens=5, divergence="reverse")
        settings = replace(SETTINGS, steps=6, lr=2e-2, eval_fraction=0.0)
        source = write_rows(tmp_path / f"{name}.jsonl", rows)
        found.append(again(run, name, data=source, objective=chosen, training=settings).losses)
    assert found[0] == found[1] and all(loss > 0 for _, loss in found[0])
    mixed = [lt.Distill(own=0.5).rollouts(step, 3) is not None for step in range(200)]
    assert 70 < sum(mixed) < 130
    with pytest.raises(lt.LuthierError, match="set own as well"):
        lt.Distill(max_tokens=5)


AMFT_RUN = AMFT(
    reward=(f"{OWN}:digits",), group=3, max_tokens=5, sft_steps=2, every=1, targets=2, mu_lr=0.05, entropy_lr=0.0,
    beta=0.0,
)  # fmt: skip


def test_amft_warms_up_moves_mu_and_resumes(run):
    settings = replace(SETTINGS, steps=6, save_every=2)
    whole = again(run, "amft", objective=AMFT_RUN, training=settings)
    told = [line for line in metrics.read(whole.folder) if "loss" in line]
    assert [line.get("reward") is None for line in told] == [True, True, False, False, False, False]
    mus = [line["mu"] for line in told[2:]]
    assert mus[0] == 0.8 and len(set(mus)) == 4 and all(0.05 <= mu <= 0.95 for mu in mus)
    assert whole.eval_loss is not None
    for path in checkpoints(whole.folder / "checkpoints"):
        if int(path.name[5:]) > 4:
            (path / "manifest.json").unlink()
    new = train(replace(run, out=str(whole.folder), objective=AMFT_RUN, training=settings), resume=True, progress=False)
    assert new.losses == whole.losses
    with pytest.raises(lt.LuthierError, match="no row is held out"):
        again(run, "amft-none", objective=AMFT_RUN, training=replace(settings, eval_fraction=0.0))


def test_rloo_runs_and_its_log_tells_the_same_rewards(run):
    result = again(run, "rloo", objective=RLOO(reward=(f"{OWN}:digits",), group=3, max_tokens=5, beta=0.0))
    line, *others = log.read(result.folder)[:3]
    assert line["advantage"] == pytest.approx(line["reward"] - sum(each["reward"] for each in others) / 2)


def test_the_records_are_json(done):
    for text in (done.folder / log.FILE).read_text(encoding="utf-8").splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert meta_gradient(0.1, [1.0, 3.0]) == pytest.approx(-0.2)
