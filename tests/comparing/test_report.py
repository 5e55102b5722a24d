"""The report of a study: what it says, what it may not say, and what it makes of text."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from luthier.comparing.measures import significance as statistics
from luthier.comparing.record import records
from luthier.comparing.report import axis, charts, formatting, labels, latex, markdown, summary, table
from luthier.comparing.report import page as report
from luthier.comparing.report.charts import Point, Span
from luthier.comparing.report.labels import Box
from luthier.core.errors import LuthierError
from support import drawing, made_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_up.study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(folder):
    with drawing.drawn():
        return report.write(folder).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Every address of a page, its scripts, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses, self.tags, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "data", "action")]

    def handle_data(self, data):
        self.text += data


def level(difference: float, seeds: int = 4, rows: int = 400, also: float = 0.0):
    """Two methods whose scores differ by `difference` in every seed, and by `also` more in every other one."""
    found = []
    for method, more in (("lora", difference), ("dora", 0.0)):
        for seed in range(seeds):
            right = round(rows * (0.5 + more + also * (seed % 2 if more else 0)))
            hits = [1.0] * right + [0.0] * (rows - right)
            made = made_up.record(method, seed, rows=rows)
            found.append(dataclasses.replace(made, score=right / rows, hits={made.data: hits}))
    return summary.sections(found)[0]


def test_page_needs_nothing_beside_it(page):
    read = Reader(page)
    assert all(address.startswith("#") or address == report.PICTURE for address in read.addresses)
    assert read.tags.count("script") == 1 and "link" not in read.tags and "img" not in read.tags
    assert not re.search(r"url\(|@import|https?://", page)


def test_writes_a_picture(folder, page):
    assert (folder / report.PICTURE).stat().st_size > 10_000


def test_every_method_its_command_and_its_versions_are_there(page):
    text = Reader(page).text
    for method in made_up.METHODS:
        assert page.count(f"<code>{method}</code>") >= 3
        assert method == "base" or f"--method {method} --seed 2 --steps 300" in text
    assert "2.13.0" in text and "form.alpha" in text and "diverged" in text


def test_text_stays_text(tmp_path):
    made_up.hostile(tmp_path)
    read = Reader(report.write(tmp_path).read_text(encoding="utf-8"))
    assert read.tags.count("script") == 1 and "img" not in read.tags
    assert read.text.count(made_up.HOSTILE) >= 8


def test_unmeasured_is_said_and_never_nought(tmp_path):
    bare = dataclasses.replace(made_up.record("lora"), step_ratio=None, peak_bytes=None, forgetting={}, intruders=None)
    made_up.keep(tmp_path, [bare, made_up.record("dora")])
    found = {row.method: row for row in summary.sections(records(tmp_path))[0].rows}["lora"]
    assert (found.step_ratio, found.peak_bytes, found.intruders, found.forgetting) == (None, None, None, {})
    columns = report.columns(summary.sections(records(tmp_path))[0])
    cells = {column.name: column.cells["lora"] for column in columns}
    assert cells["Step time"][:2] == (None, formatting.NOTHING) and cells["Peak memory"][:2] == (
        None,
        formatting.NOTHING,
    )
    page = report.write(tmp_path).read_text(encoding="utf-8")
    row = re.search(r'<th scope="row" class="name" data-sort="lora">.*?</tr>', page, re.S)
    assert row and row[0].count("not measured") == 3
    assert "Not measured: lora" in page and "calibration error" in page


def test_a_score_that_is_no_number(tmp_path):
    made_up.keep(
        tmp_path, [dataclasses.replace(made_up.record("lora"), score=math.nan, hits={}), made_up.record("dora")]
    )
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "not measured" in page and not re.search(r"\bnan\b", Reader(page).text)


def test_nothing_measured_at_all(tmp_path):
    bare = dataclasses.replace(
        made_up.record("base"), score=math.nan, hits={}, samples=[], versions={}, settings={}, rows=0, metrics={}
    )
    made_up.keep(tmp_path, [bare])
    assert "not measured" in report.write(tmp_path).read_text(encoding="utf-8")


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(LuthierError, match="no finished run"):
        report.write(tmp_path)


def test_no_winner_without_a_test():
    assert level(0.0).headline == "No difference that the seeds can tell."
    spread = level(0.002, also=0.3)
    assert spread.verdict.winner is None and "higher than every other" not in spread.headline
    assert level(0.2, seeds=1).headline == "Too few seeds to tell the methods apart."


def test_a_winner_by_a_test():
    section = level(0.2)
    assert section.verdict.winner == "lora" and section.headline.startswith("lora scores higher than every other")


def test_who_is_behind_and_who_is_cheapest(folder):
    section = summary.sections(records(folder))[0]
    assert section.verdict.winner is None
    assert any(reason.startswith("base is behind") for reason in section.reasons)
    assert any("trains the fewest parameters" in reason for reason in section.reasons)


def test_forgetting_is_what_got_worse():
    run = dataclasses.replace(made_up.record("lora"), forgetting={"held text loss": (3.0, 3.5), "cola": (0.6, 0.5)})
    found = summary.sections([run])[0].rows[0].forgetting
    assert found["held text loss"].value == pytest.approx(0.5) and found["cola"].value == pytest.approx(0.1)


def test_parts_of_a_test_have_a_table(tmp_path, page):
    """Of seeds that differ by these, of seeds that agree by the rows."""
    runs = [made_up.record(method, seed) for method in ("lora", "dora") for seed in (0, 1)]
    scores = [{"addsub": {"number": 1.0}, "gsm8k": {"number": 0.1 + 0.002 * run.seed}} for run in runs]
    hits = {"addsub": [1.0] * 20, "gsm8k": [1.0, 0.0] * 10}
    made_up.keep(tmp_path, [dataclasses.replace(run, tests=t, hits=hits) for run, t in zip(runs, scores, strict=True)])
    found = report.write(tmp_path).read_text(encoding="utf-8")
    assert "By part of the test" in found
    assert "0.101 <small>± 0.013</small>" in found and "1.000 <small>0.832 to 1.000</small>" in found
    assert "By part of the test" not in page


def test_sections_have_a_table_of_contents(tmp_path):
    page = report.write(made_up.study(tmp_path, seeds=2, data=("arithmetic", "cola"))).read_text(encoding="utf-8")
    assert re.findall(r'<a href="#s(\d)">(.*?)</a>', page) == [("1", "smollm2 on arithmetic"), ("2", "smollm2 on cola")]
    assert 'id="s1"' in page and 'id="s2"' in page


def test_frontier():
    def at(name, x, y):
        return Point(name, Span(x, x, x), Span(y, y, y))

    points = [at("dear", 3, 0.9), at("good", 1, 0.8), at("beaten", 2, 0.7), at("same price", 1, 0.6)]
    assert [point.name for point in charts.frontier(points)] == ["good", "dear"]


def test_names_stand_apart_and_inside():
    frame = Box(0, 0, 380, 300)
    points = [(60.0 + 9 * i, 150.0 + 4 * (i % 3), f"method{i}") for i in range(9)]
    placed = labels.place(points, [], frame)
    assert placed == labels.place(points, [], frame)
    for index, label in enumerate(placed):
        assert label.box.shared(frame) == pytest.approx(label.box.area)
        assert sum(label.box.shared(other.box) for other in placed[:index]) < 0.05 * label.box.area


def test_bars_end_where_figures_do(tmp_path):
    """Student's interval of two seeds reaches below nought: of a time, and of counts that the data decide."""
    seeds = ((1.0, 90_000), (1.3, 310_000))
    runs = [
        dataclasses.replace(made_up.record(method, seed), step_ratio=ratio, trainable=trained)
        for method in ("gelora", "lora")
        for seed, (ratio, trained) in enumerate(seeds)
    ]
    section = summary.sections(runs)[0]
    for row in section.rows:
        assert row.step_ratio and row.step_ratio.low < 0 and row.trainable.low < 0
    trained, time, _ = (plot.layout for plot in report.plots(section))
    for plot in (trained, time):
        assert all(point.x.low == 0 for point in plot.points) and all(tick >= 0 for tick in plot.x_axis.ticks())
        for x, _, to_x, _ in plot.bars:
            assert charts.FRAME.left <= x <= to_x <= charts.FRAME.right
    assert all(
        point.x.high == pytest.approx(row.step_ratio.high) for point, row in zip(time.points, section.rows, strict=True)
    )
    assert report.write(made_up.keep(tmp_path, runs)).is_file()


@pytest.mark.parametrize("low,high", [(3e4, 2e8), (4e5, 5e5), (1.0, 9.0)])
def test_ticks_of_ratios(low, high):
    ticks = axis.over([low, high], 0, 100, log=True).ticks()
    assert len(ticks) >= 2 and all(low * 0.3 < tick < high * 3 for tick in ticks)


def test_one_figure_has_an_axis():
    found = axis.over([0.5], 0, 100)
    assert found.at(0.5) == pytest.approx(50) and found.low < found.high and found.ticks()


@pytest.mark.parametrize(
    "show,value,shown",
    [
        (formatting.count, 41_760, "41.8k"), (formatting.count, 1_048_576, "1.05M"), (formatting.count, 0, "0"),
        (formatting.count, None, formatting.NOTHING), (formatting.megabytes, 1_843_200, "1.84 MB"),
        (formatting.megabytes, 1.8e9, "1,800 MB"),
        (formatting.ratio, 1.115, "1.11×"), (formatting.ratio, math.nan, formatting.NOTHING),
        (formatting.share, 0.00031, "0.031%"),
        (formatting.change, -0.0412, "−0.041"), (formatting.score, None, formatting.NOTHING),
        (formatting.p_value, 0.0002, "under 0.001"),
        (formatting.count, 999_700, "1M"),
    ],
)  # fmt: skip
def test_figures_in_words(show, value, shown):
    assert show(value) == shown


def test_intervals_in_words():
    assert formatting.interval(statistics.Interval(0.8, 0.79, 0.81, "seeds")) == "± 0.010"
    assert formatting.interval(statistics.Interval(0.8, 0.75, 0.81, "rows")) == "0.750 to 0.810"
    assert formatting.interval(statistics.Interval(0.8, math.nan, math.nan, "nothing")) == ""


def test_answers_side_by_side():
    runs = [made_up.record(method) for method in ("lora", "dora", "full")]
    found = report.side_by_side(summary.sections(runs)[0].rows)
    assert len(found) == 2
    assert all(
        sorted(m for _, methods in each["answers"] for m in methods) == ["dora", "full", "lora"] for each in found
    )


def test_settings_are_flattened():
    assert report.flattened({"a": {"b": 1, "c": None}, "d": ["x"]}) == [("a.b", "1"), ("d", json.dumps(["x"]))]


def test_markdown_has_every_method_and_no_empty_column(folder, tmp_path):
    found = records(folder)
    text = markdown.write(tmp_path, found).read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(rule) == len(head) and {len(row) for row in rows} == {len(head)}
    table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(table) == [f"`{row.method}`" for row in summary.sections(found)[0].rows]
    wegeft = table["`wegeft`"]
    of_it = [record.score for record in found if record.method == "wegeft"]
    assert float(wegeft[found[0].metric]) == pytest.approx(sum(of_it) / len(of_it), abs=5e-4)
    assert wegeft["trained"] == "92.2k" and wegeft["held text loss: worse by"].startswith("+0.01")
    assert all(any(row[name] for row in table.values()) for name in head)
    assert summary.sections(found)[0].headline in text


def test_latex_has_the_cells_of_markdown_and_nothing_that_it_reads_as_a_command(folder, tmp_path):
    found = table.records(folder)
    text = latex.write(tmp_path, found).read_text()
    for section in summary.sections(found):
        for method, *told in markdown.cells(section)[1:]:
            assert " & ".join(latex.escaped(cell) for cell in (method, *told)) + r" \\" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == len(summary.sections(found))
    assert latex.escaped("a_b 5% \\x ±") == r"a\_b 5\% \textbackslash{}x $\pm$"


def test_markdown_leaves_out_what_nobody_measured(folder, tmp_path):
    bare = [dataclasses.replace(each, step_ratio=None, forgetting={}, intruders=None) for each in records(folder)]
    head = markdown.write(tmp_path, bare).read_text().splitlines()[2]
    assert "frozen base" not in head and "worse by" not in head and "intruders" not in head


def test_counts_that_differ_by_seed_are_told_as_their_mean():
    runs = [dataclasses.replace(made_up.record("gelora", seed), trainable=n) for seed, n in enumerate((100, 400))]
    console = Console(record=True, width=200)
    table.show(runs, console)
    assert " 250 " in console.export_text()
