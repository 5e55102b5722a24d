"""The same rank everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.ranks import Ranks


@dataclass(frozen=True)
class Uniform(Ranks):
    """r_i = r

    The form's own rank, or the largest one that the budget allows at every site. Never above the width of the
    narrowest site, where a larger rank would add nothing.
    """

    paper = "Hu et al. 2021, arXiv 2106.09685"

    def allocate(self, sites, stats, budget):
        def everywhere(rank):
            return {site.path: rank for site in sites}

        if budget.parameters is None:
            return everywhere(budget.rank)
        low, high = 0, min(min(site.d_in, site.d_out) for site in sites)
        while low < high:  # the cost grows with the rank
            middle = (low + high + 1) // 2
            low, high = (middle, high) if budget.fits(sites, everywhere(middle)) else (low, middle - 1)
        if not low:
            raise budget.refuse(sites)
        return everywhere(low)
