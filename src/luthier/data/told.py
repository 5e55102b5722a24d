"""What the user should hear of rows that are used all the same: notes, each told once with its count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from luthier.core.contracts.example import Example
from luthier.data.sizes import Measured

TOLD = "told"
"""Where a feature keeps what the user should hear of its row: `{note: how many turns it is true of}`."""
EARLIER = "answers before the last one are read and not learned: an encoder-decoder learns one answer a row"
LATER = "turns behind the last answer are left out"
OPENING = "prompts that were cut to fit lost their system message or tools, which stand first"


def told(*parts: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns what the user should hear of encoded rows: `{note: "12 in 5 rows"}`, each note once."""
    found = [each.notes() if isinstance(each, Measured) else counted(each) for each in parts]
    return phrased(sum((turns for turns, _ in found), Counter()), sum((rows for _, rows in found), Counter()))


def counted(features: Iterable[dict[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """Returns each note with (the turns, the rows) that it is true of."""
    turns: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for feature in features:
        both: Counter[str] = Counter()  # of a pair, both answers
        for each in (feature, *feature.get("also", ())):
            both.update(each.get(TOLD, {}))
        turns.update(both)
        rows.update(both.keys())
    return turns, rows


def phrased(turns: Counter[str], rows: Counter[str]) -> dict[str, str]:
    """Returns `{note: "12 in 5 rows"}`."""
    return {note: f"{count:,} in {rows[note]:,} row{'s' * (rows[note] != 1)}" for note, count in turns.items()}


def noted(notes: Counter[str]) -> dict[str, dict[str, int]]:
    """Returns the entry of a feature for its notes, if there are any."""
    there = {note: count for note, count in notes.items() if count}
    return {TOLD: there} if there else {}


def doubled(ids: list[int], tokenizer: Any) -> Counter[str]:
    """Returns a note where a text opens with two BOS tokens: one that stands in the row, or two of the template."""
    twice = len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
    return Counter({f"the text opens with {tokenizer.bos_token!r} twice": 1} if twice else {})


HOLLOW = ("nan", "none", "null", "n/a", "#n/a", "na", "<na>", "nat", "undefined")
ANSWERLESS = "answers that only say nan, None, null or N/A, as files write missing values, are learned as they stand"


def hollow(example: Example) -> Counter[str]:
    """Returns a note on answers that seem to be missing ones, written as text."""
    turns = example.messages or []
    last = [i for i, m in enumerate(turns) if m["role"] == "assistant" and i >= example.context]
    found = [i for i in last if (turns[i].get("content") or "").strip().lower() in HOLLOW]
    return Counter({ANSWERLESS: len(set(found) - set(example.masked))} if found else {})


def cut_off(example: Example, count: int) -> Counter[str]:
    """Returns a note where `truncate` takes `count` tokens of a prompt that opens with a system message or tools."""
    first = (example.messages or [{"role": ""}])[0]["role"]
    return Counter({OPENING: 1} if count and (example.tools or first in ("system", "developer")) else {})


def unlearned(example: Example, last: int) -> Counter[str]:
    """Notes on what an encoder-decoder leaves of a conversation: the prompt, and its last answer."""
    turns = example.messages or []
    notes = hollow(example)
    notes.update({f"an encoder-decoder reads no {name!r} of chat_template_kwargs": 1 for name in example.template})
    early = [i for i, m in enumerate(turns[:last]) if m["role"] == "assistant" and i >= example.context]
    notes[EARLIER] += len(set(early) - set(example.masked))
    notes[LATER] += len(turns) - 1 - last
    return notes
