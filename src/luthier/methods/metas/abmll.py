"""ABMLL: a Bayesian meta-learner, whose adapter is a distribution and adapts as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.core.contracts.meta import Meta

SCALE = "scale/"
"""Before the names of log σ_θ."""


@dataclass(frozen=True)
class ABMLL(Meta):
    """L = - E_q log p(D | φ) + β KL(q(φ | D) || N(μ_θ, σ_θ²)) + γ KL(N(μ_θ, σ_θ²) || N(0, s²)), q = N(μ_φ, σ_φ²)

    Our reconstruction of a thin description. Four copies of the adapter's tensors, such as LoRA's pairs (the paper has
    the means and scales be the pairs' products; here they are of the tensors, so that any form serves): μ_θ, the
    adapter that is saved, and log σ_θ are trained; μ_φ and log σ_φ start from them in each domain and go down the first
    two terms on the demonstrations. The outer step takes the gradient where that ends as that of θ (first order), and
    adds those of both divergences by θ. Expectations are one sample, φ = μ + σ ε; entries are independent. Sums over
    entries are divided by their number. Without a scale, β and γ it is FOMAML, bit for bit. Predictions are averaged
    over samples of the adapted q.
    """

    paper = "rebuilt after amortised Bayesian meta-learning for LoRA: Zhang et al. 2025, arXiv 2508.14285"
    neutral: ClassVar = {"inner_lr": 0.0, "scale": 0.0, "beta": 0.0, "gamma": 0.0}
    plain: ClassVar = {"scale": 0.0, "beta": 0.0, "gamma": 0.0}

    scale: float = 0.01
    """The σ_θ that training starts from, of every entry; 0: there is no distribution."""
    beta: float = 1e-3
    """The weight β of the divergence from the domains' common distribution."""
    gamma: float = 1e-4
    """The weight γ of the divergence of that from the prior."""
    prior: float = 0.1
    """The scale s of the prior."""

    def check(self):
        super().check()
        self.within("scale", 0.0)
        self.within("beta", 0.0)
        self.within("gamma", 0.0)
        self.above("prior", 0.0)

    def begin(self, params):
        if not self.scale:
            return {}
        start = torch.tensor(self.scale).log()
        return {SCALE + key: torch.full_like(p, float(start), requires_grad=False) for key, p in params.items()}

    def adapt(self, loss, params, shown, draw):
        theta = {key: p.detach() for key, p in params.items()}
        now = dict(theta)
        for _ in range(self.inner_steps if self.inner_lr else 0):
            _, slopes = self._slopes(now, lambda q: loss(sampled(q, draw), shown) + self._apart(q, theta))
            now = {key: p - self.inner_lr * slopes[key] for key, p in now.items()}
        return now

    def outer(self, loss, params, shown, asked, draw):
        theta = {key: p.detach() for key, p in params.items()}
        q = self.adapt(loss, params, shown, draw)
        value, slopes = self._slopes(q, lambda at: loss(sampled(at, draw), asked) + self._apart(at, theta))
        if self.scale and (self.beta or self.gamma):
            more, direct = self._slopes(theta, lambda at: self._apart(q, at) + self._from_prior(at))
            slopes = {key: slope + direct[key] for key, slope in slopes.items()}
            value = value + more - self._apart(q, theta)
        return value, slopes

    def samples(self, params, count, draw):
        return [sampled(params, draw) for _ in range(count if self.scale else 1)]

    def spread(self, params):
        return {key.removeprefix(SCALE): p.exp() for key, p in params.items() if key.startswith(SCALE)}

    def _slopes(self, at, value):
        leaves = {key: p.detach().requires_grad_() for key, p in at.items()}
        found = value(leaves)
        slopes = torch.autograd.grad(found, list(leaves.values()), allow_unused=True)
        held = zip(leaves.items(), slopes, strict=True)
        return found.detach(), {key: torch.zeros_like(p) if g is None else g for (key, p), g in held}

    def _apart(self, q, theta):
        return self.beta * divergence(q, theta) if self.scale and self.beta else 0.0

    def _from_prior(self, theta):
        if not self.gamma:
            return 0.0
        log = torch.tensor(self.prior).log()
        wide = {key: torch.full_like(p, float(log)) if key.startswith(SCALE) else torch.zeros_like(p)
                for key, p in theta.items()}  # fmt: skip
        return self.gamma * divergence(theta, wide)


def sampled(params, draw):
    """μ + σ ε by the adapter's names; μ where there are no scales."""
    found = {}
    for key, p in params.items():
        if not key.startswith(SCALE):
            noise = torch.randn(p.shape, generator=draw).to(p) if SCALE + key in params else 0.0
            found[key] = p + params[SCALE + key].exp() * noise if SCALE + key in params else p
    return found


def divergence(q, p):
    """KL(N(μ_q, σ_q²) || N(μ_p, σ_p²)) over all entries, divided by their number."""
    total, count = 0.0, 0
    for key, mean in q.items():
        if not key.startswith(SCALE):
            left, right = q[SCALE + key], p[SCALE + key]
            ratio = (2 * (left - right)).exp() + (mean - p[key]).square() * (-2 * right).exp()
            total = total + (right - left + (ratio - 1) / 2).sum()
            count += mean.numel()
    return total / max(count, 1)
