"""The losses of several adapters on rows that go through the model together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.core.adapters.attach import find_state, state_of
from luthier.core.adapters.control import acting, set_acting, use
from luthier.core.adapters.share import ShareFailed, Stream
from luthier.core.errors import LuthierError
from luthier.core.sites.packing import packed
from luthier.training.together.member import Member
from luthier.training.together.request import Answered, Asking, Request, answered
from luthier.training.together.turns import ask, taken
from luthier.training.together.work import Batched, Outcome, Work, padded

Job = tuple[Work | Batched, Outcome]


def check_model(model: Any) -> None:
    """Raises `LuthierError` for a model whose rows cannot be those of several adapters."""
    if not isinstance(model, PreTrainedModel) or not model.can_generate() or model.config.is_encoder_decoder:
        raise LuthierError(
            f"adapters are trained together over a causal language model of transformers; {type(model).__name__} is "
            "none. Train them one by one."
        )


def together(
    model: Any, members: Mapping[str, Member], jobs: Sequence[Job], trains: bool, packs: bool
) -> list[Tensor | None]:
    """Returns the loss of each work, None where it has none; its outcome is filled in.

    With `trains` there are gradients, and forms act as in training; with `packs` no padding is computed.
    """
    if trains and any(vars(module).get("gradient_checkpointing") for module in model.modules()):
        raise LuthierError(
            "the model recomputes activations (gradient checkpointing), and a recomputed block would not find the rows "
            "of its adapters; switch it off (model.gradient_checkpointing_disable())."
        )
    losses: list[Any] = [None] * len(jobs)
    streams = {name: member.stream for name, member in members.items()}
    fit = [number for number, job in enumerate(jobs) if _fits(model, job)]
    while fit:
        before = {name: dict(stream.state) for name, stream in streams.items()}
        with shared_mode(model, streams, trains, packs), torch.set_grad_enabled(trains):
            try:
                found = _losses(model, [jobs[number] for number in fit])
            except ShareFailed as failed:
                for name, stream in streams.items():
                    stream.state = before[name]
                for number in fit:
                    if jobs[number][0].name == failed.name:
                        jobs[number][1].error = str(failed)
                fit = [number for number in fit if jobs[number][1].error is None]
                continue
        for number, loss in zip(fit, found, strict=True):
            losses[number] = loss
        break
    return losses


def _fits(model: Any, job: Job) -> bool:
    """Whether the rows of a work fit the model; else its outcome says why not."""
    work, out = job
    config = model.config.get_text_config()
    if isinstance(work, Work):
        try:
            work.check(config.vocab_size, getattr(config, "max_position_embeddings", None))
        except LuthierError as error:
            out.error = str(error)
    return out.error is None


@contextmanager
def shared_mode(model: Any, streams: Mapping[str, Stream], trains: bool, packs: bool) -> Iterator[None]:
    """Adapters are in train mode and draw from the streams of their names, and no padding is computed with `packs`.

    Behind it, the adapters that were enabled are.
    """
    if find_state(model) is None:
        yield
        return
    state = state_of(model)
    current = state.current
    before, enabled = [(container, container.training) for container in state.containers], acting(model)
    for container in state.containers:
        container.train(trains)
    current.streams = streams
    try:
        with packed(model) if packs else nullcontext():
            yield
    finally:
        current.streams = None
        for container, training in before:
            container.train(training)
        set_acting(model, enabled)


def _losses(model: Any, jobs: Sequence[Job]) -> list[Tensor | None]:
    """The losses of works that fit, by as many shared passes as the one that takes most."""

    def answer(asked: Mapping[int, Request]) -> dict[int, Answered]:
        return dict(zip(asked, answered(model, list(asked.values())), strict=True))

    def resumed(number: int) -> None:
        work = jobs[number][0]
        if isinstance(work, Batched):
            use(model, work.name)

    runs = [partial(_of_rows if isinstance(work, Work) else _of_batch, model, work) for work, _ in jobs]
    results = taken(runs, answer, resumed)
    return [_told(work, out, found) for (work, out), found in zip(jobs, results, strict=True)]


def _of_rows(model: Any, work: Work) -> tuple[Any, list[Tensor], dict]:
    given = padded(work.rows, model.device)
    ends = [row.end() for row in work.rows]
    told = [row.prompt is not None for row in work.rows]
    found: Answered = ask(
        Request(work.name, given["input_ids"], given["attention_mask"], ends, given["targets"], told=told)
    )
    assert found.log_probs is not None
    log_probs = [line[: len(row.tokens)] for line, row in zip(found.log_probs, work.rows, strict=True)]
    try:
        loss: Any = work.loss(log_probs)
    except Exception as error:  # whatever the loss of one adapter says is its own affair
        loss = error
    return loss, [each.detach() for each in log_probs], {}


def _of_batch(model: Any, work: Batched) -> tuple[Any, list[Tensor], dict]:
    loss, figures = work.loss(Asking(model, work.name))
    return loss, [], figures


def _told(work: Work | Batched, out: Outcome, found: Any) -> Tensor | None:
    """Fills in the outcome of a work, and returns its loss; None where there is none."""
    loss = found
    if isinstance(found, tuple):
        loss, out.log_probs, out.figures = found
    if isinstance(loss, BaseException):
        out.error = f"the loss of {work.name!r} raised {type(loss).__name__}: {loss}"
        return None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"{tuple(loss.shape)} numbers" if isinstance(loss, Tensor) else type(loss).__name__
        out.error = f"the loss of {work.name!r} returned {what}; expected a tensor of one number."
        return None
    out.loss = float(loss.detach())
    out.diverged = not math.isfinite(out.loss)
    if out.diverged:
        out.error = f"the loss of {work.name!r} is {out.loss}, so its rows add no gradient."
        return None
    return loss.reshape(()).float()
