"""GeLoRA: ranks from the geometry of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from luthier.core.contracts.ranks import Ranks, levelled
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.numerics.profile import Boundary, profile, rises
from luthier.methods.ranks._verdict import verdict
from luthier.methods.statistics.states import States


@dataclass(frozen=True)
class GeLoRA(Ranks):
    """r_i = max(d_{i+1} - d_i, 0) + 1

    d_i is the intrinsic dimension (TwoNN, see docs/dimension.md) of the hidden states that enter block i on the
    task's data; every adapted matrix of block i gets r_i, before training, and alpha_i / r_i stays constant. The
    paper bounds the rank of the block's Jacobian; that dW needs no more is its heuristic. With a budget the rises
    count for more or less, r_i = round(c max(d_{i+1} - d_i, 0)) + 1 with the largest c that it allows. The pooling
    of tokens, the number of rows and the rounding are not in the source: the defaults are those whose ranks moved
    least from sample to sample (docs/ranks.md).
    """

    paper = "Ed-dib, Datbayev, Aboussalah 2024 (Findings of EMNLP 2025), arXiv 2412.09250"

    pool: Literal["mean", "last", "first", "middle"] = "mean"
    """How the tokens of a row become one point."""
    estimator: Literal["mle", "fit"] = "mle"
    """How TwoNN reads the ratios: censored maximum likelihood, or the line of its authors."""
    discard: float = 0.1
    """Share of the largest distance ratios left out."""
    rounding: Literal["nearest", "up"] = "nearest"
    """A rise is rounded to the nearest whole number, or up."""

    def statistics(self, form):
        return (States(self.pool),)

    def allocate(self, sites, stats, budget):
        blocks = {site.path: _block_of(site, stats) for site in sites}
        found = {block: rise.value for block, rise in rises(self._profile(stats)).items()}

        def ranks(scale: float) -> dict[str, int]:
            own = {block: int(self._rank(torch.tensor(scale * rise))) for block, rise in found.items()}
            capped = {site.path: min(own[blocks[site.path]], site.d_in, site.d_out) for site in sites}
            return levelled(budget.form, sites, capped)

        if budget.parameters is None:
            return ranks(1.0)
        if not budget.fits(sites, ranks(0.0)):
            raise budget.refuse(sites)
        low, high = 0.0, max(site.d_in for site in sites) / max(1e-3, *found.values())
        for _ in range(40):  # the cost grows with the scale
            middle = (low + high) / 2
            low, high = (middle, high) if budget.fits(sites, ranks(middle)) else (low, middle)
        return ranks(low)

    def evidence(self, sites, stats):
        """Dimensions with intervals, rises, and the ranks that resampling and mere noise would give."""
        found = self._profile(stats)
        blocks = {
            block: {
                "rise": rise.value,
                "rank": int(self._rank(torch.tensor(rise.value))),
                "low": int(self._rank(rise.draws).quantile(0.025, interpolation="lower")),
                "high": int(self._rank(rise.draws).quantile(0.975, interpolation="higher")),
                "noise": int(self._rank(rise.noise).quantile(0.975, interpolation="higher")),
            }
            for block, rise in rises(found).items()
        }
        points = min(boundary.dimension.points for boundary in found.values())
        boundaries = {path: asdict(boundary.dimension) for path, boundary in found.items()}
        return {"boundaries": boundaries, "blocks": blocks, "verdict": verdict(blocks, points)}

    def _rank(self, rise: Tensor) -> Tensor:
        """The rank of a rise, elementwise."""
        positive = rise.clamp(min=0)
        return (positive.round() if self.rounding == "nearest" else positive.ceil()) + 1

    def _profile(self, stats: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Boundary]:
        states = {path: found["states"] for path, found in stats.items() if "states" in found}
        return profile(states, method=self.estimator, discard=self.discard)


def _block_of(site: Site, stats: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Path of the measured block that holds a site."""
    parts = site.path.split(".")
    above = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    found = next((path for path in above if "states" in stats.get(path, {})), None)
    if found is None:
        raise LuthierError(f"{site} lies in no block, so no rank follows from the dimensions; leave it out (where).")
    return found
