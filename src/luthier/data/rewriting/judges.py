"""Judges and critics by what they are called: a scorer, a server, a Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luthier.core.contracts.example import Example, Examples
from luthier.core.contracts.rewrite import Asked, Verdict, Voice, answer_of, question_of
from luthier.core.errors import LuthierError
from luthier.core.guard import reason
from luthier.core.user_function import function_of, is_function
from luthier.data.rewriting.api import Server, is_address
from luthier.data.score import SCORERS, judge, refuse_unscorable, scorer_for

Judge = Callable[[Sequence[tuple[Example, str]]], list[Verdict]]
RIGHT = 1.0
"""The score from which on an answer is right."""
ASK = (
    "Does this answer say the same as the right one? Words may differ, facts may not. Reply 'yes' or 'no'.\n\n"
    "Question:\n{question}\n\nRight answer:\n{reference}\n\nAnswer:\n{answer}"
)


def judge_of(name: str | Callable[..., Any], examples: Examples, least: float = RIGHT) -> Judge:
    """Returns a judge: a scorer by name (`exact_match`, `number`, `choice`, `label`, `gym`, …), a model behind OpenAI's
    API (`http://host/v1#model`), or a function (`file.py:name`, or itself) of prompt, answer and reference.

    A function or scorer finds an answer right by True, or by a number of at least `least`. Raises `LuthierError` for a
    judge that is not there, and for rows that a scorer cannot judge.
    """
    if callable(name):
        return lambda asked: [by_function(name, *each, least) for each in asked]
    if is_address(name):
        server = Server(name, max_tokens=16)
        return lambda asked: by_server(server, asked)
    if is_function(name):
        found = function_of(name)
        return lambda asked: [by_function(found, *each, least) for each in asked]
    scorer = scorer_for(examples, name)
    if scorer is None:
        raise LuthierError(f"{examples.source} has no answers to judge by.")
    refuse_unscorable(scorer, examples.rows)

    def by_scorer(asked: Sequence[tuple[Example, str]]) -> list[Verdict]:
        told = [judge(scorer, text, example) for example, text in asked]
        return [Verdict(None if why else score >= least, why or "") for score, why in told]

    return by_scorer


def by_function(function: Callable[..., Any], example: Example, text: str, least: float) -> Verdict:
    """Returns what a user's function says; one that raises, or gives no truth value or number, did not say."""
    try:
        told = function(question_of(example), text, answer_of(example))
    except Exception as error:
        return Verdict(None, reason(error))
    if isinstance(told, bool):
        return Verdict(told)
    if isinstance(told, int | float) and told == told:  # NaN is none
        return Verdict(told >= least)
    return Verdict(None, f"it gave {str(told)[:40]!r}, expected True, False or a number")


def by_server(server: Server, asked: Sequence[tuple[Example, str]]) -> list[Verdict]:
    """Returns what a model says, which is asked for a yes or a no."""
    requests = [
        ASK.format(question=question_of(example), reference=answer_of(example), answer=text) for example, text in asked
    ]
    replies = server([[{"role": "user", "content": request}] for request in requests])
    return [_said(reply, server) for reply in replies]


def _said(reply: str | None, server: Server) -> Verdict:
    if reply is None:
        return Verdict(None, next(reversed(server.why), "no answer"))
    word = reply.strip().strip("'\"*.").casefold()
    if word.startswith(("yes", "no")):
        return Verdict(word.startswith("yes"))
    return Verdict(None, f"it said {reply.strip()[:40]!r}, expected yes or no")


def voice_of(name: str | Callable[..., Any], write: Voice, max_tokens: int = 256) -> Voice:
    """Returns a critic: a model behind OpenAI's API, a function of the conversation (a list of messages) that returns
    text, or `self`, the model that the rows are made for."""
    if callable(name) or is_function(name):
        found = name if callable(name) else function_of(name)
        return lambda conversations: [_replied(found, messages) for messages in conversations]
    if name == SELF:
        return write
    if is_address(name):
        return Server(name, max_tokens=max_tokens)
    raise LuthierError(
        f"no critic {name!r}; give a server (http://host/v1#model), a function (file.py:name), or {SELF}. Scorers "
        f"({', '.join(SCORERS)}) judge, and name no flaws."
    )


SELF = "self"


def _replied(function: Callable[..., Any], messages: Asked | Any) -> str | None:
    try:
        told = function(messages)
    except Exception:
        return None
    return told if isinstance(told, str) else None
