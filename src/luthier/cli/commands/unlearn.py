"""`luthier unlearn`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Fitted, Flags, Given, option
from luthier.cli.stopped import unlearning_stopped

if TYPE_CHECKING:
    from luthier.training.unlearning import Unlearn

BY = "dmm"


@dataclass(frozen=True)
class UnlearnCommand(Fitted):
    """Make an adapter that is as if some of its rows had never been learned.

    dmm predicts what the model would say without the rows, from projected gradients, and matches that; ascent raises
    their loss; kl does so and stays near the model on the rows to retain; retrain trains again without them, which the
    others are measured by. Loss and accuracy on rows to forget, retained and new rows, and a membership test (with
    --test) are told before and after; with --models also how far the margins are from those of retrained models, KLOM
    less its null, which is 0 for retraining. Stopped, it goes on with --resume.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier unlearn minilm-l6 --adapter run --forget forget.jsonl --retain retain.jsonl",
        "luthier unlearn minilm-l6 --adapter run --forget f.jsonl --retain r.jsonl --test t.jsonl --steps 100",
        "luthier unlearn smollm2-135m --adapter run --forget f.jsonl --retain r.jsonl --by kl --beta 2 --lr 1e-4",
        "luthier unlearn minilm-l6 --adapter run --forget f.jsonl --retain r.jsonl --by retrain --out oracle --json",
        "luthier unlearn minilm-l6 --adapter run --forget f.jsonl --retain r.jsonl --test t.jsonl --models 5",
    )

    model: str
    """The base of the adapter: a folder, a hub id, a .gguf file or a name of the catalogue."""
    adapter: str = field(kw_only=True)
    """The run folder of `luthier train` whose adapter is to forget."""
    forget: str = field(kw_only=True)
    """Rows to forget: some of those that the adapter was trained on."""
    retain: str = field(kw_only=True)
    """Rows to retain: the others."""
    by: str = field(default=BY, kw_only=True)
    """How: dmm, ascent, kl or retrain; `luthier list unlearnings` shows all."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with the unlearning in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds one."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find
        from luthier.training.unlearning import Unlearn

        method = find("unlearnings", option(tokens, "--by") or BY)
        own = ("adapter", "forget", "retain", "unlearning", "model")
        return [Flags(method, f"Settings of {method.name()}"), Flags(Unlearn, "Unlearning", own)]

    def run(self, given: Given) -> None:
        from luthier.training.unlearning import unlearn

        done = unlearn(self.resolved(given), resume=self.resume, overwrite=self.overwrite, progress=not self.json)
        if self.json:
            told = {"folder": str(done.folder), "adapter": str(done.adapter), "steps": done.steps}
            say_json({**told, "figures": done.figures})
            return
        rows = []
        for name, each in done.figures.items():
            span = f"{each['low']:.3f} to {each['high']:.3f}" if "low" in each else None
            rows.append((name, f"{each['before']:.3f}", f"{each['after']:.3f}", span, each.get("count")))
        table(("", "before", "after", "95% interval after", "rows"), rows)
        if any("KLOM" in name for name in done.figures):
            say("\nKLOM's interval is over models (Student's t, jackknife); 0 is what retrained models have.")
        say(f"\n{done.adapter} holds the adapter after {done.steps:,} steps.")

    def resolved(self, given: Given) -> Unlearn:
        """Returns what the flags ask for."""
        from luthier.core.contracts.component import find
        from luthier.core.contracts.unlearning import Unlearning
        from luthier.training.unlearning import Unlearn

        method = find("unlearnings", self.by, Unlearning)
        made = method.from_dict(dict(given.get(method, {})))
        return Unlearn(self.adapter, self.forget, self.retain, made, model=self.model, **given.get(Unlearn, {}))

    def stopped(self, given: Given) -> str:
        from luthier.training.unlearning import Unlearn

        return unlearning_stopped(given.get(Unlearn, {}).get("out", Unlearn.out))
