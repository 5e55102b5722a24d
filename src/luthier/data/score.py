"""Scorers: how good a generated answer is, from 0 to 1."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from luthier.core.contracts.example import Example, Scorer, last_answer
from luthier.core.errors import LuthierError, near
from luthier.core.lazy import noted

if TYPE_CHECKING:
    from luthier.core.contracts.example import Examples

NUMBER = re.compile(r"(?<![\w.)])[-−–]?\$?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\d[\d,]*\.?\d*")
WORD = re.compile(r"\b(?:(?:answer|solution|option|ending|choice)\s?\d+|true|false|yes|no)\b", re.IGNORECASE)
LETTER = re.compile(r"\b[A-Z]\b(?![’'])")
LEADING = re.compile(r"\W*([A-Za-z])\s*(?:[).:\]]|$)")
"""A letter that opens an answer as a list does, `B.` or `(b)`, or is all of it."""
PLAIN = str.maketrans({",": "", "$": "", "−": "-", "–": "-"})
CONCLUSION = re.compile(r"answer\s*(?:is\b|:)", re.IGNORECASE)
TOLERANCE = 1e-3
"""Numbers agree to this (LLM-Adapters' evaluation), or to this share of the reference when that is
below 1."""


def exact_match(prediction: str, example: Example) -> float:
    """Scores 1 when prediction and reference agree up to whitespace; case counts."""
    return float(prediction.split() == reference(example).split())


def label(prediction: str, example: Example) -> float:
    """Scores 1 when the prediction is the label's name, whatever its case, or the same number."""
    wanted = example.label if example.label is not None else reference(example)
    if isinstance(wanted, str):
        return float(prediction.strip().casefold() == wanted.strip().casefold())
    return float(number_in(prediction) == wanted)


def number(prediction: str, example: Example) -> float:
    """Scores 1 when the last numbers of prediction and reference agree; `#### N` marks the number where
    it occurs (GSM8K).

    Thousands' commas, currency signs and a full stop after the number are no part of it.
    """
    wanted, found = number_in(reference(example)), number_in(prediction)
    if wanted is None:
        raise LuthierError(f"row {example.row}: no number in the reference {reference(example)!r}.")
    return float(found is not None and abs(found - wanted) <= TOLERANCE * min(1.0, abs(wanted)))


def number_in(text: str) -> float | None:
    """Returns the number that a text ends on: the one after `####`, else the last."""
    _, mark, after = text.partition("####")
    found = NUMBER.findall((after if mark else text).replace("{,}", ","))  # as LaTeX writes thousands
    if not found:
        return None
    return float((found[0] if mark else found[-1]).translate(PLAIN))


def choice(prediction: str, example: Example) -> float:
    """Scores 1 when the prediction names the right choice: `answer2`, `true`, or a letter.

    It is the first named after the last "answer is" or "answer:", if that occurs; else, in the whole text, the first
    word of the reference's kind, or the letter that opens it (`B. A cat`, `(b)`), or the last single capital letter.
    """
    wanted = _chosen(reference(example))
    if wanted is None:
        raise LuthierError(f"row {example.row}: no choice in the reference {reference(example)!r}.")
    return float(_chosen(prediction, letter=len(wanted) == 1) == wanted)


def _chosen(text: str, letter: bool | None = None) -> str | None:
    """The choice a text names, in lower case; `letter` asks for a letter or for a word, None for
    either."""
    concluded = [m.end() for m in CONCLUSION.finditer(text)]
    text = text[concluded[-1] :] if concluded else text
    words = [] if letter else WORD.findall(text)
    if words:
        return re.sub(r"\s", "", words[0]).lower()
    if letter is False:
        return None
    leading = LEADING.match(text.strip())
    if leading:
        return leading[1].lower()
    letters = LETTER.findall(text)
    return letters[0 if concluded else -1].lower() if letters else None


def final(prediction: str, example: Example) -> float:
    """Returns `number` or `choice`, as each row's reference is (LLM-Adapters' mixed arithmetic sets)."""
    return SCORERS[_kind(reference(example))](prediction, example)


def gym(task: str) -> Callable[[str, Example], float]:
    """Applies reasoning-gym's own scorer of a task, in a process of its own. Surrounding whitespace is not part of an
    answer."""
    from luthier.data.gym import gym_score

    scored = gym_score(task)

    def score(prediction: str, example: Example) -> float:
        if "entry" not in example.meta:
            raise LuthierError(f"row {example.row} is not a gym problem: it has no entry to score with.")
        return float(scored(prediction.strip(), example.meta["entry"]))

    return score


def tests(prediction: str, example: Example) -> float:
    """Scores 1 when the row's tests pass after the code in the answer, which runs in a sandbox."""
    from luthier.data.execution import passes

    return passes(prediction, example)


def judge(scorer: Scorer, prediction: str, example: Example) -> tuple[float, str | None]:
    """Returns (score, why there is none): an answer on which the scorer fails counts as wrong."""
    try:
        score = float(scorer.score(prediction, example))
    except (Exception, SystemExit) as error:  # scorers of other packages raise whatever they like, and may leave
        return 0.0, f"{type(error).__name__}: {error}"
    return (score, None) if 0 <= score <= 1 else (0.0, f"a score of {score}, expected 0 to 1")


def refuse_unscorable(scorer: Scorer, rows: Sequence[Example]) -> None:
    """Raises for rows that no answer could be scored for, before any is generated."""
    for example in rows if scorer.name not in ALONE else ():
        if example.masked and example.messages and last_answer(example.messages) in example.masked:
            raise LuthierError(
                f"row {example.row} keeps its last answer, which others would be scored against, out of the loss "
                "(weight, train or loss_mask 0); leave the row out, or end it with an answer that is right."
            )
    if scorer.name == "tests":
        from luthier.data.execution import program
        from luthier.data.sandbox import check_sandbox

        check_sandbox()
        for example in rows:
            program("", example)  # which needs tests; nothing is run yet
        return
    for example in rows:
        try:
            scorer.score("", example)
        except LuthierError:
            raise
        except (Exception, SystemExit):  # of the answer, which is none yet
            continue


def reference(example: Example) -> str:
    """Returns the reference answer; raises when the row has none."""
    if example.answer is None:
        raise LuthierError(f"row {example.row} has no reference answer to score with.")
    return example.answer


SCORERS: dict[str, Callable[[str, Example], float]] = {
    "exact_match": exact_match,
    "number": number,
    "choice": choice,
    "final": final,
    "label": label,
    "tests": tests,
}
"""Scorers by name; `gym:` sources add `gym`, their own."""
ALONE = ("tests", "gym")
"""Scorers that compare with no answer of the row: its tests, or its entry, tell what is right."""


def scorer_for(examples: Examples, name: str | None = None) -> Scorer | None:
    """Returns the scorer `name`, or by default the one that the examples call for; None when there is
    nothing to generate.

    The default is the task's own for `gym:`, `label` for classes, `number` or `choice` when all
    references are such (`#### N`, a bare number; `answer2`, `true`, a letter), `final` when there
    are both kinds, else `exact_match`.
    """
    if name == "gym" or (name is None and examples.source.startswith("gym:")):
        task = examples.source.removeprefix("gym:").partition("?")[0]
        return Scorer("gym", gym(task))
    if name is None:
        name = _default(examples)
    if name is None:
        return None
    if name not in SCORERS:
        known = [*SCORERS, "gym"]
        raise LuthierError(f"no scorer {name!r}{near(name, known)} There are: {', '.join(known)}.")
    return Scorer(name, SCORERS[name])


def kinds(rows: Sequence[Example]) -> set[str]:
    """Returns what rows hold: `label`, `labels`, and the scorers that their reference answers call for (of which
    `exact_match` may stand for all)."""
    return noted(rows, "kinds", lambda: _kinds(rows))


def _kinds(rows: Sequence[Example]) -> set[str]:
    found: set[str] = set()
    for example in rows:
        note_kind(example, found)
    return found


def note_kind(example: Example, found: set[str]) -> None:
    """Adds what a row holds."""
    if example.label is not None:
        found.add("label")
    if example.labels is not None:
        found.add("labels")
    if example.images:
        found.add("pictures")
    if example.answer is not None and "exact_match" not in found:
        found.add(_kind(example.answer))


def _default(examples: Examples) -> str | None:
    found = kinds(examples.rows)
    if "label" in found:
        return "label"
    answers = found - {"labels", "pictures"}
    if not answers:
        return None
    return answers.pop() if len(answers) == 1 else ("exact_match" if "exact_match" in answers else "final")


def _kind(answer: str) -> str:
    """The scorer that a reference answer calls for."""
    if _is_number(answer):
        return "number"
    return "choice" if _is_choice(answer) else "exact_match"


def _is_number(answer: str) -> bool:
    marked = "####" in answer and number_in(answer) is not None
    return marked or NUMBER.fullmatch(answer.strip().rstrip(".")) is not None


def _is_choice(answer: str) -> bool:
    answer = answer.strip().strip("().")
    return WORD.fullmatch(answer) is not None or LETTER.fullmatch(answer) is not None
