"""Run folders as the page shows them: what was trained, how far it is, its curves and its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.owner import is_worked_in
from luthier.core.records import read_json
from luthier.serving.http.refusal import Refusal
from luthier.training.checkpoint import any_there
from luthier.training.folder import SPEC

POINTS = 400
"""Points of a curve that are told: the others lie between them."""
ANSWERS = 8
"""Answers that are told, the latest ones."""


def summary(folder: Path, running: bool) -> dict[str, Any]:
    """Returns a run in few words; a damaged record is told as such."""
    try:
        record = read_json(folder / SPEC)
        run = record["run"]
        form, training = run["form"], run["training"]
        told = {
            "model": run["model"], "data": run["data"], "method": form["name"], "steps": record["resolved"]["steps"],
            "task": record["resolved"]["task"], "created": record["created"], "command": record["command"],
            "settings": {**form["settings"], **training, "lr": record["resolved"]["lr"],
                         "where": record["resolved"]["where"]},
        }  # fmt: skip
    except (LuthierError, KeyError, TypeError) as error:
        return {"name": folder.name, "state": "damaged", "trouble": f"{type(error).__name__}: {error}"[:200]}
    lines = metrics(folder)
    return {"name": folder.name, "state": state_of(folder, running), **told, **latest(lines)}


def run_of(folder: Path) -> dict[str, Any]:
    """Returns what a run's record says of it; raises `Refusal` for one that is damaged."""
    record = read_json(folder / SPEC)
    run = record.get("run") if isinstance(record, dict) else None
    if not isinstance(run, dict) or not {"model", "data"} <= set(run):
        raise Refusal(
            400, f"the record of {folder.name!r} is damaged: it does not say what was trained.", code="damaged"
        )
    return run


def state_of(folder: Path, running: bool) -> str:
    """Returns running, elsewhere (another process trains it), finished, stopped (to be resumed) or begun (before its
    first checkpoint)."""
    if running:
        return "running"
    if is_worked_in(folder):
        return "elsewhere"
    if (folder / "adapter" / "adapter.json").is_file():
        return "finished"
    return "stopped" if any_there(folder / "checkpoints") else "begun"


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl; one that is being written is left out."""
    path = folder / "metrics.jsonl"
    try:
        whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        lines = [json.loads(line, parse_constant=lambda _: None) for line in whole]  # earlier versions wrote NaN
        return [line for line in lines if isinstance(line, dict) and "step" in line]
    except (OSError, ValueError, RecursionError):
        return []


def latest(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the step that a run is at, and its last losses."""
    found: dict[str, Any] = {"step": 0, "loss": None, "eval_loss": None, "seconds": None}
    for line in lines:
        found |= {key: line[key] for key in found if key in line}
    return found


def curves(lines: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Returns `{"loss": [[step, value], …], "eval_loss": …}`, and other figures that were told, thinned out."""
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key == "loss" or key.startswith("eval_") or key == "reward":
                found.setdefault(key, []).append([line["step"], value])
    return {key: thinned(points) for key, points in found.items()}


def thinned(points: list[Any]) -> list[Any]:
    """Returns at most `POINTS` of them, evenly, the last among them."""
    every = -(-len(points) // POINTS) or 1
    return points[(len(points) - 1) % every :: every]


def answers(folder: Path) -> list[dict[str, Any]]:
    """Returns the last answers that a run sampled while it was trained, where its objective does so."""
    path = folder / "rollouts.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1][-ANSWERS:] if path.is_file() else []
        found = [json.loads(line) for line in lines]
        return [{key: each.get(key) for key in ("step", "prompt", "answer", "reward")} for each in found]
    except (OSError, ValueError, RecursionError):
        return []
