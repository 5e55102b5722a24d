"""`luthier monitor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Command, Given

if TYPE_CHECKING:
    from luthier.examining.monitor import Monitored


@dataclass(frozen=True)
class Monitor(Command):
    """Monitor a served model: whether what it is asked and answers still looks like the data that it was trained on.

    The log is that of `luthier serve --log`. Lengths, unknown words, other letters, digits and repetition are compared
    by Kolmogorov and Smirnov's test, content by a classifier of words; p-values are adjusted for the number of
    comparisons. The exit code is 0 where nothing drifted and 3 where something did. monitor.json and monitor.html go
    into --out.
    """

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier monitor answers.jsonl --data train.jsonl --out monitored",
        "luthier monitor answers.jsonl --data train.jsonl --model sums --limit 500 --json",
    )

    log: str
    """The .jsonl file that `luthier serve --log` wrote."""
    data: str = field(kw_only=True)
    """The training data: a file, a folder or a hub id, with prompts and answers or conversations."""
    model: str | None = field(default=None, kw_only=True)
    """The answers of one model of the log: the base or an adapter. Default: all."""
    limit: int = field(default=2000, kw_only=True)
    """Compare at most that many rows of each side: the latest of the log, and a sample of the training data."""
    permutations: int = field(default=200, kw_only=True)
    """Permutations behind the p-value of the classifier."""
    seed: int = field(default=0, kw_only=True)
    """The seed of samples, folds and permutations."""
    out: str | None = field(default=None, kw_only=True)
    """The folder for monitor.json and monitor.html. Default: nothing is written."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    def run(self, given: Given) -> None:
        from luthier.examining.monitor import monitor

        found = monitor(
            self.log,
            self.data,
            model=self.model,
            limit=self.limit,
            seed=self.seed,
            permutations=self.permutations,
            out=self.out,
        )
        say_json(found.to_dict()) if self.json else show(found, self.out)
        if found.code:
            raise SystemExit(found.code)


def show(found: Monitored, out: str | None) -> None:
    """The comparisons of both sides, and the finding."""
    for title, side in (("inputs", found.inputs), ("answers", found.outputs)):
        rows = [(each.name, f"{each.trained:.4g}", f"{each.seen:.4g}", f"{each.p:.3g}") for each in side]
        table(("what", "training data", "log", "p, adjusted"), rows, title)
        say()
    say(found.sentence)
    if out is not None:
        say(f"{out} holds monitor.json and monitor.html.")
