"""Layouts of rows that tell good answers from bad ones: pairs of a chosen and a rejected one, answers with a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.core.contracts.example import Message, last_answer
from luthier.data.around import THOUGHT, given
from luthier.data.bad import BadRow
from luthier.data.layout import LAYOUTS, Layout, columns_in, context_of, prompt_completion, text_of
from luthier.data.table import Row
from luthier.data.turns import checked, decoded, is_assistant, kind, turns, unpacked
from luthier.data.wanted import ANSWERED, JUDGED, judged, judgement

Parse = Callable[[Row, Path | None], dict[str, Any]]
TASKS = ("causal-lm", "reward")


def pair(row: Row, folder: Path | None) -> Row:
    """Returns `prompt`, `chosen`, `rejected`: strings, or lists of messages.

    The prompt may also be an `instruction` with its `input`, a `question`, or what both answers open with.
    """
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    prompt = _prompt(row)
    whole = [isinstance(each, list) and not is_assistant(each[0]) for each in (chosen, rejected)]
    if prompt is None or all(whole):
        stated, (prompt, chosen, rejected) = prompt, _shared(chosen, rejected)
        if stated is not None:
            _check_stated(stated, prompt)
    return _pair(row, prompt, chosen, rejected, ("chosen", "rejected"), folder)


def ranked(row: Row, folder: Path | None) -> Row:
    """Returns `conversations` up to the answer, with `chosen` and `rejected`, a turn each: LLaMA-Factory's ranking."""
    before = decoded(row.get("conversations"))
    if not isinstance(before, list) or not before or is_assistant(before[-1] if isinstance(before[-1], dict) else {}):
        raise BadRow("'conversations' beside 'chosen' and 'rejected' has to end with what both answer")
    rest = {key: value for key, value in row.items() if key != "conversations"}
    return _pair(rest, before, _answer(row, "chosen"), _answer(row, "rejected"), ("chosen", "rejected"), folder)


def openai(row: Row, folder: Path | None) -> Row:
    """Returns `input` with `messages`, `preferred_output` and `non_preferred_output`: OpenAI's preference data."""
    asked = decoded(row.get("input"))
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise BadRow("'input' is not an object with a list of 'messages'")
    tools = {"tools": asked["tools"]} if asked.get("tools") else {}
    rest = {key: value for key, value in row.items() if key != "input"}
    chosen, rejected = (_answer(row, name) for name in OUTPUTS)
    return _pair({**rest, **tools}, asked["messages"], chosen, rejected, OUTPUTS, folder)


def _pair(row: Row, prompt: Any, chosen: Any, rejected: Any, names: tuple[str, str], folder: Path | None) -> Row:
    around = {key: value for key, value in row.items() if key != "context"}
    if given(row, *THOUGHT) is not None:
        raise BadRow("a thought beside two answers does not say to which of them it belongs; put it on its turn")
    opening = context_of(row)
    if opening and not isinstance(prompt, str):
        raise BadRow("'context' beside turns does not say where it belongs; put it into a turn")
    said = f"{opening}\n\n{prompt}" if opening else prompt
    sides = []
    for name, answer in zip(names, (chosen, rejected), strict=True):
        try:
            sides.append(prompt_completion({**around, "prompt": said, "completion": answer}, folder))
        except BadRow as reason:
            raise BadRow(str(reason).replace("'completion'", repr(name)).replace("'answer'", repr(name))) from None
        if sides[-1]["masked"]:
            raise BadRow(f"{name!r} keeps a turn out of the loss, and answers are compared whole; take its flag out")
    if sides[0]["messages"] == sides[1]["messages"]:
        raise BadRow(f"{names[0]!r} and {names[1]!r} are the same: nothing is preferred")
    return sides[0] | {"rejected": sides[1]["messages"]}


def _prompt(row: Row) -> Any:
    """The prompt that a row states, or None."""
    if row.get("prompt") not in (None, "", []):
        return unpacked(row["prompt"])
    if row.get("instruction") is not None:
        more = f"\n\n{text_of(row, 'input')}" if row.get("input") else ""
        return text_of(row, "instruction") + more
    return text_of(row, "question") if row.get("question") is not None else None


def _answer(row: Row, name: str) -> Any:
    """An answer: a text, or turns of which there is one at least."""
    value = decoded(row.get(name)) if isinstance(row.get(name), dict) else unpacked(row.get(name))
    if value is None:
        raise BadRow(f"no {name!r}")
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        if not value or not all(isinstance(turn, dict) for turn in value):
            raise BadRow(f"{name!r} is {'an empty list' if not value else 'a list of others than messages'}")
        return value
    return checked(value, name)


def _shared(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """(what both open with, the rest of each); of texts, up to the last white space in common, as TRL divides them."""
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise BadRow(f"'chosen' is {kind(chosen)} and 'rejected' {kind(rejected)}: both have to hold the prompt alike")
    if chosen == rejected:
        raise BadRow("'chosen' and 'rejected' are the same: nothing is preferred")
    count = _alike(chosen, rejected)
    if isinstance(chosen, str):
        while count and not chosen[count - 1].isspace():
            count -= 1
        if not chosen[:count].strip():
            raise BadRow("no 'prompt', and 'chosen' and 'rejected' do not open with the same words")
    else:
        while count and is_assistant(chosen[count - 1]):
            count -= 1
        if not count:
            raise BadRow("no 'prompt', and 'chosen' and 'rejected' do not open with the same turns")
    return chosen[:count], chosen[count:], rejected[count:]


def _check_stated(stated: Any, shared: Any) -> None:
    """Raises where a row states another prompt than the turns that both of its answers open with.

    A text is the words of turns that are not answers, or a rendered prompt, in which the last of these stands.
    """
    there = [_said(turn) for turn in turns(shared, "prompt")[0]]
    if isinstance(stated, str):
        words, asking = "".join(stated.split()), [said for role, said, _ in there if role != "assistant"]
        found = words in "".join(asking) or bool(asking and asking[-1] and asking[-1] in words)
    else:
        asked = [_said(turn) for turn in turns(stated, "prompt")[0]]
        found = any(there[at : at + len(asked)] == asked for at in range(len(there)))
    if not found:
        raise BadRow(
            "the prompt is not among the turns that 'chosen' and 'rejected' open with, so one of the two would not be "
            "read; leave the prompt out, or give the answers alone in 'chosen' and 'rejected'"
        )


def _said(turn: Message) -> tuple[str, str, Any]:
    """(role, words without white space, calls) of a turn."""
    return turn["role"], "".join((turn.get("content") or "").split()), turn.get("tool_calls")


def _alike(left: str | list[Message], right: str | list[Message]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def labelled(parse: Parse) -> Parse:
    """Returns an answer with a label, true or false, of whether it is one to give: KTO's rows."""

    def parsed(row: Row, folder: Path | None) -> Row:
        told = next((row[name] for name in JUDGED if row.get(name) is not None), None)
        wanted = judgement(told)
        if wanted is None:
            raise BadRow("no label" if told is None else f"label {told!r} is neither true nor false")
        fields = parse(row, folder)
        context = max(fields["context"], last_answer(fields["messages"]))
        return fields | {"wanted": wanted, "context": context}

    return parsed


PAIRS = "pairs"
JUDGEMENTS = "judged"
ALSO = ("prompt", "instruction", "input", "question", "context")
RANKED = ("conversations", "chosen", "rejected")
OUTPUTS = ("preferred_output", "non_preferred_output")
PREFERENCES: dict[str, Layout] = {
    "conversations-preference": Layout(RANKED, TASKS, ranked, ("context",), turns=RANKED),
    "preference": Layout(("chosen", "rejected"), TASKS, pair, ALSO, turns=("prompt", "chosen", "rejected")),
    "openai-preference": Layout(
        ("input", *OUTPUTS), TASKS, openai, turns=OUTPUTS, within={"input": ("messages", "tools")}
    ),
    **{
        f"{name}-judged": Layout(
            layout.needs, ("causal-lm",), labelled(layout.parse), (*layout.also, *JUDGED), turns=layout.turns
        )
        for name, layout in LAYOUTS.items()
        if set(layout.needs) in ANSWERED
    },
}
"""Layouts that an objective over preferences reads, by name."""


TEXTS = "texts"


def kind_of(layout: str) -> str:
    """Returns what rows of a layout hold: `answers` to be given, `pairs`, answers that are `judged`, or `texts` that
    belong near each other."""
    if layout not in PREFERENCES:
        return TEXTS if layout == "anchor-positive" else "answers"
    return JUDGEMENTS if layout.endswith("-judged") else PAIRS


def preference_layout(rows: Sequence[Row]) -> str | None:
    """Returns the layout of rows that tell good answers from bad ones; None of others."""
    have = columns_in(rows)
    pairs = (name for name, layout in PREFERENCES.items() if kind_of(name) == PAIRS and have.issuperset(layout.needs))
    if (found := next(pairs, None)) is not None:
        return found
    if not any(judged(rows, column, have) for column in JUDGED):
        return None
    return next((f"{name}-judged" for name, layout in LAYOUTS.items() if _answers(layout, have)), None)


def _answers(layout: Layout, have: set[str]) -> bool:
    return set(layout.needs) in ANSWERED and have.issuperset(layout.needs)
