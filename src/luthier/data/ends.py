"""What ends an answer: the template's end-of-turn token, or else the EOS token."""

from __future__ import annotations

import functools
import re
from typing import Any

from luthier.core.errors import LuthierError
from luthier.data.bad import BadRow
from luthier.data.template import Template, applied

MARKER = "XqzAnswerMarkerzqX"
"""Stands where an answer would, to see what a template puts around it."""
TAG = re.compile(r"<[^<>\s]+>")


def eos_of(tokenizer: Any) -> str:
    """Returns the EOS token's text; raises `LuthierError` where there is none."""
    if tokenizer.eos_token is None:
        raise LuthierError(
            f"{type(tokenizer).__name__} has no EOS token, so a model could not learn to stop; set "
            "tokenizer.eos_token to a token of its vocabulary."
        )
    return tokenizer.eos_token


def closed(text: str, tokenizer: Any) -> str:
    """Returns a text with one EOS token at its end."""
    return text if text.endswith(eos_of(tokenizer)) else text + eos_of(tokenizer)


def stop_of(template: Template) -> str:
    """What a template ends a turn with: the tokens that stand behind an answer, whether or not another turn follows.

    A last answer may have more behind it (phi-3's `<|endoftext|>`), and then that is not part of the turn. Tokens are
    the tokenizer's special ones and what looks like such (`<|end|>`), else the first word. Empty where nothing stands
    there.
    """
    return _stop_of(template.tokenizer, len(template.tokenizer), template.source)


@functools.lru_cache(maxsize=64)
def _stop_of(tokenizer: Any, size: int, source: str) -> str:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARKER}]
    last = _behind(tokenizer, source, turns)
    more = _behind(tokenizer, source, [*turns, {"role": "user", "content": "b"}])
    stop, token = "", _token(last, tokenizer, size)
    while token and more.startswith(stop + token):
        stop += token
        token = _token(last[len(stop) :], tokenizer, size)
    word = re.match(r"\S+", last)
    return stop or token or (word[0] if word else "")


def _behind(tokenizer: Any, source: str, turns: list[dict[str, str]]) -> str:
    try:
        text = applied(tokenizer, source, turns, {}, {"chat_template": source, "tokenize": False})
    except BadRow:  # a template that refuses so short a conversation tells nothing
        return ""
    return text.partition(MARKER)[2].lstrip()


def _token(text: str, tokenizer: Any, size: int) -> str:
    """The token that a text opens with, or nothing."""
    tag = TAG.match(text)
    return next((m for m in special_marks(tokenizer, size) if text.startswith(m)), tag[0] if tag else "")


def in_pieces(stop: str, tokenizer: Any) -> bool:
    """Whether an end of turn is plain text to a tokenizer, whose last token may stand anywhere."""
    ids = tokenizer(stop, add_special_tokens=False)["input_ids"] if stop else []
    return len(ids) > 1 and ids[-1] not in tokenizer.added_tokens_decoder


def ends_of(template: Template) -> tuple[str, ...]:
    """Returns what may end a turn, the template's own first."""
    marks, stop = special_marks(template.tokenizer, len(template.tokenizer)), stop_of(template)
    return (stop, *marks) if stop else marks


def with_end(text: str, end: int, marks: tuple[str, ...]) -> int:
    """Returns the end of an answer, moved behind the end-of-turn token that follows it."""
    if text[:end].endswith(marks):
        return end
    gap = len(text[end:]) - len(text[end:].lstrip())
    mark = next((m for m in marks if text.startswith(m, end + gap)), "")
    return end + gap + len(mark) if mark else end


def written_marks(template: Template) -> re.Pattern[str]:
    """Returns what finds the special tokens that a template writes itself."""
    return _written(template.tokenizer, len(template.tokenizer), template.source)


@functools.lru_cache(maxsize=64)
def _written(tokenizer: Any, size: int, source: str) -> re.Pattern[str]:
    named = {tokenizer.bos_token: "bos_token", tokenizer.eos_token: "eos_token"}
    marks = [mark for mark in special_marks(tokenizer, size) if mark in source or named.get(mark, mark) in source]
    return re.compile("|".join(map(re.escape, marks)) or r"(?!)")


@functools.lru_cache(maxsize=8)
def special_marks(tokenizer: Any, size: int) -> tuple[str, ...]:
    """Texts of the special tokens, longest first. `size` renews them on new tokens."""
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return tuple(sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True))
