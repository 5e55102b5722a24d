"""FineTuneBench: whether facts were memorised, or learnt so that other questions about them are answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from luthier.core.contracts.examination import Examination, Report
from luthier.core.contracts.example import Example
from luthier.core.errors import LuthierError
from luthier.data.score import exact_match
from luthier.methods.examinations._asked import Asked, asked, contained, interval, shown

MEMORISED = "memorised"


@dataclass(frozen=True)
class FineTuneBench(Examination):
    """gap = acc(questions of training) - mean over other kinds of acc(rephrased, secondary, comparison, date, …)

    A probe's `kind` is its column of that name, else the name of its file. A row with an `old` answer is an update: it
    counts only where the model before fine-tuning gave the old answer to the fact's question of training (or to the row
    itself where the fact has none), since others would be new knowledge. `fact` says which rows belong together
    (else each stands alone): intervals are a bootstrap over facts. The null scores every answer against that of
    another fact of the same kind: what the right form alone brings, about a half for yes and no. The authors judge
    answers by a language model; here the right answer has to occur in the answer (`contains`) or be all of it.
    `luthier train … facts:people` and `--data facts:people:probes` make both sides.
    """

    paper = "Wu et al. 2024, arXiv 2411.05059 (code: kevinwu23/StanfordFineTuneBench)"
    reads = True
    asks: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("kind", "fact", "old")

    match: Literal["contains", "exact"] = "contains"
    """When an answer is right: it contains the right one as words (of yes and no the first counts), or is it."""
    max_new_tokens: int = 24
    """The most tokens of an answer."""
    resamples: int = 1000
    """The number of bootstrap samples."""
    seed: int = 0
    """The seed of the bootstrap."""

    def check(self):
        self.within("max_new_tokens", 1)
        self.within("resamples", 100)

    def measure(self, pair):
        rows = asked(pair, self.name())
        prompts = rows.prompts()
        with pair.before() as model:
            before = shown(pair, "asking the model before", model, prompts, self.max_new_tokens)
        counted = self.counted(rows, before)
        if not any(counted):
            raise LuthierError("the model before fine-tuning knew none of the old facts, so no update can be measured.")
        with pair.after() as model:
            after = shown(pair, "asking the model after", model, prompts, self.max_new_tokens)
        kinds = [str(row.meta.get("kind") or name) for row, name in zip(rows.rows, rows.names, strict=True)]
        places, null = {}, {}
        for kind in dict.fromkeys(kinds):
            chosen = [n for n, each in enumerate(kinds) if each == kind and counted[n]]
            if chosen:
                places[kind] = self._place(rows.rows, before, after, chosen, 0)
                null[kind] = self._place(rows.rows, before, after, chosen, 1)
        return self._report(places, null, len(counted), sum(counted))

    def counted(self, rows: Asked, before: Sequence[str]) -> list[bool]:
        """Returns which probes count: those of new facts, and those of updates whose old fact was known."""
        known: dict[str, bool] = {}
        for row, said in zip(rows.rows, before, strict=True):
            if row.meta.get("old") and row.meta.get("kind") == MEMORISED:
                known[fact(row)] = self.right(said, str(row.meta["old"]))
        return [
            not row.meta.get("old") or known.get(fact(row), self.right(said, str(row.meta["old"])))
            for row, said in zip(rows.rows, before, strict=True)
        ]

    def right(self, said: str, wanted: str) -> bool:
        """Returns whether an answer is the wanted one."""
        if self.match == "contains":
            return contained(said, wanted)
        return bool(exact_match(said, Example(row=0, answer=wanted)))

    def _place(self, rows, before, after, chosen: Sequence[int], shift: int) -> dict[str, float]:
        wanted = [str(rows[n].answer) for n in (partners(rows, chosen) if shift else chosen)]
        scores = [
            torch.tensor([self.right(said[n], answer) for n, answer in zip(chosen, wanted, strict=True)]).double()
            for said in (before, after)
        ]
        facts = [fact(rows[n]) for n in chosen]
        counted = by_fact(facts, scores[1])
        ends = torch.stack([torch.stack([right, counted[0, 1]]) for right in (0 * counted[0, 1], counted[0, 1])])
        value, low, high = interval(ratio, counted, self.resamples, self.seed, ends)
        was = float(scores[0].mean())
        return {"score": value, "low": low, "high": high, "before": was, "gain": value - was, "probes": len(chosen)}

    def _report(self, places, null, rows: int, counted: int) -> Report:
        sums = [summed(each) for each in (places, null)]
        left = f" {rows - counted} probes of updates were left out: the old fact was not known." * (counted < rows)
        found = sums[0]
        return Report(
            effect=found["gain"],
            column="score",
            places=places,
            null=null,
            layers=dict.fromkeys(places),
            summary=found,
            null_summary=sums[1],
            baseline="the same answers scored against those of another fact of the same kind",
            verdict=f"Memorised {found['memorised']:.3f}, derived {found['derived']:.3f} (before "
            f"{found['before']:.3f}, the right form alone {sums[1]['derived']:.3f}).{left}",
        )


def fact(row: Example) -> str:
    """Returns what a probe is about."""
    return str(row.meta.get("fact") or f"row {row.row}")


def partners(rows: Sequence[Example], chosen: Sequence[int]) -> list[int]:
    """Returns another fact's row for each, the next one; the row itself where all are of one fact."""
    found = []
    for place, n in enumerate(chosen):
        turned = [*chosen[place + 1 :], *chosen[:place]]
        found.append(next((other for other in turned if fact(rows[other]) != fact(rows[n])), n))
    return found


def by_fact(facts: Sequence[str], scores: Tensor) -> Tensor:
    """[facts, 2]: the sum of scores and the probes of each fact."""
    names = {name: place for place, name in enumerate(dict.fromkeys(facts))}
    index = torch.tensor([names[each] for each in facts])
    parts = torch.stack([scores.double(), torch.ones(len(scores), dtype=torch.double)], 1)
    return parts.new_zeros(len(names), 2).index_add(0, index, parts)


def ratio(means: Tensor) -> Tensor:
    """The score of a probe, from means of sums and counts [..., 2]."""
    return means[..., 0] / means[..., 1]


def summed(places: dict[str, dict[str, float]]) -> dict[str, float]:
    """The memorised kind beside the mean of the others; without one or the other, what there is."""
    first = places.get(MEMORISED) or next(iter(places.values()))
    others = [each for each in places.values() if each is not first] or [first]
    derived = sum(each["score"] for each in others) / len(others)
    before = sum(each["before"] for each in places.values()) / len(places)
    gap = first["score"] - derived
    return {"memorised": first["score"], "derived": derived, "gap": gap, "gain": first["gain"], "before": before}
