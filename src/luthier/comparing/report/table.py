"""The table at the end, and the same as CSV and JSON."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.comparing.measures.significance import Interval, Verdict, score_of, winner
from luthier.comparing.record import Group, Record, groups, records, write
from luthier.comparing.report.summary import checklist
from luthier.core.families import told

CSV, JSON = "results.csv", "results.json"
MIB = 2**20


def save(folder: Path) -> list[Record]:
    """Writes results.csv, one line per run, and results.json, one entry per method; returns the records."""
    found = records(folder)
    lines = [_line(run) for run in found]
    temporary = folder / f".{CSV}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)), restval="")
        writer.writeheader()
        writer.writerows(lines)
    temporary.replace(folder / CSV)
    write([_summary(*key, group) for key, group in groups(found).items()], folder / JSON)
    return found


def _line(run: Record) -> dict[str, Any]:
    """A run as a line of CSV."""
    plain = ("model", "data", "method", "seed", "metric", "score", "rows", "trainable", "total", "bytes", "seconds",
             "step_seconds", "step_ratio", "peak_bytes", "calibration_error")  # fmt: skip
    line = {name: getattr(run, name) for name in plain}
    line["eval_loss"] = run.eval_losses[-1][1] if run.eval_losses else None
    line["lr"] = run.settings.get("training", {}).get("lr")
    for part, metrics in run.tests.items():
        line |= {f"{part} {name}": value for name, value in metrics.items()}
    if run.intruders is not None:
        line |= {"intruders": run.intruders["count"], "intruders, null": run.intruders["null"]}
    for name, (before, after) in run.forgetting.items():
        line |= {f"{name}, before": before, f"{name}, after": after}
    return line | {"command": run.command}


def _summary(model: str, data: str, group: Group) -> dict[str, Any]:
    """A model on a data set."""
    verdict = winner(group)
    return {
        "model": model,
        "data": data,
        "metric": next(iter(group.values()))[0].metric,
        "methods": {name: _method(runs) for name, runs in group.items()},
        "best": verdict.best,
        "winner": verdict.winner,
        "reason": verdict.reason,
        "tests": [
            {
                "first": test.first,
                "second": test.second,
                "difference": test.difference,
                "by_seed": [test.by_seed.low, test.by_seed.high],
                "by_row": [test.by_row.low, test.by_row.high],
                "both": [test.both.low, test.both.high],
                "p": test.p,
                "p_holm": test.adjusted,
                "detectable": test.detectable,
            }
            for test in verdict.pairs
        ],
    }


def _method(runs: list[Record]) -> dict[str, Any]:
    score = score_of(runs)
    return {
        "score": score.value,
        "interval": [score.low, score.high],
        "interval_over": score.over,
        "scores": {str(run.seed): run.score for run in runs},
        "trainable": _mean([run.trainable for run in runs]),
        "bytes": _mean([run.bytes for run in runs]),
        "step_ratio": _mean([run.step_ratio for run in runs]),
        "peak_bytes": _mean([run.peak_bytes for run in runs]),
        "seconds": _mean([run.seconds for run in runs]),
        "calibration_error": _mean([run.calibration_error for run in runs]),
        "intruders": _mean([run.intruders["count"] for run in runs if run.intruders]),
        "intruders_null": _mean([run.intruders["null"] for run in runs if run.intruders]),
        "forgetting": {
            name: [_mean([run.forgetting[name][i] for run in runs if name in run.forgetting]) for i in (0, 1)]
            for name in dict.fromkeys(name for run in runs for name in run.forgetting)
        },
        "notes": list(dict.fromkeys(note for run in runs for note in run.notes)),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


# --- on the screen ---------------------------------------------------------------------------------


def show(found: Sequence[Record], console: Any) -> None:
    """A table for each model and data set, the best score first, and what may be said of it."""
    for (model, data), group in groups(found).items():
        console.print(_table(model, data, group))
        verdict: Verdict = winner(group)
        console.print(f"{'winner: ' if verdict.winner else 'no winner: '}{verdict.reason}.", highlight=False)
        console.print(told(checklist([run for runs in group.values() for run in runs])), highlight=False)
        console.print()


def _table(model: str, data: str, group: Group) -> Any:
    from rich import box
    from rich.table import Table

    metric = next(iter(group.values()))[0].metric
    made = Table(title=f"{model} on {data}", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    made.add_column("method")
    for name in (metric, "95%", "seeds", "trained", "MiB", "step", "peak MiB", "ECE", "forgets"):
        made.add_column(name, justify="right")
    for name, runs in sorted(group.items(), key=lambda pair: -_sortable(score_of(pair[1]).value)):
        score, method = score_of(runs), _method(runs)
        made.add_row(
            name,
            _figure(score.value, ".4f"),
            _interval(score),
            str(len(runs)),
            _figure(method["trainable"], ",.0f"),
            _figure(method["bytes"] / MIB, ",.2f"),
            _figure(method["step_ratio"], ".2f"),
            _figure(method["peak_bytes"] and method["peak_bytes"] / MIB, ",.1f"),
            _figure(method["calibration_error"], ".3f"),
            _forgets(method["forgetting"]),
        )
    return made


def _sortable(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _interval(score: Interval) -> str:
    if math.isnan(score.low):
        return "-"
    return f"{score.low:.3f} to {score.high:.3f}{' (rows)' if score.over == 'rows' else ''}"


def _forgets(found: dict[str, list[float | None]]) -> str:
    """`held text loss +0.12`: after less before."""
    told = [
        f"{name} {after - before:+.3f}"
        for name, (before, after) in found.items()
        if before is not None and after is not None
    ]
    return ", ".join(told) or "-"
