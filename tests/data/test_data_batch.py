"""Batches of every task, and the reading of pictures and sounds."""

from __future__ import annotations

import io
import json
import wave

import numpy as np
import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.data import Collator, Example, collate, collator_for, encode_all, encode_audio, encode_image, load
from luthier.data.media import resample
from support.tiny_tokenizers import make

SHORT = {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [-100, 6], "row": 4, "truncated": 0}
LONG = {"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1], "labels": [-100, 8, 9], "row": 9, "truncated": 2}


def test_padding_on_either_side():
    right = collate([SHORT, LONG], pad_token_id=3)
    assert right["input_ids"].tolist() == [[5, 6, 3], [7, 8, 9]]
    assert right["labels"].tolist() == [[-100, 6, -100], [-100, 8, 9]]
    assert right["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert right["rows"] == [4, 9] and set(right) == {"input_ids", "labels", "attention_mask", "rows"}
    left = collate([SHORT, LONG], pad_token_id=3, padding_side="left")
    assert left["input_ids"].tolist() == [[3, 5, 6], [7, 8, 9]]
    assert left["labels"].tolist()[0] == [-100, -100, 6]
    assert collate([SHORT, LONG], 3, pad_to_multiple_of=4)["input_ids"].shape == (2, 4)
    assert right["input_ids"].dtype == torch.int64


def test_labels_of_each_task():
    features = [{**SHORT, "labels": 1, "token_type_ids": [0, 1]}, {**LONG, "labels": 0, "token_type_ids": [0, 1, 1]}]
    batch = Collator(3)(features)
    assert batch["labels"].tolist() == [1, 0] and batch["token_type_ids"].tolist() == [[0, 1, 0], [0, 1, 1]]
    assert Collator(3)([{**SHORT, "labels": 1.5}])["labels"].dtype == torch.float32
    seq2seq = Collator(3)([{**SHORT, "labels": [1]}, {**LONG, "labels": [1, 2]}])
    assert seq2seq["labels"].tolist() == [[1, -100], [1, 2]]


def test_an_empty_batch_is_an_error():
    with pytest.raises(LuthierError, match="at least one row"):
        Collator()([])


def test_a_tokenizer_without_padding_pads_with_eos():
    tokenizer = make("none")
    assert collator_for("causal-lm", tokenizer).pad_token_id == tokenizer.eos_token_id
    tokenizer.pad_token = "<|im_end|>"
    assert collator_for("causal-lm", tokenizer).pad_token_id == tokenizer.pad_token_id


def test_pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    from transformers import ViTImageProcessor

    for name in ("a", "b"):
        image.new("RGB", (10, 8), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    rows = [{"image": f"{n}.png", "label": n} for n in ("a", "b")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = load(tmp_path / "rows.jsonl")
    assert examples.task == "image-classification" and examples.labels == ["a", "b"]
    processor = ViTImageProcessor(size={"height": 6, "width": 6})
    features = encode_all(examples, processor, max_length=None)
    batch = collator_for(examples.task, processor)(features)
    assert batch["pixel_values"].shape == (2, 3, 6, 6) and batch["labels"].tolist() == [0, 1]
    raw = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    pixels = encode_image(Example(row=1, image=raw, label="a"), processor)["pixel_values"]
    assert np.array_equal(pixels, features[0]["pixel_values"])
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(LuthierError, match="row 1: unreadable image"):
        encode_all(examples, processor, max_length=None)
    (tmp_path / "b.png").unlink()
    with pytest.raises(LuthierError, match=r"row 2: no image file .*b\.png"):
        load(tmp_path / "rows.jsonl")


def tone(rate: int, seconds: float = 0.5, width: int = 2, channels: int = 1) -> bytes:
    """A WAV file of a tone of 440 Hz at half the full scale."""
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    samples = np.repeat(samples[:, None], channels, axis=1)
    whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype("<i4")
    raw = (whole + 128).astype(np.uint8) if width == 1 else whole.view(np.uint8).reshape(-1, 4)[:, :width]
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw.tobytes())
    return stream.getvalue()


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])
def test_sounds_of_every_width(width, channels):
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    sound = {"bytes": tone(16000, width=width, channels=channels), "path": None}
    values = encode_audio(Example(row=1, audio=sound), extractor)["input_values"]
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    assert values.shape == (8000,) and np.abs(values - wanted).max() < 2.0 ** (1 - min(8 * width, 16))


def test_a_sound_is_brought_to_the_rate_of_the_model():
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    for rate in (8000, 44100):
        sound = {"bytes": tone(rate), "path": None}
        values = encode_audio(Example(row=1, audio=sound), extractor)["input_values"]
        wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
        assert values.shape == (8000,) and np.abs(values - wanted).max() < 1e-3
    assert len(resample(np.ones(7, np.float32), 3, 5)) == 12


def test_sounds_of_different_lengths_are_padded_and_masked(tmp_path):
    from transformers import Wav2Vec2FeatureExtractor

    for name, seconds in (("a", 0.01), ("b", 0.02)):
        (tmp_path / f"{name}.wav").write_bytes(tone(16000, seconds))
    rows = [{"audio": f"{n}.wav", "label": n} for n in ("a", "b")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = load(tmp_path / "rows.jsonl")
    extractor = Wav2Vec2FeatureExtractor()
    features = encode_all(examples, extractor, max_length=None)
    batch = collator_for(examples.task, extractor)(features)
    assert batch["input_values"].shape == (2, 320) and batch["attention_mask"].sum(1).tolist() == [160, 320]
    assert batch["labels"].tolist() == [0, 1]


def test_what_is_no_sound_is_told():
    from transformers import Wav2Vec2FeatureExtractor

    with pytest.raises(LuthierError, match="row 3: "):
        encode_audio(Example(row=3, audio={"bytes": b"noise", "path": None}), Wav2Vec2FeatureExtractor())
