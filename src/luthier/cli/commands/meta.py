"""`luthier meta`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Fitted, Flags, Given, option
from luthier.cli.stopped import meta_stopped

if TYPE_CHECKING:
    from luthier.training.meta import MetaRun

BY, FORM = "fomaml", "lora"


@dataclass(frozen=True)
class MetaCommand(Fitted):
    """Train an adapter over several domains so that one or two demonstrations are enough to adapt it.

    In domains that it never saw (--tests) the loss is measured as it is, after the inner loop on the demonstrations,
    and with the demonstrations before the prompt: of the base, of joint training with as many steps, and of the
    meta-learner. Rows have a prompt and an answer. Stopped, it goes on with --resume.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier meta smollm2-135m --domains a.jsonl b.jsonl c.jsonl --tests d.jsonl --out learned",
        "luthier meta smollm2-135m --domains a.jsonl b.jsonl --tests c.jsonl --shots 2 --inner-lr 0.05 --inner-steps 2",
        "luthier meta smollm2-135m --domains a.jsonl b.jsonl --tests c.jsonl --method loreft --steps 200 --json",
        "luthier meta smollm2-135m --domains a.jsonl b.jsonl --tests c.jsonl --out learned --resume",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`)."""
    domains: tuple[str, ...] = field(kw_only=True, metadata={"several": True})
    """The rows of each domain that is learned: files, folders, hub ids or gym:<task>."""
    tests: tuple[str, ...] = field(kw_only=True, metadata={"several": True})
    """The rows of domains that are not learned."""
    by: str = field(default=BY, kw_only=True)
    """The meta-learner; `luthier list metas` shows all."""
    method: str = field(default=FORM, kw_only=True)
    """The form that is attached, with its own settings."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with the run in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds one."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find
        from luthier.training.meta import MetaRun

        meta, form = find("metas", option(tokens, "--by") or BY), find("forms", option(tokens, "--method") or FORM)
        own = ("model", "domains", "tests", "meta", "form")
        return [
            Flags(meta, f"Settings of {meta.name()}"),
            Flags(form, f"Settings of {form.name()}"),
            Flags(MetaRun, "Meta-training", own),
        ]

    def run(self, given: Given) -> None:
        from luthier.training.meta import meta_learn

        done = meta_learn(self.resolved(given), resume=self.resume, overwrite=self.overwrite, progress=not self.json)
        if self.json:
            told = {"folder": str(done.folder), "adapter": str(done.adapter)}
            say_json({**told, "figures": done.figures, "gains": done.gains})
            return
        rows = [
            (name, way, f"{each['loss']:.4f}", f"{each['low']:.4f} to {each['high']:.4f}")
            for name, ways in done.figures.items()
            for way, each in ways.items()
        ]
        table(("model", "", "loss in new domains", "95% interval over episodes"), rows)
        for way, each in done.gains.items():
            span = f"{each['low']:.4f} to {each['high']:.4f}"
            say(f"{way}: {self.by} is {each['loss']:.4f} ({span}) below joint training in the same episodes")
        say(f"\n{done.adapter} holds the adapter.")

    def resolved(self, given: Given) -> MetaRun:
        """Returns what the flags ask for."""
        from luthier.core.contracts.component import find
        from luthier.core.contracts.form import Form
        from luthier.core.contracts.meta import Meta
        from luthier.training.meta import MetaRun

        meta, form = find("metas", self.by, Meta), find("forms", self.method, Form)
        made = meta.from_dict(dict(given.get(meta, {}))), form.from_dict(dict(given.get(form, {})))
        return MetaRun(self.model, self.domains, self.tests, *made, **given.get(MetaRun, {}))

    def stopped(self, given: Given) -> str:
        from luthier.training.meta import MetaRun

        return meta_stopped(given.get(MetaRun, {}).get("out", MetaRun.out))
