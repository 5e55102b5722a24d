"""Several functions that take turns: each runs until it asks, and what all have asked is answered at once.

Each has a thread of its own, of which one at a time runs, in a fixed order: what they do is the same in every run.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Answer = Callable[[Mapping[int, Any]], Mapping[int, Any]]
"""Answers what the functions of these numbers have asked; an exception as an answer is raised where it was asked."""
Switched = Callable[[int], None]
"""Called with the number of a function before it goes on, or once it has asked or ended."""


class _Ended(BaseException):
    """Ends a function whose answers will not come."""


class _Turn(threading.Thread):
    """One of the functions."""

    def __init__(self, number: int, job: Callable[[], Any], back: threading.Semaphore) -> None:
        super().__init__(daemon=True, name=f"luthier-turn-{number}")
        self.number, self.job, self.back, self.go = number, job, back, threading.Semaphore(0)
        self.context, self.grad = contextvars.copy_context(), torch.is_grad_enabled()
        self.asked: Any = None
        self.answer: Any = None
        self.result: Any = None
        self.over = False

    def run(self) -> None:
        self.go.acquire()
        try:
            with torch.set_grad_enabled(self.grad):
                self.result = self.context.run(self._job)
        except BaseException as error:  # handed to the caller, which knows what to do
            self.result = error
        self.over = True
        self.back.release()

    def _job(self) -> Any:
        _own.turn = self
        return self._taken(self.answer) and self.job()

    def ask(self, question: Any) -> Any:
        """Waits until what it asks is answered."""
        self.asked = question
        self.back.release()
        self.go.acquire()
        self.asked = None
        self._taken(self.answer)
        return self.answer

    def _taken(self, answer: Any) -> bool:
        if isinstance(answer, BaseException):
            raise answer
        return True

    def resume(self, answer: Any) -> None:
        """Lets it run until it asks or ends."""
        self.answer = answer
        self.go.release()
        self.back.acquire()

    def end(self) -> None:
        """Lets it leave what it is in, such as a folder that it holds."""
        self.answer = _Ended()
        self.go.release()
        self.join()


class _Own(threading.local):
    turn: _Turn | None = None


_own = _Own()


def ask(question: Any) -> Any:
    """Returns the answer to a question, in a function that `taken` runs; others run meanwhile."""
    return _turn().ask(question)


def own_number() -> int:
    """Returns the number of the function that `taken` runs in this thread."""
    return _turn().number


def _turn() -> _Turn:
    assert _own.turn is not None, "nobody takes turns in this thread"
    return _own.turn


def taken(
    jobs: Sequence[Callable[[], Any]],
    answer: Answer,
    resumed: Switched = lambda number: None,
    paused: Switched = lambda number: None,
) -> list[Any]:
    """Runs the functions in turns, and returns what each returned, or the exception that it raised.

    What is no `Exception`, such as an interrupt, ends them all, and is raised here.
    """
    back = threading.Semaphore(0)
    turns = [_Turn(number, job, back) for number, job in enumerate(jobs)]
    for turn in turns:
        turn.start()
    try:
        answers: Mapping[int, Any] = dict.fromkeys(range(len(turns)))
        while answers:
            for number, found in answers.items():
                resumed(number)
                turns[number].resume(found)
                paused(number)
                if isinstance(result := turns[number].result, BaseException) and not isinstance(result, Exception):
                    raise result
            waiting = {number: turn.asked for number, turn in enumerate(turns) if not turn.over}
            answers = answer(waiting) if waiting else {}
    except BaseException:
        for turn in turns:
            if not turn.over:
                turn.end()
        raise
    return [turn.result for turn in turns]
