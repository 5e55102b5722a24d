"""The benchmarks, by discovery: every file here is one, and every package with a `__main__.py`.

A file whose name opens with `_` is none. A benchmark is called by its place, `axes/inits.py` as `axes-inits`, has a
docstring whose first line says what it measures, and a `main(arguments)` that takes the rest of the command line. What
it finds goes to `results/NAME.json`, or to files that begin with its name.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, which is imported when it is run."""

    name: str
    module: str
    file: Path

    def line(self) -> str:
        """What it measures: the first line of its docstring."""
        doc = ast.get_docstring(ast.parse(self.file.read_text(encoding="utf-8")))
        return (doc or "").split("\n")[0]


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by name."""
    return {each.name: each for each in sorted(_below(ROOT, ()), key=lambda each: each.name)}


def _below(folder: Path, parts: tuple[str, ...]) -> Iterator[Benchmark]:
    for found in pkgutil.iter_modules([str(folder)]):
        path, inside = folder / found.name, (*parts, found.name)
        entry = path / "__main__.py" if found.ispkg else path.with_suffix(".py")
        if found.name.startswith("_"):
            continue
        if found.ispkg and not entry.exists():
            yield from _below(path, inside)
        else:
            module = ".".join(("bench", *inside, *(["__main__"] if found.ispkg else [])))
            yield Benchmark("-".join(inside), module, entry)


def results_of(name: str) -> Path:
    """The file for what a benchmark finds."""
    return RESULTS / f"{name}.json"
