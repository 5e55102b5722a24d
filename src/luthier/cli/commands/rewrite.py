"""`luthier rewrite`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import console, say, say_json, table, tell
from luthier.cli.parse import Fitted, Flags, Given, option
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.core.contracts.rewrite import Rewrite as Rule
    from luthier.data import Examples
    from luthier.evaluating.rewrite import Rewritten

BY = "s3ft"
"""What is used by default."""
NONE = "none"
"""What is said instead of a model where none is asked."""
OF_A_MODEL = ("adapter", "measure", "max_new_tokens", "patience", "dtype", "least")
"""Flags that act on what a model writes."""


@dataclass(frozen=True)
class Rewrite(Fitted):
    """Make rows to learn from out of rows, by what the model says itself.

    The model writes, a judge looks at what it wrote: a scorer, a model behind OpenAI's API, or a Python function. Rows
    are on disk as they are made, and each says in the column `from` where it comes from.
    """

    group: ClassVar[str] = "Data"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier rewrite smollm2-135m train.jsonl --by s3ft --judge exact_match --out mine.jsonl",
        "luthier rewrite smollm2-135m train.jsonl --judge http://127.0.0.1:8000/v1#judge --resume",
        "luthier rewrite smollm2-135m train.jsonl --judge judges.py:same_meaning --measure",
        "luthier rewrite smollm2-135m train.jsonl --by multicritique --critics critics.py:strict,self "
        "--meta http://127.0.0.1:8000/v1 --out critiques.jsonl",
        "luthier rewrite none reviews.jsonl --by yes_no --descriptions reviews.toml --out questions.jsonl",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue: who writes, and is to learn the rows; none for a
    rewrite that asks no model."""
    data: str
    """A file, a folder, a hub id or gym:<task>: prompts with right answers, or for yes_no texts with a class."""
    by: str = field(default=BY, kw_only=True)
    """The rewrite; `luthier list rewrites` shows all."""
    judge: str | None = field(default=None, kw_only=True)
    """Who says whether an answer is right: a scorer (exact_match, number, choice, label, gym), a server of OpenAI's API
    (http://host/v1#model), or a function of prompt, answer and reference (file.py:name)."""
    critics: str | None = field(default=None, kw_only=True)
    """Who names flaws, joined by commas: servers, functions of a conversation (file.py:name), or self."""
    meta: str | None = field(default=None, kw_only=True)
    """Who verifies the flaws that critics name: one of the same kinds."""
    least: float = field(default=1.0, kw_only=True)
    """The score from which on an answer is right, of scorers and functions that give numbers."""
    out: str = field(default="rewritten.jsonl", kw_only=True)
    """The .jsonl file to write."""
    adapter: str | None = field(default=None, kw_only=True)
    """The adapter of the model: a run folder or an adapter folder."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with a file that was stopped."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out exists."""
    measure: bool = field(default=False, kw_only=True)
    """Also tell the model's mean loss of the rows that were made beside that of the rows given."""
    limit: int | None = field(default=None, kw_only=True)
    """Read this many rows of DATA, drawn by the seed."""
    columns: str | None = field(default=None, kw_only=True)
    """The names of columns in the data, by their meaning: prompt=body."""
    skip_bad_rows: bool = field(default=False, kw_only=True)
    """Skip the rows that cannot be used, instead of refusing the data."""
    batch: int = field(default=16, kw_only=True)
    """Rows per batch; a file goes on with the same."""
    max_new_tokens: int = field(default=128, kw_only=True)
    """The most tokens of an answer."""
    patience: int = field(default=20, kw_only=True)
    """Answers in a row that the judge may leave unjudged before the work stops."""
    dtype: str = field(default="float32", kw_only=True)
    """Dtype of the base: float32, bfloat16, float16 or auto."""
    seed: int = field(default=0, kw_only=True)
    """The seed that draws the rows of --limit."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find

        chosen = find("rewrites", option(tokens, "--by") or BY)
        return [Flags(chosen, f"Settings of {chosen.name()}")]

    def run(self, given: Given) -> None:
        from pathlib import Path

        from luthier import data
        from luthier.cli.base import fitted
        from luthier.core.contracts.component import find
        from luthier.core.contracts.rewrite import Rewrite as Rule
        from luthier.data.rewriting.judges import judge_of
        from luthier.evaluating.rewrite import check, rewrite

        cls = find("rewrites", self.by, Rule)
        rule = cls.from_dict(dict(given.get(cls, {})))
        self._refuse_idle(rule)
        told: dict[str, Any] = {"limit": self.limit, "seed": self.seed, "named": self.columns}
        told["task"] = "classification" if rule.reads == "labels" else "causal-lm"
        examples = data.load(self.data, skip_bad_rows=self.skip_bad_rows, **told)
        critics = [word for each in (self.critics or "").split(",") if (word := each.strip())]
        check(rule, examples, self.judge, critics, self.meta, Path(self.out))
        if self.judge is not None:
            judge_of(self.judge, examples, self.least)  # before the model is loaded
        loaded = fitted(self.model, self.adapter, task="causal-lm", dtype=self.dtype) if rule.writes else None
        with self._bar(len(examples)) as done:
            found = rewrite(
                loaded and loaded.model,
                loaded and loaded.processor,
                examples,
                by=rule,
                out=self.out,
                judge=self.judge,
                critics=critics,
                meta=self.meta,
                least=self.least,
                batch=self.batch,
                max_new_tokens=self.max_new_tokens,
                patience=self.patience,
                resume=self.resume,
                overwrite=self.overwrite,
                done=done,
            )
        losses = self._losses(loaded, examples) if self.measure else {}
        self._tell(found, losses)

    def _refuse_idle(self, rule: Rule) -> None:
        """Raises for flags that a rewrite without a model would ignore, and for no model where one is asked."""
        if rule.writes:
            if self.model == NONE:
                raise LuthierError(f"{rule.name()} asks a model; name the one that is to learn the rows.")
            return
        if self.model != NONE:
            raise LuthierError(f"{rule.name()} asks no model, and {self.model} would be ignored; say {NONE} instead.")
        idle = [name for name in OF_A_MODEL if getattr(self, name) != getattr(Rewrite, name)]
        if idle:
            flags = ", ".join("--" + name.replace("_", "-") for name in idle)
            raise LuthierError(f"{rule.name()} asks no model, so {flags} would be ignored; leave that out.")

    def _losses(self, loaded: Any, examples: Examples) -> dict[str, float]:
        """The mean loss of the answers, of the rows given and of those made."""
        from luthier import data
        from luthier.evaluating.texts import figures, foretold

        made = data.load(self.out, columns=("from",))
        if data.kind_of(made.layout) != "answers":
            raise LuthierError("--measure tells the loss of answers, and pairs were made; leave it out.")
        parts = {"given": examples, "made": made}
        return {
            name: figures(foretold(loaded.model, loaded.processor, rows, batch=self.batch))["loss"]
            for name, rows in parts.items()
        }

    @contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[int], Any]]:
        from luthier.core.progress import counted

        with counted(console(stderr=True), "rewriting") as bar:
            task = bar.add_task("", total=total)
            yield lambda count: bar.advance(task, count)

    def _tell(self, found: Rewritten, losses: dict[str, float]) -> None:
        if self.json:
            say_json(asdict(found) | {"out": str(found.out)} | ({"loss": losses} if losses else {}))
            return
        table(("where rows come from", "rows"), list(found.origins.items()))
        if losses:
            say(f"mean loss of the answers: {losses['given']:.4f} as given, {losses['made']:.4f} as made")
        if found.unjudged:
            why, count = max(found.why.items(), key=lambda item: item[1])
            told = f"the judge did not say of {found.unjudged:,} answers whether they are right"
            tell("warning", f"{told}: {why} ({count})")
        say(f"{found.out} holds {found.rows:,} rows, made of {found.read:,}.")

    def stopped(self, given: Given) -> str:
        return "Stopped; what was made is kept. Go on by the same command with --resume."
