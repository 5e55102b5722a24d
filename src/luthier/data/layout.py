"""Layouts: which columns mean what. One small function a layout; a table finds them by their
columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.contracts.example import Message, last_answer
from luthier.core.errors import LuthierError
from luthier.core.lazy import noted
from luthier.data.around import AROUND, learned, surrounded
from luthier.data.bad import BadRow
from luthier.data.columns import guesses, suggestion, ways
from luthier.data.labelled import (
    compared,
    extractive,
    labelled,
    labelled_audio,
    labelled_image,
    labelled_pair,
    several,
    tagged,
    text_of,
    transcribed,
)
from luthier.data.table import COLUMNS, Columns, Row
from luthier.data.turns import checked, decoded, is_assistant, kind, refuse_asked, turns, unpacked
from luthier.data.unseen import refuse_unseen
from luthier.data.wanted import check_wanted, holding

GENERATIVE = ("causal-lm", "seq2seq")
TO_COME = "…"
"""Stands for an answer that a row does not have yet."""


@dataclass(frozen=True)
class Layout:
    """`parse(row, folder)` turns the columns into the fields of an `Example`, or raises
    `BadRow`."""

    needs: tuple[str, ...]
    """Columns that every row must have."""
    tasks: tuple[str, ...]
    """Tasks that such rows serve; the first is the default."""
    parse: Callable[[Row, Path | None], dict[str, Any]]
    also: tuple[str, ...] = ()
    """Columns that are read when they are there; all others are told to be unread."""
    answer: str = ""
    """The column of the answer, which a row to generate from may lack."""
    turns: tuple[str, ...] = ()
    """Columns that may hold turns."""
    to_come: Callable[[Row], Any] = lambda row: TO_COME
    """What stands for an answer that a row does not have."""
    within: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns that are objects, with the keys that are read; the first of them holds turns."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Every column that is read."""
        around = AROUND if "causal-lm" in self.tasks and self.parse is not plain else ()
        return (*self.needs, *self.also, *around)


def _conversation(
    row: Row, messages: list[Message], context: int = 0, masked: Iterable[int] = (), answer: str | None = None
) -> Row:
    if all(m["role"] != "assistant" for m in messages[context:]):
        raise BadRow("no assistant turn: nothing to learn")
    fields = {"messages": messages, "context": context, "masked": tuple(sorted(masked))}
    made = surrounded(fields, row)
    if not learned(made):
        raise BadRow("every assistant turn is kept out of the loss: nothing to learn")
    return made | {"answer": answer or messages[last_answer(messages)].get("content")}


def _asked(row: Row, prompt: str, answer: str, reference: str | None = None) -> Row:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return _conversation(row, turns, answer=reference)


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def context_of(row: Row) -> str:
    """What stands in `context`: a text, or several, that the prompt refers to."""
    value = row.get("context")
    if value in (None, "", []):
        return ""
    texts = value if isinstance(value, list) else [value]
    return _joined(*(checked(each, "context") for each in texts))


def chat(row: Row, folder: Path | None) -> Row:
    """`messages` (or ShareGPT's `conversations`): a list of {role, content}; every assistant turn is an answer."""
    column = "messages" if row.get("messages") is not None or "conversations" not in row else "conversations"
    if context_of(row):
        raise BadRow(
            "'context' beside turns does not say where it belongs; put it into a turn, or name what it is "
            "(--columns documents=context, or system=context)"
        )
    found, masked = turns(row.get(column), column)
    return _conversation(row, found, masked=masked)


def prompt_completion(row: Row, folder: Path | None) -> Row:
    """`prompt`, `completion`: strings, or lists of messages of which the completion's answers are
    learned; a `context` opens the prompt."""
    prompt, completion = unpacked(row.get("prompt")), unpacked(row.get("completion"))
    if not (isinstance(prompt, list) or isinstance(completion, list)):
        return _asked(row, _joined(context_of(row), text_of(row, "prompt")), text_of(row, "completion"))
    before = _as_turns(row, "prompt", prompt, "user")
    after = _as_turns(row, "completion", completion, "assistant")
    if context_of(row):
        raise BadRow("'context' beside turns does not say where it belongs; put it into a turn")
    refuse_asked(before, "prompt")
    found, _ = turns(before, "prompt")
    answers, masked = turns(after, "completion")
    return _conversation(row, found + answers, len(found), {len(found) + i for i in masked})


def _as_turns(row: Row, column: str, value: Any, role: str) -> Any:
    return [{"role": role, "content": text_of(row, column)}] if isinstance(value, str) else value


def instruction(row: Row, folder: Path | None) -> Row:
    """`instruction`, `output`, and an `input` or `context` that follows the instruction after an empty line.

    An `answer` column is the reference to score with (LLM-Adapters' files); it also stands in for
    an empty output.
    """
    prompt = text_of(row, "instruction")
    if row.get("input"):
        prompt += "\n\n" + text_of(row, "input")
    prompt = _joined(prompt, context_of(row))
    reference = reference_of(row)
    if reference is not None and row.get("output") in (None, ""):
        return _asked(row, prompt, reference)
    return _asked(row, prompt, text_of(row, "output"), reference)


def reference_of(row: Row) -> str | None:
    """Returns what answers are scored against by a column `answer` of its own; None without it."""
    value = row.get("answer")
    if isinstance(value, list | dict) and value:
        raise BadRow(f"'answer' is {kind(value)}, expected a text or a number to score with")
    return None if value in (None, "", [], {}) else str(value)


def question(row: Row, folder: Path | None) -> Row:
    """`question`, `answer`; a `context` opens the prompt."""
    return _asked(row, _joined(context_of(row), text_of(row, "question")), text_of(row, "answer"))


def source_target(row: Row, folder: Path | None) -> Row:
    """`source`, `target`: a pair to translate or summarise; a `context` opens the prompt."""
    return _asked(row, _joined(context_of(row), text_of(row, "source")), text_of(row, "target"))


def plain(row: Row, folder: Path | None) -> Row:
    """`text` alone: every token is learned."""
    text = text_of(row, "text")
    refuse_unseen(row, [text])
    return {"text": text}


def _none(row: Row) -> Any:
    return []


def _tags(row: Row) -> Any:
    words = decoded(row.get("tokens"))
    return [TO_COME] * len(words) if isinstance(words, list) else []


LABELLED = ("classification", "regression")
LAYOUTS: dict[str, Layout] = {
    "messages": Layout(("messages",), GENERATIVE, chat, ("context",), "messages", ("messages",)),
    "conversations": Layout(("conversations",), GENERATIVE, chat, ("context",), "conversations", ("conversations",)),
    "prompt-completion": Layout(
        ("prompt", "completion"), GENERATIVE, prompt_completion, ("context",), "completion", ("prompt", "completion")
    ),
    "instruction": Layout(("instruction", "output"), GENERATIVE, instruction, ("input", "context", "answer"), "output"),
    "question-answer": Layout(("question", "answer"), GENERATIVE, question, ("context",), "answer"),
    "source-target": Layout(("source", "target"), GENERATIVE, source_target, ("context",), "target"),
    "text": Layout(("text",), ("causal-lm",), plain),
    "text-label": Layout(("text", "label"), LABELLED, labelled, answer="label"),
    "text-pair-label": Layout(("text", "text_pair", "label"), LABELLED, labelled_pair, answer="label"),
    "text-labels": Layout(("text", "labels"), ("multi-label",), several, ("text_pair",), "labels", to_come=_none),
    "tokens-tags": Layout(("tokens", "tags"), ("token-classification",), tagged, answer="tags", to_come=_tags),
    "question-context-answers": Layout(
        ("question", "context", "answers"), ("question-answering",), extractive, answer="answers", to_come=_none
    ),
    "anchor-positive": Layout(("anchor", "positive"), ("embedding",), compared, ("negative",), "positive"),
    "image-label": Layout(("image", "label"), ("image-classification",), labelled_image, answer="label"),
    "audio-label": Layout(("audio", "label"), ("audio-classification",), labelled_audio, answer="label"),
    "audio-text": Layout(("audio", "text"), ("speech-to-text",), transcribed, ("language",), "text"),
}
"""Every layout, by name."""


def unanswered(row: Row, layout: Layout) -> Row:
    """The row with an answer in every case, so that it can be parsed and cut before it."""
    if not layout.answer:
        return row
    value = decoded(row.get(layout.answer))
    if layout.turns and layout.answer != "completion":
        found = list(value) if isinstance(value, list) else []
        if found and (kept := _cut_empty(found)) is not None:
            return {**row, layout.answer: [*kept, {"role": "assistant", "content": TO_COME}]}
        return row
    return {**row, layout.answer: layout.to_come(row)} if value in (None, "", []) else row


def _cut_empty(messages: list[Any]) -> list[Any] | None:
    """The turns before an answer to come; None where the last one is an answer."""
    last = messages[-1] if isinstance(messages[-1], dict) else {}
    if is_assistant(last):
        said = [last.get(key) for key in ("content", "value", "tool_calls", "function_call")]
        return None if any(said) else messages[:-1]
    return messages


def known_columns() -> tuple[str, ...]:
    """Every name that some layout reads."""
    return tuple(dict.fromkeys(column for layout in LAYOUTS.values() for column in layout.reads))


def columns_in(rows: Sequence[Row]) -> set[str]:
    """The columns that half of the rows have and one of them fills."""
    return noted(rows, COLUMNS, lambda: _columns_in(rows))


def _columns_in(rows: Sequence[Row]) -> set[str]:
    found = Columns()
    for row in rows:
        found.see(row)
    return found.usual()


def recognise(
    rows: Iterable[Row], source: str, task: str | None = None, named: Collection[str] = (), to_answer: bool = False
) -> str:
    """Name of the one layout whose columns the rows have (a column counts when half of the rows
    have it; labels beside texts when one does).

    Of two layouts that fit, one of which needs all that the other needs and more, the fuller one
    is meant; of others, the one whose columns are all `named` by the user. `task` leaves only the
    layouts that serve it; rows `to_answer` may lack the answer. No layout, several, or rows that
    tell good answers from bad ones raise, and list the columns and the layouts.
    """
    rows = rows if isinstance(rows, Sequence) else list(rows)
    found_columns = columns_in(rows)
    if task is None and "text" in found_columns:
        found_columns = found_columns | ({"label", "labels"} & holding(rows))
    serving = [layout for layout in LAYOUTS.values() if task is None or task in layout.tasks]
    columns = found_columns | ({layout.answer for layout in serving} if to_answer else set())
    fits = {
        name: set(layout.needs)
        for name, layout in LAYOUTS.items()
        if columns.issuperset(layout.needs) and (task is None or task in layout.tasks)
    }
    if to_answer:
        fits = {name: needs for name, needs in fits.items() if needs & found_columns}
    best = [a for a in fits if not any(fits[a] < fits[b] for b in fits)]
    meant = [name for name in best if fits[name] <= set(named)]
    if len(meant) == 1:
        return meant[0]
    if not to_answer:
        check_wanted(rows, columns, source)
    if len(best) == 1:
        return best[0]
    purpose = f" for {task}" if task else ""
    found = f"{source} has the columns {', '.join(sorted(found_columns)) or '(none)'}"
    known = "; ".join(f"{name}: {' + '.join(layout.needs)}" for name, layout in LAYOUTS.items())
    if best:
        needs = LAYOUTS[best[0]].needs
        raise LuthierError(
            f"{found}, which fit several layouts{purpose}: {', '.join(best)}. Name the columns that are meant "
            f"(--columns {','.join(f'{c}={c}' for c in needs)}, say), or remove the others. Layouts: {known}."
        )
    raise LuthierError(f"{found}, which fit no layout{purpose}{_missing(columns, rows)} Layouts: {known}.")


LOOKED_AT = 100
"""Rows whose values tell what their columns could be."""


def _holds(rows: Sequence[Row], column: str, fits: Callable[[Any], bool]) -> bool:
    """Whether the first cell that holds something is of a kind."""
    return next((fits(row[column]) for row in rows if row.get(column) not in (None, "", [], {})), False)


def _talk(value: Any) -> bool:
    found = decoded(value)
    return isinstance(found, list) and all(isinstance(m, dict) and {"role", "from"} & set(m) for m in found)


def _text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(decoded(value), dict)


def _missing(columns: set[str], rows: Sequence[Row]) -> str:
    """What the nearest layout lacks: of those that guesses complete, or else any, the one of which most is there."""
    found = {}
    rows = [ways(row) for row in rows[:LOOKED_AT]]
    columns = columns | {way for row in rows for way in row if "." in way}
    if "input_ids" in columns:
        return ": these are tokens already, and rows are read as texts. Give the texts."
    talks = {column for column in columns if _holds(rows, column, _talk)}
    texts = {column for column in columns if _holds(rows, column, _text)}
    for name, layout in LAYOUTS.items():
        lacking = [c for c in layout.needs if c not in columns]
        able = talks if layout.turns and len(layout.needs) == 1 else texts | (talks if layout.turns else set())
        if layout.tasks[0].startswith(("image", "audio")):
            able = {column for column in columns if not _holds(rows, column, lambda value: isinstance(value, list))}
        meant = guesses(lacking, able - set(layout.needs))
        found[name] = lacking, meant, (len(meant) == len(lacking), len(layout.needs) - len(lacking), len(meant))
    name = max(found, key=lambda each: found[each][2])
    lacking, meant, (_, there, guessed) = found[name]
    if not lacking:
        return "."
    if not (there or guessed):
        return ". Columns of other names are told by --columns, such as prompt=COLUMN,completion=COLUMN."
    hint = suggestion(meant) if meant else f"; tell it by --columns {lacking[0]}=COLUMN."
    return f": {name} lacks {', '.join(map(repr, lacking))}{hint}"
