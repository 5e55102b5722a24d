"""Riemannian walk: a running Fisher information, and how far a way of its length lowered the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.penalty import Penalty, copies, zeros


@dataclass(frozen=True)
class RWalk(Penalty):
    """L + λ Σ_i (F_i / max F + s_i / max s) (θ_i - θ*_i)², F ← α g² + (1 - α) F, s += - Σ_t g Δθ_t / (½ F Δθ² + ε)

    F is a running mean of squared batch gradients, from step to step and over tasks; s is added to every `every` steps,
    over the way of those steps, negative sums count nothing, and after a task it is ½ (s before + s of the task). α
    weighs the newest gradient, as in the authors' equation 6. The maxima are over all tensors.
    """

    paper = "Chaudhry et al. 2018, arXiv 1801.10112; settings: martin-wey/cl-code-apis b1a3128, tasks/plugins/rwalk.py"

    weight: float = 0.1
    """The weight λ."""
    alpha: float = 0.9
    """The share α of the newest squared gradient in F."""
    every: int = 10
    """Steps after which the score is added to."""
    damping: float = 1e-7
    """The damping ε of the score."""

    def check(self):
        super().check()
        self.within("alpha", 0.0, 1.0)
        self.within("every", 1)
        self.above("damping", 0.0)

    def begin(self, params, kept):
        fisher = {key: t.clone() for key, t in kept["fisher"].items()} if "fisher" in kept else {}
        return {"fisher": fisher, "lowered": zeros(params), "from": copies(params), "score": zeros(params)}

    def follow(self, running, step):
        fisher = running["fisher"]
        for key, gradient in step.gradient.items():
            new = gradient.square()
            fisher[key] = self.alpha * new + (1 - self.alpha) * fisher[key] if key in fisher else new
            running["lowered"][key] -= gradient * (step.after[key] - step.before[key])
        if step.number % self.every:
            return
        for key, lowered in running["lowered"].items():
            way = (step.after[key] - running["from"][key]).square()
            if key in fisher:
                running["score"][key] += lowered / (0.5 * fisher[key] * way + self.damping)
        running["lowered"], running["from"] = zeros(step.after), copies(step.after)

    def finish(self, kept, running, params, fisher):
        score = running["score"]
        if "score" in kept:
            score = {key: 0.5 * (t + kept["score"][key]) for key, t in score.items()}
        gained = {key: t.clamp(min=0) for key, t in score.items()}
        known = {key: running["fisher"].get(key, torch.zeros_like(p)).detach() for key, p in params.items()}
        importance = {key: known[key] / _most(known) + gained[key] / _most(gained) for key in params}
        return {"importance": importance, "anchor": copies(params), "fisher": known, "score": score}


def _most(tensors) -> float:
    """The largest entry, 1 where all are 0."""
    return max(float(t.max()) for t in tensors.values()) or 1.0
