"""A pool: adapters that are trained at once over one frozen base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.adapters.attach import attach, detach, find_state
from luthier.core.adapters.control import prompt, rows
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError, near
from luthier.methods.log_probs import target_log_probs
from luthier.training.together.kept import load_member, save_member
from luthier.training.together.member import Member, member
from luthier.training.together.work import Outcome, Work, padded


class Pool:
    """A frozen base with several adapters, of any forms, ranks and places, that are trained at once.

    Each adapter has its own loss, learning rate, clipping, optimiser state, seed and random stream. One thread at a
    time uses a pool; between its calls the model may answer for others (evaluation, generation), and nothing that was
    switched stays switched.
    """

    def __init__(self, model: Any, base: str | None = None) -> None:
        """`model` is a causal language model of transformers; `base` is what saved adapters call their base."""
        self.model = model
        self.base = base
        self._members: dict[str, Member] = {}

    @property
    def names(self) -> list[str]:
        """The adapters, in the order in which they came."""
        return list(self._members)

    def add(self, name: str, form: Form, where: str | None = None, *, seed: int = 0, **given: Any) -> None:
        """Attaches a new adapter, whose start and dropout are drawn from a stream of its own that `seed` starts.

        Raises `LuthierError` for a name that is taken, and for what `luthier.attach` refuses.
        """
        self._refuse_taken(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            attach(self.model, form, where, name, **given)
            self.adopt(name, seed=seed)

    def adopt(self, name: str, *, seed: int = 0) -> None:
        """Takes an adapter that is attached to the model already; its stream goes on from torch's own state."""
        self._refuse_taken(name)
        self._members[name] = member(self.model, name, seed, torch.get_rng_state())

    def remove(self, name: str) -> None:
        """Detaches an adapter; its tensors, moments and gradients are gone."""
        self._member(name)
        detach(self.model, name)
        del self._members[name]

    def steps(self, name: str) -> int:
        """Returns how many optimiser steps an adapter has made."""
        return self._member(name).steps

    def forward_backward(self, works: Sequence[Work], backward: bool = True) -> list[Outcome]:
        """Runs the rows of all works in one pass, each with its own adapter, and returns an outcome for each work.

        With `backward`, the gradient of each loss is added to those of its adapter, which keep adding up until its
        `step`. A work that is wrong, or whose loss raises or is not finite, has its `Outcome.error` told and adds
        nothing; the others are as without it. Raises `LuthierError` only for the name of an adapter that is not there.
        """
        for name in {work.name for work in works if work.name is not None}:
            self._member(name)
        outcomes = [Outcome(work.name) for work in works]
        running = [(work, out) for work, out in zip(works, outcomes, strict=True) if self._runs(work, out)]
        if not running:
            return outcomes
        with torch.set_grad_enabled(backward and any(work.name for work, _ in running)):
            found = self._pass([work for work, _ in running])
            losses = [loss_of(work, parts, out) for (work, out), parts in zip(running, found, strict=True)]
        if backward and (real := [loss for loss in losses if loss is not None and loss.requires_grad]):
            torch.stack(real).sum().backward()
        return outcomes

    def step(
        self,
        name: str,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> dict[str, float]:
        """Makes one step of AdamW of one adapter alone, and clears its gradients; returns {"grad_norm": …}.

        The norm is that before clipping; `clip` is the largest it may have (None or 0: any). Raises `LuthierError`
        where it is not finite: the adapter is then as before, its gradients are gone, and other adapters are untouched.
        """
        return self._member(name).step(lr, betas, eps, weight_decay, clip)

    def save(self, name: str, folder: str | Path, optimizer: bool = True) -> Path:
        """Saves an adapter as any other (`luthier.load` reads it), and with `optimizer` what training goes on from.

        That is, beside it in the folder `training`: moments, number of steps, gradients that wait for a step, and the
        random stream, all bit for bit.
        """
        return save_member(self.model, self._member(name), Path(folder).expanduser(), optimizer, self.base)

    def load(self, name: str, folder: str | Path, optimizer: bool = True, *, seed: int = 0) -> None:
        """Reads what `save` wrote, as the adapter `name`, in the place of one that has the name.

        Without `optimizer`, moments start from zero and the random stream from `seed`. Raises `LuthierError` for a
        folder that does not fit or, with `optimizer`, holds no training state; the pool is then as before.
        """
        self._members[name] = load_member(self.model, self._members.get(name), name, Path(folder), optimizer, seed)

    def _refuse_taken(self, name: str) -> None:
        if name in self._members:
            raise LuthierError(f"the pool has an adapter {name!r} already; remove it first, or choose another name.")

    def _member(self, name: str) -> Member:
        if name not in self._members:
            have = ", ".join(self._members) or "none"
            raise LuthierError(f"the pool has no adapter {name!r}{near(name, self._members)} It has: {have}.")
        return self._members[name]

    def _runs(self, work: Work, out: Outcome) -> bool:
        """Whether the rows of a work fit the model; else its outcome says why not."""
        config = self.model.config.get_text_config()
        try:
            work.check(config.vocab_size, getattr(config, "max_position_embeddings", None))
        except LuthierError as error:
            out.error = str(error)
        return out.error is None

    def _pass(self, works: Sequence[Work]) -> list[list[Tensor]]:
        """The log-probabilities of the targets of every work's rows, [T_i] each, by one pass."""
        every = [row for work in works for row in work.rows]
        batch = padded(every, self.model.device)
        whose = [work.name for work in works for _ in work.rows]
        if find_state(self.model) is None:
            found = target_log_probs(self.model, batch)
        else:
            with rows(self.model, whose), prompt(self.model, [row.end() for row in every]):
                found = target_log_probs(self.model, batch)
        parts = iter([line[: len(row.tokens)] for line, row in zip(found, every, strict=True)])
        return [[next(parts) for _ in work.rows] for work in works]


def loss_of(work: Work, log_probs: list[Tensor], out: Outcome) -> Tensor | None:
    """Fills in the outcome of a work, and returns its loss; None where it is none."""
    out.log_probs = [each.detach() for each in log_probs]
    try:
        loss = work.loss(log_probs)
    except Exception as error:  # whatever the loss of one adapter says is its own affair
        out.error = f"the loss of {work.name!r} raised {type(error).__name__}: {error}"
        return None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"{tuple(loss.shape)} numbers" if isinstance(loss, Tensor) else type(loss).__name__
        out.error = f"the loss of {work.name!r} returned {found}; expected a tensor of one number."
        return None
    out.loss = float(loss.detach())
    out.diverged = not math.isfinite(out.loss)
    if out.diverged:
        out.error = f"the loss of {work.name!r} is {out.loss}, so its rows add no gradient."
        return None
    return loss.reshape(()).float()
