"""The function `rewrite`: rows made from rows, by a model that writes and a judge that looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier import data
from luthier.core.contracts.component import find
from luthier.core.contracts.rewrite import Asked, Made, Rewrite, Verdict, Voices
from luthier.core.errors import LuthierError
from luthier.core.paths import path_of
from luthier.core.records import as_read
from luthier.data.rewriting.journal import Journal
from luthier.data.rewriting.judges import Judge, judge_of, voice_of
from luthier.evaluating.generate import generate

FROM = "from"
"""The column that says where a row comes from."""
PATIENCE = 20
"""Answers in a row that a judge may leave unjudged before the work stops, by default."""


@dataclass(frozen=True)
class Rewritten:
    """A file of rows that were made."""

    out: Path
    rows: int
    """Rows in the file."""
    read: int
    """Rows that they were made of."""
    origins: dict[str, int]
    """How many come from where."""
    unjudged: int
    """Answers of which the judge did not say whether they are right."""
    why: dict[str, int] = field(default_factory=dict)
    """Why, with how often."""


def rewrite(
    model: Any,
    processor: Any,
    examples: data.Examples,
    *,
    by: Rewrite | str,
    out: str | Path,
    judge: str | Callable[..., Any] | None = None,
    critics: Sequence[str | Callable[..., Any]] = (),
    meta: str | Callable[..., Any] | None = None,
    least: float = 1.0,
    batch: int = 16,
    max_new_tokens: int = 128,
    patience: int = PATIENCE,
    resume: bool = False,
    overwrite: bool = False,
    done: Callable[[int], Any] = int,
) -> Rewritten:
    """Makes rows from `examples` by a rewrite (`luthier list rewrites`) and writes them to the file `out` (.jsonl).

    `model` writes, greedily, in batches; it and `processor` are None for a rewrite that asks no model. `judge` is a
    scorer by name, a model behind OpenAI's API
    (`http://host/v1#model`, its key in `LUTHIER_API_KEY` or `OPENAI_API_KEY`) or a function (`file.py:name`, or itself)
    of prompt, answer and reference; a score of at least `least` is right. `critics` and `meta`, for rewrites that have
    them, are such models, functions of a conversation, or `self`. Every row says in the column `from` which row of
    which source it was made of, and how. Rows are on disk as they are made; with `resume` a stopped file goes on, and
    is the one that would have been made in one go. `done(n)` hears of every n rows read.

    A judge that does not answer is counted, and loses no row; once it left `patience` answers in a row unjudged, the
    work stops, to go on later. Raises `LuthierError` for rows that the rewrite cannot read, for a judge that is not
    there, and for a model that it would not ask.
    """
    chosen = find("rewrites", by, Rewrite)() if isinstance(by, str) else by
    path = path_of(out)
    check(chosen, examples, judge, critics, meta, path)
    if chosen.writes != (model is not None):
        raise LuthierError(f"{chosen.name()} asks {'a model, and there is none' if chosen.writes else 'no model'}.")
    write = _writer(model, processor, batch, max_new_tokens)
    watched = None if judge is None else Watched(judge_of(judge, examples, least))
    told = [voice_of(each, write, max_new_tokens) for each in critics]
    voices = Voices(write, watched, tuple(told), None if meta is None else voice_of(meta, write, max_new_tokens))
    named = {"judge": _name(judge), "critics": list(map(_name, critics)), "meta": _name(meta), "least": least}
    inputs = {"rewrite": chosen.name(), "settings": as_read(chosen.inputs()), "rows": examples.fingerprint, **named}
    inputs |= {"batch": batch, "max_new_tokens": max_new_tokens}
    journal = Journal(path, inputs)
    journal.open(resume, overwrite)
    counts = Counter(journal.kept.get("origins", {}))
    why = Counter(journal.kept.get("why", {}))
    done(journal.done)
    while journal.done < len(examples):
        chunk = [examples.rows[i] for i in range(journal.done, min(journal.done + batch, len(examples)))]
        made = chosen.rows(chunk, voices)
        if watched is not None and watched.silent >= patience:
            raise LuthierError(
                f"the judge left {watched.silent} answers in a row unjudged ({watched.last}). {journal.done:,} of "
                f"{len(examples):,} rows are done and kept; go on when it answers (resume)."
            )
        counts.update(each.origin for several in made for each in several)
        why.update(watched.taken() if watched else {})
        rows = [
            _row(each, source.row, examples) for source, several in zip(chunk, made, strict=True) for each in several
        ]
        journal.add(rows, len(chunk), {"origins": counts, "why": why})
        done(len(chunk))
    journal.close()
    return Rewritten(path, sum(counts.values()), len(examples), dict(counts), sum(why.values()), dict(why))


def check(chosen: Rewrite, examples: data.Examples, judge: Any, critics: Sequence[Any], meta: Any, out: Path) -> None:
    """Raises for what a rewrite lacks or would ignore, and for rows that it cannot read."""
    if out.suffix != ".jsonl":
        raise LuthierError(f"{out} is to be a .jsonl file.")
    kind = data.kind_of(examples.layout)
    if chosen.reads == "labels" and not (examples.task == "classification" and examples.labels):
        raise LuthierError(f"{examples.source} has {examples.layout} rows; expected texts with a class (text, label).")
    if chosen.reads == "answers" and (kind != "answers" or any(row.messages is None for row in examples.rows)):
        raise LuthierError(f"{examples.source} has {examples.layout} rows; expected prompts with an answer.")
    if any(row.tools or row.documents for row in examples.rows):
        raise LuthierError(f"{examples.source} has rows with tools or documents, which no rewrite hands to the model.")
    if not chosen.judged and judge is not None:
        raise LuthierError(f"{chosen.name()} has nothing to judge; leave judge out.")
    if chosen.judged and judge is None and not _unjudged(chosen):
        raise LuthierError(f"{chosen.name()} needs a judge: a scorer, http://host/v1#model, or file.py:name.")
    if chosen.criticised != bool(critics) or chosen.criticised != (meta is not None):
        lacks = (
            "needs critics, and a meta-critic that verifies what they say" if chosen.criticised else "has no critics"
        )
        raise LuthierError(f"{chosen.name()} {lacks} (critics, meta).")
    chosen.check_examples(examples)


def _unjudged(chosen: Rewrite) -> bool:
    """Whether these settings leave the judge without work."""
    return chosen.to_dict().get("gives") == "sft"


class Watched:
    """A judge, and how often it did not say."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.silent, self.last = judge, 0, ""
        self.why: Counter[str] = Counter()

    def __call__(self, asked: Sequence[tuple[data.Example, str]]) -> list[Verdict]:
        verdicts = self.judge(asked) if asked else []
        for verdict in verdicts:
            self.silent = self.silent + 1 if verdict.right is None else 0
            if verdict.right is None:
                self.last = verdict.why
                self.why[verdict.why] += 1
        return verdicts

    def taken(self) -> Counter[str]:
        """Returns the reasons since the last time."""
        found, self.why = self.why, Counter()
        return found


def _writer(model: Any, processor: Any, batch: int, most: int) -> Callable[[Asked], list[str | None]]:
    def write(conversations: Asked) -> list[str | None]:
        if not conversations:
            return []
        return list(generate(model, processor, list(conversations), batch=batch, max_new_tokens=most))

    return write


def _row(made: Made, number: int, examples: data.Examples) -> dict[str, Any]:
    """A row with where it comes from; a source that was itself rewritten keeps its own."""
    return made.row | {FROM: {"source": examples.source, "row": number, "origin": made.origin, **made.notes}}


def _name(who: Any) -> str | None:
    return who if who is None or isinstance(who, str) else getattr(who, "__qualname__", type(who).__name__)
