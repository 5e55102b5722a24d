"""What the studies of the axes share: a file of runs that an interrupted study goes on with, and tables of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from filelock import FileLock

TUNING = 100
"""Seed of the runs that a learning rate is chosen on; it is in no table."""


@dataclass(frozen=True)
class Ledger:
    """The runs of one study, kept one by one; processes may share the file."""

    path: Path

    def runs(self, **key: Any) -> list[dict[str, Any]]:
        """The runs so far whose fields are these."""
        found = json.loads(self.path.read_text())["runs"] if self.path.exists() else []
        return [run for run in found if all(run.get(name) == value for name, value in key.items())]

    def add(self, run: dict[str, Any]) -> None:
        """Keeps a run, and says so."""
        with FileLock(f"{self.path}.lock"):
            runs = [*self.runs(), run]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = ",\n  ".join(json.dumps(each) for each in runs)
            self.path.write_text(f'{{"torch": "{torch.__version__}", "runs": [\n  {lines}\n]}}\n')
        print(" ".join(f"{name}={shown(value)}" for name, value in run.items()), flush=True)

    def best(self, measure: str = "loss", **key: Any) -> float:
        """The learning rate of the lowest `measure` among the runs of the tuning seed with these fields."""
        return min(self.runs(seed=TUNING, **key), key=lambda run: run[measure])["rate"]


def shown(value: Any) -> str:
    """A value in a line of progress."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"[{len(value)}]" if isinstance(value, list) else str(value)


def parsed(
    words: Sequence[str] | None, doc: str | None, axis: str, seeds: int = 3, flags: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """What the command line of a study says, with its ledger as `ledger`; `flags` are further ones with their help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets, see docs/axes.md; not needed for --table")
    parser.add_argument("--work", type=Path, default=Path("runs/axes"), help="folder of models that runs share")
    parser.add_argument("--out", type=Path, default=results_of(f"axes-{axis}"))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--table", action="store_true", help="print the tables as markdown, and run nothing")
    for name, told in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=told)
    given = parser.parse_args(words)
    if not given.table and given.data is None:
        parser.error("--data is needed to run anything")
    given.ledger = Ledger(given.out)
    return given


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def mean(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and the half width of its 95% t interval where there are two values or more."""
    found = torch.tensor(values, dtype=torch.float64)
    return f"{found.mean():.{digits}f}" + (f" ± {half(found):.{digits}f}" if len(values) > 1 else "")


def difference(own: dict[int, float], other: dict[int, float], digits: int = 3) -> str:
    """The mean paired difference over the seeds that both have, with its 95% t interval, or that none is told."""
    gaps = torch.tensor([own[seed] - other[seed] for seed in own if seed in other], dtype=torch.float64)
    if len(gaps) < 2:
        return "-" if not len(gaps) else f"{gaps.mean():+.{digits}f} (one seed)"
    told = "" if abs(gaps.mean()) > half(gaps) else ", not told apart"
    return f"{gaps.mean():+.{digits}f} ± {half(gaps):.{digits}f}{told}"


def half(values: torch.Tensor) -> float:
    """Half the width of the 95% t interval of a mean."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5)


def by_seed(runs: Iterable[dict[str, Any]], measure: str) -> dict[int, float]:
    """A measure of each seed, the tuning one left out."""
    return {run["seed"]: run[measure] for run in runs if run["seed"] != TUNING}
