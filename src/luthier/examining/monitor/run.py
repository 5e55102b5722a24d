"""`monitor`: what a served model is asked and answers, beside the data that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from luthier import data
from luthier.core.contracts.example import Example, last_answer
from luthier.core.errors import LuthierError
from luthier.core.files import committed, free_folder
from luthier.core.palette import policy_digest, rendered, styled
from luthier.core.records import finite, write_json
from luthier.core.version import __version__
from luthier.examining.monitor.measures import Drift, by_day, drifts

JSON, HTML = "monitor.json", "monitor.html"
HERE = Path(__file__).parent
CHECK_STYLE = HERE.parent / "check" / "page.css"
FEWEST = 20
"""Rows of each side below which nothing is told."""
FEWEST_PERMUTATIONS = 120
"""Permutations below which the least p, adjusted for six comparisons, is not below 0.05."""
LEVEL = 0.05
"""Adjusted p below which a comparison counts as drift."""
DRIFTED = 3
"""Exit code where anything drifted."""


@dataclass(frozen=True)
class Monitored:
    """What was found in a log of answers."""

    log: str
    data: str
    trained: int
    """Rows of training data that were read."""
    answers: int
    """Answers in the log."""
    inputs: tuple[Drift, ...]
    outputs: tuple[Drift, ...]
    cut: float
    """Share of answers that ended at their bound on tokens."""
    days: Mapping[str, tuple[int, float]]
    """Answers, and words of an answer on average, by day."""

    @property
    def drifted(self) -> list[str]:
        """The comparisons that chance does not explain."""
        sides = (("inputs", self.inputs), ("answers", self.outputs))
        return [f"{side}: {each.name}" for side, found in sides for each in found if each.p < LEVEL]

    @property
    def code(self) -> int:
        """The exit code: 0 where nothing drifted, else 3."""
        return DRIFTED if self.drifted else 0

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        if not self.drifted:
            return f"No drift that {self.answers:,} answers can tell from {self.trained:,} rows of training."
        return f"Drifted from the training data: {', '.join(self.drifted)}."

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "log": self.log,
            "data": self.data,
            "trained": self.trained,
            "answers": self.answers,
            "drifted": self.drifted,
            "code": self.code,
            "cut": self.cut,
            "inputs": [each.to_dict() for each in self.inputs],
            "outputs": [each.to_dict() for each in self.outputs],
            "days": {day: {"answers": count, "words": words} for day, (count, words) in self.days.items()},
            "luthier": __version__,
        }

    def page(self) -> str:
        """Returns the page as HTML that needs nothing beside it; what is in the log is text to it."""
        style = styled(CHECK_STYLE)
        most = max((count for count, _ in self.days.values()), default=1)
        return rendered(
            HERE / "page.html",
            found=self,
            sides=(("Inputs", self.inputs), ("Answers", self.outputs)),
            level=LEVEL,
            most=most,
            style=_marked(style),
            digest=policy_digest(style),
        )

    def save(self, folder: str | Path) -> Path:
        """Writes monitor.json and monitor.html into a folder, which must be new or hold an earlier one's."""
        target = free(folder)
        with committed(target) as temporary:
            write_json(temporary / JSON, finite(self.to_dict()))
            (temporary / HTML).write_text(self.page(), encoding="utf-8")
        return target


def _marked(style: str) -> Any:
    from markupsafe import Markup

    return Markup(style)


def free(folder: str | Path) -> Path:
    """Returns the folder, which must be new, empty or an earlier one's, so that nothing is lost."""
    return free_folder(folder, JSON, "a monitoring")


def monitor(
    log: str | Path,
    data: str,
    *,
    model: str | None = None,
    limit: int = 2000,
    seed: int = 0,
    permutations: int = 200,
    out: str | Path | None = None,
) -> Monitored:
    """Compares a log of `luthier serve --log` with the data that the model was trained on.

    Inputs are what stands before the last answer, outputs the last answer. `model` takes one model's lines of the log;
    of both sides at most `limit` rows are read, the latest of the log, and training rows drawn by `seed`. `out` gets
    monitor.json and monitor.html. Raises `LuthierError` where either side has fewer than 20 rows: so few tell nothing.
    """
    if out is not None:
        free(out)
    if limit < FEWEST or permutations < FEWEST_PERMUTATIONS:
        raise LuthierError(
            f"limit is {limit} and permutations {permutations}; expected at least {FEWEST} and {FEWEST_PERMUTATIONS}: "
            "with fewer no difference could be told."
        )
    rows = _logged(log, model)[-limit:]
    trained = _trained(data, limit, seed)
    for what, count in (("the log", len(rows)), ("the training data", len(trained))):
        if count < FEWEST:
            raise LuthierError(f"{what} holds {count} answers to compare; at least {FEWEST} tell anything.")
    asked, said = zip(*map(_parts, rows), strict=True)
    before, answers = zip(*trained, strict=True)
    found = Monitored(
        log=str(log),
        data=data,
        trained=len(trained),
        answers=len(rows),
        inputs=tuple(drifts(before, asked, seed, permutations)),
        outputs=tuple(drifts(answers, said, seed, permutations)),
        cut=sum(row.get("finish") == "length" for row in rows) / len(rows),
        days=by_day(rows, lambda row: float(len(_parts(row)[1].split()))),
    )
    if out is not None:
        found.save(out)
    return found


def _logged(log: str | Path, model: str | None) -> list[Mapping[str, Any]]:
    table = data.read(str(log))
    if table.bad:
        number, reason = table.bad[0]
        raise LuthierError(f"{log}: line {number}: {reason}; expected what `luthier serve --log` writes.")
    rows: list[Mapping[str, Any]] = [row for _, row in table.rows]
    if model is not None:
        known = {str(row.get("model")) for row in rows}
        if model not in known:
            raise LuthierError(f"{log} has no answers of {model!r}; it has those of {', '.join(sorted(known))}.")
        rows = [row for row in rows if row.get("model") == model]
    for number, row in enumerate(rows, 1):
        if not (_is_talk(row.get("messages")) or isinstance(row.get("completion"), str)):
            raise LuthierError(f"{log}: line {number} has no messages and no completion; expected a log of answers.")
    return rows


def _is_talk(turns: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) for turn in turns)


def _parts(row: Mapping[str, Any]) -> tuple[str, str]:
    """(what was asked, what was answered) of a line of the log."""
    if _is_talk(turns := row.get("messages")):
        return _words(turns[:-1]), str(turns[-1].get("content") or "")
    return str(row.get("prompt") or ""), str(row["completion"])


def _words(turns: Sequence[Mapping[str, Any]]) -> str:
    """The user's turns; what a system prompt says is not the user's."""
    said = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    return "\n".join(each if isinstance(each, str) else str(each) for each in said if each)


def _trained(source: str, limit: int, seed: int) -> list[tuple[str, str]]:
    examples = data.load(source, limit=limit, seed=seed)
    if any(row.messages is None for row in examples.rows):
        raise LuthierError(f"{source} holds no conversations or prompts with answers to compare a log with.")
    return [_example(row) for row in examples.rows]


def _example(row: Example) -> tuple[str, str]:
    turns = row.messages or []
    last = last_answer(turns)
    return _words(turns[:last]), str(turns[last].get("content") or "")
