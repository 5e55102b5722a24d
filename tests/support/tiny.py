"""Tiny models on disk with a tokenizer of single characters, and small data."""

from __future__ import annotations

import json
import random
from pathlib import Path

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!+-*/=()[]<>\n\"'#$%&@_"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def tokenizer(template: str | None = None):
    """One token a character; 0 to 3 are pad, bos, eos and unk, as the tiny configurations say."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *CHARACTERS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.chat_template = template
    return made


def save_model(folder: Path, name: str, template: str | None = None, **changes) -> str:
    """The tiny architecture `name` with its tokenizer, as a folder that `luthier.models` loads."""
    import dataclasses

    from support.architectures import ARCHITECTURES

    architecture = ARCHITECTURES[name]
    made = dataclasses.replace(architecture, settings=architecture.settings | changes).build()
    made.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sums(count: int, seed: int = 0) -> list[dict]:
    """Additions of different lengths."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(10 ** draw.randint(1, 3)), i) for i in range(count)]
    return [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in pairs]


def pairs(count: int, seed: int = 0) -> list[dict]:
    """The same additions with a right answer that is preferred to a longer one."""
    return [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"it is {row['completion']}?"}
            for row in sums(count, seed)]  # fmt: skip
