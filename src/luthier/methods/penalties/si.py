"""Synaptic intelligence: entries that lowered the loss of earlier tasks are held in place."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.penalty import Penalty, copies, zeros


@dataclass(frozen=True)
class SI(Penalty):
    """L + c Σ_i Ω_i (θ_i - θ*_i)², Ω_i = Σ_k max(w_k,i, 0) / (Δ_k,i² + ξ), w_k,i = - Σ_t g_t,i (θ_t+1,i - θ_t,i)

    w is the path integral of the loss's own gradient g along the steps of task k, Δ_k the whole way of the task, and θ*
    the adapter after the last task. Entries along which the loss rose count nothing, as in the authors' code.
    """

    paper = "Zenke et al. 2017, arXiv 1703.04200; settings: martin-wey/cl-code-apis 0b26228, configuration"

    weight: float = 10.0
    """The weight c."""
    damping: float = 0.1
    """The damping ξ, in squared units of the tensors."""

    def check(self):
        super().check()
        self.above("damping", 0.0)

    def begin(self, params, kept):
        return {"path": zeros(params), "start": copies(params)}

    def follow(self, running, step):
        for key, gradient in step.gradient.items():
            running["path"][key] -= gradient * (step.after[key] - step.before[key])

    def finish(self, kept, running, params, fisher):
        importance = {}
        for key, p in params.items():
            moved = (p.detach() - running["start"][key]).square()
            found = running["path"][key].clamp(min=0) / (moved + self.damping)
            importance[key] = found + kept["importance"][key] if "importance" in kept else found
        return {"importance": importance, "anchor": copies(params)}
