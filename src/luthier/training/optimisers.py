"""Optimisers that torch and transformers have not in this form: Muon beside AdamW, and AdamW without a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from luthier.training.ema import Ema
from luthier.training.spec import Run

Group = dict[str, Any]


class _Stepped(torch.optim.Optimizer):
    """Steps each parameter by itself."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes a step of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            self.begin(group)
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad, self.state[p], group)
        return loss

    def begin(self, group: Group) -> None:
        """What a step computes once for a group; nothing here."""

    def move(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: Group) -> None:
        """Steps one parameter."""
        raise NotImplementedError


def _counted(state: dict[str, Any], **zeros: Tensor) -> float:
    """Begins the state of a parameter where there is none, and returns the number of this step, from 1."""
    if not state:
        state |= {"step": torch.zeros(()), **zeros}
    state["step"] += 1
    return float(state["step"])


def _size(grad: Tensor, state: dict[str, Any], count: float, beta: float, eps: float) -> Tensor:
    """√v̂ + ε, with v the running mean of squares, which takes this gradient."""
    state["exp_avg_sq"].mul_(beta).addcmul_(grad, grad, value=1 - beta)
    return (state["exp_avg_sq"] / (1 - beta**count)).sqrt().add_(eps)


class Muon(_Stepped):
    """Muon for matrices, AdamW for all else, at one learning rate.

    B ← 0.95 B + 0.05 g, W ← W - 0.2 √max(m, n) lr O(0.05 g + 0.95 B) for W [m, n], where O makes all singular values
    about 1 (five Newton-Schulz iterations; Jordan et al. 2024). The factor gives the step the size of AdamW's, so that
    its rates are used (Liu et al. 2025, arXiv 2502.16982).
    """

    def move(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: Group) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"])
        if p.ndim == 2:
            _counted(state, momentum_buffer=torch.zeros_like(p))
            state["momentum_buffer"].lerp_(grad, 1 - MOMENTUM)
            step = orthogonal(grad.lerp(state["momentum_buffer"], MOMENTUM)).to(p.dtype)
            p.sub_(step, alpha=0.2 * max(p.shape) ** 0.5 * group["lr"])
            return
        one, two = group["betas"]
        count = _counted(state, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["exp_avg"].lerp_(grad, 1 - one)
        size = _size(grad, state, count, two, group["eps"])
        p.addcdiv_(state["exp_avg"], size, value=-group["lr"] / (1 - one**count))


MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonal(matrix: Tensor) -> Tensor:
    """Returns U S V^T with S about 1 of a matrix with the singular vectors U and V, in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class ScheduleFree(_Stepped):
    """AdamW without a schedule: gradients at y = (1 - β) z + β x, and x, the weighted mean of all z, is the result.

    z ← z - lr (g / √v̂ + λ y), x ← (1 - c) x + c z with c the share of the largest rate so far, squared, in the sum of
    these (Defazio et al. 2024, arXiv 2405.15682). The parameters are y while it trains, and the state holds x and z.
    """

    def begin(self, group: Group) -> None:
        """The weight of this step in the mean."""
        group["highest"] = max(group.get("highest", 0.0), group["lr"])
        group["weights"] = group.get("weights", 0.0) + group["highest"] ** 2

    def move(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: Group) -> None:
        one, two = group["betas"]
        count = _counted(state, x=p.clone(), z=p.clone(), exp_avg_sq=torch.zeros_like(p))
        way = (grad / _size(grad, state, count, two, group["eps"])).add_(p, alpha=group["weight_decay"])
        state["z"].sub_(way, alpha=group["lr"])
        share = group["highest"] ** 2 / group["weights"] if group["weights"] else 0.0
        state["x"].lerp_(state["z"], share)
        p.copy_(state["z"].lerp(state["x"], one))


class ScheduleFreeMean(Ema):
    """Puts x of `ScheduleFree` in the place of what is trained, while it is evaluated and at the end."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        super().__init__(model, name, decay=0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """There is no x before the first step, unless a checkpoint has brought one."""

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Looks where x is; what is not stepped stays as it is."""
        self.means = {key: optimizer.state.get(p, {}).get("x", p.detach()) for key, p in self.held().items()}


OWN: dict[str, type[_Stepped]] = {"muon": Muon, "schedule_free": ScheduleFree}
"""By their names in `Training.optimizer`."""


def average_of(run: Run, model: torch.nn.Module) -> Ema | None:
    """Returns what is evaluated and saved in the place of what is trained; None where that is itself."""
    if run.training.optimizer == "schedule_free":
        return ScheduleFreeMean(model, run.name)
    return Ema(model, run.name, run.training.ema) if run.training.ema else None
