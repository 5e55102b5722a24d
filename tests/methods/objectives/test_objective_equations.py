"""The equations of the objectives, in float64 on a tiny model."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from luthier import data
from luthier.core.contracts.component import find
from luthier.core.contracts.objective import At, Rows, labels_of
from luthier.core.errors import LuthierError
from luthier.methods.noise import noisy
from luthier.methods.objectives._coba import Windows, remembered, slope, weights
from luthier.methods.objectives.masked_thought import stand_in
from support.architectures import ARCHITECTURES
from support.tiny import TEMPLATE, sums, tokenizer, write_rows

NOW = At(5, 10, training=True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ARCHITECTURES["llama"].build(dtype=torch.float64)


@pytest.fixture
def shaped(tmp_path):
    """(features as an objective shapes them, the collator) of rows."""

    def shape(objective, rows, words=None, max_length=200):
        words = words or tokenizer(TEMPLATE)
        examples = data.load(write_rows(tmp_path / "rows.jsonl", rows), columns=objective.columns)

        def encode(part):
            return data.encode_all(part, words, max_length=max_length)

        tasks = tuple(sorted({row["task"] for row in rows if "task" in row}))
        given = Rows(examples, encode(examples), encode, words, max_length, 0, tasks)
        return objective.rows(given), data.collator_for("causal-lm", words)

    return shape


def made(name: str, **settings) -> Any:
    return find("objectives", name).from_dict(settings)


def batch_of(features, collator):
    batch = collator(features)
    batch.pop("rows")
    return batch


def step_loss(objective, model, batch, memory=None):
    """The loss of a step that is this batch alone, as the trainer weighs it."""
    counts = objective.token_counts(batch, labels_of(batch, True))
    shares = objective.part_weights(counts, memory or {}).double()
    with torch.no_grad():
        means = objective.loss(model, objective.inputs(batch, dataclasses.replace(NOW, training=False)))
    return float((means * shares).sum())


def token_losses(model, feature):
    """- log p of every label of a row."""
    ids, labels = torch.tensor([feature["input_ids"]]), torch.tensor(feature["labels"])[1:]
    with torch.no_grad():
        found = -torch.log_softmax(model(ids).logits[0, :-1], -1)
    return found[labels != -100, labels[labels != -100]]


# --- masked thought ---------------------------------------------------------------------------------


def test_masked_thought_hides_answers_alone(shaped):
    objective = made("masked_thought", p=1.0, ramp=0.0)
    batch = batch_of(*shaped(objective, sums(8)))
    seen, hidden = objective.inputs(batch, NOW), stand_in(tokenizer(), None)
    answer = batch["labels"] != -100
    assert (seen["input_ids"][answer] == hidden).all()
    assert torch.equal(seen["input_ids"][~answer], batch["input_ids"][~answer])
    assert torch.equal(seen["labels"], batch["labels"]) and set(seen) == {"input_ids", "attention_mask", "labels"}


def test_masked_thought_reads_random_tokens(shaped):
    objective, words = made("masked_thought", p=1.0, ramp=0.0, replacement="random"), tokenizer()
    features, collator = shaped(objective, sums(8))
    batch = batch_of(features * 100, collator)
    seen, answer = objective.inputs(batch, NOW)["input_ids"], batch["labels"] != -100
    assert torch.equal(seen[~answer], batch["input_ids"][~answer])
    counts = torch.bincount(seen[answer], minlength=words.vocab_size).double()
    assert len(counts) == words.vocab_size
    expected = counts.sum() / len(counts)
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()
    with pytest.raises(LuthierError, match="would be ignored"):
        made("masked_thought", replacement="random", token="b")


def test_masked_thought_ramps(shaped):
    objective = made("masked_thought", p=0.4, ramp=0.5)
    features, collator = shaped(objective, sums(8))
    batch = batch_of(features * 300, collator)
    answer = batch["labels"] != -100
    for step, rate in ((0, 0.0), (25, 0.2), (50, 0.4), (100, 0.4)):
        changed = objective.inputs(batch, At(step, 100, training=True))["input_ids"] != batch["input_ids"]
        assert float(changed[answer].double().mean()) == pytest.approx(rate, abs=0.02)
    measured = objective.inputs(batch, At(100, 100, training=False))
    assert torch.equal(measured["input_ids"], batch["input_ids"]) and "hidden" not in measured


def test_what_stands_for_the_mask():
    words = tokenizer()
    assert stand_in(words, None) == words.pad_token_id and stand_in(words, "b") == words.get_vocab()["b"]
    words.add_special_tokens({"mask_token": "<mask>"})
    assert stand_in(words, None) == words.mask_token_id
    with pytest.raises(LuthierError, match="not a token"):
        stand_in(words, "<hole>")


# --- many-shot --------------------------------------------------------------------------------------


def test_a_packs_loss_is_the_sum_of_its_shots(shaped, model):
    rows, shots = sums(4), 4
    features, _ = shaped(made("many_icl", shots=shots), rows)
    (pack,) = features
    order = packed_order(pack, rows)
    total = 0.0
    for k in range(shots):
        turns = [turn for row in order[: k + 1] for turn in conversation(row)]
        alone = data.Example(row=1, messages=turns, context=2 * k + 1)  # the last answer is learned, the shots are read
        total += float(token_losses(model, data.encode(alone, tokenizer(TEMPLATE), max_length=None)).sum())
    assert float(token_losses(model, pack).sum()) == pytest.approx(total, rel=1e-10)
    with torch.no_grad():
        whole = made("many_icl").loss(model, tensors(pack))  # in float32, as transformers computes it
    assert float(whole) * labels(pack) == pytest.approx(total, rel=1e-6)


def conversation(row):
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def packed_order(pack, rows):
    text = tokenizer().decode(pack["input_ids"])
    return sorted(rows, key=lambda row: text.index(f">{row['prompt']}"))


def tensors(feature):
    return {key: torch.tensor([feature[key]]) for key in ("input_ids", "labels")}


def labels(feature):
    return sum(label != -100 for label in feature["labels"])


def test_packs_do_not_leak(shaped, model):
    """A row is in one pack, a pack of one task, and the other packs of a batch change nothing."""
    rows = [row | {"task": "ab"[i % 2]} for i, row in enumerate(sums(13))]
    objective = made("many_icl", shots=3)
    features, collator = shaped(objective, rows)
    texts = [tokenizer().decode(feature["input_ids"]) for feature in features]
    homes = [[i for i, text in enumerate(texts) if f">{row['prompt']}" in text] for row in rows]
    assert all(len(home) == 1 for home in homes)
    for i in range(len(texts)):
        assert len({row["task"] for row, home in zip(rows, homes, strict=True) if home == [i]}) == 1
    together = batch_of(features, collator)
    logits = model(input_ids=together["input_ids"], attention_mask=together["attention_mask"]).logits
    alone = model(torch.tensor([features[0]["input_ids"]])).logits[0]
    assert torch.allclose(logits[0, : len(alone)], alone, atol=1e-12)


def test_packs_fit_and_one_shot_is_plain(shaped):
    plain, _ = shaped(made("many_icl", shots=1), sums(9))
    assert plain == shaped(made("sft"), sums(9))[0]
    short, _ = shaped(made("many_icl", shots=9), sums(9), max_length=40)
    assert len(short) > 1 and max(len(feature["input_ids"]) for feature in short) <= 40


# --- MORepair ---------------------------------------------------------------------------------------


def repairs(count):
    return [row | {"rationale": f"{i} carries"} for i, row in enumerate(sums(count))]


@pytest.mark.parametrize("beta", [0.25, 1.0, 3.0])
def test_morepair_weighs_two_means(shaped, model, beta):
    features, collator = shaped(made("morepair", beta=beta, noise=0.0), repairs(3))
    fix = torch.cat([token_losses(model, feature) for feature in features]).mean()
    both = torch.cat([token_losses(model, feature["also"][0]) for feature in features]).mean()
    found = step_loss(made("morepair", beta=beta, noise=0.0), model, batch_of(features, collator))
    assert found == pytest.approx(float((fix + beta * both) / (1 + beta)), rel=1e-6)  # shares are float32


def test_morepair_learns_the_end_and_no_prompt(shaped):
    """Though padding is the end-of-text token."""
    words = tokenizer()
    words.pad_token = words.eos_token
    features, collator = shaped(made("morepair"), repairs(3), words)
    batch = batch_of(features, collator)
    assert len(batch["labels"]) == 6 and batch["part"].tolist() == [[1, 0], [0, 1]] * 3
    for ids, learned, seen in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        last = int(seen.sum()) - 1
        assert ids[last] == learned[last] == words.eos_token_id and (learned[last + 1 :] == -100).all()
        text = str(words.decode(ids[learned != -100]))
        assert "=" not in text and text[: text.index("<")].isdigit()


def test_morepair_without_rationales(shaped):
    with pytest.raises(LuthierError, match="no 'rationale'"):
        shaped(made("morepair"), sums(3))


def test_noise_is_of_the_size_it_says(model):
    ids, mask = torch.randint(4, 90, (2, 10)), torch.ones(2, 10, dtype=torch.long)
    mask[1, 6:] = 0
    batch, base = {"input_ids": ids, "attention_mask": mask}, model.get_input_embeddings()
    plain = base(ids)
    for training in (False, True):
        model.train(training)
        with noisy(model, 5.0, batch):
            gap = (base(ids) - plain).abs().amax((1, 2))
        bound = 5.0 / (mask.sum(1) * plain.shape[-1]).sqrt()
        assert (gap <= bound).all() and (not training or (gap > 0.9 * bound).all())
        assert training == bool(gap.max())
    model.eval()
    assert torch.equal(base(ids), plain)


# --- MFTCoder ---------------------------------------------------------------------------------------


def tasks(counts):
    rows = sums(sum(counts.values()), seed=3)
    names = [name for name, count in counts.items() for _ in range(count)]
    return [row | {"task": name} for row, name in zip(rows, names, strict=True)]


def test_the_balances(shaped, model):
    rows = tasks({"a": 5, "b": 2, "c": 1})
    features, _ = shaped(made("mft"), rows)
    found = [(row["task"], token_losses(model, f)) for row, f in zip(rows, features, strict=True)]
    by_task = {name: [losses for task, losses in found if task == name] for name in "abc"}

    def mean(values):
        return float(torch.stack([torch.as_tensor(value) for value in values]).mean())

    wanted = {
        "token": mean([loss for _, losses in found for loss in losses]),
        "sample": mean([losses.mean() for _, losses in found]),
        "task_token": mean([torch.cat(losses).mean() for losses in by_task.values()]),
        "task_sample": mean([torch.stack([row.mean() for row in losses]).mean() for losses in by_task.values()]),
    }
    assert len({round(value, 6) for value in wanted.values()}) == 4
    for balance, value in wanted.items():
        objective = made("mft", balance=balance)
        batch = batch_of(*shaped(objective, rows))
        assert step_loss(objective, model, batch) == pytest.approx(value, rel=1e-6), balance
    weighed = step_loss(
        made("mft", balance="coba"), model, batch_of(*shaped(made("mft"), rows)), {"weights": [1, 0, 3]}
    )
    assert weighed == pytest.approx(float(torch.cat(by_task["a"]).mean() + 3 * torch.cat(by_task["c"]).mean()) / 4)


@pytest.mark.parametrize("balance, unmoved", [("task_token", True), ("task_sample", True), ("sample", False)])
def test_copies_of_a_task_change_nothing(shaped, model, balance, unmoved):
    rows = tasks({"a": 3, "b": 3})
    objective = made("mft", balance=balance)
    more = rows + 4 * [row for row in rows if row["task"] == "b"]
    before, after = (step_loss(objective, model, batch_of(*shaped(objective, each))) for each in (rows, more))
    assert (after == pytest.approx(before, rel=1e-9)) == unmoved


def test_a_task_that_a_step_lacks_has_no_weight(shaped, model):
    rows = tasks({"a": 2, "b": 2})
    features, collator = shaped(made("mft"), rows)
    alone = step_loss(made("mft"), model, batch_of(features[:2], collator))
    assert alone == pytest.approx(float(torch.cat([token_losses(model, f) for f in features[:2]]).mean()))


def test_mft_needs_tasks(shaped):
    with pytest.raises(LuthierError, match="no 'task'"):
        shaped(made("mft"), sums(3))
    assert shaped(made("mft", balance="sample"), sums(3))[0] == shaped(made("sft"), sums(3))[0]


# --- CoBa -------------------------------------------------------------------------------------------


def watched(curves, windows=Windows(10, 20, 5.0)):  # noqa: B008
    """The weights after each look at the losses of the tasks."""
    memory = remembered({}, 0, [2.0] * len(curves), [1.0] * len(curves), windows)
    found = []
    for step in range(1, len(curves[0])):
        memory = remembered(memory, step, [2 * curve[step] for curve in curves], [1.0] * len(curves), windows)
        found.append(memory.get("weights"))
    return found


def falling(rate, count=60):
    return [0.3 + 0.7 * (1 - rate) ** step for step in range(count)]


def test_weights_sum_to_one_above_the_floor():
    draw = random.Random(0)
    for _ in range(50):
        tasks = draw.randint(2, 5)
        slopes = [[draw.gauss(0, 1) for _ in range(7)] for _ in range(tasks)]
        found = weights(slopes, [draw.gauss(0, 1) for _ in range(9)], 5.0)
        assert sum(found) == pytest.approx(1) and min(found) >= 1 / (10 * tasks)


def test_no_weights_before_the_warm_up():
    found = watched([falling(0.1), falling(0.02)])
    assert found[8] is None and found[9] is not None


def test_a_slow_task_weighs_more_while_all_fall():
    """Early on, before the fast one has come to rest."""
    found = watched([falling(0.02), falling(0.001)], Windows(10, 20, 5.0))[12]
    assert found[1] > found[0]


def test_a_diverging_tasks_weight_falls():
    start = falling(0.05, 40)
    turning = start + [start[-1] * 1.05**step for step in range(1, 41)]
    found = watched([falling(0.01, 80), turning])
    before, after = found[38], found[-1]
    assert after[1] < 0.6 * before[1] and after[0] > after[1]


def test_slopes_are_least_squares():
    points = [[1, 2.0], [2, 1.0], [4, 0.5], [7, 0.4]]
    import numpy as np

    assert slope(points) == pytest.approx(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[0])
    assert slope([[3, 1.0]]) == 0


def test_a_task_without_evaluation_rows_is_refused():
    with pytest.raises(LuthierError, match="no evaluation row"):
        remembered({}, 0, [1.0, 0.0], [3.0, 0.0], Windows(1, 2, 5.0))
