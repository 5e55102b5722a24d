"""Where answers end: the tokens and the text that stop them, and what they say up to there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.errors import LuthierError
from luthier.data import Example, encode, stop_text

IGNORED = -100
"""Label of what is not learned."""
PLACEHOLDER = {"role": "assistant", "content": "a"}
"""Stands for the answer where a prompt has to be told from one."""


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: EOS, what the checkpoint stops at, and what the chat template ends a turn with."""
    known = model.generation_config.eos_token_id if model.generation_config is not None else None
    known = known if isinstance(known, list) else [known]
    if wrong := [each for each in known if each is not None and not isinstance(each, int)]:
        raise LuthierError(
            f"the model's generation settings name {wrong[0]!r:.60} as a token that ends an answer; expected its id, a "
            "whole number (generation_config.json)."
        )
    found = [tokenizer.eos_token_id, *known]
    if not model.config.is_encoder_decoder:
        found.append(_turn_end(tokenizer))
    return sorted({stop for stop in found if stop is not None})


def _turn_end(tokenizer: Any) -> int | None:
    """The last token that training on a conversation would teach."""
    turn = Example(row=1, messages=[{"role": "user", "content": "a"}, PLACEHOLDER])
    try:
        labels = encode(turn, tokenizer, max_length=None)["labels"]
    except LuthierError:  # a template that refuses so short a conversation tells nothing
        return None
    if stop_text(tokenizer):  # whose last token may stand anywhere
        return None
    return next(label for label in reversed(labels) if label != IGNORED)  # a line break may follow it


def text_of(tokenizer: Any, ids: Sequence[int], stops: Sequence[int]) -> str:
    """Returns what new tokens say, up to the first that stops."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text = tokenizer.decode(list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    stop = stop_text(tokenizer)
    return text.partition(stop)[0] if stop else text
