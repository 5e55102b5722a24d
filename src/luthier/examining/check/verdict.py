"""Verdicts: what the probes of a gate say, with the uncertainty of so few of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.contracts.gate import Gate, Probes
from luthier.core.errors import LuthierError
from luthier.core.numerics.resampling import resampled

PASSES, TRIPPED, UNTOLD, UNMEASURED = "passes", "tripped", "too few probes", "not measured"
FEWEST = 10
"""Probes below which a mean of other numbers than 0 and 1 is not told: the bootstrap is too narrow there."""
RESAMPLES = 10_000
"""Bootstrap samples of an interval."""
CHUNK = 2_000_000
"""Drawn probes held at a time."""


@dataclass(frozen=True)
class Verdict:
    """What one gate found."""

    name: str
    gate: Gate
    outcome: str
    """`passes`, `tripped`, `too few probes` or `not measured`, with numbers that are NaN."""
    probes: int
    before: float
    """Mean over the probes of the model before fine-tuning."""
    after: float
    worsening: float
    """Mean of after - before in the direction that is worse."""
    low: float
    """Lower end of the worsening's 95% interval."""
    high: float
    null: float
    """The worsening of the model before fine-tuning against itself."""
    seen: float
    """The smallest true worsening above the tolerance that so many probes would have told in about four of five
    trials."""
    seconds: float = 0.0
    other_seed: float | None = None
    """The worsening of the same fine-tuning from another seed, where one was given."""
    reason: str | None = None
    """Why it was not measured, or the other seed was not."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        own = {key: value for key, value in vars(self).items() if key != "gate"}
        return {**own, "by": self.gate.name(), "unit": self.gate.unit, "settings": self.gate.to_dict()}


def unmeasured(name: str, gate: Gate, reason: str) -> Verdict:
    """Returns what is left to say of a gate that failed while it was measured."""
    return Verdict(name, gate, UNMEASURED, 0, *[math.nan] * 7, reason=reason)


def judged(name: str, gate: Gate, probes: Probes, seed: int = 0) -> Verdict:
    """Returns the verdict on the numbers that a gate measured."""
    before, after, null = (each.detach().double().cpu() for each in (probes.before, probes.after, probes.null))
    _check(gate, before, after, null)
    sign = 1.0 if gate.worse == "higher" else -1.0
    change = sign * (after - before)
    low, high = interval(gate, before, after, change, seed)
    return Verdict(
        name,
        gate,
        outcome(low, high, gate.tolerance),
        len(before),
        float(before.mean()),
        float(after.mean()),
        float(change.mean()),
        low,
        high,
        float((sign * (null - before)).mean()),
        gate.tolerance + (0.0 if gate.exact else 1.43 * (high - low) / 2),
    )


def _check(gate: Gate, *numbers: Tensor) -> None:
    sizes = {tuple(each.shape) for each in numbers}
    if len(sizes) != 1 or numbers[0].dim() != 1 or not len(numbers[0]):
        raise LuthierError(f"{gate.name()} measured numbers of shapes {sorted(sizes)}; expected [n] three times.")
    if not all(each.isfinite().all() for each in numbers):
        raise LuthierError(f"{gate.name()} measured numbers that are not finite; the model may have diverged.")


def outcome(low: float, high: float, tolerance: float) -> str:
    """Returns what an interval of the worsening says."""
    if low > tolerance:
        return TRIPPED
    return PASSES if high <= tolerance else UNTOLD


def interval(gate: Gate, before: Tensor, after: Tensor, change: Tensor, seed: int) -> tuple[float, float]:
    """Returns the 95% interval of the mean worsening.

    Of probes that are 0 or 1 it is a sum of two Clopper-Pearson bounds, of the probes lost and of those gained, which
    holds for any number of them; of others the percentile bootstrap over probes.
    """
    if gate.exact:
        return float(change.mean()), float(change.mean())
    if all(((each == 0) | (each == 1)).all() for each in (before, after)):
        return _binary(int((change > 0).sum()), int((change < 0).sum()), len(change))
    if len(change) < FEWEST:
        return -math.inf, math.inf
    return _bootstrap(change, seed)


def _binary(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Bounds of (lost - gained) / n; each share's two bounds hold together with probability 0.975."""
    lost_low, lost_high = clopper_pearson(lost, n, 0.0125)
    gained_low, gained_high = clopper_pearson(gained, n, 0.0125)
    return lost_low - gained_high, lost_high - gained_low


def clopper_pearson(k: int, n: int, tail: float) -> tuple[float, float]:
    """Returns the exact bounds of a share of which `k` of `n` were seen, each missed with probability `tail`."""
    low = 0.0 if k == 0 else _solved(lambda p: 1 - _below(k - 1, n, p) - tail)
    high = 1.0 if k == n else _solved(lambda p: tail - _below(k, n, p))
    return low, high


def _below(k: int, n: int, p: float) -> float:
    """P(X <= k), X binomial of n and p in (0, 1)."""
    log_p, log_q = math.log(p), math.log1p(-p)
    size = math.lgamma(n + 1)
    return math.fsum(
        math.exp(size - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q) for i in range(k + 1)
    )


def _solved(rising: Callable[[float], float]) -> float:
    """Where a rising function of (0, 1) crosses zero, by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _bootstrap(change: Tensor, seed: int) -> tuple[float, float]:
    means = [change[rows].mean(1) for rows in resampled(len(change), RESAMPLES, seed, CHUNK)]
    low, high = torch.quantile(torch.cat(means), torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high
