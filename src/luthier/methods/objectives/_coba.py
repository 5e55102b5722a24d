"""CoBa: weights of tasks from the slopes of their evaluation losses (Gong et al. 2024, arXiv 2410.06741).

Of N tasks with slopes α_i of the loss (as a share of its start) over a window, and α that of the highest loss:
relative convergence RCS = softmax_i(N α_i / Σ_j |α_j|), which favours the slow; absolute convergence
ACS = softmax_i(-L α_i / Σ_t |α_i(t)|) over the last L slopes of the task itself, which favours what still falls;
divergence factor DF = min(1, T softmax_t(-τ T α(t) / Σ_t |α(t)|)) at the last of T looks, near 0 once the highest
loss turns up. The weights are softmax_i(N (DF RCS + (1 - DF) ACS)), raised to 1/(10 N) at least.

The authors' code lets DF grow above 1, where ACS would count against its purpose; here it stops at 1. Their code also
drops the first slopes twice (its windows count steps of training); here a window is the last `history` looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import LuthierError

ObjectiveState = dict[str, Any]


@dataclass(frozen=True)
class Windows:
    """When weights begin, and how far they look back."""

    warmup: int
    history: int
    tau: float


def remembered(
    state: ObjectiveState, step: int, losses: list[float], counts: list[float], windows: Windows
) -> ObjectiveState:
    """The memory after one more look: the first is at all evaluation rows and sets what later ones are shares of.

    `seen` holds each task's last looks as [step, loss], `highest` those of the highest of them, `slopes` each task's
    last slopes, `worst` all slopes of the highest, `weights` what the tasks weigh from the warm-up on.
    """
    if not state:
        if not all(counts):
            raise LuthierError("coba weighs tasks by their evaluation losses, and a task has no evaluation row.")
        empty: list[list] = [[] for _ in losses]
        return {"start": losses, "seen": empty, "highest": [], "slopes": empty, "worst": []}
    last = windows.history
    shares = [loss / start for loss, start in zip(losses, state["start"], strict=True)]
    told = zip(state["seen"], shares, counts, strict=True)
    seen = [[*old, [step, share]][-last:] if count else old for old, share, count in told]
    top = max(share for share, count in zip(shares, counts, strict=True) if count)
    new = state | {"seen": seen, "highest": [*state["highest"], [step, top]][-last:]}
    if step < windows.warmup:
        return new
    slopes = [[*old, slope(points)][-last:] for old, points in zip(state["slopes"], seen, strict=True)]
    worst = [*state["worst"], slope(new["highest"])]
    return new | {"slopes": slopes, "worst": worst, "weights": weights(slopes, worst, windows.tau)}


def slope(points: Sequence[Sequence[float]]) -> float:
    """Returns the slope of the least-squares line through (x, y) points; 0 of fewer than two."""
    if len(points) < 2:
        return 0.0
    x, y = torch.tensor(points, dtype=torch.float64).unbind(1)
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def weights(slopes: Sequence[Sequence[float]], worst: Sequence[float], tau: float) -> list[float]:
    """Returns what the tasks weigh, from each one's slopes (the last is the present) and those of the highest loss."""
    tasks, floor = len(slopes), 1 / (10 * len(slopes))
    now = torch.tensor([own[-1] for own in slopes], dtype=torch.float64)
    sizes = torch.tensor([sum(map(abs, own)) for own in slopes], dtype=torch.float64)
    lengths = torch.tensor([len(own) for own in slopes], dtype=torch.float64)
    relative = torch.softmax(tasks * ratio(now, now.abs().sum()), 0)
    absolute = torch.softmax(-lengths * ratio(now, sizes), 0)
    factor = divergence(worst, tau)
    found = torch.softmax(tasks * (factor * relative + (1 - factor) * absolute), 0)
    if found.min() < floor:
        found = found * (1 - tasks * floor) + floor
    return found.tolist()


def divergence(worst: Sequence[float], tau: float) -> float:
    """DF of the last of the slopes."""
    all_ = torch.tensor(worst, dtype=torch.float64)
    told = torch.softmax(-tau * len(all_) * ratio(all_, all_.abs().sum()), 0)
    return min(1.0, len(all_) * float(told[-1]))


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where the whole is."""
    return part / torch.where(whole > 0, whole, torch.ones_like(whole))


def present_weights(counts: Tensor, known: Sequence[float] | None) -> Tensor:
    """Returns what the tasks present weigh, [tasks], 1 in all: as `known`, or alike."""
    present = counts.gt(0).float()
    weighed = present if known is None else present * present.new_tensor(known)
    return weighed / weighed.sum().clamp(min=1e-30)
