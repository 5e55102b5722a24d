"""From a conversation to text, and to the places in it that the model is to produce.

Chat templates differ in every way they can, so nothing about one is assumed; each place is
measured on the template. An answer starts where the prompt for generation ends: the render of the
turns before it with `add_generation_prompt=True`, when that opens the full text. Otherwise it
starts at its content, which is found by rendering the conversation once more with a marker in its
stead: what stands before and after the marker stands before and after the answer. So an empty
thought that a template puts before an answer is learned where generation would have to produce it
(Qwen3's last turn), and not where the template takes it out (its earlier turns). An answer ends
with the end-of-turn token after its content; the line break that many templates add after that
token is not learned. A template with `{% generation %}` says itself what the assistant produces,
and is believed, but for what the prompt for generation holds already.

Without a chat template the turns follow each other as plain text: a line break between prompt and
answer unless one of them has whitespace there, and the EOS token after each answer.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any

from luthier.core.contracts.example import Example, Message
from luthier.core.errors import LuthierError
from luthier.data.bad import BadRow

Span = tuple[int, int]
"""Start and end of an answer, in characters of the rendered text."""

MARKER = "XqzAnswerMarkerzqX"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def rendered(example: Example, tokenizer: Any) -> tuple[str, list[Span]]:
    """The whole text of an example, and the answers in it (each with its end-of-turn token).

    Raises `BadRow` when the template refuses the conversation or an answer cannot be placed in
    what it renders.
    """
    if example.messages is None:
        if example.text is None:
            raise BadRow("neither messages nor a text to learn")
        text = example.text + _eos(tokenizer)
        return text, [(0, len(text))]
    if not has_template(tokenizer):
        return _plain(example.messages, example.context, tokenizer)
    text = _render(tokenizer, example.messages)
    found: list[Span] = []
    spans = _declared(tokenizer, example, text)
    for i, turn in enumerate(_answers(example)):
        place = _clipped(tokenizer, example.messages[:turn], text, spans[i]) if spans else None
        found.append(place or _place(tokenizer, example.messages, turn, text))
        _check_shown(tokenizer, example.messages, turn, text[slice(*found[-1])])
    return _ended(text, found, tokenizer)


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def _eos(tokenizer: Any) -> str:
    if tokenizer.eos_token is None:
        raise LuthierError(
            f"{type(tokenizer).__name__} has no EOS token, so a model could not learn to stop; set "
            "tokenizer.eos_token to a token of its vocabulary."
        )
    return tokenizer.eos_token


def _plain(messages: list[Message], context: int, tokenizer: Any) -> tuple[str, list[Span]]:
    text, spans = "", []
    for i, message in enumerate(messages):
        content = message.get("content") or ""
        glued = not text or text[-1].isspace() or content[:1].isspace() or text.endswith(_eos(tokenizer))
        text += "" if glued else "\n"
        start = len(text)
        text += content
        if message["role"] == "assistant":
            text += _eos(tokenizer)
            if i >= context:
                spans.append((start, len(text)))
    return text, spans


def _render(tokenizer: Any, messages: list[Message], prompt: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, TypeError, LookupError, ValueError) as error:
        raise BadRow(f"the chat template refuses this conversation: {error}") from None


def _try_render(tokenizer: Any, messages: list[Message], prompt: bool = False) -> str | None:
    """As `_render`, but None when the template refuses a part of a conversation that it takes as a
    whole."""
    try:
        return _render(tokenizer, messages, prompt)
    except BadRow:
        return None


def _answers(example: Example) -> list[int]:
    """Indices of the assistant turns in the loss."""
    turns = example.messages or []
    return [i for i, m in enumerate(turns) if m["role"] == "assistant" and i >= example.context]


def _declared(tokenizer: Any, example: Example, text: str) -> list[Span] | None:
    """The spans that a template marks with `{% generation %}`, or None when it marks not one for
    every answer."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or not GENERATION.search(template):
        return None
    out = tokenizer.apply_chat_template(
        example.messages,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    offsets = [tuple(pair) for pair in out["offset_mapping"]]
    mask = list(out["assistant_masks"])
    edges = [i for i in range(len(mask) + 1) if (i and mask[i - 1]) != (i < len(mask) and mask[i])]
    spans = [(offsets[a][0], offsets[b - 1][1]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    turns = [i for i, m in enumerate(example.messages or []) if m["role"] == "assistant"]
    return spans[len(turns) - len(_answers(example)) :] if len(spans) == len(turns) else None


def _clipped(tokenizer: Any, before: list[Message], text: str, span: Span) -> Span:
    """A declared span from where generation starts: some templates mark the header of the answer too, some the line
    break after its end-of-turn token, and a token at the edge may reach out of the mark."""
    start, end = span
    prompt = (_try_render(tokenizer, before, prompt=True) or "") if before else ""
    # characters are meant: a prompt may go on with an open thought that the text lacks
    shared = len(os.path.commonprefix([prompt, text]))  # noqa: RUF071
    start = shared if start < shared < end else start
    return start, start + len(text[start:end].rstrip())


def _check_shown(tokenizer: Any, messages: list[Message], turn: int, answer: str) -> None:
    """Raises when a template leaves out the content of an answer (one that wants a list of parts, for instance)."""
    content = (messages[turn].get("content") or "").strip()
    if content in answer or MARKER in (_try_render(tokenizer, _marked(messages, turn)) or ""):
        return
    raise BadRow(f"the chat template does not render the content of message {turn + 1}; nothing of it would be learned")


def _marked(messages: list[Message], turn: int) -> list[Message]:
    return [*messages[:turn], {**messages[turn], "content": MARKER}, *messages[turn + 1 :]]


def _place(tokenizer: Any, messages: list[Message], turn: int, text: str) -> Span:
    """Where turn `turn` stands in `text`, the render of all turns (see the module's docstring)."""
    before, after = _around(tokenizer, messages, turn, text)
    start = _prompt_end(tokenizer, messages[:turn], text, before)
    end = len(text) - len(after) if after is not None else _turn_end(tokenizer, messages[: turn + 1], text)
    if start is None:
        start = before
    if start is None or end is None or not text[start:end].strip():
        raise BadRow(
            f"the chat template renders the answer of message {turn + 1} so that it cannot be told from the prompt; "
            "nothing of it would be learned"
        )
    return start, end


def _around(tokenizer: Any, messages: list[Message], turn: int, text: str) -> tuple[int | None, str | None]:
    """(length of what stands before the content of a turn, what stands after it); None where that
    depends on it."""
    if not messages[turn].get("content"):
        return None, None
    before, found, after = (_try_render(tokenizer, _marked(messages, turn)) or "").partition(MARKER)
    if not found or MARKER in after:
        return None, None
    return (
        len(before) if text.startswith(before) else None,
        after if text.endswith(after) else None,
    )


def _prompt_end(tokenizer: Any, messages: list[Message], text: str, content: int | None) -> int | None:
    """Where the prompt for generation ends in `text`; None when the template has none, or another
    one."""
    if not messages:
        return None
    prompt = _try_render(tokenizer, messages, prompt=True)
    if prompt is None or not text.startswith(prompt) or (content is not None and len(prompt) > content):
        return None
    ignored = prompt == _try_render(tokenizer, messages)  # then a header of the answer may still be to come
    if ignored and (content is None or text[len(prompt) : content].strip()):
        return None
    return len(prompt)


def _turn_end(tokenizer: Any, messages: list[Message], text: str) -> int | None:
    """Where the turns up to here end in `text`, without the whitespace that follows them."""
    upto = (_try_render(tokenizer, messages) or "").rstrip()
    return len(upto) if upto and text.startswith(upto) else None


def _ended(text: str, spans: list[Span], tokenizer: Any) -> tuple[str, list[Span]]:
    """The spans with the end-of-turn token that follows each; a last answer without one gets the
    EOS token."""
    marks = _marks(tokenizer, len(tokenizer))
    spans = [(start, _with_mark(text, end, marks)) for start, end in spans]
    start, end = spans[-1]
    if not text[start:end].endswith(marks):
        text = text[:end] + _eos(tokenizer)
        spans[-1] = (start, len(text))
    return text, spans


def _with_mark(text: str, end: int, marks: tuple[str, ...]) -> int:
    if text[:end].endswith(marks):
        return end
    gap = len(text[end:]) - len(text[end:].lstrip())
    mark = next((m for m in marks if text.startswith(m, end + gap)), "")
    return end + gap + len(mark) if mark else end


@functools.lru_cache(maxsize=8)
def _marks(tokenizer: Any, size: int) -> tuple[str, ...]:
    """Texts of the special tokens, longest first."""
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return tuple(sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True))
