"""One adapter of a pool: its tensors, its optimiser and its own random stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.core.adapters.control import tensors
from luthier.core.adapters.share import Stream
from luthier.core.errors import LuthierError


@dataclass(eq=False)
class Member:
    """An adapter that is trained beside others."""

    name: str
    params: dict[str, nn.Parameter]
    """Its trained tensors by name, without the adapter's own."""
    seed: int
    stream: Stream
    """Its random stream: of its start, then of its dropout."""
    adam: torch.optim.AdamW
    steps: int = 0
    """Optimiser steps so far."""

    def step(
        self, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, clip: float | None
    ) -> dict[str, float]:
        """Makes one step of AdamW, and clears the gradients; returns the norm of the gradient before clipping.

        Raises `LuthierError` where that norm is not finite; the tensors are then as before, and the gradients gone.
        """
        grads = [p.grad for p in self.params.values() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(grads)) if grads else 0.0
        if not math.isfinite(norm):
            self.clear()
            raise LuthierError(
                f"the gradient of {self.name!r} has the norm {norm} before step {self.steps + 1}, so no step was made "
                "and its tensors are as before. Lower its learning rate, or look at its rows."
            )
        if clip:
            nn.utils.clip_grads_with_norm_(self.params.values(), clip, torch.tensor(norm))
        for group in self.adam.param_groups:
            group.update(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.adam.step()
        self.clear()
        self.steps += 1
        return {"grad_norm": norm}

    def before_pass(self, gradients: bool) -> Callable[[], None]:
        """Returns a function that undoes passes from here on: the random stream, and with `gradients` those."""
        random = dict(self.stream.state)
        held = {key: None if p.grad is None else p.grad.clone() for key, p in self.params.items()} if gradients else {}

        def undo() -> None:
            self.stream.state = random
            for key, grad in held.items():
                self.params[key].grad = grad

        return undo

    def clear(self) -> None:
        """Drops the gradients."""
        for p in self.params.values():
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Returns everything beside the adapter's tensors that its training goes on from, by name."""
        held = {"steps": torch.tensor(self.steps), "seed": torch.tensor(self.seed)}
        held |= {f"random/{kind}": t for kind, t in self.stream.state.items()}
        for key, p in self.params.items():
            held |= {f"{kind}/{key}": t for kind, t in self.adam.state.get(p, {}).items()}
            held |= {} if p.grad is None else {f"grad/{key}": p.grad}
        return held

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` returned."""
        self.steps, self.seed = int(held["steps"]), int(held["seed"])
        self.stream.state |= {k.removeprefix("random/"): t.clone() for k, t in held.items() if k.startswith("random/")}
        for name, tensor in held.items():
            kind, _, key = name.partition("/")
            if not key or kind == "random":
                continue
            p = self.params[key]
            moved = tensor.to(p.device, copy=True)
            if kind == "grad":
                p.grad = moved
            else:
                self.adam.state[p][kind] = moved


def member(model: nn.Module, name: str, seed: int, stream: Stream) -> Member:
    """Returns an adapter that is attached to `model`, before its first step."""
    found = {key.partition(".")[0].removeprefix(name) + "." + key.partition(".")[2]: p
             for key, p in tensors(model, name).items() if p.requires_grad}  # fmt: skip
    return Member(name, found, seed, stream, torch.optim.AdamW(found.values(), lr=0.0, fused=True))
