"""`luthier select`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import console, say, say_json, tell_unread
from luthier.cli.parse import Flags, Given, Loading, option
from luthier.core.errors import LuthierError
from luthier.core.files import real_file
from luthier.core.paths import path_of

if TYPE_CHECKING:
    from luthier.core.contracts.selection import Pool, Selection
    from luthier.data import Examples

BY = "got_d"
"""What chooses by default."""


@dataclass(frozen=True)
class Select(Loading):
    """Choose rows of data to train on, or put few-shot examples before each prompt.

    With --rows, the rows of DATA that serve the rows of --target best are written as they are (pictures and
    sounds by absolute paths, classes by name). With --shots, every row
    of DATA is written with that many rows of --pool before its prompt; these are read, not learned.

    With --state, rows are chosen of all that have arrived: DATA joins the rows that the folder keeps, and rows that a
    selection finds redundant leave it for good.
    """

    group: ClassVar[str] = "Data"
    data_family: ClassVar[str] = "expert"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier select pool.jsonl --by got_d --target task.jsonl --rows 2000 --out chosen.jsonl",
        "luthier select pool.jsonl --by got_d --embedding states --model smollm2-135m --target task.jsonl --rows 2000",
        "luthier select test.jsonl --by bm25 --shots 4 --pool train.jsonl --out test-4-shot.jsonl",
        "luthier select train.jsonl --by random --rows 500 --seed 1",
        "luthier select train.jsonl --by dealrec --model smollm2-135m --rows 1024",
        "luthier select train.jsonl --by dealrec --effort 0 --rows 1024",
        "luthier select march.jsonl --by adapt_inf --model smollm2-135m --state pool --rows 5000",
    )

    data: str
    """A file (.jsonl, .csv, .parquet, …), a folder, a hub id or gym:<task>."""
    by: str = field(default=BY, kw_only=True)
    """The selection; `luthier list selections` shows all."""
    rows: int | None = field(default=None, kw_only=True)
    """The number of rows to select."""
    target: str | None = field(default=None, kw_only=True)
    """Data of the target task, for which rows are chosen."""
    shots: int | None = field(default=None, kw_only=True)
    """The number of examples (shots) to put before each prompt."""
    pool: str | None = field(default=None, kw_only=True)
    """Data that shots come from. Default: DATA, where no row is its own shot."""
    model: str | None = field(default=None, kw_only=True)
    """The model that reads the rows, where the selection goes by hidden states, losses or gradients."""
    state: str | None = field(default=None, kw_only=True)
    """A folder that keeps the rows that have arrived so far, without those found redundant."""
    out: str = field(default="selected.jsonl", kw_only=True)
    """The .jsonl file to write; a picture of the scores stands beside it."""
    overwrite: bool = field(default=False, kw_only=True)
    """Overwrite --out if it exists."""
    task: str | None = field(default=None, kw_only=True)
    """What the rows are for. Default: what their columns tell."""
    limit: int | None = field(default=None, kw_only=True)
    """Read this many rows of DATA, drawn by the seed."""
    columns: str | None = field(default=None, kw_only=True)
    """The names of columns in the data, by their meaning: text=body,label=category."""
    skip_bad_rows: bool = field(default=False, kw_only=True)
    """Skip the rows that cannot be used, instead of refusing the data."""
    seed: int = field(default=0, kw_only=True)
    """The seed of what is drawn."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find

        chosen = find("selections", option(tokens, "--by") or BY)
        return [Flags(chosen, f"Settings of {chosen.name()}")]

    def run(self, given: Given) -> None:
        from luthier.core.contracts.component import find

        if (self.rows is None) == (self.shots is None):
            raise LuthierError("give --rows, how many rows to take, or --shots, how many to put before each prompt.")
        if self.rows is not None and self.pool is not None:
            raise LuthierError("--pool is where shots come from, and --rows takes rows of DATA; leave --pool out.")
        if self.shots is not None and self.target is not None:
            raise LuthierError("--target is what --rows chooses for; --shots are found for each row of DATA itself.")
        out = path_of(self.out)
        for path in (out, out.with_suffix(".png")) if self.shots is None else (out,):
            if path.exists() and not self.overwrite:
                raise LuthierError(f"{path} is there already; choose another --out, or --overwrite it.")
        if not out.parent.is_dir():
            raise LuthierError(f"there is no folder {out.parent} to write to; choose another --out.")
        cls = find("selections", self.by)
        by: Any = cls.from_dict(dict(given.get(cls, {})))
        reads = by.reads_states or by.reads_rows
        if self.model and not reads:
            raise LuthierError(f"{by.name()} as it is set up here reads no model; leave --model out.")
        if reads and not self.model:
            what = "the hidden states of a model" if by.reads_states else "the rows with a model"
            raise LuthierError(f"{by.name()} as it is set up here reads {what}; give --model.")
        if self.state is not None and (self.shots is not None or self.limit is not None):
            raise LuthierError("--state keeps all rows of DATA to choose from; leave --shots and --limit out.")
        told = (self._rows if self.shots is None else self._shots)(by, out)
        if self.json:
            say_json(told | {"by": by.name(), "settings": by.to_dict(), "out": str(out)})

    def _rows(self, by: Selection, out: Path) -> dict[str, Any]:
        if self.state is None:
            return self._taken(by, out, self.data)[0]
        from luthier.data.arriving import arriving

        with arriving(self.state, self.data) as arrived:
            told, redundant = self._taken(by, out, str(arrived.file))
            arrived.drop(redundant)
        if not self.json:
            say(f"{self.state} keeps {arrived.left:,} rows; {len(redundant):,} were redundant and left it for good.")
        return told | {"new": arrived.new, "redundant": len(redundant), "kept": arrived.left}

    def _taken(self, by: Selection, out: Path, source: str) -> tuple[dict[str, Any], list[int]]:
        """(what is told of the rows taken, the numbers of those that are redundant)."""
        from luthier import data
        from luthier.data.apart import apart
        from luthier.data.columns import mapping
        from luthier.data.select import plot_scores

        examples = self._load(source, self.limit)
        target = self._load(self.target) if self.target else None
        assert self.rows is not None
        count = self.rows
        told = f"Scoring {len(examples):,} rows"
        chosen = self._chosen(told, lambda pool: data.choose(by, pool, count), examples, target)
        kept = {row.row for row in chosen.examples.rows}
        table = data.read(source, "train", self.limit, self.seed)
        named = data.meanings(table, mapping(self.columns))
        write(out, (apart(row, table, named) for number, row in table.rows if number in kept))
        picture = out.with_suffix(".png")
        plot_scores(chosen, f"{by.name()}: {self.data}" + (f" for {self.target}" if self.target else ""), picture)
        if not self.json:
            say(f"{out} holds {len(kept):,} of {len(examples):,} rows; {picture} shows the scores.")
            said = shlex.join([str(out), *(["--columns", self.columns] if self.columns else [])])
            say(f"Next: luthier train MODEL {said}")
        lowest = float(chosen.scores[chosen.places[-1]])
        found = {"rows": len(kept), "of": len(examples), "lowest": lowest, "fingerprint": chosen.examples.fingerprint}
        return found, [examples.rows[i].row for i in chosen.redundant]

    def _shots(self, by: Selection, out: Path) -> dict[str, Any]:
        from luthier import data
        from luthier.data.select import as_row

        queries = self._load(self.data, self.limit)
        pool = self._load(self.pool) if self.pool else queries
        assert self.shots is not None
        count = self.shots
        told = f"Finding shots for {len(queries):,} rows"
        shown = self._chosen(told, lambda rows: data.with_shots(by, queries, rows, count), pool, None)
        write(out, map(as_row, shown.rows))
        if not self.json:
            say(f"{out} holds {len(shown):,} rows with {self.shots} shots each, from {pool.source}.")
            say(f"Next: luthier evaluate MODEL {shlex.quote(str(out))}")
        return {"rows": len(shown), "shots": self.shots, "fingerprint": shown.fingerprint}

    def _load(self, source: str, limit: int | None = None) -> Examples:
        from luthier import data

        examples = data.load(
            source,
            skip_bad_rows=self.skip_bad_rows,
            limit=limit,
            seed=self.seed,
            task=self.task,
            named=self.columns,
        )
        tell_unread(examples.unread, source)
        return examples

    def _chosen(self, told: str, work: Callable[[Pool], Any], examples: Examples, target: Examples | None) -> Any:
        """What `work` makes of the pool."""
        from luthier import data
        from luthier.core.contracts.selection import Pool

        with console(stderr=True).status(told):
            if self.model is None:
                return work(Pool(examples, target, self.seed))
            from luthier.methods.row_model import Reader

            return work(
                Pool(examples, target, self.seed, data.states_by(self.model), Reader(self.model, examples.task))
            )


def write(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The rows as JSON lines, there whole or not at all; raises for what JSON cannot hold."""
    out = real_file(out)
    written = out.with_name(f".{out.name}.new")
    try:
        with open(written, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        written.replace(out)
    except TypeError as error:
        raise LuthierError(f"a row cannot be written as JSON ({error}); select from rows of text.") from None
    finally:
        written.unlink(missing_ok=True)
