"""Two-speed learning: what routes learns faster than what it routes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.router import Routed
from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class TwoSpeed(Update):
    """η_router = ratio · η

    The parameters that route (Z of mhr, the gate of meteora) learn at `ratio` times the run's rate, the experts at the
    run's own. Logits are of order 1, and Adam moves them by the rate: MHR's authors take 0.1 for Z and 1e-3 for the
    skills.
    """

    paper = "Ponti et al. 2022, arXiv 2202.13914; Caccia et al. 2022, arXiv 2211.03831 (code: microsoft/mttl)"
    neutral: ClassVar = {"ratio": 1.0}

    ratio: float = 100.0
    """Learning rate of the router over that of the experts."""

    def check(self):
        self.within("ratio", 0.0, 1e6)

    def check_form(self, form, sites):
        if not isinstance(form, Routed):
            raise LuthierError(f"{self.name()} sets a router apart, and {form.name()} has none; fit mhr or meteora.")

    def rate(self, plan, group, key):
        form = group.form
        return self.ratio if isinstance(form, Routed) and key in form.router else 1.0
