"""What the tests of the command line share: a tiny chat model in a folder, rows, a saved adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
ROWS = [{"prompt": f"say {word}", "completion": word} for word in WORDS]


def tiny_tokenizer():
    """Byte-level, 263 tokens, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", model_max_length=128
    )
    made.chat_template = CHATML
    return made


def save_llama(folder: Path, seed: int = 0, tied: bool = True, dtype: str = "float32") -> Path:
    """A random Llama of three blocks with its tokenizer, as a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    """A random BERT of two blocks without a head, with its tokenizer, as a folder."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=264, max_position_embeddings=128, pad_token_id=0, **sizes)).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(file: Path, rows: list[dict]) -> Path:
    """A JSONL file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@dataclass(frozen=True)
class Outcome:
    """What a call of the command line did."""

    code: int
    out: str
    err: str


def save_adapter(model, form, folder: Path, base: str, where: str | None = None) -> Path:
    """Attaches a form, moves its parameters off their start, saves it."""
    import torch

    import luthier as lt

    lt.attach(model, form, where=where)
    with torch.no_grad():
        for parameter in lt.trainable(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return lt.save(model, folder, base=base)
