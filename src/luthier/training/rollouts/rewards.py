"""Rewards: what sampled answers are scored by, several at once with weights."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.example import Example, Examples, Scorer
from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded, reason
from luthier.core.user_function import function_of, is_function
from luthier.data import SCORERS, prompt_of, refuse_unscorable, scorer_for

WEIGHTED = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(.+)", re.DOTALL)
REGEX, MODEL, DATA = "regex:", "model:", "data"
"""How a specification opens, and the scorer that the rows call for."""


@dataclass(frozen=True)
class Answered:
    """A sampled answer with what it answers, as rewards see it."""

    example: Example
    """The row; its `answer` is the reference, its `meta` further columns."""
    prompt: str
    """The text that the answer follows, as the chat template renders it."""
    answer: str


@dataclass(frozen=True)
class Reward:
    """One reward: `of(answers)` gives a number for each, or the reason why there is none."""

    name: str
    weight: float
    of: Callable[[Sequence[Answered]], list[float | str]]


def rewards_of(specs: Sequence[str], examples: Examples, model_of: Callable[[str], Any]) -> list[Reward]:
    """Returns the rewards of specifications, tried on the rows before anything is trained.

    `model_of` opens the reward model in a run folder. Raises `LuthierError` for an unknown scorer, a pattern that is
    none, a file without that function, and rows that a scorer can score no answer of.
    """
    found = [_reward(spec, examples, model_of) for spec in specs]
    names = [reward.name for reward in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LuthierError(f"the reward {twice[0]} is named twice; give it one weight.")
    return found


def _reward(spec: str, examples: Examples, model_of: Callable[[str], Any]) -> Reward:
    weighted = WEIGHTED.fullmatch(spec)
    weight, name = (float(weighted[1]), weighted[2].strip()) if weighted else (1.0, spec.strip())
    if not name or not math.isfinite(weight) or weight == 0:
        raise LuthierError(f"the reward {spec!r} has no effect; expected [WEIGHT*]SPEC, such as 0.5*gym.")
    if name.startswith(REGEX):
        return Reward(name, weight, _each(_matches(name.removeprefix(REGEX))))
    if name.startswith(MODEL):
        return Reward(name, weight, model_of(name.removeprefix(MODEL)))
    if is_function(name):
        return Reward(name, weight, _each(_function(name)))
    scorer = _scorer(name, examples)
    refuse_unscorable(scorer, examples.rows)
    return Reward(name if name != DATA else scorer.name, weight, _each(lambda a: scorer.score(a.answer, a.example)))


def _scorer(name: str, examples: Examples) -> Scorer:
    known = [DATA, *SCORERS, "gym"]
    if name not in known:
        raise LuthierError(
            f"no reward {name!r}{near(name, known)} There are: {', '.join(known)}, {REGEX}PATTERN, FILE.py:FUNCTION "
            f"and {MODEL}RUN."
        )
    found = scorer_for(examples, None if name == DATA else name)
    if found is None:
        raise LuthierError(
            f"the rows of {examples.source} have no reference answer to score with; add the column `answer`, or name "
            "another reward (regex:PATTERN, FILE.py:FUNCTION, model:RUN)."
        )
    return found


def _matches(pattern: str) -> Callable[[Answered], float]:
    with guarded(f"the pattern {pattern!r} is not a regular expression"):
        compiled = re.compile(pattern)
    if compiled.fullmatch("") and compiled.search("a") and compiled.search("\n"):
        raise LuthierError(
            f"the pattern {pattern!r} is found in every answer, an empty one too, so each would get 1; say more (^…$)."
        )
    return lambda answered: float(compiled.search(answered.answer) is not None)


def _function(spec: str) -> Callable[[Answered], Any]:
    """`name(prompt, answer, example)` of a Python file of the user's."""
    function = function_of(spec)
    try:
        inspect.signature(function).bind("", "", None)
    except TypeError as error:
        raise LuthierError(
            f"{spec} cannot be called as NAME(prompt, answer, example), as a reward is: {error}."
        ) from None
    except ValueError:  # of some functions written in C nothing is known
        pass
    return lambda answered: function(answered.prompt, answered.answer, answered.example)


def _each(score: Callable[[Answered], Any]) -> Callable[[Sequence[Answered]], list[float | str]]:
    """Scores answer by answer; whatever is raised on one, or is not a number, is the reason why it has none."""

    def scored(answered: Answered) -> float | str:
        try:
            value = score(answered)
            return checked(float(value))
        except (Exception, SystemExit) as error:  # rewards are other people's code
            return reason(error)

    return lambda answers: [scored(each) for each in answers]


def checked(value: float) -> float:
    """Returns a finite number; raises `ValueError` for NaN and infinity."""
    if not math.isfinite(value):
        raise ValueError(f"the reward is {value}")
    return value


def text_of_prompt(example: Example, processor: Any) -> str:
    """Returns the text that answers of a row follow."""
    return prompt_of(example, processor)
