"""`luthier edit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Fitted, Flags, Given, option
from luthier.cli.stopped import edit_stopped
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.training.editing import Edit, Edited

EDITING, FORM = "locft_bf", "full"
TOLD = ("model", "facts", "editing", "form")
"""Fields of an edit that the command has itself."""


@dataclass(frozen=True)
class EditCommand(Fitted):
    """Write facts into one tensor of a causal language model, as a small adapter that is taken off again.

    Rows have prompt and target, and may have rephrased (prompts with the same answer) and neighbours (prompts about
    other things). Reliability is the share of facts that greedy decoding then writes, generalisation that of rephrased
    prompts, locality the share of neighbour prompts that go on as before. Without --where the place is searched over
    blocks and their matrices. Stopped, it goes on with --resume.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier edit smollm2-135m facts.jsonl --out edited",
        'luthier edit smollm2-135m facts.jsonl --where "params(model.layers.12.mlp.down_proj.weight)" --batch 100',
        "luthier edit smollm2-135m facts.jsonl --by depth_first --limit 50 --json",
        "luthier edit smollm2-135m facts.jsonl --held texts.jsonl --abilities gym:chain_sum gym:basic_arithmetic",
        "luthier edit smollm2-135m facts.jsonl --out edited --resume",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`)."""
    facts: str
    """Rows with prompt and target: a file, a folder or a hub id."""
    by: str = field(default=EDITING, kw_only=True)
    """The schedule; `luthier list editings` shows all."""
    method: str = field(default=FORM, kw_only=True)
    """The form that is attached at the place, with its own settings."""
    abilities: tuple[str, ...] = field(default=(), kw_only=True, metadata={"several": True})
    """Data that are scored before and after, as by `luthier evaluate`: what else the model can do."""
    ability_rows: int = field(default=50, kw_only=True)
    """How many rows of each of these."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with the edit in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds an edit."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find
        from luthier.training.editing import Edit

        editing = find("editings", option(tokens, "--by") or EDITING)
        form = find("forms", option(tokens, "--method") or FORM)
        return [
            Flags(editing, f"Settings of {editing.name()}"),
            Flags(form, f"Settings of {form.name()}"),
            Flags(Edit, "Edit", TOLD),
        ]

    def run(self, given: Given) -> None:
        from luthier.training.editing import edit

        spec = self.resolved(given)
        rows = self._rows()
        done = edit(spec, resume=self.resume, overwrite=self.overwrite, progress=not self.json)
        figures = {**done.figures, **self._abilities(done, rows)}
        told = {key: value for key, value in vars(done).items() if key not in ("model", "processor", "figures")}
        if self.json:
            say_json({**{key: str(v) if key in ("folder", "adapter") else v for key, v in told.items()},
                      "figures": figures})  # fmt: skip
            return
        say(f"{done.facts:,} facts at {done.where} ({done.trainable:,} numbers), {done.steps:,} steps.")
        table(("", "before", "after", "95% interval", "rows"), [_line(name, each) for name, each in figures.items()])
        say(f"\n{done.adapter} holds the edit; without it the base is as it was.")

    def resolved(self, given: Given) -> Edit:
        """Returns what the flags ask for."""
        from luthier.core.contracts.component import find
        from luthier.core.contracts.editing import Editing
        from luthier.core.contracts.form import Form
        from luthier.training.editing import Edit

        editing, form = find("editings", self.by, Editing), find("forms", self.method, Form)
        return Edit(
            self.model,
            self.facts,
            editing.from_dict(dict(given.get(editing, {}))),
            form.from_dict(dict(given.get(form, {}))),
            **given.get(Edit, {}),
        )

    def _rows(self) -> dict[str, Any]:
        """The rows of abilities, read before any weights."""
        from luthier import data

        found = {}
        for source in self.abilities:
            found[source] = data.load(source, split="test", limit=self.ability_rows, task="causal-lm")
            scorer = data.scorer_for(found[source], None)
            if scorer is None:
                raise LuthierError(f"{source} has no answers to score ({found[source].layout} rows); leave it out.")
            data.refuse_unscorable(scorer, found[source].rows)
        return found

    def _abilities(self, done: Edited, rows: dict[str, Any]) -> dict[str, dict[str, Any]]:
        from luthier.core.adapters.control import disabled
        from luthier.evaluating import evaluate

        found = {}
        for source, examples in rows.items():
            scorer = _scorer(examples)
            settings: dict[str, Any] = {"scorer": scorer, "progress": not self.json, "max_new_tokens": 64}
            after = evaluate(done.model, done.processor, examples, **settings)
            with disabled(done.model):
                before = evaluate(done.model, done.processor, examples, **settings)
            low, high = after.interval
            told = {"before": before.score, "after": after.score, "count": after.count}
            found[source] = {**told, "low": low, "high": high}
        return found

    def stopped(self, given: Given) -> str:
        from luthier.training.editing import Edit

        return edit_stopped(given.get(Edit, {}).get("out", Edit.out))


def _scorer(examples: Any) -> Any:
    from luthier import data

    return data.scorer_for(examples, None)


def _line(name: str, each: dict[str, Any]) -> tuple[object, ...]:
    span = f"{each['low']:.3f} to {each['high']:.3f}" if "low" in each else None
    return name, f"{each['before']:.3f}", f"{each['after']:.3f}", span, each.get("count")
