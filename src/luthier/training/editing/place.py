"""The place of an edit: given, or found by trying a few facts at matrices of evenly spread blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.adapters.attach import attach, detach
from luthier.core.contracts.form import Form
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.sites.select import select
from luthier.methods.forms.full import Full
from luthier.models import Loaded
from luthier.training.editing.facts import Fact
from luthier.training.editing.loss import measured
from luthier.training.editing.spec import Edit
from luthier.training.editing.write import Writer

NAME = "edit"


@dataclass(frozen=True)
class Tried:
    """How a place did in the search."""

    where: str
    scores: dict[str, float]
    """Reliability, generalisation and locality, as far as the facts tell them."""

    @property
    def score(self) -> float:
        """The mean of the scores: a place that learns and changes no more than it must."""
        return sum(self.scores.values()) / len(self.scores)


def candidates(loaded: Loaded, layers: int) -> list[str]:
    """Returns selectors of every linear map of evenly spread blocks, as the form full takes them."""
    sites = [site for site in select(loaded.model, "all-linear") if site.layer is not None]
    if not sites:
        raise LuthierError(f"{loaded.name!r} has no linear map in a block; give the place (where).")
    depths = sorted({site.layer for site in sites if site.layer is not None})
    count = min(layers, len(depths))
    chosen = {depths[round((i + 0.5) * len(depths) / count - 0.5)] for i in range(count)}
    return [selector(site) for site in sites if site.layer in chosen]


def selector(site: Site) -> str:
    """Returns `params(path.weight)`, one tensor."""
    return f"params({site.path}.weight)"


def searched(
    loaded: Loaded, facts: Sequence[Fact], spec: Edit, told: Callable[[Tried], Any]
) -> tuple[str, list[Tried]]:
    """Returns the place that does best with some facts, and how all did; the first of equals is taken.

    Without neighbour prompts nothing tells how much else a place changes; the prompts of facts that were not written
    stand in for them.
    """
    few = _with_neighbours(list(facts[: spec.search_facts]), facts[spec.search_facts :])
    tried: list[Tried] = []
    for where in candidates(loaded, spec.search_layers):
        put(loaded, Full(), where)
        try:
            writer = Writer(loaded.model, loaded.processor, few, spec.editing, spec.micro_batch)
            writer.write(spec.seed)
            found = measured(loaded.model, loaded.processor, few, spec.micro_batch)
        finally:
            detach(loaded.model, NAME)
        tried.append(Tried(where, {name: sum(rows) / len(rows) for name, rows in found.items()}))
        told(tried[-1])
    return max(tried, key=lambda each: each.score).where, tried


def _with_neighbours(few: list[Fact], others: Sequence[Fact]) -> list[Fact]:
    if any(fact.neighbours for fact in few) or not others:
        return few
    last = few[-1]
    prompts = tuple(fact.prompt for fact in others[: len(few)])
    return [*few[:-1], Fact(last.row, last.prompt, last.target, last.rephrased, prompts)]


def put(loaded: Loaded, form: Form, where: str) -> None:
    """Attaches what is written into."""
    attach(loaded.model, form, where, NAME)
