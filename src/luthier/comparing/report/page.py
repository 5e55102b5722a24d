"""The report of a study: one page that needs nothing beside it, and its plots as a picture."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from luthier.comparing.measures.looks import decided
from luthier.comparing.measures.significance import Interval
from luthier.comparing.record import Record, records
from luthier.comparing.report import charts, curves, formatting
from luthier.comparing.report.axis import Axis
from luthier.comparing.report.charts import Layout, Point, Price, Span
from luthier.comparing.report.summary import LOSS, Row, Section, sections, told
from luthier.core.errors import LuthierError
from luthier.core.palette import policy_digest, rendered, styled

FILE, PICTURE = "report.html", "report.png"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plot:
    """Scores against one price; `layout` is None where it was not measured of any method."""

    price: Price
    layout: Layout | None
    missing: list[str]
    """Methods whose price was not measured."""


def write(folder: Path) -> Path:
    """Writes report.html and report.png from the finished runs in `folder`; the path of the page.

    No finished run raises `LuthierError`.
    """
    folder = Path(folder)
    found = sections(records(folder), decided(folder))
    if not found:
        raise LuthierError(f"{folder} holds no finished run; expected runs/MODEL/DATA/METHOD/SEED/record.json.")
    from luthier.comparing.report import picture

    picture.draw([(section.name, [plot.layout for plot in plots(section)]) for section in found], folder / PICTURE)
    beside = sorted(path.name for path in folder.iterdir() if path.suffix in (".csv", ".json", ".png"))
    path = folder / FILE
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page(found, beside), encoding="utf-8")
    temporary.replace(path)
    return path


def page(found: Sequence[Section], beside: Sequence[str] = ()) -> str:
    """The page as HTML. Everything that a run wrote is text to it: escaped, and no script but its own may run."""
    script, style = (HERE / "page.js").read_text(encoding="utf-8"), styled(HERE / "page.css")
    return rendered(
        HERE / "page.html",
        title=title(found),
        shown=[_view(section) for section in found],
        beside=beside,
        script=Markup(script),
        style=Markup(style),
        digests={"script": policy_digest(script), "style": policy_digest(style)},
        formatting=formatting,
        told=told,
    )


def title(found: Sequence[Section]) -> str:
    """Returns `minilm and smollm2 on cola, rte and sst2`."""
    models, data = (dict.fromkeys(getattr(each, key) for each in found) for key in ("model", "data"))
    return f"{formatting.listed(list(models))} on {formatting.listed(list(data))}"


def plots(section: Section) -> list[Plot]:
    """Score against parameters, step time, and the first thing that forgetting was measured on; [] without scores."""
    if not section.fitted:
        return []
    held = section.held[:1]
    prices = [
        (Price("trained parameters", formatting.count, log=True, floor=0.0), lambda row: row.trainable),
        (Price("step time, frozen base = 1", formatting.ratio, least=0.1, floor=0.0), lambda row: row.step_ratio),
        (
            Price(lost(held[0]) if held else "forgetting", formatting.short, least=0.02),
            lambda row: row.forgetting.get(held[0]) if held else None,
        ),
    ]
    base = charts.span(section.base) if section.base else None
    y_axis = charts.height([charts.span(row.score) for row in section.fitted], base)
    return [_plot(section, price, read, base, y_axis) for price, read in prices]


def lost(held: str) -> str:
    """Returns what a figure of forgetting counts."""
    return f"rise of {held}" if held.endswith(LOSS) else f"score lost on {held}"


def _plot(
    section: Section, price: Price, read: Callable[[Row], Interval | None], base: Span | None, y_axis: Axis
) -> Plot:
    found = [(row, read(row)) for row in section.fitted]
    points = [
        Point(row.method, charts.span(x, price.floor), charts.span(row.score)) for row, x in found if x is not None
    ]
    made = charts.layout(points, base, price, y_axis, f"score ({section.metric})") if points else None
    return Plot(price, made, [row.method for row, x in found if x is None])


# --- what the template is given --------------------------------------------------------------------


def _view(section: Section) -> dict[str, Any]:
    scored = [row for row in section.rows if formatting.known(row.score.value)]
    base = charts.span(section.base) if section.base else None
    x_axis = charts.strip_axis([charts.span(row.score) for row in section.fitted or scored], base) if scored else None
    found = columns(section)
    shown = [column for column in found if column.measured or column is found[0]]
    return {
        "section": section,
        "headline": named(section.headline, section),
        "reasons": [named(reason, section) for reason in section.reasons],
        "facts": facts(section),
        "plots": [(plot, charts.pareto(plot.layout) if plot.layout else None) for plot in plots(section)],
        "strips": {
            row.method: charts.strip(charts.span(row.score), row.seeds, x_axis, base) for row in scored if x_axis
        },
        "columns": shown,
        "unmeasured": [column.name.lower() for column in found if column not in shown],
        "curves": curves.panels([curves.lines(row.method, row.runs) for row in section.rows]),
        "samples": side_by_side(section.rows),
        "settings": {row.method: flattened(row.runs[0].settings) for row in section.rows},
        "versions": versions([run for row in section.rows for run in row.runs]),
    }


@dataclass(frozen=True)
class Column:
    """A column of figures: by method, (figure, as shown, what stands behind it in small)."""

    name: str
    cells: dict[str, tuple[float | None, str, str]]
    first: str = "ascending"
    """How the first click sorts it."""

    @property
    def measured(self) -> bool:
        """Whether there is a figure in it."""
        return any(formatting.known(value) for value, _, _ in self.cells.values())


def columns(section: Section) -> list[Column]:
    """Returns the figures of the table, the score first."""

    def column(name: str, read: Callable[[Row], Interval | None], show: Shown, more: Callable[[Row], str]) -> Column:
        found = {row.method: read(row) for row in section.rows}
        values = {method: each.value if each else None for method, each in found.items()}
        return Column(name, {row.method: (v := values[row.method], show(v), more(row)) for row in section.rows})

    def nothing(row: Row) -> str:
        return ""

    def null(row: Row) -> str:
        return f"null {formatting.count(row.intruders_null.value)}" if row.intruders_null else ""

    score = column("Score", lambda row: row.score, formatting.score, lambda row: formatting.interval(row.score))
    made = [
        dataclasses.replace(score, first="descending"),
        column("Parameters", lambda row: row.trainable, formatting.count, lambda row: formatting.share(row.share)),
        column("On disk", lambda row: row.bytes, formatting.megabytes, nothing),
        column("Step time", lambda row: row.step_ratio, formatting.ratio, nothing),
        column("Peak memory", lambda row: row.peak_bytes, formatting.megabytes, nothing),
    ]
    for held in section.held:
        made.append(
            column(
                lost(held).capitalize() if held.endswith(LOSS) else f"Lost on {held}",
                lambda row, held=held: row.forgetting.get(held),
                formatting.change,
                lambda row, held=held: formatting.interval(row.forgetting.get(held)),
            )
        )
    if not section.held:
        made.append(column("Forgetting", lambda row: None, formatting.change, nothing))
    made.append(column("Intruders", lambda row: row.intruders, formatting.count, null))
    made.append(column("Calibration error", lambda row: row.calibration_error, formatting.score, nothing))
    return made


Shown = Callable[[float | None], str]


def named(text: str, section: Section) -> Markup:
    """Returns a sentence with the names of methods set as names."""
    names = sorted((re.escape(row.method) for row in section.rows), key=len, reverse=True)
    parts = re.split(rf"(?<![\w:])({'|'.join(names)})(?![\w:])", text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if index % 2 else part for index, part in enumerate(parts))


def facts(section: Section) -> list[tuple[str, str]]:
    """Returns what a reader must know before the figures."""
    runs = [run for row in section.rows for run in row.runs]
    seeds = sorted({len(row.runs) for row in section.rows})
    budgets = list(dict.fromkeys(run.budget for run in runs if run.budget))
    return [
        ("Methods", str(len(section.rows))),
        ("Seeds each", str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"),
        ("Score", section.metric),
        ("Test rows", f"{max(run.rows for run in runs):,}"),
        ("Budget", formatting.listed(budgets) or "none set"),
    ]


def side_by_side(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the sampled test rows: prompt, expected, and each answer with the methods that gave it (first seed)."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        for sample in row.runs[0].samples:
            answers = found.setdefault((sample.get("prompt", ""), sample.get("expected", "")), {})
            answers.setdefault(sample.get("answer", ""), []).append(row.method)
    return [
        {"prompt": prompt, "expected": expected, "answers": list(answers.items())}
        for (prompt, expected), answers in found.items()
    ]


def flattened(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns `[("form.rank", "8"), …]`; what is null is left out."""
    lines: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            lines += flattened(value, f"{prefix}{key}.")
        elif value is not None:
            lines.append((prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return lines


def versions(runs: Iterable[Record]) -> list[tuple[str, str]]:
    """Returns what the runs were made with; every version where they differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, version in run.versions.items():
            found.setdefault(name, {})[str(version)] = None
    return [(name, ", ".join(each)) for name, each in sorted(found.items())]
