"""Forgetting: what the model could do before and cannot do after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.contracts.examination import Examination, Report
from luthier.core.numerics.resampling import resampled
from luthier.core.sites.answers import answers, rows_of

CHUNK = 4_000_000
"""Drawn rows held at a time."""


@dataclass(frozen=True)
class Forgetting(Examination):
    """rise = L(θ') - L(θ0), the mean loss of the labels of each data set, with a paired bootstrap over rows

    Held texts and the rows of other tasks, read by both models with the right answer before them; `score` is the
    share of labels (tokens, or classes) that the likeliest answer meets. A data set is forgotten where the whole 95%
    interval of the rise lies above 0. The null is the same model, the one before, on two independent resamples of
    the rows: what the choice of rows alone makes of nothing. (Generated answers are scored by `luthier compare`.)
    """

    paper = "McCloskey and Cohen 1989; paired bootstrap: Efron and Tibshirani 1993"
    reads = True

    resamples: int = 2000
    """The number of bootstrap samples."""
    seed: int = 0
    """The seed of the bootstrap."""

    def check(self):
        self.within("resamples", 100, float("inf"))

    def measure(self, pair):
        sums = []
        for when, text in ((pair.before, "before"), (pair.after, "after")):
            with when() as model:
                read = pair.watch(f"reading {text} fitting", list(pair.data.items()))
                sums.append({name: answers(model, each).by_row(rows_of(each)) for name, each in read})
        before, after = sums
        places = {name: self._paired(before[name], after[name]) for name in before}
        null = {name: self._null(before[name]) for name in before}
        return self._report(places, null)

    def _paired(self, before: Tensor, after: Tensor) -> dict[str, float]:
        """Both models on the same rows, drawn together."""
        draws = self._draws(len(before), 0)
        moved = torch.cat([_means(after, rows) - _means(before, rows) for rows in draws])
        return _numbers(before, after, moved)

    def _null(self, before: Tensor) -> dict[str, float]:
        """One model on rows drawn apart."""
        pairs = zip(self._draws(len(before), 0), self._draws(len(before), 1), strict=True)
        return _numbers(before, before, torch.cat([_means(before, b) - _means(before, a) for a, b in pairs]))

    def _draws(self, rows: int, stream: int):
        """Indices [draws, rows], drawn with replacement, a chunk at a time."""
        return resampled(rows, self.resamples, 2 * self.seed + stream, CHUNK)

    def _report(self, places, null) -> Report:
        lost = [name for name, each in places.items() if each["low"] > 0]
        keys = ("rise", "score")
        means = [{key: sum(n[key] for n in each.values()) / len(each) for key in keys} for each in (places, null)]
        told = ", ".join(f"{name} ({places[name]['rise']:+.3f})" for name in lost)
        return Report(
            effect=means[0]["rise"],
            column="rise",
            places=places,
            null=null,
            layers=dict.fromkeys(places),
            summary=means[0] | {"forgotten": float(len(lost)), "data sets": float(len(places))},
            null_summary=means[1] | {"forgotten": 0.0, "data sets": float(len(places))},
            baseline="the model before fitting, on two resamples of the rows",
            verdict=f"Forgotten: {told}." if lost else "Nothing is forgotten beyond what the choice of rows explains.",
        )


def _means(sums: Tensor, rows: Tensor) -> Tensor:
    """[draws, 2]: mean loss and score over the labels of drawn rows [draws, rows]."""
    total = sums[rows].sum(1)
    return total[:, :2] / total[:, 2:].clamp(min=1)


def _numbers(before: Tensor, after: Tensor, moved: Tensor) -> dict[str, float]:
    """The figures of one data set; `moved` [draws, 2] are resampled differences."""
    everything = torch.arange(len(before))[None]
    was, now = (_means(sums, everything)[0].tolist() for sums in (before, after))
    low, high = torch.quantile(moved, torch.tensor([0.025, 0.975], dtype=moved.dtype), dim=0).tolist()
    return {
        "before": was[0],
        "after": now[0],
        "rise": now[0] - was[0],
        "low": low[0],
        "high": high[0],
        "score before": was[1],
        "score": now[1] - was[1],
        "score low": low[1],
        "score high": high[1],
    }
