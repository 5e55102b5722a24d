"""`luthier predict`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import console, say, table, tell
from luthier.cli.parse import Fitted, Given, Telling
from luthier.core.errors import LuthierError
from luthier.core.paths import path_of

if TYPE_CHECKING:
    from luthier.evaluating.drawn import Drawn


@dataclass(frozen=True)
class Predict(Telling, Fitted):
    """Predict on rows, with or without an adapter: labels with probabilities, tags, answers, numbers, vectors.

    Rows are read in any layout of training, with or without their answers. The file has every column of theirs, and the
    predictions behind them. It is on disk as it is made: a stopped one goes on with --resume.
    """

    group: ClassVar[str] = "Use"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier predict minilm-l6 new.csv --columns text=body --adapter run --out scored.csv",
        "luthier predict minilm-l6 new.csv --adapter run --out scored.parquet --top-k 3 --threshold 0.6",
        "luthier predict smollm2-135m questions.jsonl --adapter run --out answered.jsonl --json",
        "luthier predict smollm2-135m questions.jsonl --adapter run --out answered.jsonl --resume",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    data: str
    """A file, a folder, a hub id or gym:<task>."""
    out: Path = field(default=Path("predicted.csv"), kw_only=True)
    """The file to write: .csv, .jsonl or .parquet."""
    adapter: str | None = field(default=None, kw_only=True)
    """The adapter: a run folder or an adapter folder."""
    merged: bool = field(default=False, kw_only=True)
    """Merge the adapter into the weights first."""
    task: str | None = field(default=None, kw_only=True)
    """What the model predicts. Default: what the adapter was fitted for, else what the model's class tells."""
    threshold: float | None = field(default=None, kw_only=True)
    """Leave predictions of a lower probability empty; of several classes a text, which are told (default: 0.5)."""
    top_k: int = field(default=1, kw_only=True)
    """Also tell the classes or answers behind the first, this many in all; of several classes a text, the most."""
    split: str | None = field(default=None, kw_only=True)
    """The split to predict on, where the data have several. Default: test; all rows of a file with a column split."""
    columns: str | None = field(default=None, kw_only=True)
    """The names of columns in the data, by their meaning: text=body."""
    skip_bad_rows: bool = field(default=False, kw_only=True)
    """Leave out the rows that cannot be used, instead of refusing the data."""
    batch: int = field(default=16, kw_only=True)
    """Rows per batch; a file goes on with the same."""
    max_new_tokens: int | None = field(default=None, kw_only=True)
    """The most tokens of a written answer. Default: 128."""
    max_length: int | None = field(default=None, kw_only=True)
    """The most tokens of a row. Default: the model's own bound."""
    truncate: bool = field(default=False, kw_only=True)
    """Cut texts that are too long, instead of refusing the rows."""
    samples: int | None = field(default=None, kw_only=True)
    """Adapters that are drawn from one that is a distribution (luthier meta --by abmll), over which the probability of
    a written answer has an interval; 0: none. Default: 16 where the adapter is one."""
    dtype: str = field(default="float32", kw_only=True)
    """Dtype of the base: float32, bfloat16, float16 or auto."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with a file that was stopped."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out exists."""
    force: bool = field(default=False, kw_only=True)
    """Use the adapter on another base than the one it was trained on."""

    def do(self, given: Given) -> Any:
        from luthier.cli.base import fitted
        from luthier.evaluating import predict

        task, labels = self._known()
        self._check_file()
        loaded = fitted(
            self.model,
            self.adapter,
            task=task,
            labels=labels,
            dtype=self.dtype,
            merged=self.merged,
            force=self.force,
        )
        drawn = self._drawn(loaded.model)
        with self._bar() as (started, done):
            found = predict(
                loaded.model,
                loaded.processor,
                self.data,
                out=self.out,
                task=task,
                columns=self.columns,
                split=self.split,
                threshold=self.threshold,
                top_k=self.top_k,
                batch=self.batch,
                max_new_tokens=self.max_new_tokens,
                max_length=self.max_length,
                truncate=self.truncate,
                skip_bad_rows=self.skip_bad_rows,
                resume=self.resume,
                overwrite=self.overwrite,
                drawn=drawn,
                inputs={"base": self.model, "merged": self.merged and self.adapter, "dtype": self.dtype},
                started=started,
                done=done,
            )
        told = found.figures()
        if found.skipped:
            row, reason = found.skipped[0]
            tell("warning", f"{len(found.skipped):,} rows were left out; row {row}: {reason}")
        if found.predictions:
            table(("prediction", "rows"), list(found.predictions.items()))
        if found.unsure:
            say(f"{found.unsure:,} rows have no prediction: its probability is below {self.threshold:g}.")
        say(f"{found.out} holds {found.count:,} rows with {', '.join(found.columns)}.")
        return {"model": self.model, "adapter": self.adapter, "data": self.data, **told}

    def _drawn(self, model: Any) -> Drawn | None:
        """Adapters around the one on the model, where it is a distribution."""
        from luthier.evaluating.drawn import drawn_of

        if self.samples is not None and (self.adapter is None or self.merged):
            raise LuthierError("--samples draws adapters around one that is on the model; give --adapter, not merged.")
        return None if self.adapter is None or self.merged else drawn_of(self.adapter, model, self.samples)

    def _known(self) -> tuple[str, list[str] | None]:
        """The task, and the classes that the adapter was fitted for."""
        from luthier.core.storage.folder import read_adapter
        from luthier.models import config_of, fitted_task, task_of_class
        from luthier.models.labels import PROBLEMS

        if self.adapter is not None:
            spec = read_adapter(self.adapter)[1]
            own = fitted_task(spec)
            if self.task not in (None, own):
                raise LuthierError(f"the adapter was fitted for {own}, which --task {self.task} contradicts.")
            return own, None
        config = config_of(self.model)
        found = self.task or task_of_class((config.architectures or [""])[0])
        if found == "classification" and self.task is None:
            problems = {problem: task for task, problem in PROBLEMS.items()}
            found = problems.get(config.problem_type, "regression" if config.num_labels == 1 else found)
        return found, None

    def _check_file(self) -> None:
        """Raises for a file that would be lost or cannot be, before the model is loaded."""
        from luthier.evaluating.predict import FILES

        if self.out.suffix not in FILES:
            raise LuthierError(f"--out is {self.out}; expected a file that ends in {', '.join(FILES)}.")
        if path_of(self.out).exists() and not self.overwrite:
            raise LuthierError(f"{self.out} exists; replace it (--overwrite), or choose another file (--out).")

    @contextmanager
    def _bar(self) -> Iterator[tuple[Callable[[int], Any], Callable[[int], Any]]]:
        from luthier.core.progress import counted

        with counted(console(stderr=True), "predicting") as bar:
            task = bar.add_task("", total=None)
            yield lambda total: bar.update(task, total=total), lambda count: bar.advance(task, count)

    def stopped(self, given: Given) -> str:
        return "Stopped; what was predicted is kept. Go on by the same command with --resume."
