"""The gradient noise scale: how many rows a step may have before more of them add little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.core.numerics.wide import widened

NOISE, SIGNAL = "grad_noise", "grad_signal"
CURVES = ((NOISE,), (SIGNAL,))


class NoiseScale:
    """Compares the gradients of a step's batches with the step's own.

    With b rows in a batch and B in a step, and g the mean gradient of either, the estimates are
    |G|² = (B |g_B|² - b |g_b|²) / (B - b) and tr Σ = (|g_b|² - |g_B|²) / (1/b - 1/B), of which tr Σ / |G|² is the noise
    scale B_simple, in rows (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1). Single estimates are rough, and
    may be negative: means over many steps are compared.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._squares: list[float] = []
        self._rows: list[int] = []

    def batch(self, params: Mapping[str, nn.Parameter], share: float, rows: int) -> None:
        """Takes the gradients behind a batch of so many rows, which has this share in the step's mean."""
        square = 0.0
        for key, p in params.items():
            if p.grad is None:
                continue
            added = p.grad - self._before[key] if key in self._before else p.grad
            square += float(widened(added).square().sum())
            self._before[key] = p.grad.detach().clone()
        if share:
            self._squares.append(square / share**2)
            self._rows.append(rows)

    def step(self) -> dict[str, float]:
        """Returns the estimates of a step behind its last batch; empty where it has one batch alone."""
        whole = sum(float(widened(grad).square().sum()) for grad in self._before.values())
        found = estimates(sum(self._squares) / max(1, len(self._squares)), whole, self._rows)
        self._before, self._squares, self._rows = {}, [], []
        return found


def estimates(small: float, whole: float, rows: Sequence[int]) -> dict[str, float]:
    """Returns tr Σ and |G|² from the mean square norm of the batches' gradients and that of the step's."""
    if len(rows) < 2:
        return {}
    one, all_ = sum(rows) / len(rows), sum(rows)
    return {NOISE: (small - whole) / (1 / one - 1 / all_), SIGNAL: (all_ * whole - one * small) / (all_ - one)}


def noise_scale(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the noise scale of a run in rows, by the means over its metrics; None where it was not measured, or the
    mean gradient is lost in the noise."""
    known = [line for line in lines if NOISE in line]
    signal = sum(line[SIGNAL] for line in known)
    return sum(line[NOISE] for line in known) / signal if signal > 0 else None
