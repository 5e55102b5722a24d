"""The study's folder: whether it may be used, and study.json, which says what was asked of it."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import filelock

from luthier import models
from luthier.comparing.methods import described, redescribed
from luthier.comparing.plan import Plan, check_names, method_of, plan
from luthier.comparing.record import write
from luthier.comparing.rows import read_held
from luthier.comparing.sources import STUDY
from luthier.comparing.study import Study
from luthier.comparing.tune import check_tuning
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.training.folder import versions

FREE = (
    "models", "data", "methods", "seeds", "settings", "timing", "batch", "keep_adapters", "until_told", "most_seeds",
    "hours",
)  # fmt: skip
"""Parts of a study that may differ when it goes on: what is new is added, what is done stays."""


def prepared(study: Study, folder: Path) -> Plan:
    """Returns the plan, checked against what the folder holds, and noted there."""
    if folder.is_file() or (folder.is_dir() and not _ours(folder)):
        raise LuthierError(f"{folder} holds something else than a study; choose another folder (out).")
    old = _stored(folder)
    if old is not None:
        _refuse_changed(folder, old, study, {})
    check_tuning(study)
    read_held(study)
    planned = plan(study, folder)
    prints = {name: each.fingerprints() for name, each in planned.data.items()}
    bases = {name: models.base_hash(source) for name, source in study.models.items()}
    resolved = {name: described(method_of(study, name)) for name in study.methods}
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        old = _stored(folder)
        with guarded(f"{folder / STUDY} is damaged, or was changed by hand"):
            if old is not None:
                _refuse_changed(folder, old, study, prints)
                _refuse_other_methods(folder, old, resolved)
                _refuse_other_bases(folder, old, bases)
            noted = _noted(study, old, prints, resolved, bases)
        write(noted, folder / STUDY)
    return planned


def _ours(folder: Path) -> bool:
    """Whether a folder is a study's, or as good as empty."""
    if (folder / STUDY).is_file():
        return True
    return all(path.name == "data" or path.name.startswith(".") for path in folder.iterdir())  # killed as it began


def _stored(folder: Path) -> dict[str, Any] | None:
    path = folder / STUDY
    if not path.is_file():
        return None
    with guarded(f"{path} is not a study"):
        found = json.loads(path.read_text(encoding="utf-8"))
        found["study"] = Study.from_dict(found["study"]).to_dict()  # what studies of then had no word for
    return found


def _refuse_changed(folder: Path, old: dict[str, Any], study: Study, prints: dict[str, Any]) -> None:
    """Raises unless both studies are the same where they overlap."""
    there, here = old["study"], json.loads(json.dumps(study.to_dict()))
    found = [_difference(key, here[key], there.get(key)) for key in here if key not in FREE]
    for key in ("models", "data", "settings"):
        found += [
            _difference(f"{key}.{name}", value, there[key][name])
            for name, value in here[key].items()
            if name in there[key]
        ]
    found += [
        _difference(f"settings.{name}", here["settings"].get(name), there["settings"].get(name))
        for name in here["methods"]
        if name in there["methods"] and (name in here["settings"]) != (name in there["settings"])
    ]
    found += [
        _difference(f"the rows of {name} ({part})", value, old["fingerprints"].get(name, {}).get(part, value))
        for name, parts in prints.items()
        for part, value in parts.items()
    ]
    changed = [text for text in found if text]
    if changed:
        raise LuthierError(
            f"{folder} holds a study with other settings: {'; '.join(changed)}. Give those, or another folder (out)."
        )


def _refuse_other_methods(folder: Path, old: dict[str, Any], resolved: dict[str, Any]) -> None:
    """Raises for a method that is another than that of its name there: a recipe's file was changed."""
    check_names([*old["study"]["methods"], *resolved])
    there = old.get("resolved", {})
    found = [_difference(name, each, _of_today(there[name])) for name, each in resolved.items() if name in there]
    changed = [text for text in found if text]
    if changed:
        raise LuthierError(
            f"{folder} holds runs of methods that were others then: {'; '.join(changed)}. Make the recipe as it was, "
            "give it another name, or choose another folder (out)."
        )


def _of_today(stored: dict[str, Any]) -> dict[str, Any]:
    """A method as it would be described now; as it stands where its parts are no longer there."""
    try:
        return redescribed(stored)
    except LuthierError:
        return stored


def _refuse_other_bases(folder: Path, old: dict[str, Any], bases: dict[str, str | None]) -> None:
    """Raises for a base whose files are others than when the study began; its runs would not be comparable."""
    there = old.get("bases", {})
    changed = [name for name, base in bases.items() if base is not None and there.get(name) not in (None, base)]
    if changed:
        raise LuthierError(
            f"{folder} holds runs of another {', '.join(changed)}: its weights, its tokenizer or its chat template "
            "have changed since. Put them back, or choose another folder (out)."
        )


def _difference(name: str, here: Any, there: Any) -> str:
    """What differs; nothing where nothing does."""
    if isinstance(here, dict) and isinstance(there, dict):
        inner = [_difference(f"{name}.{key}", here.get(key), there.get(key)) for key in {**here, **there}]
        return "; ".join(text for text in inner if text)
    return "" if here == there else f"{name} is {here!r}, there {there!r}"


def _noted(
    study: Study,
    old: dict[str, Any] | None,
    prints: dict[str, Any],
    resolved: dict[str, Any],
    bases: dict[str, str | None],
) -> dict[str, Any]:
    """What study.json holds: all that was ever asked of this folder."""
    new = study.to_dict()
    before = old["study"] if old else {}
    for key in ("models", "data", "settings"):
        new[key] = before.get(key, {}) | new[key]
    for key in ("methods", "seeds"):
        new[key] = list(dict.fromkeys([*before.get(key, []), *new[key]]))
    return {
        "study": new,
        "fingerprints": (old or {}).get("fingerprints", {}) | prints,
        "resolved": (old or {}).get("resolved", {}) | resolved,
        "bases": (old or {}).get("bases", {}) | {name: base for name, base in bases.items() if base is not None},
        "command": (old or {}).get("command") or command(),
        "versions": versions(),
        "created": (old or {}).get("created")
        or datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def command() -> str:
    """The command line that is running, or how Python was asked."""
    return shlex.join(["luthier", *sys.argv[1:]]) if sys.argv[1:2] == ["compare"] else "luthier.compare(…)"
