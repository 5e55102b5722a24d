"""One class: is it built, does it run, and what comes of each form."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers as tf
from bench.architectures.classes import Known
from bench.architectures.inputs import batch
from bench.architectures.laws import FORMS, Subject, judged, outputs
from bench.architectures.small import small


class Late(BaseException):
    """A class took too long; nothing else catches this."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """What runs inside is stopped by `Late` after so many seconds of the processor, however busy the machine is."""

    def late(*_: Any) -> None:
        raise Late

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tried(each: Known, seconds: int) -> dict[str, Any]:
    """What came of one class: whether it builds and runs, and each form's verdict."""
    row: dict[str, Any] = {"family": each.family, "type": each.type, "name": each.name, "transformers": tf.__version__}
    started = time.process_time()
    try:
        found: dict[str, Any] = {}

        def runs(model) -> None:
            found["inputs"] = batch(model, each.family)
            if not all(bool(t.isfinite().all()) for t in outputs(model, found["inputs"])):
                raise ValueError("its output is not finite")

        model = small(each.model, each.config, runs, seconds / 2)
        subject: Subject | None = Subject(copy.deepcopy(model), found["inputs"])  # some train in training mode alone
    except (Exception, Late) as error:
        return row | {"built": False, "reason": _line(error), "seconds": round(time.process_time() - started, 1)}
    row |= {"built": True, "numbers": sum(p.numel() for p in model.parameters()), "labels": "labels" in found["inputs"]}
    for name in FORMS:
        try:
            subject = subject or Subject(copy.deepcopy(model), found["inputs"])
            row[name] = vars(judged(name, subject))
            subject = subject if row[name]["status"] == "holds" else None  # the others leave what they could not undo
        except Late:
            row[name] = {"status": "slow", "reason": "out of time", "told": []}
            break
    return row | {"seconds": round(time.process_time() - started, 1)}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
