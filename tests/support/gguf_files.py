"""Small GGUF files with a byte-level vocabulary, and texts on which ways to split them differ."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BATTERY = [
    "Hello world",
    "  two  spaces   three",
    "a\n\nb\n c\r\nd\t\te",
    "trailing   ",
    "\n\n\n",
    " \n \n  x",
    "1234567890 12 345 6,789.01 0x1F 1st 22nd",
    "١٢٣ ½ ² ９９",
    "I'm you're he's WE'LL they'd can't DON'T I'Ve 'S 's'",
    "don’t I’m “quoted” ‘single’ — dash…",
    "def fooBar(x_1, y=2):\n    return x**2 + y[0] != None  # iPhone HTTPServer\n\tif (a&&b){c+=1;}",
    "中文字符测试，你好！ 日本語のテキスト、ひらがなカタカナ 한국어 텍스트 ㄱㄴ",
    "café naïve Über straße ÀÉÎ Привет мир Ελληνικά",
    "مرحبا بالعالم שלום",
    '!!! ??? ... --- $100 €5 50% <a href="x">&amp;</a> @user #tag ^_^ `code` ~ | \\n',
    "😀 👍🏽 \u00a0nbsp",
    "https://example.com/a/b?c=d&e=f",
    "x" * 30 + " " + "0" * 31,
    "a1b2 c3-d4_e5",
    "the the  the   the    the",
    "(a) [b] {c} /path/to//file /* c */ // x\n\n\n\nend",
    "camelCase PascalCase ALLCAPS mIxEd",
    "1 000 000",
    "  12\n 34  \n",
    "。，、",
    "<sentinel:12> IMGIMGABCZ",
    "word.\nNext",
    "3.14e-10",
    "\t\tfor i in range(10):\r\n\r\n",
    "ABC 'quoted' it's",
    " leading",
    "ｆｕｌｌ ｗｉｄｔｈ",
    "1,234,567.89 12:34:56 2024-01-02",
    "qzxjk qzxjk",
    "ab   ~cd",
    "",
]
MARKED = ["e\u0301te\u0301 नमस्ते दुनिया สวัสดี"]
"""Words with combining marks."""
WIDE = ["a\u3000b \u3000ideographic \u2003em"]
"""Spaces of Chinese text, and wide ones."""
SPECIAL = ["<|bos|>", "<|eos|>", "<｜User｜>"]
"""Control tokens; llama.cpp knows the first two by their ids."""
CHOSEN = ["<think>", "   ~"]
"""Tokens of the user's."""
UNMERGED = "qzxjk"
"""A word of the vocabulary that no merges lead to."""


@functools.cache
def merges() -> dict[str, Any]:
    """A vocabulary learned with no split at all, so that every way to split shows in its tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2600, min_frequency=2, initial_alphabet=alphabet, max_token_length=12)  # type: ignore[call-arg]
    texts = [text for text in (*BATTERY, *MARKED, *WIDE) if UNMERGED not in text]
    core.train_from_iterator(texts * 3, trainer)
    return json.loads(core.to_str())["model"]


def write_gguf(path: Path, pre: str | None, *, add_bos: bool | None = None, arch: str = "llama", **extra: Any) -> Path:
    """A one-layer model with that vocabulary; `extra` are further string keys of the metadata, dots as `__`."""
    gguf = pytest.importorskip("gguf")
    learned = merges()
    words = [*sorted(learned["vocab"], key=learned["vocab"].get), UNMERGED]
    tokens, types = [*words, *SPECIAL, *CHOSEN], [1] * len(words) + [3] * len(SPECIAL) + [4] * len(CHOSEN)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(4096)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in learned["merges"]])
    writer.add_bos_token_id(len(words))
    writer.add_eos_token_id(len(words) + 1)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    for key, value in extra.items():
        writer.add_string(key.replace("__", "."), value)
    sizes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    sizes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in sizes.items()}
    shapes |= {"token_embd.weight": (len(tokens), 32), "output_norm.weight": (32,)}
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, draw.standard_normal(shape).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
