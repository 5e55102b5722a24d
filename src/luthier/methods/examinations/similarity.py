"""Similarity of representations: in which layers fitting changed what rows look like to each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.contracts.examination import Examination, Pair, Report
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import exact
from luthier.core.sites.collect import collect
from luthier.core.sites.select import select
from luthier.core.sites.structure import block_lists
from luthier.methods.statistics.states import States

LEAST = 8
"""Rows below which halves say nothing."""


@dataclass(frozen=True)
class Similarity(Examination):
    """RSA_l = corr(triu cos(h_l, h_l), triu cos(h'_l, h'_l)) over pairs of rows, h before and h' after fitting

    Representational similarity analysis: the cosines between all rows, before and after, are correlated, so a
    rotation of a layer counts as no change. States are means over the tokens of a row, padding left out, and only the
    strict upper triangle counts (the authors' code takes the diagonal and the padding along). The bottom K blocks
    whose outputs keep at least `least` can be frozen: `luthier train … --update freeze --bottom K`. The bound is ours;
    the paper reads K off the curve. The null compares the rows of one half before with those of the other half
    after: what unrelated rows would show.
    """

    paper = "Shi et al. 2023 (ISSTA), arXiv 2304.05216 (code: DeepSoftwareAnalytics/Telly)"
    reads = True

    least: float = 0.9
    """Similarity at which a layer counts as unchanged."""
    seed: int = 0
    """The seed that divides the rows into halves."""

    def check(self):
        self.within("least", -1, 1)

    def measure(self, pair):
        before, after = self._states(pair, pair.before), self._states(pair, pair.after)
        rows = len(next(iter(before.values())))
        if rows < LEAST:
            raise LuthierError(f"similarity compares pairs of rows, and there are {rows} rows; give at least {LEAST}.")
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed))
        one, other = order[: rows // 2], order[rows // 2 : rows // 2 * 2]
        places = {key: {"similarity": rsa(before[key], after[key])} for key in before}
        null = {key: {"similarity": rsa(before[key][one], after[key][other])} for key in before}
        return self._report(places, null)

    def _states(self, pair: Pair, when) -> dict[str, Tensor]:
        batches = [batch for each in pair.data.values() for batch in each]
        with when() as model:
            device = next(model.parameters()).device
            moved = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
            shown = pair.watch(f"reading {len(batches):,} batches", moved)
            found = collect(model, shown, select(model, "all-linear"), [States()])
            keys = [f"{path}.{i}" for path, blocks in block_lists(model).items() for i in range(len(blocks) + 1)]
        return {key: found[key]["states"] for key in keys if key in found}

    def _report(self, places, null) -> Report:
        layers = {key: int(key.rpartition(".")[2]) for key in places}
        bottom = next(iter(places)).rpartition(".")[0]
        outputs = [places[key]["similarity"] for key in places if key.rpartition(".")[0] == bottom][1:]
        k = next((i for i, value in enumerate(outputs) if value < self.least), len(outputs))
        means = [sum(each["similarity"] for each in found.values()) / len(found) for found in (places, null)]
        lowest = min(places, key=lambda key: places[key]["similarity"])
        return Report(
            effect=1 - means[0],
            column="similarity",
            places=places,
            null=null,
            layers=layers,
            summary={"similarity": means[0], "bottom": float(k)},
            null_summary={"similarity": means[1], "bottom": 0.0},
            baseline="other rows: one half before against the other half after",
            verdict=f"The bottom {k} of {len(outputs)} blocks keep a similarity of {self.least:g} and could be frozen; "
            f"the lowest is {places[lowest]['similarity']:.3f}, at {lowest} "
            f"(unrelated rows: {means[1]:.3f}).",
        )


def rsa(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of the cosines between the rows of x [n, d] and between those of y [n, e]."""
    first, second = _cosines(x), _cosines(y)
    if torch.equal(first, second):
        return 1.0
    first, second = first - first.mean(), second - second.mean()
    size = float(first.norm() * second.norm())
    return float(first @ second) / size if size else 0.0


def _cosines(x: Tensor) -> Tensor:
    """[n (n - 1) / 2], the strict upper triangle."""
    unit = torch.nn.functional.normalize(exact(x), dim=-1)
    return (unit @ unit.mT)[tuple(torch.triu_indices(len(x), len(x), 1))]
