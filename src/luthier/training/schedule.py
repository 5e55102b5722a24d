"""Learning-rate schedules: the share of the peak at each step, behind the warm-up."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any

from luthier.core.errors import LuthierError

Training = Any
"""The settings of `luthier.training.spec`, which checks its schedule here."""

PLAIN = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Schedules that are transformers' own, by its names, where nothing further is set."""
ACTS = {
    "min_lr": ("linear", "cosine", "cosine_restarts", "polynomial", "wsd"),
    "decay": ("wsd",),
    "cycles": ("cosine_restarts",),
    "power": ("polynomial",),
}
"""The schedules in which a further setting acts."""


def check_schedule(training: Training) -> None:
    """Raises `LuthierError` for a setting of a schedule that another one would ignore."""
    defaults = {name: type(training).__dataclass_fields__[name].default for name in ACTS}
    for name, where in ACTS.items():
        value = getattr(training, name)
        if value != defaults[name] and training.schedule not in where:
            raise LuthierError(
                f"{name} is {value} and would be ignored: it acts where schedule is {' or '.join(where)}, and schedule "
                f"is {training.schedule}. Leave one of the two out."
            )


def is_plain(training: Training) -> bool:
    """Returns whether the schedule is transformers' own."""
    return training.schedule in PLAIN and not training.min_lr


def shape(training: Training, steps: int) -> Callable[[int], float]:
    """Returns the factor of the learning rate at each of `steps` steps, 0 at the first where it is warmed up.

    With t the share of the steps behind the warm-up and m = min_lr: linear m + (1 - m)(1 - t); cosine
    m + (1 - m)(1 + cos πt)/2, with `cycles` restarts of it; polynomial m + (1 - m)(1 - t)^power; wsd (warm-up, stable,
    decay) 1, then linearly to m over the last `decay` of all steps; inverse_sqrt √(w/s) at step s behind w steps of
    warm-up (at least one).
    """
    warm = math.ceil(training.warmup * steps)
    falls = FALLS[training.schedule]

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        return falls(training, step, warm, steps)

    return factor


def restarting(training: Training, kind: Any, turns: Sequence[int], steps: int) -> Callable[[int], float]:
    """Returns the factor of the learning rate at each step, of a schedule that begins anew at each of `turns`.

    `kind` is transformers' own schedule, where nothing further is set.
    """
    starts, ends = (0, *turns), (*turns, steps)
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    shapes = [_plain(training, kind, length) if is_plain(training) else shape(training, length) for length in lengths]

    def factor(step: int) -> float:
        phase = bisect.bisect_right(starts, step) - 1
        return shapes[phase](step - starts[phase])

    return factor


def _plain(training: Training, kind: Any, steps: int) -> Callable[[int], float]:
    import torch
    import transformers

    alone = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # gives the shape of a schedule, and steps nothing
    made: Any = transformers.get_scheduler(kind, alone, math.ceil(training.warmup * steps), steps)
    return made.lr_lambdas[0]


def _share(step: int, warm: int, steps: int) -> float:
    return min(1.0, (step - warm) / max(1, steps - warm))


def _to(low: float, height: float) -> float:
    return low + (1 - low) * height


def _linear(training: Training, step: int, warm: int, steps: int) -> float:
    return _to(training.min_lr, 1 - _share(step, warm, steps))


def _cosine(training: Training, step: int, warm: int, steps: int) -> float:
    return _to(training.min_lr, (1 + math.cos(math.pi * _share(step, warm, steps))) / 2)


def _restarts(training: Training, step: int, warm: int, steps: int) -> float:
    share = _share(step, warm, steps)
    within = 1.0 if share >= 1 else (training.cycles * share) % 1.0
    return _to(training.min_lr, (1 + math.cos(math.pi * within)) / 2)


def _polynomial(training: Training, step: int, warm: int, steps: int) -> float:
    return _to(training.min_lr, (1 - _share(step, warm, steps)) ** training.power)


def _wsd(training: Training, step: int, warm: int, steps: int) -> float:
    length = max(1, min(round(training.decay * steps), steps - warm))
    return _to(training.min_lr, max(0.0, min(1.0, (steps - step) / length)))


def _inverse_sqrt(training: Training, step: int, warm: int, steps: int) -> float:
    return math.sqrt(max(1, warm) / max(1, step, warm))


def _constant(training: Training, step: int, warm: int, steps: int) -> float:
    return 1.0


FALLS: dict[str, Callable[[Training, int, int, int], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "cosine_restarts": _restarts,
    "polynomial": _polynomial,
    "wsd": _wsd,
    "inverse_sqrt": _inverse_sqrt,
}
"""What follows the warm-up."""
