"""EVA: ranks go where the inputs vary most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.form import Stats
from luthier.core.contracts.ranks import Budget, Ranks
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.methods.statistics._explained import check_form, explained
from luthier.methods.statistics.pca import PCA


@dataclass(frozen=True)
class EVA(Ranks):
    """r_i = how many of site i's λ_ij / Σλ_i are among the R largest of all sites, r_i <= rho r

    λ_ij / Σλ_i is the share of the variance of site i's input that its j-th principal component explains. R is the
    form's rank times the number of sites, kept exactly; a site may get 0, and of equal shares the earlier site's goes
    first. With a budget of trainable parameters, components are taken in this order while they fit, those that do not
    are passed over, and rho counts from the largest rank that the budget pays for everywhere. A budget that pays for
    rho r everywhere leaves nothing to choose and is refused. rho = 1 is the uniform rank.
    """

    paper = "Paischer et al. 2024, arXiv 2410.07170 (code: ml-jku/EVA)"
    needs = ("pca",)
    least: ClassVar[int] = 0

    rho: float = 2.0
    """The highest rank of a site, as a multiple of the form's."""
    tau: float = 0.99
    """A site is settled once each component's |cosine| with itself a batch earlier reaches this; at 1 all is read."""

    def check(self) -> None:
        self.within("rho", 1)  # 1 is the uniform rank

    def statistics(self, form):
        check_form(form)
        return (PCA(self._highest(Budget(form)), self.tau),)

    def _highest(self, budget: Budget) -> int:
        return math.ceil(self.rho * budget.rank)

    def allocate(self, sites, stats, budget):
        check_form(budget.form)
        highest = self._highest(budget)
        shares = [
            (-share, index, rank)
            for index, site in enumerate(sites)
            for rank, share in enumerate(_shares(site, stats.get(site.path, {}), highest), 1)
        ]
        found, spent, left = [0] * len(sites), 0, budget.rank * len(sites)
        for _, index, rank in sorted(shares):
            cost = budget.cost(sites[index], rank) - budget.cost(sites[index], rank - 1)
            affordable = left > 0 if budget.parameters is None else spent + cost <= budget.parameters
            if affordable and found[index] == rank - 1:
                found[index], spent, left = rank, spent + cost, left - 1
        if not any(found):
            raise budget.refuse(sites)
        if budget.parameters is not None and self.rho > 1 and sum(found) == len(shares):
            raise LuthierError(
                f"a budget of {budget.parameters:,} trainable parameters pays for rank {highest} (rho x the form's) "
                f"at all {len(sites)} sites, which leaves nothing to choose; raise the form's rank or lower the budget."
            )
        return {site.path: rank for site, rank in zip(sites, found, strict=True)}

    def evidence(self, sites, stats):
        return {"explained": {s.path: [float(f"{share:.4g}") for share in stats[s.path]["variance"]] for s in sites}}


def _shares(site: Site, stats: Stats, highest: int) -> list[float]:
    """What each component explains; a site narrower than `highest` has no more than its width."""
    count = min(highest, site.d_in)
    return explained(site, stats, count)["variance"][:count].tolist()
