"""Conjugate prompting: an ability that fine-tuning suppressed is asked for in words that fine-tuning did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.core.contracts.examination import Examination, Pair, Report
from luthier.core.contracts.example import Example
from luthier.core.errors import LuthierError
from luthier.methods.examinations._asked import CONTAINED, Asked, asked, interval, shown
from luthier.methods.examinations._transforms import Transform, transform_of


@dataclass(frozen=True)
class Conjugate(Examination):
    """recovery = (acc s⁻¹(f'(s(x))) - acc f'(x)) / (acc f(x) - acc f'(x)), f before and f' after fine-tuning

    Each user turn x goes through the transform s, the answer back through s⁻¹. Recovery is 0 for the identity, 1 where
    all that was lost comes back: then it was suppressed for prompts like those of training, not erased. It is 0 where
    nothing was lost. s is a cipher or format by name, a table of words for a language of your own, or functions in a
    Python file. `base conjugate` says whether the model could ever read the transform. The null scores the same
    answers against the right answers of the next rows. Intervals: paired bootstrap over rows.
    """

    paper = "Kotha et al. 2024 (ICLR), arXiv 2309.10105 (code: kothasuhas/understanding-forgetting)"
    reads = True
    asks: ClassVar[bool] = True

    transforms: str = "swapcase,spaced,quote"
    """Transforms, joined by commas: identity, reverse, rot13, swapcase, spaced, leet, pig_latin, json, quote, a table
    of words (.csv, .tsv, .json) or a .py file with transform(text) and inverse(text)."""
    match: Literal["contains", "scorer"] = "contains"
    """When an answer is right: it contains the right one as words, or the rows' own scorer says so."""
    max_new_tokens: int = 32
    """The most tokens of an answer; a transformed one may need more than a plain one."""
    resamples: int = 1000
    """The number of bootstrap samples."""
    seed: int = 0
    """The seed of the bootstrap."""

    def check(self):
        self.within("max_new_tokens", 1)
        self.within("resamples", 100)
        if not self.named() or len(set(self.named())) != len(self.named()):
            raise LuthierError("conjugate.transforms names none, or one twice; give names joined by commas.")
        for name in self.named():
            transform_of(name)

    def named(self) -> list[str]:
        """Returns the transforms as they are called."""
        return [name.strip() for name in self.transforms.split(",") if name.strip()]

    def measure(self, pair):
        rows = asked(pair, self.name())
        rows = replace(rows, scorer=CONTAINED) if self.match == "contains" else rows
        made = {name: transform_of(name) for name in self.named()}
        with pair.before() as model:
            before = self._answers(pair, model, rows, made)
        with pair.after() as model:
            after = self._answers(pair, model, rows, made)
        plain = rows.prompts()
        same = {
            name
            for name, each in made.items()
            if after[name] == after[""] and [conjugated(prompt, each) for prompt in plain] == plain
        }
        places, null = (
            {name: self._place(rows, before, after, name, shift, sure=name in same) for name in made}
            for shift in (0, 1)
        )
        return self._report(places, null, rows)

    def _answers(self, pair: Pair, model: nn.Module, rows: Asked, made: dict[str, Transform]) -> dict[str, list[str]]:
        """The plain answers, under the empty name, and those under each transform, turned back."""
        prompts = rows.prompts()
        found = {"": shown(pair, "asking plainly", model, prompts, self.max_new_tokens)}
        for name, transform in made.items():
            turned = [conjugated(prompt, transform) for prompt in prompts]
            said = shown(pair, f"asking through {name}", model, turned, self.max_new_tokens)
            found[name] = [transform.back(each) for each in said]
        return found

    def _place(self, rows: Asked, before, after, name: str, shift: int, *, sure: bool) -> dict[str, float]:
        """The numbers of one transform; one that changes neither prompts nor answers recovers nothing (`sure`), and so
        does any where nothing was lost. Under the null answers are scored against other rows' right ones, while what
        was lost stays what it is."""
        columns = [rows.scores(after[name], shift), rows.scores(after[""], shift), rows.scores(before[""])]
        columns += [rows.scores(after[""]), rows.scores(before[name], shift)]
        table = torch.stack(columns, 1)
        ends = table.mean(0).repeat(2, 1)
        ends[:, 0] = torch.tensor([0.0, 1.0])  # another answer through the transform
        value, low, high = interval(recovery, table, self.resamples, self.seed, ends)
        conjugate, plain, base, still, known = (float(column.mean()) for column in columns)
        low, high = (value, value) if sure or base <= still else (low, high)
        numbers = {"recovery": value, "low": low, "high": high, "conjugate": conjugate, "plain": plain}
        return {**numbers, "base": base, "base conjugate": known}

    def _report(self, places, null, rows: Asked) -> Report:
        best = max(places, key=lambda name: places[name]["recovery"])
        found = places[best]
        lost = found["base"] - found["plain"]
        said = (
            f"Fine-tuning lost {lost:.3f} of {found['base']:.3f} on {len(rows.rows)} rows; {best} brings back "
            f"{found['recovery']:.0%} of it (95% interval {found['low']:.0%} to {found['high']:.0%}; answers to other "
            f"rows: {null[best]['recovery']:.0%})."
            if lost > 0
            else f"Nothing was lost on {len(rows.rows)} rows (score {found['base']:.3f} before, {found['plain']:.3f} "
            "after), so there is nothing to recover."
        )
        return Report(
            effect=found["recovery"],
            column="recovery",
            places=places,
            null=null,
            layers=dict.fromkeys(places),
            summary={"recovery": found["recovery"], "lost": lost},
            null_summary={"recovery": null[best]["recovery"], "lost": lost},
            baseline="the same answers scored against the right answers of the next rows",
            verdict=said,
        )


def recovery(means: Tensor) -> Tensor:
    """(conjugate - plain) / (base - plain lost); means [..., 5]; 0 where nothing was lost."""
    gained, lost = means[..., 0] - means[..., 1], means[..., 2] - means[..., 3]
    return torch.where(lost > 1e-12, gained / lost.clamp(min=1e-12), torch.zeros_like(lost))


def conjugated(prompt: Example, transform: Transform) -> Example:
    """Returns a prompt whose user turns went through the transform."""
    turns: Sequence[dict] = prompt.messages or []
    made = [
        {**turn, "content": transform.there(turn["content"])}
        if turn["role"] == "user" and isinstance(turn.get("content"), str)
        else turn
        for turn in turns
    ]
    return replace(prompt, messages=made)
