"""A byte-level BPE from the ranks of a tiktoken file, with the special tokens of OpenAI's Whisper."""

from __future__ import annotations

import base64
import functools
import itertools
from pathlib import Path
from typing import Any

from luthier.core.guard import guarded

STAMPS = 1501
"""Time stamps from 0.00 to 30.00 s, 20 ms apart."""


def whisper_tokenizer(ranks: Path) -> Any:
    """Returns the tokenizer of a Whisper model, as the hub has it: a text has its prefix before it and EOS behind."""
    from transformers import AddedToken, WhisperTokenizer

    with guarded(f"{ranks} holds no ranks of a tokenizer"):
        merged = {base64.b64decode(token): int(rank) for token, rank in map(str.split, ranks.read_text().splitlines())}
    special = special_tokens()
    vocabulary = {_written(token): rank for token, rank in merged.items()}
    made = WhisperTokenizer(
        vocab=vocabulary | {special[0]: len(vocabulary)},
        merges=[(_written(left), _written(right)) for left, right in merges(merged)],
        unk_token=special[0],
        bos_token=special[0],
        eos_token=special[0],
        pad_token=special[0],
    )
    told = [AddedToken(token, normalized=False, special=True) for token in special[1:]]
    made.add_tokens(told, special_tokens=True)
    made.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", normalized=False, special=False) for i in range(STAMPS)])
    made.set_prefix_tokens()
    return made


def special_tokens() -> list[str]:
    """Returns the special tokens of models of 99 languages and of English alone, in the order of their ids."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    spoken = [code for code in LANGUAGES if code != "yue"]  # which large-v3 alone knows
    names = ["endoftext", "startoftranscript", *spoken, "translate", "transcribe"]
    names += ["startoflm", "startofprev", "nocaptions", "notimestamps"]
    return [f"<|{name}|>" for name in names]


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Returns the pairs that a BPE merges, in their order, from the rank of each token.

    A token is what its bytes become by the merges of lower ranks, and then by one more: its own.
    """
    made = []
    for token, rank in sorted(ranks.items(), key=lambda each: each[1]):
        if len(token) > 1:
            left, right = _parts(token, ranks, rank)
            made.append((left, right))
    return made


def _parts(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    parts = [bytes([byte]) for byte in token]
    while True:
        pairs = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, at = min(pairs, default=(below, 0))
        if rank >= below:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _written(token: bytes) -> str:
    return "".join(map(_alphabet().__getitem__, token))


@functools.cache
def _alphabet() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()
