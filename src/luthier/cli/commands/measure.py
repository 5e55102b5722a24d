"""`luthier measure`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Flags, Given, Loading, option


@dataclass(frozen=True)
class Measure(Loading):
    """Measure the intrinsic dimension of data inside a model, and allocate ranks by it.

    Reads a sample of the rows once, without training. With --ranks gelora it shows the intrinsic dimension at
    every layer, with intervals; with --ranks eva the variance that each rank captures. The table goes to the
    screen, measured.json and measured.png into --out. `luthier train … --ranks gelora` measures by itself.
    """

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier measure smollm2-135m train.jsonl",
        "luthier measure smollm2-135m train.jsonl --samples 2048 --out measured",
        "luthier measure path/to/model train.jsonl --ranks eva --method lora --rank 8 --where q_proj,v_proj",
        "luthier measure smollm2-135m train.jsonl --method wegeft --budget 0.1% --json",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`)."""
    data: str
    """A file (.jsonl, .csv, .parquet, …), a folder, a hub id or gym:<task>."""
    ranks: str = field(default="gelora", kw_only=True)
    """The rank allocation; `luthier list ranks` shows all."""
    method: str = field(default="lora", kw_only=True)
    """The form that the ranks are for, with its own settings (never those of a recipe of the same name)."""
    where: str | None = field(default=None, kw_only=True)
    """The sites of the form. Default: the form's own."""
    budget: str | None = field(default=None, kw_only=True)
    """What the ranks may cost: a share of the model (0.1%), trainable parameters (500k) or a size on disk (8MB)."""
    task: str | None = field(default=None, kw_only=True)
    """What the rows are for. Default: what their columns tell."""
    limit: int | None = field(default=None, kw_only=True)
    """Read this many rows of the data, drawn by the seed."""
    max_length: int = field(default=1024, kw_only=True)
    """The most tokens of a row; the prompts of longer ones are cut."""
    precision: str = field(default="float32", kw_only=True)
    """Dtype of the model: float32 or bfloat16."""
    crosscheck: bool = field(default=True, kw_only=True)
    """Show two other estimators beside each dimension, where scikit-dimension is installed."""
    columns: str | None = field(default=None, kw_only=True)
    """The names of columns in the data, by their meaning: text=body,label=category."""
    skip_bad_rows: bool = field(default=False, kw_only=True)
    """Skip the rows that cannot be used, instead of refusing the data."""
    out: str | None = field(default=None, kw_only=True)
    """The folder for measured.json and measured.png. Default: nothing is written."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.calibration import Calibration
        from luthier.core.contracts.component import find
        from luthier.methods.recipe import form_named

        ranks = find("ranks", option(tokens, "--ranks") or "gelora")
        form = form_named(option(tokens, "--method") or "lora")
        return [
            Flags(Calibration, "Calibration", ("source",)),
            Flags(ranks, f"Settings of {ranks.name()}"),
            Flags(form, f"Settings of {form.name()}"),
        ]

    def run(self, given: Given) -> None:
        from luthier.core.contracts.calibration import Calibration
        from luthier.core.contracts.component import find
        from luthier.core.contracts.ranks import Ranks
        from luthier.measuring.measure import free, measure
        from luthier.methods.recipe import form_named

        if self.out is not None:
            free(self.out)
        form, ranks = form_named(self.method), find("ranks", self.ranks, Ranks)
        report = measure(
            self.model,
            self.data,
            form=form.from_dict(dict(given.get(form, {}))),
            where=self.where,
            ranks=ranks.from_dict(dict(given.get(ranks, {}))),
            budget=self.budget,
            task=self.task,
            calibration=Calibration(**given.get(Calibration, {})),
            max_length=self.max_length,
            dtype=self.precision,
            crosscheck=self.crosscheck,
            limit=self.limit,
            skip_bad_rows=self.skip_bad_rows,
            columns=self.columns,
            progress=not self.json,
        )
        folder = report.save(self.out) if self.out is not None else None
        if self.json:
            say_json(report.to_dict())
            return
        show(report.to_dict())
        if folder is not None:
            say(f"{folder} holds measured.json and measured.png.")


def show(found: dict[str, Any]) -> None:
    """The tables of a report: by block where dimensions were measured, else by type of site."""
    from luthier.measuring.plot import by_type
    from luthier.training.report import span

    if "boundaries" in found:
        _dimensions(found)
    else:
        rows = [
            (kind, len(points), span([rank for _, rank in points])) for kind, points in by_type(found["ranks"]).items()
        ]
        table(("sites", "count", "ranks"), rows, f"{found['model']} on {found['data']}: {found['samples']:,} rows")
    say()
    if "verdict" in found:
        say(found["verdict"])
    ranks = list(found["ranks"].values())
    share = found["parameters"] / found["total"]
    say(
        f"{found['form']['name']} at {len(ranks)} sites ({found['where']}): rank {span(ranks)}; "
        f"{found['parameters']:,} trainable parameters ({share:.3%})."
    )


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _dimensions(found: dict[str, Any]) -> None:
    from luthier.measuring.plot import estimators

    names = estimators(found["boundaries"])
    rows = []
    for path, at in found["boundaries"].items():
        block = found["blocks"].get(path)
        rank = (
            [None] * 3 if block is None else [f"{block['rise']:+.2f}", block["rank"], f"{block['low']}-{block['high']}"]
        )
        others = [_rounded(at["crosscheck"].get(name)) for name in names]
        rows.append((path, f"{at['value']:.2f}", f"{at['low']:.1f}-{at['high']:.1f}", *others, *rank))
    points = next(iter(found["boundaries"].values()))
    counted = f"{points['points']:,} points, {points['duplicates']:,} duplicates left out"
    title = f"{found['model']} on {found['data']}: {counted}"
    table(("enters", "dimension", "95%", *names, "rise", "rank", "resampled"), rows, title)
