"""The contract of a rank allocation, and the parameter budget that it keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from luthier.core.contracts.component import Component
from luthier.core.contracts.form import Form, Stats
from luthier.core.contracts.site import Site
from luthier.core.contracts.statistic import Statistic
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.core.contracts.site import Sites

NUMBERS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
WIDTH = 4
"""The bytes of one trainable parameter: adapters are float32."""


def parameters_of(budget: str, total: int) -> int:
    """Returns how many trainable parameters a budget allows on a model of `total` parameters.

    0.1% is a share of the model; 500k, 2M or 30000 are trainable parameters (2B two billion of them); 8MB or 8MiB is
    the size of the adapter on disk. Raises `LuthierError` for anything else, and for less than one number.
    """
    match = re.fullmatch(r"\s*(\d[\d_]*\.?\d*|\.\d+)\s*(%|[A-Za-z]*)\s*", budget)
    units = {"%": total / 100, **NUMBERS, **{name: size / WIDTH for name, size in BYTES.items()}}
    if match is None or match[2].lower() not in units:
        raise LuthierError(
            f"budget {budget!r} is not understood; write a share of the model (0.1%), a number of trained "
            "numbers (500k, 2M) or the adapter's size on disk (8MB, 8MiB)."
        )
    found = int(float(match[1].replace("_", "")) * units[match[2].lower()])
    if found < 1:
        raise LuthierError(f"budget {budget!r} allows less than one trainable parameter.")
    return found


@dataclass(frozen=True)
class Budget:
    """A bound on the trainable parameters of an allocation; without `parameters`, the form's own rank everywhere."""

    form: Form
    parameters: int | None = None
    _known: dict[tuple, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rank(self) -> int:
        """The form's own rank; raises for a form that has none."""
        rank = self.form.to_dict().get("rank")
        if rank is None:
            raise LuthierError(f"{self.form.name()} has no rank, so none can be chosen for it.")
        return rank

    def cost(self, site: Site, rank: int) -> int:
        """Counts the trainable parameters of the form at a site at this rank."""
        if rank == 0:
            return 0
        key = (site.kind, site.d_in, site.d_out, site.experts, site.maps, rank)
        if key not in self._known:
            self._known[key] = _size(self.form.with_rank(rank), site)
        return self._known[key]

    def spent(self, sites: Sequence[Site], ranks: Mapping[str, int]) -> int:
        """Counts all trainable parameters, shared ones once."""
        groups = {(self.form.group(site), self.cost(site, 1)): site for site in reversed(sites)}  # sizes share apart
        return sum(self.cost(site, ranks[site.path]) for site in groups.values())

    def fits(self, sites: Sequence[Site], ranks: Mapping[str, int]) -> bool:
        """Returns whether the ranks stay within `parameters`."""
        return self.parameters is None or self.spent(sites, ranks) <= self.parameters

    def refuse(self, sites: Sequence[Site]) -> LuthierError:
        """Returns the error for a budget that is too small for rank 1."""
        least = self.spent(sites, {site.path: 1 for site in sites})
        return LuthierError(
            f"a budget of {self.parameters:,} trainable parameters is too small: {self.form.name()} of rank 1 at "
            f"{len(sites)} sites takes {least:,}. Raise the budget or choose fewer sites (where)."
        )


def levelled(form: Form, sites: Sequence[Site], ranks: Mapping[str, int]) -> dict[str, int]:
    """Returns the ranks, with sites that share parameters at the largest rank among them."""
    highest: dict[str, int] = {}
    for site in sites:
        group = form.group(site)
        highest[group] = max(highest.get(group, 0), ranks[site.path])
    return {site.path: highest[form.group(site)] for site in sites}


def _size(form: Form, site: Site) -> int:
    unknown = set(form.needs) - {"weight"}
    if unknown:
        raise LuthierError(f"the size of {form.name()} depends on its {', '.join(sorted(unknown))}; give a rank.")
    with torch.device("meta"):
        given = {"weight": torch.empty(site.d_out, site.d_in)} if form.needs else {}
        tensors = form.init(site, given)
    held = sum(t.numel() for key, t in tensors.items() if key not in form.untrained())
    return held * (form.maps(site) or 1)


@dataclass(frozen=True)
class Ranks(Component):
    """A rank allocation: which rank each site gets."""

    family: ClassVar[str] = "reparameterisation"
    least: ClassVar[int] = 1
    """The lowest rank that a site gets; 0 where sites can be left out."""

    def statistics(self, form: Form) -> tuple[Statistic, ...]:
        """Returns the statistics that the calibration pass has to measure at the sites of `form`."""
        return ()

    def allocate(self, sites: Sites, stats: Mapping[str, Stats], budget: Budget) -> dict[str, int]:
        """Returns the rank of every site by its path (0: left out), within `budget.parameters` where they are given.

        Sites that share parameters get one rank. Raises `LuthierError` for a budget that is too small, and for
        sites that were not measured.
        """
        raise NotImplementedError(f"{type(self).__name__} must define allocate")

    def evidence(self, sites: Sites, stats: Mapping[str, Stats]) -> dict[str, Any]:
        """Returns the measurements behind the ranks as JSON, for the adapter's spec and for reports."""
        return {}
