"""Writes what docs/choose.md says of methods, from the records in results/: figures, intervals, what they tell apart.

Every row of the page is a question, what was measured, and what that allows to say: a difference is told where its 95%
interval leaves out nought, and corrected (Bonferroni) where a study has many pairs. Nothing is trained.

    python -m bench choose [--page docs/choose.md]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench._registry import RESULTS, ROOT

from luthier.core.numerics import student

PAGE = ROOT.parent / "docs" / "choose.md"
BEGIN, END = "<!-- of the records: python -m bench choose -->\n", "<!-- until here -->\n"
SPEED = "speed-amd-epyc-family-25-model-17.json"
TUNING = 100
"""The seed of trials in the records of axes."""
STUDIES = (("minilm", "sst2", "SST-2"), ("minilm", "clinc150", "CLINC150, at the rates of SST-2"),
           ("minilm-cola", "cola", "CoLA"), ("minilm-rte", "rte", "RTE"))  # fmt: skip
Row = tuple[str, str, str]
By = dict[int, float]


def read(name: str) -> Any:
    """What a file in results/ holds."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def group(study: str, data: str) -> dict[str, Any]:
    """A model on a data set, of a study."""
    return next(each for each in read(f"studies/{study}/results.json") if each["data"] == data)


def plain(value: float, digits: int = 3, sign: str = "") -> str:
    """A number without its leading nought."""
    return f"{value:{sign}.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{sign}.{digits}f}"


def half(values: Sequence[float]) -> float:
    """Half the 95% interval of a mean, by Student's t."""
    return student.quantile(0.95, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def gap(own: By, other: By) -> tuple[float, float]:
    """(mean, half of its interval) of the difference over the seeds that both have."""
    found = [own[seed] - other[seed] for seed in own if seed in other]
    return statistics.fmean(found), half(found)


def listed(parts: Iterable[str], none: str = "nothing") -> str:
    """The parts with commas."""
    return ", ".join(parts) or none


# --- studies --------------------------------------------------------------------------------------------------


def reach(test: Mapping[str, Any], seeds: int, level: float) -> float:
    """Half the interval of a recorded difference at a level, over seeds and rows together, or over seeds alone."""
    normal = statistics.NormalDist()
    by_seed = (test["by_seed"][1] - test["by_seed"][0]) / 2
    by_seed *= student.quantile(level, seeds - 1) / student.quantile(0.95, seeds - 1)
    if None in test["by_row"]:  # as compare does where rows tell nothing
        return by_seed
    by_row = (test["by_row"][1] - test["by_row"][0]) / 2
    return math.hypot(by_seed, by_row * normal.inv_cdf((1 + level) / 2) / normal.inv_cdf(0.975))


def apart(found: Mapping[str, Any]) -> tuple[list[str], list[str], int]:
    """(methods told from the best though all pairs count, those told by a test of their own alone, pairs)."""
    methods = found["methods"]
    pairs, seeds = math.comb(len(methods), 2), len(methods[found["best"]]["scores"])
    known = [test for test in found["tests"] if None not in test["by_seed"]]
    sure = [t["second"] for t in known if t["difference"] > reach(t, seeds, 1 - 0.05 / pairs)]
    alone = [t["second"] for t in known if t["difference"] > reach(t, seeds, 0.95) and t["second"] not in sure]
    return sure, alone, pairs


def form_rows() -> list[Row]:
    """The scores of methods on each data set."""
    rows = []
    for study, data, name in STUDIES:
        found = group(study, data)
        order = sorted(found["methods"].items(), key=lambda each: -each[1]["score"])
        said = [
            f"{method} {plain(each['score'])} ± {plain(half([*each['scores'].values()]))}" for method, each in order
        ]
        sure, alone, pairs = apart(found)
        seeds = len(order[0][1]["scores"])
        told = f"{found['best']} is told from: {listed(sure)} (all {pairs} pairs count)"
        told += f"; by a test of its own alone, from {listed(alone)}" if alone else ""
        told += "; over seeds alone" if any(None in test["by_row"] for test in found["tests"]) else ""
        rows.append((f"Which form scores best on {name}?", f"{seeds} seeds, {found['metric']}: {listed(said)}", told))
    return rows


def difference_row(question: str, own: str, other: str) -> Row:
    """Two methods over all studies of MiniLM."""
    said, told = [], []
    for study, data, name in STUDIES:
        scores = group(study, data)["methods"]
        mean, width = gap(*({int(k): v for k, v in scores[each]["scores"].items()} for each in (own, other)))
        said.append(f"{name.split(',')[0]} {plain(mean, 3, '+')} ± {plain(width)}")
        told += [name.split(",")[0]] * (abs(mean) > width)
    return (
        question,
        f"{own} less {other}, over seeds: {listed(said)}",
        f"a difference is told on: {listed(told, 'none')}",
    )


def forgetting_row() -> Row:
    """What SmolLM2 lost of held text."""
    said = []
    for study, data, name in (("smollm2", "commonsense", "commonsense"), ("smollm2-arithmetic", "arithmetic", "sums")):
        rises = {m: e["forgetting"]["held text loss"] for m, e in group(study, data)["methods"].items() if m != "base"}
        order = sorted(rises, key=lambda m: rises[m][1] - rises[m][0])
        said.append(f"{name}: {listed(f'{m} {rises[m][1] - rises[m][0]:+.2f}' for m in order)}")
    note = "one seed each, at the rate that the task's loss liked best, so no interval: choose rates by more than that"
    return "What is forgotten?", f"rise of the loss on held news text, SmolLM2 on {'; on '.join(said)}", note


# --- axes -----------------------------------------------------------------------------------------------------


def axis_row(
    axis: str, question: str, measure: str, plain_of: Callable[[str], str | None], unit: float, better: int
) -> Row:
    """Differences of the ways of an axis to the plain one; `better` is the sign of an improvement."""
    by: dict[str, By] = {}
    for run in read(f"axes-{axis}.json")["runs"]:
        if run.get("seed", TUNING) != TUNING and measure in run:
            by.setdefault(run["way"], {})[run["seed"]] = unit * run[measure]
    said, ahead, behind = [], [], []
    for way, own in by.items():
        if (base := plain_of(way)) is None or base not in by:
            continue
        mean, width = gap(own, by[base])
        said.append(
            f"{way.split(', ')[-1]} {plain(mean, 3 if unit == 1 else 1, '+')} ± {plain(width, 3 if unit == 1 else 1)}"
        )
        if abs(mean) > width:
            (ahead if mean * better > 0 else behind).append(way.split(", ")[-1])
    seeds = max(map(len, by.values()))
    what = f"{measure}, {'in points' if unit == 100 else 'in nats'}, {seeds} seeds: {listed(said)}"
    return question, what, f"ahead: {listed(ahead)}; behind: {listed(behind)}; the others are not told apart"


def starts(way: str) -> str | None:
    return {"lora_sb": "loraxs", "base": None, "lora": None, "loraxs": None}.get(way, "lora")


def updates(way: str) -> str | None:
    return None if way == "base" or way.endswith(", adamw") else f"{way.split(', ')[0]}, adamw"


def merge_row() -> Row:
    """What merges of three adapters keep."""
    runs = read("axes-combinations.json")["runs"]
    base = {run["seed"]: run["accuracy"] for run in runs if run["way"] == "the base"}
    start = base[0]
    alone = {(run["way"], run["seed"]): run["accuracy"] for run in runs if run["way"].startswith("adapter ")}
    kept: dict[str, list[float]] = {}
    for run in runs:
        if run["way"] != "the base" and not run["way"].startswith("adapter "):
            own = [alone[f"adapter {n}", run["seed"]][n] - start[n] for n in range(3)]
            share = sum(a - b for a, b in zip(run["accuracy"], start, strict=True)) / sum(own)
            kept.setdefault(f"{run['way']} at {run['weight']:.2g}", []).append(100 * share)
    order = sorted(kept, key=lambda way: -statistics.fmean(kept[way]))
    alike: dict[str, list[str]] = {}
    for way in order:
        alike.setdefault(f"{statistics.fmean(kept[way]):.0f} ± {half(kept[way]):.0f}", []).append(way)
    said = [f"{' = '.join(ways)} {figure}" for figure, ways in alike.items()]
    sure = [way for way in order if statistics.fmean(kept[way]) > half(kept[way])]
    harm = [way for way in order if -statistics.fmean(kept[way]) > half(kept[way])]
    note = f"keep something for sure: {listed(sure)}; do harm for sure: {listed(harm)}"
    return "How do I merge adapters?", f"% of what three adapters gained that a merge keeps: {listed(said)}", note


# --- prices ---------------------------------------------------------------------------------------------------


def price_rows() -> list[Row]:
    """Time and memory of a training step."""
    train, memory = read(SPEED)["float32"]["train"], read(SPEED)["float32"]["memory"]
    ours = [name for name in train if name != "frozen base" and not name.startswith("peft")]
    by_time = sorted(ours, key=lambda name: train[name]["over_base"])
    times = [f"{n} {train[n]['over_base']:.2f} ({train[n]['low']:.2f} to {train[n]['high']:.2f})" for n in by_time]
    bytes_ = [f"{name} {memory[name]['saved']:.0f}" for name in sorted(ours, key=lambda name: memory[name]["saved"])]
    free = listed(name for name in by_time if train[name]["low"] <= 1)
    less = listed(
        name
        for name in sorted(ours, key=lambda n: memory[n]["saved"])
        if memory[name]["saved"] < memory["frozen base"]["saved"]
    )
    base = f"{memory['frozen base']['saved']:.0f}"
    time, space = f"a step over that of the frozen base: {listed(times)}", f"MiB kept for a step, base {base}"
    return [
        ("What costs least in time?", time, f"at most the base: {free}"),
        ("What costs least in memory?", f"{space}: {listed(bytes_)}", f"below the base: {less}"),
    ]


def table() -> str:
    """The table of the page, with the sentence above it."""
    rows = form_rows()
    rows.append(difference_row("Is Luthier's LoRA peft's?", "lora", "peft:lora"))
    rows.append(difference_row("Do measured ranks help (GeLoRA)?", "gelora", "lora"))
    rows += price_rows()
    rows.append(forgetting_row())
    rows.append(axis_row("inits", "Does an initialisation help?", "loss", starts, 1, -1))
    rows.append(axis_row("updates", "Does an optimiser update help?", "accuracy", updates, 100, 1))
    rows.append(axis_row("selections", "Does choosing rows help?", "accuracy",
                         lambda way: None if way in ("random", "the base") else "random", 100, 1))  # fmt: skip
    rows.append(merge_row())
    lines = [
        "| question | what was measured | what is told |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return f"\n{headline()}\n\n" + "\n".join(lines) + "\n\n"


def headline() -> str:
    """The answer and its uncertainty in a sentence."""
    told, sizes = [], set()
    for study, data, name in STUDIES:
        found = group(study, data)
        sizes |= {(len(found["methods"]), len(each["scores"])) for each in found["methods"].values()}
        sure, _, _ = apart(found)
        told.append(
            f"on {name.split(',')[0]} the best, {found['best']}, is told from {len(sure)} of {len(found['tests'])}"
        )
    counted = listed(f"{methods} methods with {seeds} seeds" for methods, seeds in sorted(sizes))
    return f"**Of {counted}, all pairs counted, {'; '.join(told)}.**"


def written(page: str) -> str:
    """The page with the table of the records."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    given.page.write_text(written(given.page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
