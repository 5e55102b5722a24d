"""From messages and texts to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.errors import LuthierError
from luthier.data import Example, prompt_ids
from luthier.data.bounds import more_than, said
from luthier.serving.http.refusal import Refusal
from luthier.serving.http.schema import ChatBody

PLACEHOLDER = {"role": "assistant", "content": "a"}
"""Stands for the answer, before which the prompt ends."""


def chat_ids(body: ChatBody, tokenizer: Any, most: int, variables: Mapping[str, Any] = {}) -> list[int]:
    """Token ids of a conversation up to the answer: those that stand before an answer in training.

    With pictures they are `Seen`. `variables` of the chat template hold where the call gives none of that name. Raises
    `Refusal` for more than `most` tokens, before all of them are rendered and tokenised.
    """
    turns = body.spoken()
    _refuse_long([said(turn) for turn in turns], tokenizer, most, "messages")
    example = Example(
        row=1,
        messages=[*turns, PLACEHOLDER],
        context=len(turns),
        tools=[tool.shown() for tool in body.shown_tools()] or None,
        documents=body.documents or None,
        template={**variables, **body.chat_template_kwargs},
        images=tuple(body.pictures()),
    )
    try:
        return prompt_ids(example, tokenizer, hold=True)
    except LuthierError as error:
        reason = f"messages: {str(error).removeprefix('row 1: ')}"
        raise Refusal(400, reason, param="messages", code="invalid_value") from None


def text_ids(prompt: str | Sequence[int], tokenizer: Any, most: int) -> list[int]:
    """Token ids of a text, with the special tokens that the tokenizer puts around texts; ids are checked and kept."""
    if isinstance(prompt, str):
        _refuse_long([prompt], tokenizer, most, "prompt")
        return tokenizer(prompt)["input_ids"]
    wrong = [i for i in prompt if not 0 <= i < len(tokenizer)]
    if wrong:
        message = f"prompt: {wrong[0]} is not a token id; expected 0 to {len(tokenizer) - 1:,}."
        raise Refusal(400, message, param="prompt", code="invalid_value")
    return list(prompt)


def _refuse_long(texts: Sequence[str], tokenizer: Any, most: int, what: str) -> None:
    if more_than(texts, tokenizer, most):
        message = (
            f"{what}: {sum(map(len, texts)):,} characters are more than the {most:,} tokens that there is room for."
        )
        raise Refusal(400, message, param=what, code="context_length_exceeded")
