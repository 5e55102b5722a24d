"""Runs that meet: each has a Trainer of its own, and the rows of their steps go through one model together.

Every run sees a copy of the base, which is made of the very same tensors, with its own adapter alone; so what it looks
at, counts, saves and clips is what it would be by itself. Only the passes of its loss are those of one more copy, which
has the adapters of all. One run at a time is busy, so that random numbers and folders are its own.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.state import GradientState
from torch import Tensor, nn

from luthier.core.adapters.attach import detach, state_of
from luthier.core.adapters.lend import lend
from luthier.core.adapters.share import ShareFailed, Stream
from luthier.core.device import device_of
from luthier.core.errors import LuthierError
from luthier.kernels.backend import cpu_backend
from luthier.models import Loaded
from luthier.training.context import backend_of
from luthier.training.pack import why_not
from luthier.training.prepare import Prepared
from luthier.training.processes import processes
from luthier.training.progress import quiet
from luthier.training.result import FAILURES
from luthier.training.session import load
from luthier.training.spec import Run
from luthier.training.together.passes import check_model, shared_mode
from luthier.training.together.request import Alone, Answered, Request, answered
from luthier.training.together.turns import own_number, taken
from luthier.training.writing import writes

T = TypeVar("T")
DRAWS = ("dropout", "pdrop", "drop", "jitter_noise")
"""Ends of the settings of a model that make it draw random numbers in training."""


@dataclass(frozen=True)
class Gradient:
    """What a run asks once its loss is there: the gradient of it."""

    loss: Tensor


@dataclass(eq=False)
class _Seat:
    """One of those that meet: what a process has once and each of them for itself, and its adapter while it trains."""

    stream: Stream
    python: Any = field(default_factory=random.getstate)
    numpy: Any = field(default_factory=np.random.get_state)
    accumulated: dict[str, Any] = field(default_factory=dict)
    """What accelerate knows of the step: whether batches are added up, or it is time for the optimiser."""
    called: str | None = None
    """What its adapter is called in the shared model."""

    def sit(self) -> None:
        """Makes its own what the process has once."""
        self.stream.begin()
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        GradientState._shared_state.clear()
        GradientState._shared_state.update(self.accumulated)

    def rise(self) -> None:
        """Keeps what the process has once, for the next time."""
        self.stream.end()
        self.python, self.numpy = random.getstate(), np.random.get_state()
        self.accumulated = dict(GradientState._shared_state)


def base_of(run: Run) -> tuple[Any, ...]:
    """Returns what runs have in common that can meet: one base, computed in one way.

    Where forms meet on a layer, each is computed by its own definition, and alone by its kernel, which draws dropout
    otherwise; so runs with dropout meet those of their form.
    """
    settings, form = run.training, run.form
    drawing = form.name() if form.train_mode() != form.eval_mode() else None
    return (
        run.model,
        settings.precision,
        settings.attn,
        settings.cpu_backend,
        settings.device,
        run.trust_remote_code,
        drawing,
    )


def why_alone(run: Run) -> str | None:
    """Returns why a run cannot share its passes with others, as far as it tells without its base; None: it can."""
    settings = run.training
    reasons = {
        f"{run.objective.name()} samples its answers": run.objective.samples,
        "it recomputes activations (gradient_checkpointing)": settings.gradient_checkpointing,
        "noise is added to its embeddings (neftune)": bool(settings.neftune),
        "its batches are padded (pack)": settings.pack is False,
        "its frozen blocks are computed once (cache_frozen)": settings.cache_frozen not in ("auto", "off"),
        "its base is quantised": settings.quantize is not None,
        "its loss is scaled (float16)": settings.precision == "float16",
        "its base is sharded": settings.shard,
        "its blocks are compiled": settings.compile,
        "its evaluations write answers (best)": writes(run, run.task or "causal-lm"),
        "it runs in several processes": processes() > 1,
        f"it is for {run.task}": run.task not in (None, "causal-lm"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@dataclass(frozen=True, eq=False)
class _Base:
    """One base in memory."""

    plain: Loaded
    """As it was loaded, for copies."""
    shared: Any
    """The copy that has the adapters of all."""
    packs: bool
    """Whether its batches have no padding."""
    backend: str


def _base(run: Run, prepared: Prepared) -> _Base:
    loaded = load(run, prepared)
    model = loaded.model
    check_model(model)
    if told := _drawing(model):
        raise Alone(f"{run.model} draws random numbers of its own in training ({told})")
    model.requires_grad_(False).eval().to(device_of())
    shared = _copied(model)
    shared.config.use_cache = False
    packs = why_not(shared, [{"input_ids": [], "attention_mask": []}]) is None
    return _Base(loaded, shared, packs, backend_of(run, model))


class Meeting:
    """Runs of one base that are trained at once."""

    def __init__(self) -> None:
        self._base: _Base | None = None
        self._seats: list[_Seat] = []

    def hold(self, jobs: Sequence[Callable[[], T]], device: str | None = None) -> list[T | Exception]:
        """Runs functions that train (`luthier.training.together.runs.Meets`), and returns what each returned or raised.

        `device` is what the runs name, whose random numbers each of them has for itself, and the caller again behind
        them. One that raises, as a run that diverges does, ends by itself; `Alone` is raised where it cannot share its
        passes after all. An interrupt ends them all.
        """
        outer, *self._seats = (_Seat(Stream.now(device_of(device))) for _ in range(len(jobs) + 1))
        outer.rise()
        try:
            with quiet():
                found = taken(jobs, self._answer, self._resumed, self._paused)
        finally:
            outer.sit()
        for each in found:
            if isinstance(each, Alone):
                each.with_traceback(None)  # its frames hold a trainer and a model, while the run is made by itself
        return found

    def copy(self, run: Run, prepared: Prepared) -> Loaded:
        """Returns a base for a run: a copy that is made of the tensors of the others'."""
        if prepared.task != "causal-lm":
            raise Alone(f"{run.model} is for {prepared.task} here; rows of several adapters are those of causal models")
        if self._base is None:
            self._base = _base(run, prepared)
        plain = self._base.plain
        return replace(plain, model=_copied(plain.model))

    def join(self, model: Any, name: str) -> str:
        """Takes in the adapter that the run in turn has attached to its copy; returns what it is called here."""
        assert self._base is not None
        number = own_number()
        tuners = [tuner for each in state_of(model).containers for tuner in each.tuners()]
        if not self._base.packs and any(tuner.train_form != tuner.eval_form for tuner in tuners):
            raise Alone("its batches cannot be packed, and its dropout would fall otherwise beside others")
        called = f"run-{number}"
        lend(model, name, self._base.shared, called)
        self._seats[number].called = called
        return called

    def leave(self) -> None:
        """Lets the adapter of the run in turn go."""
        seat = self._seats[own_number()]
        if seat.called is not None and self._base is not None:
            detach(self._base.shared, seat.called)
            seat.called = None

    # --- turns ---------------------------------------------------------------------------------------

    def _resumed(self, number: int) -> None:
        self._seats[number].sit()

    def _paused(self, number: int) -> None:
        self._seats[number].rise()

    def _answer(self, asked: Mapping[int, Request | Gradient]) -> dict[int, Any]:
        """Passes first: a loss may need several, and one backward pass is then that of all."""
        passes = {number: each for number, each in asked.items() if isinstance(each, Request)}
        losses = {number: each.loss for number, each in asked.items() if isinstance(each, Gradient)}
        return self._pass(passes) if passes else self._backward(losses)

    def _pass(self, asked: dict[int, Request]) -> dict[int, Any]:
        assert self._base is not None
        base, found = self._base, {}
        streams = {seat.called: seat.stream for seat in self._seats if seat.called is not None}
        while asked:
            before = {name: dict(stream.state) for name, stream in streams.items()}
            try:
                with shared_mode(base.shared, streams, True, base.packs), cpu_backend(base.backend):
                    made: list[Answered] = answered(base.shared, list(asked.values()))
                return found | dict(zip(asked, made, strict=True))
            except ShareFailed as failed:
                for name, stream in streams.items():
                    stream.state = before[name]
                guilty = [number for number, each in asked.items() if each.name == failed.name]
                found |= {number: Alone(str(failed)) for number in guilty}
                asked = {number: each for number, each in asked.items() if number not in guilty}
            except FAILURES as error:
                return found | _apart(asked, error)
        return found

    def _backward(self, losses: dict[int, Tensor]) -> dict[int, Any]:
        try:
            assert self._base is not None
            with cpu_backend(self._base.backend):
                torch.stack([loss.reshape(()).float() for loss in losses.values()]).sum().backward()
        except FAILURES as error:
            return _apart(losses, error)
        return dict.fromkeys(losses)


def _apart(asked: Mapping[int, Any], error: BaseException) -> dict[int, Any]:
    told = str(error) if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
    return {number: Alone(f"a pass that it shares failed ({told})") for number in asked}


def _copied(model: nn.Module) -> Any:
    """A copy of a model that is made of the very same tensors."""
    return copy.deepcopy(model, {id(t): t for t in chain(model.parameters(), model.buffers())})


def _drawing(model: Any) -> str | None:
    """The setting by which a base draws in training; None where it draws nothing."""
    settings = model.config.get_text_config().to_dict()
    found = (f"{name} {value}" for name, value in settings.items() if name.endswith(DRAWS) and value)
    return next(found, None)
