"""Intruder dimensions: directions of the fitted weight that the base does not have."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.contracts.combination import examined
from luthier.core.contracts.examination import Change, Examination, Report
from luthier.core.errors import LuthierError
from luthier.core.numerics.spectrum import Spectrum, new_directions, spectrum
from luthier.core.numerics.wide import exact


@dataclass(frozen=True)
class Intruders(Examination):
    """count of j <= k with max_i |<u_j, u_i>| < eps, W' = Σ σ_j u_j v_jᵀ and W0 = Σ σ_i u_i v_iᵀ

    A leading left singular vector of the fitted weight that no singular vector of the base resembles is an intruder:
    LoRA makes many of them, full fine-tuning few, and those who make them forget more. The null is a random
    full-rank update of the same norm at every matrix (a random base would show false ones: its own directions are
    unstable). The matrices of the blocks are examined, one after the other; tables of tokens and heads are not.
    `luthier combine mitigate_intruders` turns what is found down.
    """

    paper = "Shuttleworth et al. 2024, arXiv 2410.21228 (code: reeceshuttle/intruder-dimensions)"

    k: int = 10
    """Leading singular vectors of each matrix that are looked at."""
    eps: float = 0.5
    """Largest cosine with a vector of the base at which a vector counts as new."""
    seed: int = 0
    """The seed of the null's random updates."""

    def check(self):
        self.within("k", 1, float("inf"))
        self.within("eps", 0, 1)

    def measure(self, pair):
        return self.of(pair.changes(), pair.watch)

    def of(self, changes: Sequence[Change], watch: Callable[[str, Sequence], Iterable]) -> Report:
        """Returns the report on changes alone; raises `LuthierError` where none of them is of a matrix of a block."""
        chosen = [change for change in changes if examined(change.place)]
        if not chosen:
            raise LuthierError(
                "no matrix of a block changed, so there is no intruder to look for: the fitted form acts on "
                "activations, or at other places than the linear layers."
            )
        places, null, layers = {}, {}, {}
        for change in watch(f"examining {len(chosen):,} matrices", chosen):
            path = change.place.site.path
            places[path], null[path] = self._count(change)
            layers[path] = change.place.site.layer
        return self._report(places, null, layers)

    def _count(self, change: Change) -> tuple[dict[str, float], dict[str, float]]:
        before, delta = exact(change.place.base().detach()), change.delta()
        norm = 0.0 if delta.is_zero else delta.norm()
        moved = norm / max(float(before.norm()), 1e-300)
        if not norm:
            return {"intruders": 0.0, "moved": 0.0}, {"intruders": 0.0, "moved": 0.0}
        own, noise = spectrum(before), self._noise(before, change.place.site.path)
        updates = delta.dense().to(before), noise * (norm / float(noise.norm()))
        found, null = (self._new(own, before + update) for update in updates)
        return {"intruders": found, "moved": moved}, {"intruders": null, "moved": moved}

    def _new(self, own: Spectrum, after: Tensor) -> float:
        return float(len(new_directions(own, spectrum(after, self.k), self.eps)))

    def _noise(self, like: Tensor, path: str) -> Tensor:
        label = hashlib.sha256(f"{self.seed} {path}".encode()).digest()[:7]
        draw = torch.Generator().manual_seed(int.from_bytes(label, "big"))
        return torch.randn(like.shape, generator=draw, dtype=torch.float64).to(like.device)

    def _report(self, places, null, layers) -> Report:
        totals = [sum(numbers["intruders"] for numbers in each.values()) for each in (places, null)]
        touched = [float(sum(numbers["intruders"] > 0 for numbers in each.values())) for each in (places, null)]
        summaries = [
            {"intruders": total, "matrices with": some, "matrices": float(len(places))}
            for total, some in zip(totals, touched, strict=True)
        ]
        return Report(
            effect=totals[0],
            column="intruders",
            places=places,
            null=null,
            layers=layers,
            summary=summaries[0],
            null_summary=summaries[1],
            baseline="a random full-rank update of the same norm at every matrix",
            verdict=f"{totals[0]:.0f} intruder dimensions in {touched[0]:.0f} of {len(places)} matrices "
            f"(a random update of the same norm makes {totals[1]:.0f}).",
        )
