"""What notebooks show of results: short words, tables and curves, with nothing in them taken for HTML."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import luthier as lt
from luthier.core.notebook import HEIGHT, WIDTH, curves, figures, table
from support.made_up import record


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{text}</div>")


def test_tables_hold_what_they_are_given():
    found = parsed(table([{"a<b": 1, "c": "<script>"}, {"c": None, "d": 1234567, "e": 0.123456}]))
    cells = [[each.text for each in row] for row in found.iter("tr")]
    assert cells == [["a<b", "c", "d", "e"], ["1", "<script>", "-", "-"], ["-", "-", "1,234,567", "0.1235"]]
    assert [each.text for each in parsed(figures({"x": True})).iter("td")] == ["True"]


def test_curves_span_the_picture():
    found = parsed(curves({"up": [(0, 1.0), (5, math.nan), (10, 3.0)], "flat": [(0, 2.0), (10, 2.0)]}))
    up, flat = (
        [tuple(map(float, p.split(","))) for p in line.get("points", "").split()] for line in found.iter("polyline")
    )
    assert len(up) == 2 and up[0][0] < up[1][0] and up[0][1] > up[1][1]  # higher is nearer to the top
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in up + flat) and flat[0][1] == flat[1][1] == HEIGHT / 2
    assert curves({"none": []}) == ""


def results() -> list:
    run = lt.Result(
        Path("run/adapter"), Path("run"), [(1, 2.0), (2, 1.5)], 1.25, 1000, 50_000, 3.0, None, None, [(2, 1.25)]
    )
    rounds = [{"round": 0, "eval_loss": 2.0}, {"round": 1, "eval_loss": 1.5, "clients": [1, 2]}]
    fitted = lt.Federated(Path("f"), Path("f/adapter"), rounds, {"a": 2})
    score = lt.Evaluation(0.5, 10, (0.25, 0.75), [{"row": i} for i in range(10)], 1.5, {"mcc": 0.125})
    return [run, fitted, score, lt.Comparison(Path("study"), [record("lora")], None)]


def test_results_are_short_and_say_what_counts():
    words = [["loss 1.5", "evaluation loss 1.25", "1,000", "2.000%"], ["round 1", "eval_loss 1.5"],
             ["score 0.5", "0.25 to 0.75", "mcc 0.125"], ["1 runs"]]  # fmt: skip
    for result, told in zip(results(), words, strict=True):
        assert len(repr(result)) < 200 and all(each in repr(result) for each in told), repr(result)
        shown = parsed(result._repr_html_())
        assert list(shown.iter("table")), result
    assert len(list(parsed(results()[0]._repr_html_()).iter("polyline"))) == 2


def test_what_is_loaded_is_short(llama, additions):
    """A model and rows are named and counted, not listed."""
    loaded, rows = lt.model(llama), lt.load_data(additions)
    count = sum(each.numel() for each in loaded.model.parameters())
    assert repr(loaded) == f"Loaded({llama!r}: class LlamaForCausalLM, task causal-lm, parameters {count:,})"
    assert repr(rows) == f"Examples({additions!r}: rows {len(rows)}, layout {rows.layout}, task causal-lm)"
    for each in (loaded, rows):
        assert list(parsed(each._repr_html_()).iter("table"))
