"""`luthier check`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Fitted, Given

if TYPE_CHECKING:
    from luthier.examining.check import Checked


@dataclass(frozen=True)
class Check(Fitted):
    """Check whether a fine-tuned model may be released, by gates that it has to pass.

    A gate compares the model after fine-tuning with the one before on your own rows: held texts, other tasks, answers
    from a context, prompts to decline, calibration, new directions of the weights, time and memory. It trips where the
    whole 95% interval of the worsening lies beyond its tolerance. The exit code is 0 where all gates pass, 3 where one
    tripped, 4 where there are too few probes to tell, 5 where a gate failed while it was measured; the others are
    measured all the same. check.json and check.html go into --out.
    """

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier check smollm2-135m --adapter run --gates gates.toml --out checked",
        "luthier check smollm2-135m --adapter path/to/tuned --gates gates.toml --limit 200 --json",
        "luthier check smollm2-135m --adapter run --other-seed run-2 --gates gates.toml",
        "luthier list gates",
    )

    model: str
    """The base: a folder, a hub id or a name of the catalogue."""
    adapter: str = field(kw_only=True)
    """What was fine-tuned: a run folder, an adapter's folder, or the folder of a whole fine-tuned model."""
    gates: str = field(kw_only=True)
    """A TOML file with a [[gate]] table for each gate: by, data, tolerance and the gate's own settings."""
    other_seed: str | None = field(default=None, kw_only=True)
    """The same fine-tuning from another seed, whose worsening stands beside each verdict: how far seeds lie apart."""
    out: str | None = field(default=None, kw_only=True)
    """Folder for check.json and check.html. Default: nothing is written."""
    task: str | None = field(default=None, kw_only=True)
    """What the rows are for. Default: the adapter's task, or the model's."""
    limit: int | None = field(default=None, kw_only=True)
    """Take at most that many rows of each source."""
    batch: int = field(default=8, kw_only=True)
    """Rows read at a time."""
    max_length: int = field(default=1024, kw_only=True)
    """Longest row, in tokens; longer ones are cut."""
    dtype: str = field(default="float32", kw_only=True)
    """Dtype of the base: float32, bfloat16, float16, float64 or auto, the model's own."""
    seed: int = field(default=0, kw_only=True)
    """Draws the rows of --limit and the bootstrap."""
    force: bool = field(default=False, kw_only=True)
    """Go on with another base than the one that was fine-tuned."""
    json: bool = field(default=False, kw_only=True)
    """Print JSON."""

    def run(self, given: Given) -> None:
        from luthier.cli.base import base_under
        from luthier.examining.check import check
        from luthier.examining.check.gates import read_gates
        from luthier.examining.check.run import free

        if self.out is not None:
            free(self.out)
        gates = read_gates(self.gates)
        base = base_under(self.adapter, self.model, like=self.adapter, dtype=self.dtype, task=self.task)
        found = check(
            self.adapter,
            gates,
            base=base.model,
            processor=base.processor,
            task=base.task,
            batch=self.batch,
            max_length=self.max_length,
            limit=self.limit,
            seed=self.seed,
            other_seed=self.other_seed,
            out=self.out,
            force=self.force,
            progress=not self.json,
        )
        say_json(found.to_dict()) if self.json else show(found, self.out)
        if found.code:
            raise SystemExit(found.code)


def show(found: Checked, out: str | None) -> None:
    """The table of gates, and the finding."""
    from luthier.core.families import told as evaluated
    from luthier.examining.check.page import nulls, number, plain, sentence, told

    rows = [
        (
            each.name,
            each.outcome,
            plain(each.before),
            plain(each.after),
            f"{number(each.worsening)} ({number(each.low)} to {number(each.high)})",
            nulls(each),
            plain(each.gate.tolerance),
            told(each),
        )
        for each in found.verdicts
    ]
    headed = ("gate", "outcome", "before", "after", "worsening (95%)", "null", "tolerance", "probes")
    table(headed, rows, found.target)
    say()
    say(sentence(found.verdicts))
    say(evaluated(found.checklist))
    if out is not None:
        say(f"{out} holds check.json and check.html.")
