"""What these benchmarks share: rows as files, a fit by LoRA, a base with an adapter merged in, an examination."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench._registry import results_of

import luthier as lt
from luthier.interop.formats._merged import save_merged

Part = Callable[[Path, int, int], dict[str, Any]]
"""A part of a benchmark: what it finds in a scratch folder, with so many steps, from a seed."""
CHAT, LONGEST = "smollm2-135m", 256


def asked(prompt: str, completion: str) -> dict[str, str]:
    """A row to learn."""
    return {"prompt": prompt, "completion": completion}


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """The path of a file with the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def fit(model: str, rows: Sequence[Mapping[str, Any]], out: Path, **settings: Any) -> Path:
    """The adapter that a form (LoRA of rank 8 unless told otherwise) makes of the rows."""
    data = written(out.with_suffix(".jsonl"), rows)
    settings = {"form": lt.LoRA(rank=8), "batch": 4, "lr": 1e-3, "max_length": LONGEST, **settings}
    return lt.train(model=model, data=data, out=str(out), eval_fraction=0, progress=False, **settings).adapter


def merged(model: str, adapter: Path, folder: Path, task: str = "causal-lm", labels: list[str] | None = None) -> str:
    """The folder of a model with an adapter merged in."""
    loaded = lt.model(model, task=task, labels=labels)
    save_merged(lt.load(loaded.model, adapter), loaded.processor, folder)
    return str(folder)


def examined(model: str, target: Path, by: Any, data: str, task: str = "causal-lm", **options: Any) -> dict[str, Any]:
    """What an examination says of a target: places, summary, their nulls and the verdict."""
    loaded = lt.model(model, task=task)
    found = lt.examine(target, by, base=loaded.model, processor=loaded.processor, data=data, task=task, **options)
    return found.to_dict()


def parsed(
    arguments: Sequence[str] | None, doc: str | None, name: str, *, data: bool = False, **defaults: int | str
) -> Any:
    """The options of such a benchmark: --out, --data where it reads any, and numbers and names with their defaults."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    for key, value in defaults.items():
        parser.add_argument(f"--{key}", type=type(value), default=value)
    if data:
        parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=results_of(name))
    return parser.parse_args(arguments)


def run_parts(
    arguments: Sequence[str] | None, doc: str | None, name: str, parts: Mapping[str, Part], steps: int
) -> None:
    """Runs the parts of a benchmark that are asked for, once for each seed; those of other seeds and parts stay."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--out", type=Path, default=results_of(name))
    given = parser.parse_args(arguments)
    found = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            for part in (each for each in parts if each in given.only):
                run = {"seed": seed, **parts[part](Path(scratch), given.steps, seed)}
                others = [each for each in found.get(part, []) if each["seed"] != seed]
                found[part] = sorted([*others, run], key=lambda each: each["seed"])
                recorded(given.out, found)


def recorded(out: Path, found: Any) -> None:
    """Writes what was found, and prints it."""
    text = json.dumps(_named(found), indent=1)
    out.write_text(text + "\n", encoding="utf-8")
    print(text)


def _named(value: Any) -> Any:
    """A value with scratch files by their names, since where they lay says nothing."""
    if isinstance(value, str):
        return Path(value).name if value.startswith(f"{tempfile.gettempdir()}/") else value
    if isinstance(value, Mapping):
        return {key: _named(each) for key, each in value.items()}
    return [_named(each) for each in value] if isinstance(value, list | tuple) else value
