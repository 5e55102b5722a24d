"""Where an answer stands in what a template renders (see `luthier.data.chat`)."""

from __future__ import annotations

import os

from luthier.core.contracts.example import Message
from luthier.data.ends import MARKER, ends_of, with_end
from luthier.data.messages import calls_of, thought_of
from luthier.data.template import GENERATION, Template

Span = tuple[int, int]
"""Start and end of an answer, in characters of the rendered text."""
Beside = tuple[int | None, str | None]
"""The (length of what stands before a turn, what stands after it); None where that depends on what it says."""


def places(template: Template, turns: list[Message], answers: list[int], text: str) -> dict[int, Span | None]:
    """Where each answer stands in `text`, the render of all turns; None where it cannot be told from the rest."""
    declared = _declared(template, turns, text)
    found: dict[int, Span | None] = {}
    for turn in answers:
        own = _clipped(template, turns, turn, text, declared[turn]) if declared else None
        found[turn] = own or _place(template, turns, turn, text)
    return found


def shared(first: str, second: str) -> int:
    """Length of the longest text that opens both."""
    return len(os.path.commonprefix([first, second]))  # noqa: RUF071 - characters are meant


def _declared(template: Template, turns: list[Message], text: str) -> dict[int, Span] | None:
    """The spans that a template marks with `{% generation %}`, or None when it marks not one for
    every answer. White space that a tokenizer trims off the start of a token belongs to the token."""
    if not GENERATION.search(template.source):
        return None
    out = template.tracked(turns)
    offsets = [tuple(pair) for pair in out["offset_mapping"]]
    mask = list(out["assistant_masks"])
    edges = [i for i in range(len(mask) + 1) if (i and mask[i - 1]) != (i < len(mask) and mask[i])]
    before = [offsets[a - 1][1] if a else 0 for a in edges[::2]]
    starts = [end + len(text[end : offsets[a][0]].rstrip()) for a, end in zip(edges[::2], before, strict=True)]
    spans = [(start, offsets[b - 1][1]) for start, b in zip(starts, edges[1::2], strict=True)]
    said = [i for i, m in enumerate(turns) if m["role"] == "assistant"]
    return dict(zip(said, spans, strict=True)) if len(spans) == len(said) else None


def _clipped(template: Template, turns: list[Message], turn: int, text: str, span: Span) -> Span | None:
    """A declared span from where generation starts to the end of the turn: some templates mark the header of the
    answer too, some what follows its end-of-turn token, and a token at the edge may reach out of the mark."""
    start, end = span
    begun = shared((template.attempt(turns[:turn], prompt=True) or "") if turn else "", text)
    start = begun if start < begun < end else start
    stop = with_end(text, _end(template, turns, turn, text) or end, ends_of(template))
    end = stop if start < stop < end and not _without(text[stop:end], ends_of(template)) else end
    return _apart(template, turns, turn, text, (start, start + len(text[start:end].rstrip())))


def _without(text: str, marks: tuple[str, ...]) -> str:
    """What is left of a text without marks and white space."""
    for mark in marks:
        text = text.replace(mark, "")
    return text.strip()


def _place(template: Template, turns: list[Message], turn: int, text: str) -> Span | None:
    before, _ = _around(template, turns, turn, text)
    start = _prompt_end(template, turns[:turn], text, before)
    start = before if start is None else start
    if start is None and turn and thought_of(turns[turn]):
        start = shared(template.attempt(turns[:turn], prompt=True) or "", text)
    end = _end(template, turns, turn, text)
    if start is None or end is None or not text[start:end].strip():
        return None
    return _apart(template, turns, turn, text, (start, end))


def _apart(template: Template, turns: list[Message], turn: int, text: str, span: Span) -> Span | None:
    """The span, unless it holds what a tool said to it (Gemma 4 renders results within the turn that asked for
    them): then up to where the turn ends without them, or None where the answer goes on behind them."""
    reached = _reached(template, turns, turn, text)
    if reached is None or span[1] <= reached:
        return span
    end = _turn_end(template, turns[: turn + 1], text)
    return (span[0], end) if end is not None and span[0] < end <= reached else None


def _reached(template: Template, turns: list[Message], turn: int, text: str) -> int | None:
    """Where the result of a tool that follows a turn differs from a marker in its stead; None without one."""
    after = turn + 1
    if after == len(turns) or turns[after]["role"] != "tool":
        return None
    other = template.attempt([*turns[:after], {**turns[after], "content": MARKER}, *turns[after + 1 :]])
    return None if other is None else shared(text, other)


def _around(template: Template, turns: list[Message], turn: int, text: str) -> Beside:
    message = turns[turn]
    before, after = _beside(template, turns, turn, {"role": message["role"], "content": MARKER}, text)
    if calls_of(message) or (before is not None and after is not None):
        return before, after
    first, last = _beside(template, turns, turn, {**message, "content": MARKER}, text)
    known = before is not None or thought_of(message)  # which would stand before the marker
    return (before if known else first), (last if after is None else after)


def _beside(template: Template, turns: list[Message], turn: int, stand_in: Message, text: str) -> Beside:
    """What stands around a turn, where it stands around another in its stead too."""
    before, found, after = (template.attempt([*turns[:turn], stand_in, *turns[turn + 1 :]]) or "").partition(MARKER)
    if not found or MARKER in after:
        return None, None
    return (len(before) if text.startswith(before) else None), (after if text.endswith(after) else None)


def _end(template: Template, turns: list[Message], turn: int, text: str) -> int | None:
    """Where a turn ends in `text`, its end-of-turn token not counted, or counted where only the turns up to it tell."""
    _, after = _around(template, turns, turn, text)
    return len(text) - len(after) if after is not None else _turn_end(template, turns[: turn + 1], text)


def _turn_end(template: Template, messages: list[Message], text: str) -> int | None:
    """Where the turns up to here end in `text`, without the whitespace that follows them."""
    upto = (template.attempt(messages) or "").rstrip()
    return len(upto) if upto and text.startswith(upto) else None


def _prompt_end(template: Template, messages: list[Message], text: str, content: int | None) -> int | None:
    """Where the prompt for generation ends in `text`; None when the template has none, or another
    one."""
    if not messages:
        return None
    prompt = template.attempt(messages, prompt=True)
    if prompt is None or not text.startswith(prompt):
        return None
    if prompt != template.attempt(messages):
        return None if content is not None and len(prompt) > content else len(prompt)
    if content is not None:  # no prompt for generation: a header of the answer may still be to come
        return None if text[len(prompt) : content].strip() else len(prompt)
    header = _header(template, messages)
    return len(prompt + header) if header is not None and text.startswith(prompt + header) else None


def _header(template: Template, messages: list[Message]) -> str | None:
    """What a template without a prompt for generation puts before an answer, white space at its end not counted."""
    upto = template.attempt(messages) or ""
    before, found, _ = (template.attempt([*messages, {"role": "assistant", "content": MARKER}]) or "").partition(MARKER)
    return before[len(upto) :].rstrip() if found and before.startswith(upto) else None
