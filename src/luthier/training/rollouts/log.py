"""The log of sampled answers: `rollouts.jsonl`, one line each, cut back on resuming, and `rollouts.md`, a table."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.core.guard import guarded, written
from luthier.core.records import append_text, replace_text
from luthier.training.checkpoint import go_on

FILE, TABLE = "rollouts.jsonl", "rollouts.md"
READ: dict[str, Any] = {
    "step": int, "run": str | None, "prompt": str, "answer": str, "tokens": int, "finish": str,
    "reward": float | int | None, "advantage": float | int | None,
}  # fmt: skip
"""What is read again of a line, with what it is."""
SHOWN = 4
"""Samples of a step that the table shows."""
WIDTH = 160
"""Characters of a text in the table."""


def append(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Writes lines behind those that are there."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with written(str(folder / FILE), partial(go_on, folder)):
        append_text(folder / FILE, text)


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run; a last line cut short by a kill is left out."""
    path = folder / FILE
    with guarded(f"{path} cannot be read"):
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    return [_line(path, number, text) for number, text in enumerate(lines[:-1], 1)]


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    with guarded(f"{path}, line {number}, is damaged"):
        made = json.loads(text)
        wrong = [key for key, kind in READ.items() if not isinstance(made.get(key), kind)]
        if wrong:
            raise ValueError(f"its {wrong[0]} is missing, or of another kind")
        return made


def cut(folder: Path, step: int, runs: Collection[str | None]) -> None:
    """Drops the lines after `step`, which a resumed run writes anew, and those of another run than these (ids)."""
    if not (folder / FILE).is_file():
        return
    kept = [line for line in read(folder) if line["step"] <= step and line["run"] in runs]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
    replace_text(folder / FILE, text.encode("utf-8", "backslashreplace").decode("utf-8"))  # as it was appended


def table(folder: Path) -> None:
    """Writes the table: of the first, a middle and the last step, samples from the best to the worst."""
    lines = read(folder)
    if not lines:
        return
    steps = sorted({line["step"] for line in lines})
    chosen = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
    parts = ["# Sampled answers", f"{len(lines):,} answers of {len(steps):,} steps are in {FILE}."]
    parts += [_of_step(step, [line for line in lines if line["step"] == step]) for step in chosen]
    with written(str(folder / TABLE), partial(go_on, folder)):
        (folder / TABLE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _of_step(step: int, lines: list[dict[str, Any]]) -> str:
    ordered = sorted(lines, key=lambda line: (line["reward"] is not None, line["reward"] or 0.0), reverse=True)
    spread = max(1, (len(ordered) - 1) // max(1, SHOWN - 1))
    picked = ordered[::spread][:SHOWN]
    known = [line["reward"] for line in lines if line["reward"] is not None]
    mean = f"mean reward {sum(known) / len(known):.3g}" if known else "no reward is known"
    rows = ["| reward | advantage | tokens | end | prompt | answer |", "|---|---|---|---|---|---|"]
    rows += ["| " + " | ".join(_cells(line)) + " |" for line in picked]
    return f"## Step {step}: {len(lines)} answers, {mean}\n\n" + "\n".join(rows)


def _cells(line: dict[str, Any]) -> list[str]:
    numbers = ["" if line[key] is None else f"{line[key]:.3g}" for key in ("reward", "advantage")]
    return [*numbers, str(line["tokens"]), line["finish"], _short(line["prompt"]), _short(line["answer"])]


def _short(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= WIDTH else f"…{text[-WIDTH:]}"
