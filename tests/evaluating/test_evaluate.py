"""Evaluation and generation: batches, stops, modes, figures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.core.numerics.agreement import agreement, by_class, closeness, macro
from luthier.engine.stops import stop_ids
from luthier.evaluating import evaluate, generate
from luthier.evaluating.classes import confusion
from luthier.evaluating.evaluate import bootstrap
from luthier.training import Training, train
from support.tiny import TEMPLATE, save_model, sums, write_rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that knows a few answers by heart."""
    folder = tmp_path_factory.mktemp("trained")
    base = save_model(folder / "llama", "llama", TEMPLATE)
    source = write_rows(folder / "rows.jsonl", [{"prompt": "x" * i, "completion": str(i)} for i in range(1, 9)])
    settings = Training(epochs=150, lr=2e-2, eval_fraction=0, save_every=1000)
    result = train(
        model=base, data=source, form=lt.LoRA(rank=16), out=str(folder / "run"), training=settings, progress=False
    )
    return result, data.load(source)


def test_a_source_is_no_examples():
    with pytest.raises(lt.LuthierError, match=r"examples is 'test.jsonl' \(str\); expected Examples"):
        lt.evaluate(None, None, "test.jsonl")


def test_learned_answers_are_scored(trained):
    result, examples = trained
    before = models.load(str(result.folder.parent / "llama"))
    assert evaluate(before.model, before.processor, examples, max_new_tokens=8).score < 0.5
    found = evaluate(result.model, result.processor, examples, max_new_tokens=8)
    assert found.score == 1.0 and found.interval == (pytest.approx(0.025 ** (1 / 8)), 1.0) and found.count == 8
    assert found.predictions[2] == {"row": 3, "prediction": "3", "answer": "3", "score": 1.0}
    assert (
        evaluate(result.model, result.processor, examples, max_new_tokens=8, keep_predictions=False).predictions == []
    )


def test_a_batch_is_its_rows_one_by_one(llama):
    loaded = models.load(llama)
    prompts = ["1", "some longer prompt", "22+", "mid one"]
    together = generate(loaded.model, loaded.processor, prompts, max_new_tokens=12, batch=3)
    assert together == [generate(loaded.model, loaded.processor, [prompt], max_new_tokens=12)[0] for prompt in prompts]


def test_nothing_is_left_changed(trained):
    result, examples = trained
    model, tokenizer = result.model, result.processor
    tokenizer.padding_side = "right"
    model.train()
    settings, state = model.generation_config, torch.get_rng_state()
    evaluate(model, tokenizer, examples, max_new_tokens=2)
    generate(model, tokenizer, ["x"], max_new_tokens=2, temperature=1.0)
    assert model.training and tokenizer.padding_side == "right" and model.generation_config is settings
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()


def test_generation_stops_at_the_end_of_the_turn(trained):
    result, _ = trained
    assert stop_ids(result.model, result.processor) == [2]
    assert generate(result.model, result.processor, ["xxxx"], max_new_tokens=30) == ["4"]
    messages = [{"role": "user", "content": "xxxx"}]
    assert generate(result.model, result.processor, [messages], max_new_tokens=30) == ["4"]


def test_stops_are_what_a_turn_ends_with(llama, tmp_path):
    """Here "]" ends a turn, before a line break that is not learned."""
    loaded = models.load(llama)
    loaded.processor.chat_template = TEMPLATE.replace("{{ eos_token }}", "]\n")
    loaded.processor.add_special_tokens({"additional_special_tokens": ["]"]})
    end = loaded.processor.convert_tokens_to_ids("]")
    assert stop_ids(loaded.model, loaded.processor) == [2, end]
    loaded.model.generation_config.eos_token_id = [2, "</s>"]
    with pytest.raises(lt.LuthierError, match="name '</s>' as a token that ends an answer; expected its id"):
        stop_ids(loaded.model, loaded.processor)


def test_sampling_goes_by_the_seed(llama):
    loaded = models.load(llama)

    def drawn(**how):
        return generate(loaded.model, loaded.processor, ["ab", "c"], max_new_tokens=16, **how)

    assert drawn(temperature=1.0) == drawn(temperature=1.0) != drawn(temperature=1.0, seed=1)
    assert drawn(temperature=1.0, top_p=1e-6) == drawn()


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"batch": 0}, {"batch": -1}]
)
def test_bad_sampling(llama, bad):
    loaded = models.load(llama)
    with pytest.raises(lt.LuthierError, match=next(iter(bad))):
        generate(loaded.model, loaded.processor, ["a"], **bad)


def test_nothing_to_score(llama, additions):
    loaded = models.load(llama)
    bare = dataclasses.replace(data.load(additions), scorer=None)
    with pytest.raises(lt.LuthierError, match="no answers to score"):
        evaluate(loaded.model, loaded.processor, bare)


def test_texts_are_foretold(llama, tmp_path):
    loaded = models.load(llama)
    texts = [{"text": "a plain text"}, {"text": "another, which is cut into pieces"}]
    source = write_rows(tmp_path / "rows.jsonl", texts)
    found = evaluate(loaded.model, loaded.processor, data.load(source), max_length=16, batch=2)
    losses, counts = [], []
    for feature in data.encode_all(data.load(source), loaded.processor, max_length=16):
        ids = torch.tensor([feature["input_ids"]])
        losses.append(loaded.model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1))
        counts.append(ids.shape[1] - 1)
    assert len(counts) == 4 and found.score == pytest.approx(sum(losses) / sum(counts), rel=1e-5)
    assert found.metrics["perplexity"] == pytest.approx(np.exp(found.score))
    assert sum(line["tokens"] for line in found.predictions) == sum(counts)


def test_tasks_sum_to_the_pooled_score(llama, tmp_path):
    loaded = models.load(llama)
    rows = [{"prompt": f"{i}+1=", "completion": "a" * i, "task": "odd" if i % 2 else "even"} for i in range(1, 8)]
    examples = data.load(write_rows(tmp_path / "rows.jsonl", rows), columns=("task",))
    scorer = data.Scorer("share", lambda text, example: len(example.answer) / 10)
    found = evaluate(loaded.model, loaded.processor, examples, scorer=scorer, max_new_tokens=1)
    assert list(found.tasks) == ["odd", "even"]
    assert sum(each["rows"] for each in found.tasks.values()) == found.count == 7
    pooled = sum(each["rows"] * each["share"] for each in found.tasks.values()) / found.count
    assert found.score == pytest.approx(pooled) == pytest.approx(0.4)


def test_classes_as_scikit_learn_has_them():
    metrics = pytest.importorskip("sklearn.metrics")
    draw, names = np.random.default_rng(1), ["a", "b", "c", "never"]
    predicted, truth = (draw.choice(names[:3], 60).tolist() for _ in range(2))
    predicted = [p if t != "c" else "b" for p, t in zip(predicted, truth, strict=True)]
    found = by_class(predicted, truth, names)
    theirs = metrics.precision_recall_fscore_support(truth, predicted, labels=names, zero_division=0)
    ours = [[each[key] for each in found.values()] for key in ("precision", "recall", "f1", "rows")]
    assert np.allclose(ours, theirs)
    assert (
        confusion(predicted, truth, names)["counts"]
        == metrics.confusion_matrix(truth, predicted, labels=names).tolist()
    )
    assert macro(found)["macro_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))


def test_figures():
    scipy = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    left, right = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    right[:80] = left[:80]
    assert agreement(left, right)["mcc"] == pytest.approx(np.corrcoef(left, right)[0, 1])
    assert agreement(left, right)["accuracy"] == (left == right).mean()
    assert agreement(np.zeros(3), np.zeros(3)) == {"accuracy": 1.0, "mcc": 0.0}
    names = np.array(["a", "b", "c"])[draw.integers(0, 3, 50)]
    assert agreement(names, names)["mcc"] == pytest.approx(1.0)
    x, y = draw.normal(size=50), draw.normal(size=50)
    assert closeness(x, y)["pearson"] == pytest.approx(scipy.pearsonr(x, y)[0])


def test_interval_covers_as_it_says():
    draw, inside = np.random.default_rng(1), 0
    for trial in range(100):
        scores = draw.random(60) < 0.7
        low, high = bootstrap(lambda rows, scores=scores: float(scores[rows].mean()), 60, seed=trial)
        inside += low <= 0.7 <= high
    assert 86 <= inside <= 100
    assert bootstrap(lambda rows: float(rows.mean()), 9, 0) == bootstrap(lambda rows: float(rows.mean()), 9, 0)


def test_sums_are_scored_by_number(llama, tmp_path):
    loaded = models.load(llama)
    examples = data.load(write_rows(tmp_path / "rows.jsonl", sums(10)))
    found = evaluate(loaded.model, loaded.processor, examples, max_new_tokens=4, batch=4)
    assert list(found.metrics) == ["number"] and [line["row"] for line in found.predictions] == list(range(1, 11))
