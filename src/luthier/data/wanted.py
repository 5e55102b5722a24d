"""Rows that tell good answers from bad ones: preference data, which supervised fine-tuning must not learn whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.lazy import noted
from luthier.data.table import HOLDING, Row, empty
from luthier.data.turns import decoded

ANSWERED = (
    {"prompt", "completion"},
    {"messages"},
    {"conversations"},
    {"instruction", "output"},
    {"question", "answer"},
)
"""Columns beside which a label is a judgement of the answer."""
JUDGED = ("label", "labels", "kto_tag")
SAID = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "good", "desirable", "desired", "preferred", "chosen"), True),
    **dict.fromkeys(("accepted", "accept", "positive", "like", "liked", "thumbs_up", "up", "+1"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "bad", "undesirable", "undesired", "dispreferred", "rejected"), False),
    **dict.fromkeys(("reject", "negative", "dislike", "disliked", "thumbs_down", "down", "-1", "-1.0"), False),
}
"""Words that say whether an answer is wanted."""
KTO = "KTO's form, unpaired preferences"


def check_wanted(rows: Sequence[Row], columns: Collection[str], source: str) -> None:
    """Raises for rows with answers that are not to be given, naming what the rows are and what can be done."""
    have = holding(rows) | set(columns)
    if have >= {"chosen", "rejected"}:
        raise _refused(source, "'chosen' and 'rejected'", "preference data", "dpo", _only_chosen(rows, have))
    if have >= {"preferred_output", "non_preferred_output"}:
        way = "write input's messages with preferred_output behind them as one list, `messages`"
        raise _refused(source, "'preferred_output' and 'non_preferred_output'", "OpenAI's preference data", "dpo", way)
    if have >= {"prompt", "completions", "labels"}:
        way = "write the right steps of a row as one `completion`"
        raise _refused(source, "'completions' with a label for each", "data of stepwise supervision", None, way)
    for column in JUDGED:
        if unwanted := judged(rows, column, have):
            way = f"leave out the rows whose {column!r} is {unwanted[0]!r} (here are {len(unwanted):,}), and the column"
            raise _refused(source, f"{column!r}, true or false, beside an answer", KTO, "kto", way)


def holding(rows: Sequence[Row]) -> set[str]:
    """Returns the columns that say something in any row."""
    return noted(rows, HOLDING, lambda: _holding(rows))


def _holding(rows: Sequence[Row]) -> set[str]:
    return {column for row in rows for column, value in row.items() if not empty(value)}


def answered(columns: Collection[str]) -> bool:
    """Whether rows of these columns hold answers, beside which a label is a judgement."""
    return any(needs <= set(columns) for needs in ANSWERED)


def judged(rows: Sequence[Row], column: str, columns: Collection[str]) -> list[Any]:
    """The labels of answers that are not to be given, where a column judges answers; of any other column, none.

    A column judges where all that it says is a judgement, or some of it is true or false itself.
    """
    if column not in columns or not answered(columns):
        return []
    told = [row[column] for row in rows if not empty(row.get(column))]
    truths = [judgement(value) for value in told]
    known = all(truth is not None for truth in truths) or any(isinstance(value, bool) for value in told)
    return [value for value, truth in zip(told, truths, strict=True) if truth is False] if known else []


def judgement(value: Any) -> bool | None:
    """Whether a label says that an answer is wanted; None if it says something else."""
    if isinstance(value, bool | int | float):
        return value > 0 if value in (-1, 0, 1) else None
    return SAID.get(value.strip().lower().replace(" ", "_")) if isinstance(value, str) else None


def _only_chosen(rows: Iterable[Row], columns: set[str]) -> str:
    first = next((row for row in rows if not empty(row.get("chosen"))), {})
    chosen = decoded(first.get("chosen"))
    roles = (
        [turn.get("role", turn.get("from")) for turn in chosen if isinstance(turn, dict)]
        if isinstance(chosen, list)
        else []
    )
    pairs = {"prompt": "completion", "instruction": "output", "question": "answer"}
    asked = next((name for name in pairs if name in columns), None)
    if roles and (asked is None or roles[0] not in ("assistant", "gpt")):
        name = "messages"
    else:
        name = pairs[asked] if asked else "text"
    return f"to learn the chosen answers alone: --columns {name}=chosen"


def _refused(source: str, columns: str, kind: str, objective: str | None, way: str) -> LuthierError:
    learn = "no objective here reads them. Instead" if objective is None else (
        f"an objective over preferences does (luthier train … --objective {objective}). Or"
    )  # fmt: skip
    return LuthierError(
        f"{source} has {columns}: that is {kind}, whose rejected answers supervised fine-tuning would not tell from "
        f"the others; {learn}, {way}."
    )
