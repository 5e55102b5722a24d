"""From a rendered text to tokens, each of which knows the answer that it belongs to."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from luthier.core.contracts.example import Example
from luthier.core.errors import LuthierError
from luthier.data.bad import BadRow, named
from luthier.data.bounds import windowed
from luthier.data.chat import Rendered, rendered
from luthier.data.ends import in_pieces, stop_of
from luthier.data.pictures import Seen, check_blind, seeing, unfolded
from luthier.data.place import Span
from luthier.data.template import Template, has_template


def prompt_of(example: Example, tokenizer: Any) -> str:
    """Returns the text that generation starts from: everything before the last answer.

    Its tokens are `prompt_ids`: a template's text already holds its special tokens, so tokenising
    it again with `add_special_tokens=True` would double the BOS. Raises `LuthierError` for a row
    without an answer to generate.
    """
    found = _prompted(example, tokenizer)
    return found.text[: found.spans[-1][0]]


def prompt_ids(example: Example, tokenizer: Any, hold: bool = False) -> list[int]:
    """Token ids of `prompt_of`: exactly those that stand before the last answer in training.

    Of a row with pictures they are `Seen`; with `hold`, it keeps what the processor made of the pictures.
    """
    found = _prompted(example, tokenizer)
    ids, owner = tokens(found.text, found.spans, tokenizer, special=not has_template(tokenizer))
    with named(example.row):
        if not example.images:
            check_blind(ids, tokenizer)
            return ids[: owner.index(len(found.spans) - 1)]
        made = unfolded(found.text, ids, owner, example.images, tokenizer)
    stop = made.owner.index(len(found.spans) - 1)
    columns = {name: values[:stop] for name, values in made.columns.items()}
    return Seen(made.ids[:stop], columns, example.images, seeing(tokenizer), made.inputs if hold else None)


def stop_text(tokenizer: Any) -> str:
    """Returns the text that ends an answer where no token of the tokenizer does; empty where one does, as it should."""
    stop = stop_of(Template(tokenizer)) if has_template(tokenizer) else ""
    return stop if in_pieces(stop, tokenizer) else ""


def _prompted(example: Example, tokenizer: Any) -> Rendered:
    with named(example.row):
        if example.messages is None:
            raise BadRow("not a prompt with an answer, so there is nothing to generate")
        if example.images:
            seeing(tokenizer)
        return rendered(example, tokenizer, asked=True)


def tokens(text: str, spans: list[Span], tokenizer: Any, special: bool) -> tuple[list[int], list[int]]:
    """Tokenises a rendered text: (token ids, number of the answer that each token belongs to, or -1).

    Tokens are told apart by their character offsets. Where the tokens of a prompt are others when
    it stands alone (a token runs over the boundary, or the answer changes how the line breaks
    before it are split), the text is cut at the boundary, so training sees the prompt as
    generation will. `special` puts the opening special tokens first.
    """
    _refuse_slow(tokenizer)
    ids, extents = _cut(text, [start for start, _ in spans], tokenizer)
    owner = _owners(extents, spans)
    opening = list(_opening(tokenizer, len(tokenizer))) if special else []
    if ids[: len(opening)] == opening:
        opening = []
    return opening + ids, [-1] * len(opening) + owner


def parts_of(text: str, tokenizer: Any) -> Iterator[tuple[list[int], list[bool]]]:
    """Yields (token ids, whether each is learned) of a long text, part by part, as `tokens` has them of the whole."""
    _refuse_slow(tokenizer)
    opening = list(_opening(tokenizer, len(tokenizer)))
    for ids, extents in windowed(text, tokenizer):
        if opening and ids[: len(opening)] != opening:
            yield opening, [False] * len(opening)
        opening = []
        yield ids, [end > 0 for _, end in extents]


def _refuse_slow(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise LuthierError(
            f"{type(tokenizer).__name__} gives no character offsets, by which the answers are found; "
            "use the fast version of this tokenizer (AutoTokenizer loads it from tokenizer.json)."
        )


def _cut(text: str, starts: list[int], tokenizer: Any) -> tuple[list[int], list[Span]]:
    """The pieces of a text, cut at those `starts` before which it would otherwise read differently.

    A cut that changes what the ids decode to (some tokenizers open every text with a space) is
    not made; then the token that runs over the boundary belongs to the answer.
    """
    done, spread = [], []
    base, (ids, extents) = 0, _pieces(text, tokenizer)
    for start in starts:
        head, head_extents = _pieces(text[base:start], tokenizer, base)
        if ids[: len(head)] == head:
            continue
        tail, tail_extents = _pieces(text[start:], tokenizer, start)
        if _decode(tokenizer, head + tail) == _decode(tokenizer, ids):
            done, spread = done + head, spread + head_extents
            base, ids, extents = start, tail, tail_extents
    return done + ids, spread + extents


def _owners(extents: list[Span], spans: list[Span]) -> list[int]:
    """The answer that each token reaches into. Whitespace may be trimmed off a start, never off an end alone."""
    if len(spans) == 1:  # as in most rows
        ((a, b),) = spans
        return [0 if start < b and end > a else -1 for start, end in extents]
    return [next((i for i, (a, b) in enumerate(spans) if start < b and end > a), -1) for start, end in extents]


def _pieces(text: str, tokenizer: Any, base: int = 0) -> tuple[list[int], list[Span]]:
    """(ids, extents in characters from `base`) of a text, without special tokens around it."""
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return out["input_ids"], [(base + start, base + end) for start, end in out["offset_mapping"]]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@functools.lru_cache(maxsize=8)
def _opening(tokenizer: Any, size: int) -> tuple[int, ...]:
    """What the tokenizer puts before a text: its BOS, or nothing. `size` renews it on new tokens."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
    return tuple(full[: starts[0]]) if starts else ()
