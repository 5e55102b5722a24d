"""`luthier examine`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Fitted, Flags, Given, option

MOST = 24
"""Places up to which each has a row of its own."""


@dataclass(frozen=True)
class Examine(Fitted):
    """Examine what fine-tuning did to a model: an adapter, or a fine-tuned model and its base.

    --by says what is measured: intruder dimensions in the weights, how much is forgotten, in which layers
    representations changed, which few numbers or attention heads carry the skill, whether facts were memorised or
    learnt, whether an old ability is gone or hidden, what retrieval adds. Each stands beside a null, which is what the
    same measurement shows where nothing was learnt. The flags of the examination follow from its name. The table goes
    to the screen, examined.json and examined.png into --out.
    """

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier examine run --by intruders --out examined",
        "luthier examine run --by forgetting --data held.jsonl,other-task.jsonl --out forgotten",
        "luthier examine run --by similarity --data train.jsonl --limit 256 --least 0.95",
        "luthier examine path/to/tuned --by grafting --base smollm2-135m --data train.jsonl --share 0.001 --steps 20",
        "luthier examine run --by finetunebench --data facts:people:probes --out facts",
        "luthier examine run --by conjugate --data old.jsonl --transforms swapcase,esperanto.csv,mine.py",
        "luthier examine run --by revival --data old.jsonl --batch 32 --steps 30",
        "luthier examine run --by circuit --data train.jsonl --limit 32 --heads 24 --out circuit",
        "luthier examine run --by retrieval_grid --data questions.jsonl --passages docs.jsonl --encoder minilm-l6",
        "luthier examine run --k 20 --eps 0.6 --json",
    )

    target: str
    """A run folder, an adapter's folder, or the folder of a model that was fine-tuned from --base."""
    by: str = field(default="intruders", kw_only=True)
    """The examination; `luthier list examinations` shows all."""
    base: str | None = field(default=None, kw_only=True)
    """The base: a folder, a hub id or a name of the catalogue. Default: the name in the adapter."""
    data: str | None = field(default=None, kw_only=True)
    """Data for the examinations that read any: one source (a file, a folder, a hub id, gym:<task>, facts:<kind>), or
    several joined by commas."""
    out: str | None = field(default=None, kw_only=True)
    """The folder for examined.json and examined.png. Default: nothing is written."""
    task: str | None = field(default=None, kw_only=True)
    """What the rows are for. Default: the adapter's task, or the model's."""
    limit: int | None = field(default=None, kw_only=True)
    """Read this many rows of each source."""
    batch: int = field(default=8, kw_only=True)
    """Rows per batch."""
    max_length: int = field(default=1024, kw_only=True)
    """The most tokens of a row; longer ones are cut."""
    dtype: str | None = field(default=None, kw_only=True)
    """Dtype of the base: float32, bfloat16, float16, float64 or auto, the model's own. Default: float32 where the
    examination reads data, else auto."""
    force: bool = field(default=False, kw_only=True)
    """Examine against another base than the one that was trained."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find

        found = find("examinations", option(tokens, "--by") or "intruders")
        return [Flags(found, f"Settings of {found.name()}")]

    def run(self, given: Given) -> None:
        from luthier.cli.base import base_under
        from luthier.core.contracts.component import find
        from luthier.core.contracts.examination import Examination
        from luthier.core.mapped import low_memory
        from luthier.examining import examine
        from luthier.examining.examine import check_data, free

        if self.out is not None:
            free(self.out)
        cls = find("examinations", self.by, Examination)
        made = cls.from_dict(dict(given.get(cls, {})))
        sources = [] if self.data is None else [each.strip() for each in self.data.split(",")]
        check_data(made, sources, self.batch)
        dtype = self.dtype or ("float32" if cls.reads else "auto")
        base = base_under(self.target, self.base, dtype=dtype, task=self.task)
        with nullcontext() if cls.reads else low_memory(Path(gettempdir())):
            found = examine(
                self.target,
                made,
                base=base.model,
                processor=base.processor,
                data=sources,
                task=base.task,
                batch=self.batch,
                max_length=self.max_length,
                limit=self.limit,
                out=self.out,
                force=self.force,
                progress=not self.json,
            ).to_dict()
        if self.json:
            say_json(found)
            return
        show(found)
        if self.out is not None:
            say(f"{self.out} holds examined.json and examined.png.")


def show(found: dict[str, Any]) -> None:
    """The table by place (by block where there are many), the sums and the finding."""
    title = f"{found['examination']}: {found['target']}"
    if len(found["places"]) <= MOST:
        columns = list(next(iter(found["places"].values())))
        rows = [
            (name, *(_number(numbers[key]) for key in columns), _number(found["null"][name][found["column"]]))
            for name, numbers in found["places"].items()
        ]
        table(("place", *columns, f"{found['column']} (null)"), rows, title)
    else:
        _blocks(found, title)
    say()
    table(
        ("in all", "found", "null"),
        [(key, _number(value), _number(found["null_summary"][key])) for key, value in found["summary"].items()],
    )
    say()
    say(found["verdict"])
    say(f"Null: {found['baseline']}.")


def _blocks(found: dict[str, Any], title: str) -> None:
    from luthier.examining.plot import by_block

    own, null = by_block(found, "places"), by_block(found, "null")
    rows = [
        ("outside" if block < 0 else str(block), len(values), _mean(values), _mean(null[block]))
        for block, values in own.items()
    ]
    table(("block", "places", f"mean {found['column']}", "null"), rows, title)


def _mean(values: Sequence[float]) -> str:
    return _number(sum(values) / len(values))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"
