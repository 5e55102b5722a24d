"""A pool: adapters that are trained at once over one frozen base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.core.adapters.attach import attach, detach
from luthier.core.adapters.share import Stream, seeded
from luthier.core.contracts.form import Form, Stats
from luthier.core.contracts.init import Init
from luthier.core.errors import LuthierError, near
from luthier.core.paths import path_of
from luthier.training.pack import why_not
from luthier.training.together.kept import load_member, save_member
from luthier.training.together.member import Member, member
from luthier.training.together.passes import check_model, together
from luthier.training.together.work import Batched, Outcome, Work


class Pool:
    """A frozen base with several adapters, of any forms, ranks and places, that are trained at once.

    Each adapter has its own loss, learning rate, clipping, optimiser state, seed and random stream. One thread at a
    time uses a pool; between its calls the model may answer for others (evaluation, generation), and nothing that was
    switched stays switched.
    """

    def __init__(self, model: Any, base: str | None = None) -> None:
        """`model` is a causal language model of transformers, which is put in eval mode: the base draws no dropout.

        `base` is what saved adapters call their base.
        """
        check_model(model)
        self.model = model.eval()
        self.base = base
        self._packs = why_not(model, [{"input_ids": [], "attention_mask": []}]) is None
        self._members: dict[str, Member] = {}

    @property
    def names(self) -> list[str]:
        """The adapters, in the order in which they came."""
        return list(self._members)

    def add(
        self,
        name: str,
        form: Form,
        where: str | None = None,
        *,
        seed: int = 0,
        stats: Mapping[str, Stats] | None = None,
        ranks: Mapping[str, int] | None = None,
        init: Init | None = None,
    ) -> None:
        """Attaches a new adapter, whose start and dropout are drawn from a stream of its own that `seed` starts.

        `where`, `stats`, `ranks` and `init` are those of `luthier.attach`. Raises `LuthierError` for a name that is
        taken, and for what `luthier.attach` refuses.
        """
        self._refuse_taken(name)
        with seeded(self.model.device, seed):
            attach(self.model, form, where, name, stats=stats, ranks=ranks, init=init)
            self.adopt(name, seed=seed)

    def adopt(self, name: str, *, seed: int = 0) -> None:
        """Takes an adapter that is attached to the model already; its stream goes on from torch's own state."""
        self._refuse_taken(name)
        self._members[name] = member(self.model, name, seed, Stream.now(self.model.device))

    def remove(self, name: str) -> None:
        """Detaches an adapter; its tensors, moments and gradients are gone."""
        self._member(name)
        detach(self.model, name)
        del self._members[name]

    def steps(self, name: str) -> int:
        """Returns how many optimiser steps an adapter has made."""
        return self._member(name).steps

    def before_pass(self, name: str, gradients: bool = True) -> Callable[[], None]:
        """Returns a function that makes an adapter what it is now, as if its passes from here on had not been.

        What passes change is its random stream and, unless the loss of each of them is refused, its gradients.
        """
        return self._member(name).before_pass(gradients)

    def forward_backward(self, works: Sequence[Work | Batched], backward: bool = True) -> list[Outcome]:
        """Runs the rows of all works in one pass, each with its own adapter, and returns an outcome for each work.

        With `backward`, the gradient of each loss is added to those of its adapter, which keep adding up until its
        `step`, and what a form does in training alone (dropout) is done, from the adapter's own random stream. An
        objective that passes its rows twice makes two shared passes. A work that is wrong, or whose loss raises or is
        not finite, has its `Outcome.error` told and adds nothing; the others are as without it. Raises `LuthierError`
        for the name of an adapter that is not there, and for a model that recomputes activations.
        """
        for name in {work.name for work in works if work.name is not None}:
            self._member(name)
        outcomes = [Outcome(work.name) for work in works]
        losses = together(self.model, self._members, list(zip(works, outcomes, strict=True)), backward, self._packs)
        if real := [loss for loss in losses if loss is not None and loss.requires_grad]:
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
        return save_member(self.model, self._member(name), path_of(folder), optimizer, self.base)

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
