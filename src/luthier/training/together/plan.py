"""Several runs that are trained at once, as a plan's file says them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from luthier.core.errors import LuthierError
from luthier.training.folder import holds_run
from luthier.training.planfile import runs_of
from luthier.training.result import Result
from luthier.training.spec import Run


def train_plan(
    name: str | Path, *, resume: bool = False, overwrite: bool = False, trust_remote_code: bool = False
) -> list[Result]:
    """Trains the adapters of a plan (`luthier.training.planfile`), and returns their results in its order.

    Each run is what `luthier.train` makes of it, in a folder of its own. Raises as `train_at_once` does.
    """
    return train_at_once(runs_of(name, trust_remote_code), resume, overwrite)


def train_at_once(
    runs: Sequence[Run], resume: bool = False, overwrite: bool = False, say: Callable[[str], object] = lambda line: None
) -> list[Result]:
    """Trains runs, those of one base in passes that they share; what cannot share them by itself, which `say` is told.

    One that fails leaves the others alone. Raises `LuthierError` at the end, with all that failed.
    """
    from luthier.training.together.meeting import base_of, why_alone

    if used := [run.folder for run in runs if holds_run(run.folder) and not (resume or overwrite)]:
        raise LuthierError(
            f"{used[0]} holds a run already: go on with it (resume), replace it (overwrite), or choose another out."
        )
    groups: dict[object, list[int]] = {}
    for number, run in enumerate(runs):
        reason = why_alone(run)
        if reason:
            say(f"{run.name} is trained by itself: {reason}")
        groups.setdefault(number if reason else base_of(run), []).append(number)
    found: dict[int, Result | Exception] = {}
    for group in groups.values():
        found |= dict(zip(group, _group([runs[number] for number in group], resume, overwrite, say), strict=True))
    results = [found[number] for number in range(len(runs))]
    failed = {run.name: each for run, each in zip(runs, results, strict=True) if isinstance(each, Exception)}
    if failed:
        listed = "".join(f"\n  {name}: {error}" for name, error in failed.items())
        raise LuthierError(f"{len(failed)} of {len(runs)} adapters failed; the others are in their folders:{listed}")
    return [each for each in results if isinstance(each, Result)]


def _group(
    runs: Sequence[Run], resume: bool, overwrite: bool, say: Callable[[str], object]
) -> list[Result | Exception]:
    """Trains runs of one base."""
    from luthier.training.together.request import Alone

    if len(runs) == 1:
        return [_alone(runs[0], resume, overwrite)]
    found = _met(runs, resume, overwrite)
    gc.collect()  # trainers, their optimisers and copies of the model, of those that failed
    for number, result in enumerate(found):
        if isinstance(result, Alone):
            say(f"{runs[number].name} is trained by itself: {result}")
            found[number] = _alone(runs[number], not overwrite, overwrite)
    return found


def _met(runs: Sequence[Run], resume: bool, overwrite: bool) -> list[Result | Exception]:
    """Trains runs in one meeting, whose base goes with it."""
    from luthier.training.together.meeting import Meeting
    from luthier.training.together.runs import train_in

    meeting = Meeting()
    found = meeting.hold([partial(train_in, meeting, run, resume, overwrite) for run in runs], runs[0].training.device)
    return [each.with_traceback(None) if isinstance(each, Exception) else each for each in found]  # as `Alone` is


def _alone(run: Run, resume: bool, overwrite: bool) -> Result | Exception:
    from luthier.training.session import Session

    try:
        return Session(run, progress=False).train(resume, overwrite)
    except Exception as error:  # whatever stops one run; the others are trained, and what it said is told at the end
        return error
