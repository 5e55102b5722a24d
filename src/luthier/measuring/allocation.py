"""From data to ranks: the required statistics, the calibration pass, and the rank of each site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from torch import nn

from luthier.core.contracts.calibration import Calibration
from luthier.core.contracts.component import find
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.contracts.ranks import Budget, Ranks, parameters_of
from luthier.core.contracts.site import Sites
from luthier.core.contracts.statistic import Statistic
from luthier.core.errors import LuthierError
from luthier.core.sites.collect import Measured
from luthier.core.sites.select import select
from luthier.measuring.calibration import Feature, calibrate


@dataclass(frozen=True)
class Allocation:
    """The ranks and statistics that `attach` is given, and the evidence for them."""

    form: Form
    """The form, at the one rank where all are equal."""
    ranks: dict[str, int] | None
    """The rank of each site by path; None where the form's own serves all."""
    stats: Measured
    evidence: dict[str, Any]
    """What was measured, as JSON holds it."""


def allocate(
    model: nn.Module,
    form: Form,
    where: str | None,
    *,
    ranks: Ranks | None = None,
    init: Init | None = None,
    budget: str | None = None,
    features: Sequence[Feature] = (),
    collator: Any = None,
    calibration: Calibration | None = None,
    data: str = "",
    new: Sequence[str] = (),
    console: Console | None = None,
) -> Allocation:
    """Measures what `ranks`, `init` and `form` need on `features` and allocates ranks within `budget`.

    `budget` is a share of the model, a number of trainable parameters or a size on disk (`parameters_of`); with a
    budget alone every site gets the same rank. `new` are the modules that the checkpoint lacks. Raises
    `LuthierError` where sites, form, budget and data do not fit, before the pass where that can be known.
    """
    sites, ranks, rank_budget = resolve_targets(model, form, where, ranks, budget)
    form = rank_budget.form
    settings = (calibration or Calibration()).seeded(0)
    wanted = [*_of_form(form), *(s for each in (ranks, init) if each is not None for s in each.statistics(form))]
    stats = calibrate(model, features, collator, sites, wanted, settings, data=data, new=new, console=console)
    if ranks is None:
        return Allocation(form, None, stats, {})
    found = ranks.allocate(sites, stats, rank_budget)
    if not rank_budget.fits(sites, found):
        raise LuthierError(
            f"{ranks.name()} allocated more than the budget of {rank_budget.parameters:,} trainable parameters."
        )
    evidence = {
        "by": ranks.name(),
        "settings": ranks.to_dict(),
        "calibration": settings.to_dict() if wanted else None,
        "budget": rank_budget.parameters,
        "spent": rank_budget.spent(sites, found),
        "ranks": found,
        **ranks.evidence(sites, stats),
    }
    return allocated(form, found, stats, evidence)


def resolve_targets(
    model: nn.Module, form: Form, where: str | None, ranks: Ranks | None, budget: str | None
) -> tuple[Sites, Ranks | None, Budget]:
    """Resolves (sites, rank allocation, budget) of a form on a model, which may be without weights.

    A budget decides the form's rank: the largest that it pays for everywhere, from which allocations and starts count.
    A budget alone is spent that way. Raises `LuthierError` for a budget below the lowest ranks.
    """
    if ranks is None and budget is not None:
        ranks = find("ranks", "uniform", Ranks)()
    sites = select(model, form.where if where is None else where)
    total = sum(p.numel() for p in model.parameters())
    rank_budget = Budget(form, None if budget is None else parameters_of(budget, total))
    affordable = rank_budget.fits(sites, dict.fromkeys((s.path for s in sites), 1))
    if ranks is not None and ranks.least and not affordable:
        raise rank_budget.refuse(sites)
    if budget is not None and affordable:
        even = find("ranks", "uniform", Ranks)()
        rank_budget = replace(rank_budget, form=form.with_rank(max(even.allocate(sites, {}, rank_budget).values())))
    return sites, ranks, rank_budget


def allocated(form: Form, ranks: dict[str, int], stats: Measured, evidence: dict[str, Any]) -> Allocation:
    """Returns the allocation of known ranks: where all are one, the form takes it."""
    common = set(ranks.values())
    if len(common) == 1 and 0 not in common:
        return Allocation(form.with_rank(common.pop()), None, stats, evidence)
    return Allocation(form, ranks, stats, evidence)


def _of_form(form: Form) -> list[Statistic]:
    """The statistics that the form itself reads."""
    names = [need for need in form.needs if need != "weight"]
    return [find("statistics", name, Statistic)() for name in names]
