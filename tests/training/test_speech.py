"""Speech to text: as transformers' recipe has it, from rows through the command line to what is written down."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from transformers import TrainerCallback, WhisperProcessor

import luthier as lt
from luthier import data, models
from luthier.cli import main
from luthier.core.errors import LuthierError
from luthier.core.numerics import word_errors as errors
from luthier.data.media import media_digest, resample
from luthier.data.speech import prefix
from luthier.evaluating import evaluate
from luthier.training import Run, Training, train
from luthier.training.prepare import prepare
from support.tiny import write_rows
from support.tiny_speech import RATE, save_whisper, say, spoken_rows


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> str:
    return save_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("spoken")
    return write_rows(folder / "rows.jsonl", spoken_rows(folder))


def recipe(processor, sounds: list[np.ndarray], texts: list[str], start: int) -> dict[str, torch.Tensor]:
    """The batch of huggingface.co/blog/fine-tune-whisper, its collator included."""
    inputs = processor.feature_extractor(sounds, sampling_rate=RATE, return_tensors="pt")
    ids = [{"input_ids": processor.tokenizer(text).input_ids} for text in texts]
    padded = processor.tokenizer.pad(ids, return_tensors="pt")
    labels = padded["input_ids"].masked_fill(padded.attention_mask.ne(1), -100)
    if (labels[:, 0] == start).all().cpu().item():
        labels = labels[:, 1:]
    return {"input_features": inputs["input_features"], "labels": labels}


def test_a_batch_and_its_loss_are_those_of_the_usual_recipe(whisper, tmp_path):
    texts, draw = ["a", "hello there", "cb!"], np.random.default_rng(0)
    sounds = [draw.standard_normal(n).astype(np.float32) for n in (4000, 9000, RATE)]
    rows = [
        {"audio": {"array": a.tolist(), "sampling_rate": RATE}, "text": t} for a, t in zip(sounds, texts, strict=True)
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    loaded = models.load(whisper, task="speech-to-text")
    examples = data.load(source)
    features = data.encode_all(examples, loaded.processor, max_length=64)
    ours = data.collator_for(examples.task, loaded.processor)(features)
    start = loaded.model.config.decoder_start_token_id
    theirs = recipe(WhisperProcessor.from_pretrained(whisper), sounds, texts, start)
    assert torch.equal(ours["labels"], theirs["labels"]) and not (ours["labels"] == start).any()
    torch.testing.assert_close(ours["input_features"], theirs["input_features"], atol=1e-6, rtol=0)
    loss = loaded.model(**theirs).loss.item()
    settings = Training(steps=1, batch=3, eval_fraction=0.0)
    for more in ({}, {"batch": 1, "accumulate": 3}):  # also row by row
        run = Run(
            whisper, source, lt.LoRA(rank=2), out=str(tmp_path / f"{len(more)}"), training=replace(settings, **more)
        )
        assert train(run, progress=False).losses[0][1] == pytest.approx(loss, abs=1e-6)
    assert evaluate(loaded.model, loaded.processor, examples).loss == pytest.approx(loss, abs=1e-6)


def test_what_is_written_down_is_what_transformers_generates(whisper, spoken):
    loaded = models.load(whisper, task="speech-to-text")
    examples = data.load(spoken)
    found = evaluate(loaded.model, loaded.processor, examples, max_new_tokens=9, batch=5)
    features = data.encode_all(examples, loaded.processor, max_length=None)
    inputs = torch.from_numpy(np.stack([feature["input_features"] for feature in features]))
    ids = loaded.model.generate(input_features=inputs, max_new_tokens=9)
    theirs = loaded.processor.batch_decode(ids, skip_special_tokens=True)
    assert [line["prediction"] for line in found.predictions] == [text.strip() for text in theirs]


def test_the_command_line_from_rows_to_predictions(whisper, spoken, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--method full --epochs 30 --batch 6 --lr 4e-3 --eval-fraction 0 --out run"
    assert main(["train", whisper, spoken, *words.split(), "--dry-run"]) == 0
    assert "[[a]]" in capsys.readouterr().out
    assert main(["train", whisper, spoken, *words.split()]) == 0
    capsys.readouterr()
    assert main(["evaluate", whisper, spoken, "--adapter", "run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metric"] == "wer" and told["score"] == told["metrics"]["wer"] < 0.2
    assert told["metrics"]["word_accuracy"] == 1 - told["score"]
    bare = [{"audio": str(spoken).replace("rows.jsonl", f"{i}.wav")} for i in range(4)]
    asked = write_rows(tmp_path / "asked.jsonl", bare)
    assert main(["predict", whisper, asked, "--adapter", "run", "--out", "said.csv"]) == 0
    with (tmp_path / "said.csv").open(newline="") as file:
        said = list(csv.DictReader(file))
    assert list(said[0]) == ["audio", "prediction", "probability", "tokens"]
    capsys.readouterr()
    assert main(["generate", whisper, "--file", asked, "--adapter", "run", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert [line["answer"] for line in lines] == [row["prediction"] for row in said] and len(said) == 4
    assert main(["generate", whisper, bare[1]["audio"], "--adapter", "run"]) == 0
    assert capsys.readouterr().out.strip() == said[1]["prediction"]


def test_a_study_compares_by_the_errors_of_words(whisper, spoken, tmp_path):
    words = "--methods base,lora --seeds 1 --epochs 1 --out"
    assert main(["compare", whisper, spoken, *words.split(), str(tmp_path / "study")]) == 0
    records = lt.records(tmp_path / "study")
    assert {record.metric for record in records} == {"word_accuracy"} and len(records) == 2
    assert all(record.answers for record in records)


def test_an_interrupted_run_goes_on_exactly(whisper, spoken, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    settings = {"steps": 4, "save_every": 1, "batch": 4, "lr": 1e-2, "keep": 9, "progress": False}
    fields = {"data": spoken, "form": lt.LoRA(rank=4, dropout=0.2), **settings}
    whole = lt.train(whisper, out=str(tmp_path / "whole"), **fields)
    with pytest.raises(KeyboardInterrupt):
        lt.train(whisper, out=str(tmp_path / "cut"), callbacks=[Stop()], **fields)
    again = lt.train(whisper, out=str(tmp_path / "cut"), resume=True, **fields)
    ours, theirs = (load_file(each.folder / "adapter" / "adapter.safetensors") for each in (again, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_other_sounds_under_the_same_names_are_noticed(tmp_path):
    told = [{**row, "audio": Path(row["audio"]).name} for row in spoken_rows(tmp_path)]
    rows = data.load(write_rows(tmp_path / "rows.jsonl", told))
    before = media_digest(rows.rows)
    sound = tmp_path / told[0]["audio"]
    sound.write_bytes(sound.read_bytes()[:-2] + b"\x01\x01")
    assert before is not None and media_digest(rows.rows) != before


@pytest.mark.parametrize("form", [lt.LoRA(), lt.LoReFT(), lt.Prefix(), lt.IA3(), lt.Full()], ids=lambda f: f.name())
def test_adapters_are_in_encoder_and_decoder_and_act_alike_in_writing(whisper, spoken, form):
    """Tokens written one by one with a cache are those of one pass over all of them."""
    from luthier.engine.outputs import Reading
    from luthier.engine.settings import Sampling
    from luthier.engine.transcripts import transcribed

    loaded = models.load(whisper, task="speech-to-text")
    lt.attach(loaded.model, form)
    kept = lt.trainable(loaded.model)
    assert all(any(f".{side}." in key for key in kept) for side in ("encoder", "decoder"))
    for tensor in kept.values():
        tensor.data += 0.05 * torch.randn_like(tensor)
    examples = data.load(spoken, limit=3)
    features = data.encode_all(examples.keep([replace(row, answer=None) for row in examples.rows]), loaded.processor,
                               max_length=None)  # fmt: skip
    reading = Reading(loaded.model, loaded.processor, "speech-to-text")
    said = [ids for _, ids in transcribed(reading, features, Sampling(max_new_tokens=8))]
    both = [{**feature, "labels": [*feature["labels"], *ids]} for feature, ids in zip(features, said, strict=True)]
    for chosen, out, _ in reading.outputs(both):
        for line, i in enumerate(chosen):
            before = len(features[i]["labels"])
            assert out.logits[line].argmax(-1)[before : before + len(said[i])].tolist() == said[i]


def test_packing_is_refused_with_its_reason(whisper, spoken, tmp_path):
    run = Run(whisper, spoken, lt.LoRA(), out=str(tmp_path / "run"), training=Training(steps=1, pack=True))
    with pytest.raises(LuthierError, match="cannot: its rows are no texts"):
        train(run, progress=False)


BAD = {
    "no text": ({"audio": "0.wav", "text": ""}, "empty 'text'"),
    "only space": ({"audio": "0.wav", "text": "  "}, "empty 'text'"),
    "no sound": ({"audio": None, "text": "a"}, "no 'audio'"),
    "no file": ({"audio": "none.wav", "text": "a"}, "no audio file"),
    "too long": ({"audio": "long.wav", "text": "a"}, r"a sound of 1\.2 s, the model hears 1 s: divide it"),
    "no rate": ({"audio": {"array": [0.1] * 90}, "text": "a"}, "'sampling_rate' beside the array is None"),
    "no samples": ({"audio": {"array": [], "sampling_rate": 8000}, "text": "a"}, "without samples"),
    "not finite": ({"audio": {"array": [0.1, float("nan")], "sampling_rate": 8000}, "text": "a"}, "no finite numbers"),
    "no sound file": ({"audio": "rows.jsonl", "text": "a"}, "not a PCM WAV file|unreadable audio"),
    "a long text": ({"audio": "0.wav", "text": "a" * 30}, "a transcript of 32 tokens, the maximum is 24"),
    "another language": ({"audio": "0.wav", "text": "a", "language": "german"}, "the model knows English alone"),
}


@pytest.mark.parametrize("kind", BAD)
def test_rows_that_cannot_be_learned_are_told(whisper, tmp_path, kind):
    good = spoken_rows(tmp_path, 3)
    say(tmp_path / "long.wav", "abcabc")
    row, told = BAD[kind]
    source = write_rows(tmp_path / "rows.jsonl", [*good, row])
    run = Run(whisper, source, lt.LoRA(), out=str(tmp_path / "run"), training=Training(steps=1, eval_fraction=0.0))
    with pytest.raises(LuthierError, match=f"1 of 4 rows .*\n  row 4: .*({told})"):
        prepare(run)
    assert len(prepare(replace(run, skip_bad_rows=True)).train) == 3


def test_other_rates_and_files_in_the_rows_are_the_same_sound(whisper, tmp_path):
    slow = say(tmp_path / "slow.wav", "ab", rate=8000)
    raw = Path(slow).read_bytes()
    samples = np.frombuffer(raw[44:], "<i2").astype(np.float32) / 2**15
    processor = models.processor_of(whisper, "speech-to-text")
    rows = [slow, {"bytes": raw}, {"array": samples, "sampling_rate": 8000}]
    examples = [data.Example(row=i, audio=each, answer="ab") for i, each in enumerate(rows)]
    features = data.encode_all(
        data.Examples(examples, "audio-text", "x", task="speech-to-text"), processor, max_length=9
    )
    wanted = processor.feature_extractor(resample(samples, 8000, RATE), sampling_rate=RATE, return_tensors="np")
    for feature in features:
        np.testing.assert_allclose(feature["input_features"], wanted["input_features"][0], atol=1e-5)


@pytest.mark.parametrize("sound", ["audio", "file_name", "path"])
@pytest.mark.parametrize("text", ["text", "transcription", "sentence", "transcript"])
def test_data_sets_of_speech_are_known_by_their_columns(tmp_path, sound, text):
    say(tmp_path / "a.wav", "a")
    (tmp_path / "metadata.csv").write_text(f"{sound},{text}\na.wav,a\na.wav,b\n")
    examples = data.load(str(tmp_path))
    assert (examples.task, examples.layout, examples.unread) == ("speech-to-text", "audio-text", ())
    assert [row.answer for row in examples.rows] == ["a", "b"] and len({row.key() for row in examples.rows}) == 1


def test_without_a_sound_they_mean_nothing(tmp_path):
    (tmp_path / "rows.csv").write_text("sentence,path\nhe said,notes.txt\n")
    with pytest.raises(LuthierError, match="fit no layout"):
        data.load(str(tmp_path / "rows.csv"))
    labelled = write_rows(tmp_path / "rows.jsonl", [{"sentence": "x", "label": "a"}])
    with pytest.raises(LuthierError, match="did you mean 'sentence'"):
        data.load(labelled)


def test_a_model_of_many_languages_is_told_which(tmp_path):
    """By the row, else by the generation config; the tokens are those of the tokenizer that is set to it."""
    base = save_whisper(tmp_path / "many", many=True)
    processor = models.processor_of(base, "speech-to-text")
    row = data.Example(row=1, audio={"array": [0.1] * 90, "sampling_rate": RATE}, answer="a", language="German")
    other = WhisperProcessor.from_pretrained(base).tokenizer
    other.set_prefix_tokens(language="de", task="transcribe")
    ids = other("a").input_ids
    examples = data.Examples([row], "audio-text", "x", task="speech-to-text")
    assert data.encode_all(examples, processor, max_length=None)[0]["labels"] == ids[1:]
    with pytest.raises(LuthierError, match="which language is spoken"):
        data.encode_all(examples.keep([replace(row, language=None)]), processor, max_length=None)
    with pytest.raises(LuthierError, match="'klingon', which the model does not know"):
        data.encode_all(examples.keep([replace(row, language="klingon")]), processor, max_length=None)
    told = save_whisper(tmp_path / "told", many=True, language="<|de|>", task="transcribe")
    settled = models.processor_of(told, "speech-to-text").tokenizer
    assert prefix(replace(row, language=None), settled) == ids[1 : 1 + len(ids) - 3]


def test_a_base_in_half_precision_takes_the_sounds(whisper, spoken, tmp_path):
    settings = Training(steps=1, batch=4, precision="bfloat16", eval_fraction=0.2)
    result = train(Run(whisper, spoken, lt.LoRA(rank=2), out=str(tmp_path / "run"), training=settings), progress=False)
    assert result.model.dtype == torch.bfloat16 and result.losses[0][1] == pytest.approx(4.6, abs=0.2)
    row = data.load(spoken, limit=1)
    assert evaluate(result.model, result.processor, row, max_new_tokens=2).count == 1


def test_models_that_read_samples_of_any_length(tmp_path):
    """Moonshine: rows are padded with a mask, and its tokenizer puts BOS where the model puts its start."""
    from support.tiny import tokenizer

    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("num_hidden_layers",
             "num_attention_heads", "num_key_value_heads")}  # fmt: skip
    ends = {"bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = tf.MoonshineConfig(vocab_size=120, hidden_size=32, intermediate_size=48, **sizes, **ends)
    tf.MoonshineForConditionalGeneration(config).save_pretrained(tmp_path / "m")
    extractor = tf.Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False)
    tf.Wav2Vec2Processor(extractor, tokenizer()).save_pretrained(tmp_path / "m")
    loaded = models.load(str(tmp_path / "m"), task="speech-to-text")
    examples = data.load(write_rows(tmp_path / "rows.jsonl", spoken_rows(tmp_path, 3)))
    features = data.encode_all(examples, loaded.processor, max_length=None)
    batch = data.collator_for(examples.task, loaded.processor)(features)
    assert batch["attention_mask"].sum(1).tolist() == [len(each["input_values"]) for each in features]
    assert [each["labels"] for each in features] == [
        [*loaded.processor.tokenizer(letter).input_ids, 2] for letter in "abc"
    ]
    alone = evaluate(loaded.model, loaded.processor, examples, max_new_tokens=4, batch=1)
    together = evaluate(loaded.model, loaded.processor, examples, max_new_tokens=4, batch=3)
    assert alone.predictions == together.predictions and alone.loss == pytest.approx(together.loss, abs=1e-4)


def test_errors_are_those_of_jiwer():
    jiwer = pytest.importorskip("jiwer")
    draw = np.random.default_rng(0)
    pairs = [[" ".join(draw.choice(["a", "bc", "d,", "E"], draw.integers(1, 9))) for _ in range(2)] for _ in range(40)]
    counts = np.array([errors.counted(said, right) for said, right in pairs])
    said, right = (list(side) for side in zip(*pairs, strict=True))
    found = errors.figures(counts)
    assert found["wer"] == pytest.approx(jiwer.wer(right, said)) and found["cer"] == pytest.approx(
        jiwer.cer(right, said)
    )
    assert errors.figures(np.array([errors.counted("Hello,  there", "hello there")]))["wer_plain"] == 0


def test_a_model_of_other_answers_is_told_apart(whisper, bert):
    assert models.task_of(whisper, None) == "speech-to-text"
    loaded = models.load(whisper, task="speech-to-text")
    assert models.task_of_model(loaded.model) == "speech-to-text"
    with pytest.raises(LuthierError, match="is not a file"):
        lt.generate(loaded.model, loaded.processor, ["What is this?"])
    with pytest.raises(LuthierError, match="would not act"):
        lt.generate(loaded.model, loaded.processor, ["x"], tasks="a")
