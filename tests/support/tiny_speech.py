"""A tiny Whisper with the tokenizer of its kind, and sounds that say letters by their pitch."""

from __future__ import annotations

import math
import struct
import wave
from pathlib import Path

import torch
import transformers as tf

RATE = 16000
SECONDS = 1
"""The window, which is 30 s in a real one."""
PITCH = {"a": 300, "b": 1200, "c": 4000}
BYTES = "".join(chr(i) for i in range(33, 127))


def tokenizer():
    """One token a character, and Whisper's special tokens."""
    words = ["Ġ", *BYTES]
    names = [
        "startoftranscript",
        "en",
        "zh",
        "de",
        "translate",
        "transcribe",
        "startofprev",
        "nospeech",
        "notimestamps",
    ]
    made = tf.WhisperTokenizer({word: i for i, word in enumerate(words)} | {"<|endoftext|>": len(words)}, merges=[])
    made.add_tokens(
        [tf.AddedToken(f"<|{name}|>", normalized=False, special=True) for name in names], special_tokens=True
    )
    made.pad_token = "<|endoftext|>"
    made.set_prefix_tokens()
    return made


def save_whisper(folder: Path, many: bool = False, **writes) -> str:
    """The model's folder, as `luthier.models` loads it; `writes` are of its generation config."""
    words = tokenizer()
    start, end = (words.convert_tokens_to_ids(f"<|{name}|>") for name in ("startoftranscript", "endoftext"))
    frames = 100 * SECONDS
    settings = {
        "vocab_size": len(words), "num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "max_source_positions": frames // 2, "max_target_positions": 24, "decoder_start_token_id": start,
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "dropout": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    model = tf.WhisperForConditionalGeneration(tf.WhisperConfig(**settings))
    model.generation_config = tf.GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, bos_token_id=end, is_multilingual=many,
        no_timestamps_token_id=words.convert_tokens_to_ids("<|notimestamps|>"), max_length=24, **writes,
    )  # fmt: skip
    model.save_pretrained(folder)
    extractor = tf.WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS)
    tf.WhisperProcessor(extractor, words).save_pretrained(folder)
    return str(folder)


def say(path: Path, text: str, rate: int = RATE, seconds: float = 0.2) -> str:
    """Writes a sound with a tone for each letter."""
    each = int(rate * seconds)
    samples = [math.sin(2 * math.pi * PITCH[letter] * t / rate) for letter in text for t in range(each)]
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(struct.pack(f"<{len(samples)}h", *(int(20000 * x) for x in samples)))
    return str(path)


def spoken_rows(folder: Path, count: int = 12) -> list[dict]:
    """Rows of sounds beside `folder`'s data file."""
    texts = ["abc"[i % 3] for i in range(count)]
    for i, text in enumerate(texts):
        say(folder / f"{i}.wav", text, seconds=0.2 + 0.02 * i)
    return [{"audio": f"{i}.wav", "text": text} for i, text in enumerate(texts)]
