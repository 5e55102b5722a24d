"""Bounds before work: whether a text can fit is asked of its beginning, before all of it is rendered and tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from luthier.core.contracts.example import Example, last_answer
from luthier.data.bad import BadRow
from luthier.data.place import Span

SURE = 64
"""Tokens beyond twice the bound from which on a beginning tells of the whole: its own end may be cut within a word."""
QUICK = 20_000
"""Characters that are tokenised whole without a look at their beginning."""
DEEPEST = 64
"""Of a prompt that is cut (`truncate`), at most so many times the maximum is read."""


def refuse_long(example: Example, tokenizer: Any, most: int | None, truncate: bool) -> None:
    """Raises `BadRow` for a conversation that cannot fit into `most` tokens, at a cost that follows `most`.

    With `truncate` a prompt may be longer, up to `DEEPEST` times the maximum. What a template may leave out (a thought,
    beside the content or in it) does not count.
    """
    turns = example.messages or []
    if most is None or sum(len(turn.get("content") or "") for turn in turns) <= max(QUICK, 16 * most):
        return
    last = last_answer(turns)
    answer = said(turns[last]) if last == len(turns) - 1 or truncate else ""
    if beyond(answer, tokenizer, most):
        raise BadRow(f"the answer alone has {len(answer):,} characters, more than {most} tokens hold, the maximum")
    texts, bound = list(map(said, turns)), DEEPEST * most if truncate else most
    if more_than(texts, tokenizer, bound):
        told = f"{sum(map(len, texts)):,} characters are more than {bound} tokens"
        cut = f", {DEEPEST} times the maximum of {most}: too much to cut off; shorten it"
        raise BadRow(told + (cut if truncate else f", the maximum is {most} (raise max_length, or truncate prompts)"))


def more_than(texts: Sequence[str], tokenizer: Any, most: int) -> bool:
    """Whether texts that stand one behind another are surely more than `most` tokens, a cost that follows `most`."""
    if sum(map(len, texts)) <= max(QUICK, 16 * most):
        return False
    left = 0
    for text in texts:
        left += at_least(text, tokenizer, 2 * most + SURE)
        if left > 2 * most + SURE:
            return True
    return False


def said(turn: Any) -> str:
    """Returns what of a turn every template renders: its content, less a thought that opens it."""
    return str(turn.get("content") or "").rpartition("</think>")[2]


def refuse_long_text(text: str, tokenizer: Any, most: int | None, what: str, remedy: str = "") -> None:
    """Raises `BadRow` for a plain text of more than `most` tokens, from its beginning where that tells it."""
    if most is not None and len(text) > max(QUICK, 16 * most) and beyond(text, tokenizer, most):
        raise BadRow(f"{what} of {len(text):,} characters is more than {most} tokens, the maximum{remedy}")


def beyond(text: str, tokenizer: Any, most: int) -> bool:
    """Whether a text is surely more than `most` tokens."""
    return at_least(text, tokenizer, 2 * most + SURE) > 2 * most + SURE


def at_least(text: str, tokenizer: Any, enough: int) -> int:
    """Returns the tokens of a beginning of `text` that are more than `enough`, or of all of it.

    Beginnings are tokenised that grow by four times, so the work follows `enough` for texts of usual words, and is at
    worst that of the whole text by a third more.
    """
    count = 0
    for end in _ends(len(text), 8 * enough):
        count = len(tokenizer(text[:end], add_special_tokens=False, verbose=False)["input_ids"])
        if count > enough:
            break
    return count


def _ends(length: int, first: int) -> Iterator[int]:
    end = first
    while end < length:
        yield end
        end *= 4
    yield length


WINDOW = 2**18
"""Characters of a long text that are tokenised at a time."""
OVERLAP = 2**11
"""Characters before a window that are tokenised along with it, so that it is split as it is in the whole."""


def windowed(text: str, tokenizer: Any) -> Iterator[tuple[list[int], list[Span]]]:
    """Yields (ids, places in the text) of a long text, window by window; together they are those of the whole text.

    A window is tokenised from `OVERLAP` characters earlier, and begins where two tokens meet in the window before and
    the tokens behind come out the same in both. Raises `BadRow` for a text that has no such place.
    """
    begin = 0
    while begin < len(text):
        last = begin + WINDOW >= len(text)
        ids, spans = _from(text, begin, len(text) if last else begin + WINDOW + OVERLAP, tokenizer)
        end = len(text) if last else _seam(text, ids, spans, begin + WINDOW, tokenizer)
        count = sum(b <= end for _, b in spans)
        yield ids[:count], spans[:count]
        begin = end


def _from(text: str, begin: int, end: int, tokenizer: Any) -> tuple[list[int], list[Span]]:
    """The tokens of `text[begin:end]` as they are behind what stands before it."""
    base = max(0, begin - OVERLAP)
    out = tokenizer(text[base:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = [(base + a, base + b) for a, b in out["offset_mapping"]]
    first = next((i for i, (_, b) in enumerate(spans) if b > begin), len(spans)) if begin else 0
    return out["input_ids"][first:], spans[first:]


def _seam(text: str, ids: list[int], spans: list[Span], before: int, tokenizer: Any) -> int:
    """The last place up to `before` from which on the text is tokenised alike in the next window: before a space, or
    else between any two tokens."""
    ends = sorted({b for _, b in spans if b <= before}, reverse=True)
    words = [b for b in ends if text[b].isspace() and not text[b - 1].isspace()]
    for place in (*words[:TRIED], *ends[:TRIED]):
        behind = [(i, span) for i, span in zip(ids, spans, strict=True) if place < span[1] <= place + OVERLAP // 2]
        again = list(zip(*_from(text, place, place + OVERLAP, tokenizer), strict=True))
        if len(behind) > 1 and again[: len(behind)] == behind:
            return place
    raise BadRow(f"a text of {len(text):,} characters cannot be tokenised in parts: it has no place to part it at")


TRIED = 16
"""Places that are tried for a seam, of each kind."""
