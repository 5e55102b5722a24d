"""Every task trains, and its evaluation sees what was learned."""

from __future__ import annotations

import math
import random
import struct
import wave
from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.cli.dry_run import dry_run
from luthier.core.errors import LuthierError
from luthier.engine.answers import answers
from luthier.engine.settings import Sampling
from luthier.evaluating import evaluate, generate
from luthier.measuring import allocation
from luthier.measuring.measure import measure
from luthier.methods.ranks.uniform import Uniform
from luthier.training import Run, Training, train
from support.tiny import save_model, sums, write_rows

QUICK = Training(epochs=15, batch=8, lr=2e-2, eval_fraction=0.1)


def letters(count: int = 40) -> list[dict]:
    draw = random.Random(0)
    return [{"text": draw.choice("ab") + str(draw.randrange(1000))} for _ in range(count)]


def labelled(rows: list[dict], label) -> list[dict]:
    return [row | {"label": label(row["text"][0] == "a")} for row in rows]


@pytest.mark.parametrize("pair", [False, True])
def test_classification_trains_its_new_head(bert, tmp_path, pair):
    rows = labelled(letters(), lambda a: "first" if a else "second")
    if pair:
        rows = [row | {"text_pair": "x", "text": row["text"]} for row in rows]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    result = train(Run(bert, source, lt.LoRA(rank=4), out=str(tmp_path / "run"), training=QUICK), progress=False)
    names = set(lt.trainable(result.model))
    assert {"default:1.classifier.weight.theta", "default:1.classifier.bias.theta"} <= names
    examples = data.load(source)
    found = evaluate(result.model, result.processor, examples)
    assert found.score == 1.0 == found.metrics["mcc"] and found.count == 40
    fresh = models.load(bert, task="classification", labels=examples.labels)
    lt.load(fresh.model, result.adapter)
    again = evaluate(fresh.model, fresh.processor, examples)
    assert (again.loss, again.predictions) == (found.loss, found.predictions)


def test_labels_keep_the_order_of_the_checkpoint(tmp_path):
    base = save_model(tmp_path / "bert", "bert", id2label={0: "second", 1: "first"}, label2id={"second": 0, "first": 1})
    source = write_rows(tmp_path / "rows.jsonl", labelled(letters(), lambda a: "first" if a else "second"))
    result = train(Run(base, source, lt.LoRA(rank=4), out=str(tmp_path / "run"), training=QUICK), progress=False)
    assert result.model.config.label2id == {"second": 0, "first": 1}
    assert evaluate(result.model, result.processor, data.load(source)).score == 1.0


def test_calibration_reads_labels_in_the_order_of_the_checkpoint(tmp_path, monkeypatch):
    base = save_model(tmp_path / "bert", "bert", id2label={0: "second", 1: "first"}, label2id={"second": 0, "first": 1})
    rows = labelled(letters(8), lambda a: "first" if a else "second")
    source = write_rows(tmp_path / "rows.jsonl", rows)
    seen, calibrate = [], allocation.calibrate
    monkeypatch.setattr(
        allocation, "calibrate", lambda m, features, *a, **k: seen.append(features) or calibrate(m, features, *a, **k)
    )
    settings = replace(QUICK, epochs=1, eval_fraction=0)
    train(Run(base, source, lt.LoRA(rank=2), out=str(tmp_path / "run"), training=settings), progress=False)
    measure(base, source, ranks=Uniform(), crosscheck=False, progress=False)
    for features in seen:
        assert [feature["labels"] for feature in features] == [int(row["label"] == "first") for row in rows]
    assert len(seen) == 2


def test_a_new_head_is_whole_in_the_adapter_though_a_form_takes_its_bias(bert, tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", labelled(letters(), lambda a: "first" if a else "second"))
    training = replace(QUICK, epochs=1)
    result = train(Run(bert, source, lt.BitFit(), out=str(tmp_path / "run"), training=training), progress=False)
    assert "default:1.classifier.weight.theta" in lt.trainable(result.model)
    examples = data.load(source)
    torch.manual_seed(99)
    fresh = models.load(bert, task="classification", labels=examples.labels)
    lt.load(fresh.model, result.adapter)
    found, again = (evaluate(each.model, each.processor, examples) for each in (result, fresh))
    assert (again.loss, again.predictions) == (found.loss, found.predictions)


def test_regression(bert, tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", labelled(letters(), lambda a: 1.5 if a else -0.5))
    training = replace(QUICK, lr=1e-2)
    result = train(Run(bert, source, lt.LoRA(rank=4), out=str(tmp_path / "run"), training=training), progress=False)
    found = evaluate(result.model, result.processor, data.load(source))
    assert found.score == found.metrics["pearson"] > 0.99
    assert found.metrics["mse"] == pytest.approx(found.loss, rel=1e-4)
    assert found.metrics["mse"] < 0.1


def test_answers_of_a_model_with_an_encoder_need_no_task(tmp_path):
    """Rows with a class stay what their columns tell; `luthier compare` reads the same."""
    from luthier.comparing import Study
    from luthier.comparing.plan import checked
    from luthier.training.rows import read_rows

    base, source = save_model(tmp_path / "t5", "t5"), write_rows(tmp_path / "rows.jsonl", sums(20))
    classes = write_rows(tmp_path / "classes.jsonl", labelled(letters(8), lambda a: "first" if a else "second"))
    settings = Training(steps=1, batch=2, eval_fraction=0.0)
    result = train(Run(base, source, lt.LoRA(rank=2), out=str(tmp_path / "run"), training=settings), progress=False)
    assert type(result.model).__name__ == "T5ForConditionalGeneration"
    assert read_rows(Run(base, classes, lt.LoRA(rank=2)), None).task == "classification"
    told = {"models": base, "methods": ["lora"], "seeds": 1, "training": {"steps": 1, "batch": 2}}
    study = Study.from_dict(told | {"data": {"sums": {"train": source}, "classes": {"train": classes}}})
    assert {name: read.task for name, read in checked(study).data.items()} == {
        "sums": "seq2seq", "classes": "classification"}  # fmt: skip


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_seq2seq(tmp_path, name):
    base = save_model(tmp_path / name, name)
    rows = [{"prompt": f"say {c}", "completion": c * 3} for c in "abcd" * 6]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    settings = replace(QUICK, epochs=25, eval_fraction=0.0, batch=6, accumulate=2)
    run = Run(base, source, lt.Full(), task="seq2seq", out=str(tmp_path / "run"), training=settings)
    result = train(run, progress=False)
    assert result.losses[-1][1] < result.losses[0][1] / 3
    found = evaluate(result.model, result.processor, data.load(source, task="seq2seq"), max_new_tokens=8)
    said = {line["row"]: line["prediction"] for line in found.predictions}
    assert generate(result.model, result.processor, ["say a"], max_new_tokens=8) == [said[1]]
    assert found.score == sum(line["prediction"] == line["answer"] for line in found.predictions) / 24


@pytest.mark.parametrize("form", [lt.LoRA(rank=2), lt.LoReFT(rank=2), lt.Prefix(), lt.IA3(), lt.WeGeFT(share="type")])
def test_forms_train_on_conversations(llama, tmp_path, form):
    source = write_rows(tmp_path / "rows.jsonl", sums(24))
    settings = Training(epochs=2, batch=4, gradient_checkpointing=isinstance(form, lt.LoReFT))
    result = train(Run(llama, source, form, out=str(tmp_path / "run"), training=settings), progress=False)
    assert all(math.isfinite(loss) for _, loss in result.losses)
    assert result.losses[-1][1] != result.losses[0][1]


def test_images(tmp_path):
    transformers = pytest.importorskip("transformers")
    image = pytest.importorskip("PIL.Image")
    base = save_model(tmp_path / "vit", "vit")
    for stale in (tmp_path / "vit").glob("*token*"):
        stale.unlink()
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(base)
    rows = []
    for i in range(24):
        shade = 40 if i % 2 else 200
        image.new("RGB", (20, 20), (shade, shade, i)).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": "dark" if i % 2 else "light"})
    source = write_rows(tmp_path / "rows.jsonl", rows)
    result = train(Run(base, source, lt.LoRA(), out=str(tmp_path / "run"), training=QUICK), progress=False)
    assert evaluate(result.model, result.processor, data.load(source)).score == 1.0


def test_sounds(tmp_path):
    import transformers

    base = save_model(tmp_path / "wav2vec2", "wav2vec2")
    for stale in (tmp_path / "wav2vec2").glob("*token*"):
        stale.unlink()
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=800).save_pretrained(base)
    rows = []
    for i in range(16):
        tone = [math.sin(t * (0.2 if i % 2 else 1.5)) for t in range(600 + 20 * i)]
        with wave.open(str(tmp_path / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 800, 0, "NONE", ""))
            file.writeframes(struct.pack(f"<{len(tone)}h", *(int(20000 * x) for x in tone)))
        rows.append({"audio": f"{i}.wav", "label": "low" if i % 2 else "high"})
    source = write_rows(tmp_path / "rows.jsonl", rows)
    settings = replace(QUICK, epochs=10)
    result = train(Run(base, source, lt.LoRA(), out=str(tmp_path / "run"), training=settings), progress=False)
    found = evaluate(result.model, result.processor, data.load(source))
    assert result.losses[-1][1] < result.losses[0][1] and found.count == 16


def test_running_statistics_of_the_base_stay(tmp_path):
    """BatchNorm in a frozen base would otherwise drift with every batch, and no adapter could carry that."""
    import transformers

    from luthier.training.arguments import arguments
    from luthier.training.trainer import Trainer

    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2)
    model = transformers.ResNetForImageClassification(config)
    lt.attach(model, lt.Full(), "params(classifier.*)")
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    assert before
    run = Run("m", "d", lt.Full(), out=str(tmp_path), training=Training(steps=2, batch=2, save_every=9))
    rows = [{"pixel_values": torch.randn(3, 32, 32).numpy(), "labels": i % 2, "row": i} for i in range(4)]
    args = arguments(run, 2, (9, 9), evaluates=False)
    Trainer(run, model, args, (rows, []), data.Collator(), shifted=False, callbacks=[]).train()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if "running" in key)


def test_what_progress_shows_changes_no_run(tmp_path):
    transformers = pytest.importorskip("transformers")
    image = pytest.importorskip("PIL.Image")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "resnet")
    rows = []
    for i in range(8):
        image.new("RGB", (32, 32), (90 * (i % 2), 9 * i, 200)).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": "dark" if i % 2 else "light"})
    source = write_rows(tmp_path / "rows.jsonl", rows)
    base = models.load(str(tmp_path / "resnet"), task="image-classification").model.state_dict()
    losses = {}
    for progress in (True, False):
        run = Run(
            str(tmp_path / "resnet"), source, lt.Full(), where="params(classifier.*)", out=str(tmp_path / f"{progress}")
        )
        result = train(replace(run, training=Training(steps=2, batch=4, lr=1e-2)), progress=progress)
        losses[progress] = result.losses
        found = result.model.state_dict()
        assert all(torch.equal(value, base[key]) for key, value in found.items() if "running" in key or "num_ba" in key)
    assert losses[True] == losses[False]


def test_rows_longer_than_the_positions_are_bad(bert, tmp_path):
    """Before any work, with the usual list; cut to the positions where prompts may be cut."""
    rows = [{"text": "ab" * length, "label": "xy"[i % 2]} for i, length in enumerate((4, 64, 65, 90, 5, 6))]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    run = Run(bert, source, lt.LoRA(), out=str(tmp_path / "run"), training=replace(QUICK, epochs=1, eval_fraction=0))
    told = "2 rows: 130 tokens, the maximum is 128, as the model has no more positions.*lines 3, 4"
    for start in (lambda: train(run, progress=False), lambda: dry_run(run)):
        with pytest.raises(LuthierError, match=told):
            start()
    assert not (tmp_path / "run" / "adapter").exists()
    assert train(replace(run, skip_bad_rows=True, out=str(tmp_path / "less")), progress=False).losses
    cut = replace(run, out=str(tmp_path / "cut"), training=replace(run.training, truncate=True))
    result = train(cut, progress=False)
    with pytest.raises(LuthierError, match=told):
        evaluate(result.model, result.processor, data.load(source), progress=False)


def test_prompts_longer_than_the_positions_are_refused(llama, tmp_path):
    loaded = models.load(save_model(tmp_path / "gpt2", "gpt2"))
    examples = data.load(write_rows(tmp_path / "rows.jsonl", [{"prompt": "x" * 200, "completion": "1"}] * 2))
    with pytest.raises(LuthierError, match=r"a prompt has 20. tokens, and the model has positions for 128"):
        evaluate(loaded.model, loaded.processor, examples, max_new_tokens=2, progress=False)
    rotary = models.load(llama)
    assert rotary.model.config.max_position_embeddings == 128
    assert evaluate(rotary.model, rotary.processor, examples, max_new_tokens=2, progress=False).count == 2


def test_generation_ends_with_the_positions(tmp_path):
    loaded = models.load(save_model(tmp_path / "gpt2", "gpt2"))
    loaded.model.generation_config.eos_token_id = None
    loaded.processor.eos_token = None
    prompts = [[5] * 120, [5] * 3]
    told = answers(loaded.model, loaded.processor, prompts, Sampling(max_new_tokens=200), batch=1)
    assert 0 < len(told[0]) < len(told[1])
    with pytest.raises(LuthierError, match="has 128 tokens, and the model has positions for 128"):
        answers(loaded.model, loaded.processor, [[5] * 128], Sampling(max_new_tokens=1), batch=1)


@pytest.mark.parametrize(("kind", "library"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_packed_base(tmp_path, kind, library):
    pytest.importorskip(library)
    base = save_model(tmp_path / "llama", "llama", hidden_size=64, intermediate_size=128)
    source = write_rows(tmp_path / "rows.jsonl", sums(24))
    settings = Training(steps=12, lr=1e-2, quantize=kind)
    result = train(Run(base, source, lt.WeGeFT(), out=str(tmp_path / "run"), training=settings))
    assert result.losses[-1][1] < result.losses[0][1] - 0.5
    loaded = lt.load(lt.model(base, quantize=kind).model, result.adapter)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, result.model(input_ids=ids).logits)
