"""Text from tokens as they come: whole characters only, and nothing that may yet turn out to be a stop text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

BROKEN = "\ufffd"
"""What a decoder shows for bytes that are no character, or not yet."""
BEFORE = 5
"""Prompt tokens that are decoded along: some decoders drop the space before the first word."""
LONGEST = 8
"""Tokens that may wait to complete one character (of at most 4 bytes); more are no character."""


class Reader:
    """The text of one answer, token by token.

    A token's text depends on its neighbours, so each is decoded behind those before it, and only what follows their
    text is new. Texts of all calls together are the answer, up to the earliest of the texts that stop.
    """

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str], shown: frozenset[int] = frozenset()
    ) -> None:
        """`shown` are special tokens that are text; the others are not."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decode = (
            decoded if not shown else functools.partial(decoded_without, hidden=special_ids(tokenizer) - shown)
        )
        self._ids = list(prompt[-BEFORE:])
        self._known = self._decode(tokenizer, self._ids)
        if self._known.endswith(BROKEN):  # the prompt ends within a character
            self._ids, self._known = [], ""
        self._from, self._until = 0, len(self._ids)
        self._held = ""
        self.stopped = False
        """One of the texts that stop has come."""

    def add(self, token: int) -> str:
        """Returns what may be shown after one more token."""
        self._ids.append(token)
        text = self._decode(self._tokenizer, self._ids[self._from :])
        if text.endswith(BROKEN) and len(self._ids) - self._until < LONGEST:
            return ""
        self._held += text[len(self._known) :]
        self._from, self._until = self._until, len(self._ids)
        self._known = self._decode(self._tokenizer, self._ids[self._from :])
        return self._released(self._held)

    def rest(self) -> str:
        """Returns what was held back, at the end of the answer."""
        text = self._decode(self._tokenizer, self._ids[self._from :])
        self._held += text[len(self._known) :] if len(self._ids) > self._until else ""
        self._until = len(self._ids)
        ready = self._released(self._held)
        ready, self._held = ready + self._held, ""
        return ready

    def _released(self, text: str) -> str:
        if self.stopped:
            return ""
        found = [place for place in map(text.find, self._stop) if place >= 0]
        self.stopped = bool(found)
        if found:
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Returns the text of tokens, without special ones."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Returns the tokens that a decoder leaves out."""
    added = (token for token, what in tokenizer.added_tokens_decoder.items() if what.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def decoded_without(tokenizer: Any, ids: Sequence[int], hidden: Collection[int]) -> str:
    """Returns the text of tokens, special ones by their names, without those that are hidden."""
    ids = [each for each in ids if each not in hidden]
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def token_texts(tokenizer: Any) -> Callable[[int], str]:
    """Returns the text of a token alone, special ones by their names, with the space before a word."""

    def text(*ids: int) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    before = tokenizer.encode("a", add_special_tokens=False)[-1:]
    known = len(text(*before))
    return functools.lru_cache(maxsize=1 << 16)(lambda token: text(*before, token)[known:])
