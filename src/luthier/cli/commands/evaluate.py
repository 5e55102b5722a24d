"""`luthier evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say, say_json, table, tell, tell_unread
from luthier.cli.parse import Fitted, Given
from luthier.core.errors import LuthierError
from luthier.core.paths import path_of

if TYPE_CHECKING:
    from luthier.data import Examples
    from luthier.evaluating import Evaluation

SAMPLES = 3
NUMBERS = ("pearson", "mcc", "loss", "auc")
"""Metrics that are no shares of the rows."""
CLASSES = 30
"""The most classes whose confusion is printed; --out has all."""
UNREAD = (
    "confusion",
    "scorer",
    "metrics",
    "execute",
    "yes_no",
    "samples",
    "temperature",
    "task",
    "split",
    "columns",
    "skip_bad_rows",
    "max_new_tokens",
    "max_length",
)
"""Flags that the harness does not read: its tasks say these things themselves."""


@dataclass(frozen=True)
class Evaluate(Fitted):
    """Score a model on data, with or without an adapter.

    Text models answer the prompts and a scorer compares; classifiers choose a label, or several; tags of words are
    compared by entities, answers in a context as SQuAD does, texts to embed by which is nearest, sounds by the
    errors of words in what is written down. Of pairs (prompt, chosen, rejected), the share in which the chosen answer
    is preferred.
    """

    group: ClassVar[str] = "Use"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier evaluate smollm2-135m gym:chain_sum --limit 200",
        "luthier evaluate smollm2-135m test.jsonl --adapter run --out scores.json",
        "luthier evaluate smollm2-135m test.jsonl --adapter run --scorer number --json",
        "luthier evaluate smollm2-135m summaries.jsonl --adapter run --metrics rougeL,chrf",
        "luthier evaluate smollm2-135m pairs.jsonl --adapter run",
        "luthier evaluate smollm2-135m questions.jsonl --adapter run --yes-no",
        "luthier evaluate smollm2-135m code.jsonl --scorer tests --execute --samples 10 --temperature 0.8",
        "luthier evaluate smollm2-135m --adapter run --lm-eval arc_easy,boolq --limit 200",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    data: str | None = None
    """A file, a folder, a hub id or gym:<task>; of several splits, the test rows."""
    lm_eval: str | None = field(default=None, kw_only=True)
    """Instead of data: tasks of the lm-evaluation-harness by name or .yaml file, joined by commas."""
    adapter: str | None = field(default=None, kw_only=True)
    """The adapter: a run folder or an adapter folder."""
    merged: bool = field(default=False, kw_only=True)
    """Merge the adapter into the weights first."""
    scorer: str | None = field(default=None, kw_only=True)
    """Scorer of generated answers: exact_match, number, choice, final, label, gym, or tests (see --execute). Default:
    chosen by the data."""
    metrics: str | None = field(default=None, kw_only=True)
    """Further metrics of written answers, joined by commas: rouge1, rouge2, rougeL, rougeLsum, bleu, chrf,
    exact_match."""
    execute: bool = field(default=False, kw_only=True)
    """Allow --scorer tests to run generated code: in a sandbox without files, network and processes (Linux)."""
    yes_no: bool = field(default=False, kw_only=True)
    """The rows are questions whose answer is yes or no (`luthier rewrite --by yes_no`): score by the area under the ROC
    curve, the mean over descriptions."""
    samples: int = field(default=1, kw_only=True)
    """Answers drawn for each prompt; above 1 the metrics are exact_match@k and the like, for k up to this number."""
    temperature: float = field(default=0.0, kw_only=True)
    """Temperature of the answers; 0 takes the likeliest token."""
    task: str | None = field(default=None, kw_only=True)
    """What the rows are for. Default: what the adapter was fitted for, else what their columns tell."""
    split: str = field(default="test", kw_only=True)
    """The split to evaluate, where the data have several."""
    limit: int | None = field(default=None, kw_only=True)
    """Evaluate this many rows, drawn by the seed."""
    columns: str | None = field(default=None, kw_only=True)
    """The names of columns in the data, by their meaning: text=body,label=category."""
    skip_bad_rows: bool = field(default=False, kw_only=True)
    """Skip the rows that cannot be used, instead of refusing the data."""
    batch: int = field(default=16, kw_only=True)
    """Rows per batch."""
    max_new_tokens: int = field(default=128, kw_only=True)
    """The most tokens of an answer."""
    max_length: int | None = field(default=None, kw_only=True)
    """The most tokens of a prompt. Default: the model's own bound."""
    dtype: str = field(default="float32", kw_only=True)
    """Dtype of the base: float32, bfloat16, float16 or auto."""
    seed: int = field(default=0, kw_only=True)
    """The seed that draws the rows of --limit."""
    force: bool = field(default=False, kw_only=True)
    """Use the adapter on another base than the one it was trained on."""
    out: Path | None = field(default=None, kw_only=True)
    """Also write everything, all predictions included, to this .json file."""
    confusion: Path | None = field(default=None, kw_only=True)
    """Draw which class is taken for which to this file (.png, .svg, .pdf)."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    def run(self, given: Given) -> None:
        if (self.data is None) == (self.lm_eval is None):
            raise LuthierError("give data to score on, or tasks of the harness (--lm-eval): one of the two.")
        if self.lm_eval is not None:
            idle = [name for name in UNREAD if getattr(self, name) != getattr(Evaluate, name)]
            if idle:
                flags = ", ".join("--" + name.replace("_", "-") for name in idle)
                raise LuthierError(f"tasks of the harness say themselves what {flags} would; leave that out.")
            self._harness([word for each in self.lm_eval.split(",") if (word := each.strip())])
            return
        self._score(self.data or "")

    def _harness(self, tasks: list[str]) -> None:
        from luthier.cli.base import fitted
        from luthier.evaluating.lm_eval import check_harness, harness

        check_harness()
        loaded = fitted(
            self.model, self.adapter, task="causal-lm", dtype=self.dtype, merged=self.merged, force=self.force
        )
        found = harness(loaded.model, loaded.processor, tasks, limit=self.limit, batch=self.batch, seed=self.seed)
        report = {"model": self.model, "adapter": self.adapter, "lm_eval": found}
        if self.out is not None:
            write(self.out, report)
        if self.json:
            say_json(report)
            return
        rows = [(task, name, f"{value:.4f}") for task, values in found.items() for name, value in values.items()]
        table(("task", "metric", "value"), rows)

    def _score(self, source: str) -> None:
        from luthier import data
        from luthier.cli.base import fitted
        from luthier.evaluating import evaluate

        if (self.scorer == "tests") != self.execute:
            raise LuthierError(
                "--scorer tests runs the code that the model writes, in a sandbox: say so with --execute, which goes "
                "with that scorer alone."
            )
        metrics = self._metrics()
        examples = self._examples(source)
        paired = data.kind_of(examples.layout) in ("pairs", "judged")
        written = examples.task in data.LAYOUTS["messages"].tasks and not paired
        if paired and self.scorer is not None:
            raise LuthierError(
                "--scorer compares written answers with the right ones, and pairs are compared; leave it out."
            )
        if self.scorer is not None and not written:
            raise LuthierError(
                f"--scorer compares written answers, and {examples.task} has none to write: its metrics are its own; "
                "leave --scorer out."
            )
        if self.yes_no:
            self._check_questions(examples)
        if metrics and not written:
            raise LuthierError(f"--metrics compares written answers, and {examples.task} has none; leave it out.")
        scorer = data.scorer_for(examples, self.scorer) if written else None
        loaded = fitted(
            self.model,
            self.adapter,
            task=examples.task,
            labels=examples.labels,
            dtype=self.dtype,
            merged=self.merged,
            force=self.force,
        )
        found = evaluate(
            loaded.model,
            loaded.processor,
            examples,
            scorer=scorer,
            batch=self.batch,
            max_new_tokens=self.max_new_tokens,
            max_length=self.max_length,
            task=examples.task,
            seed=self.seed,
            progress=not self.json,
            samples=self.samples,
            temperature=self.temperature,
            yes_no=self.yes_no,
            metrics=metrics,
        )
        self._tell(found, scorer.name if scorer and not self.yes_no else None)

    def _check_questions(self, examples: Examples) -> None:
        """Raises for rows that are no such questions, and for flags that act on written answers."""
        from luthier.evaluating.yes_no import check_questions

        flags = ("scorer", "samples", "temperature", "max_new_tokens", "confusion")
        if idle := [name for name in flags if getattr(self, name) != getattr(Evaluate, name)]:
            named = ", ".join("--" + name.replace("_", "-") for name in idle)
            raise LuthierError(f"--yes-no compares how likely yes and no are, and {named} would be ignored.")
        check_questions(examples)

    def _metrics(self) -> list[str]:
        from luthier.data.text_metrics import check_metrics

        found = [word for each in (self.metrics or "").split(",") if (word := each.strip())]
        check_metrics(found)
        return found

    def _draw(self, found: Evaluation) -> None:
        if self.confusion is None:
            return
        from luthier.core.guard import written
        from luthier.evaluating.classes import draw

        if not found.confusion:
            raise LuthierError("--confusion shows classes, and these rows have none; leave it out.")
        with written(str(self.confusion), "Choose another file."):
            draw(found.confusion, path_of(self.confusion), f"{self.model}: {self.data}")

    def _examples(self, source: str) -> Examples:
        """The rows, for the task that was asked for, else for what the adapter was fitted for or the model is."""
        from luthier import data
        from luthier.models import task_of

        task = self.task or (task_of(self.model, self.adapter) if self.adapter else None)
        settings: dict[str, Any] = {"split": self.split, "limit": self.limit, "seed": self.seed}
        settings |= {"skip_bad_rows": self.skip_bad_rows, "columns": self._columns(), "named": self.columns}
        settings |= {"preferences": True}
        found = data.load(source, task=task, **settings)
        if task is None and found.task == "causal-lm" and (known := task_of(self.model, None)) is not None:
            found = data.load(source, task=known, **settings)
        tell_unread(found.unread, source)
        return found

    def _columns(self) -> tuple[str, ...]:
        """Columns that are read beside those of the layout."""
        from luthier.data.execution import COLUMNS

        return ("task", *COLUMNS) if self.scorer == "tests" else ("task",)

    def _tell(self, found: Evaluation, scorer: str | None) -> None:
        metric = next(iter(found.metrics))
        self._draw(found)
        report = {"model": self.model, "adapter": self.adapter, "data": self.data, "scorer": scorer, "metric": metric}
        report |= asdict(found)
        if self.out is not None:
            write(self.out, report)
        if self.json:
            say_json({key: value for key, value in report.items() if key != "predictions"})
            return
        form = ".4f" if metric in NUMBERS else ".1%"
        score, low, high = (format(value, form) for value in (found.score, *found.interval))
        say(f"{metric} {score} (95% interval {low} to {high}) on {found.count:,} rows")
        for name, value in found.metrics.items():
            if name != metric:
                say(f"{name} {value:.4g}")
        _tables(found)
        if found.failed:
            row, reason = found.failed[0]
            tell(
                "warning",
                f"{len(found.failed):,} answers could not be scored and count as wrong; row {row}: {reason}",
            )
        for each in found.predictions[:SAMPLES]:
            say("\n" + "\n".join(f"  {key}: {_short(value)}" for key, value in each.items()))


def _tables(found: Evaluation) -> None:
    """The figures of each task, of each class, and who is taken for whom."""
    if found.tasks:
        names = list(next(iter(found.tasks.values())))
        say()
        table(("task", *names), [(task, *map(_figure, each.values())) for task, each in found.tasks.items()])
    if found.classes:
        names = list(next(iter(found.classes.values())))
        say()
        table(("class", *names), [(name, *map(_figure, each.values())) for name, each in found.classes.items()])
    if found.confusion and 1 < len(found.classes) <= CLASSES:
        labels, counts = found.confusion["labels"], found.confusion["counts"]
        say()
        table(("right \\ predicted", *labels), [(label, *row) for label, row in zip(labels, counts, strict=True)])


def _figure(value: float) -> object:
    return value if isinstance(value, int) else f"{value:.4f}"


def write(path: Path, report: dict[str, Any]) -> None:
    """The report as a JSON file, there whole or not at all; a pipe or a device is given it."""
    from luthier.core.guard import written
    from luthier.core.records import finite, replace_text

    with written(str(path), "Choose another file."):
        path, text = path_of(path), json.dumps(finite(report), indent=2, ensure_ascii=False, default=str) + "\n"
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            replace_text(path, text)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.replace("\n", "⏎")
    return text if len(text) <= 160 else f"{text[:79]} … {text[-78:]}"
