"""The run folder: its owner, whether it may be used, and `run.json`, which stores the specification of the run."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import secrets
import warnings
from pathlib import Path
from typing import Any

from luthier import models
from luthier.core.errors import LuthierError
from luthier.core.files import TRACES
from luthier.core.records import read_json, replace_json
from luthier.core.version import __version__
from luthier.data.media import media_digest
from luthier.training.from_adapter import fingerprint_of
from luthier.training.prepare import Prepared
from luthier.training.processes import processes
from luthier.training.replace import finish_replacing, replaced
from luthier.training.spec import Run

SPEC = "run.json"
RESUMED = "resumed"
"""Where the record lists when the run was gone on with, from which step, under which versions."""
MAY_CHANGE = ("keep", "save_every", "cpu_backend", "device")
"""Settings of training that a resumed run takes as they are given now."""
EVERY = "2:"
"""Starts the fingerprint of a base of which every tensor counted."""


def claim(run: Run, resume: bool, overwrite: bool) -> bool:
    """Returns whether the folder holds a run to go on with; raises if it cannot be used. Changes nothing yet."""
    folder = run.folder
    if resume and overwrite:
        raise LuthierError("resume continues a run and overwrite starts again; choose one.")
    if folder.exists() and not folder.is_dir():
        raise LuthierError(f"{folder} is a file; choose a folder for the run (out).")
    there = holds_run(folder)
    if not there and folder.exists() and any(path.name not in (f".{SPEC}", *TRACES) for path in folder.iterdir()):
        raise LuthierError(f"{folder} holds files and no run ({SPEC} is not there); choose another folder (out).")
    if there and resume:
        same_run(run, read_run(folder))
    elif there and not overwrite:
        raise LuthierError(
            f"{folder} holds a run already: go on with it (resume), replace it (overwrite), or choose another folder."
        )
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise LuthierError(f"cannot write to {nearest}, so not to {folder} either; choose another folder (out).")
    return there and resume


def holds_run(folder: Path) -> bool:
    """Returns whether a run was started in a folder."""
    return (folder / SPEC).is_file()


def read_run(folder: str | Path) -> Run:
    """Returns the run that a folder holds, to be resumed or repeated; its `out` is that folder.

    Whether code of the model may run is the caller's to say, and not the record's: folders are passed around.
    """
    record = read_record(Path(folder))
    return Run.from_dict(record["run"] | {"out": str(folder), "trust_remote_code": models.trusted()})


def read_record(folder: Path) -> dict[str, Any]:
    """Returns all of `run.json`."""
    record = read_json(folder / SPEC)
    tables = ("run", "data", "base", "measured", "versions")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), dict) for name in tables):
        raise LuthierError(f"{folder / SPEC} is not a run's record, or a damaged one.")
    return record


def new_id() -> str:
    """Returns the id of a new run, which its checkpoints and metrics carry too."""
    return secrets.token_hex(8)


def ids_of(record: dict[str, Any]) -> tuple[str | None, ...]:
    """The ids that a run's checkpoints may carry, the run's own first. Runs of Luthier 0.1 had none: theirs is made of
    what they were started with, and their older checkpoints go without."""
    if (own := record.get("id")) is not None:
        return (str(own),)
    lasting = {key: record.get(key) for key in ("created", "run", "data", "base")}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16], None


def same_run(run: Run, stored: Run) -> None:
    """Raises unless both are the same run; only their folder may differ in name, and settings in `MAY_CHANGE`."""
    differing = _differences(_that_counts(run), _that_counts(stored))
    if differing:
        raise LuthierError(
            f"{run.folder} holds another run, so it cannot be resumed with these settings: {'; '.join(differing)}. "
            "Give the settings it was started with, or another folder (out)."
        )


def _that_counts(run: Run) -> dict[str, Any]:
    """What a run is told by: the calibration only where something is measured, under the seed that it has in effect."""
    found = run.calibration.seeded(run.training.seed).to_dict() if run.measures else None
    training = {key: value for key, value in run.training.to_dict().items() if key not in MAY_CHANGE}
    return run.to_dict() | {"calibration": found, "training": training}


def _differences(new: dict[str, Any], old: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*new, *old} - {"out"}):
        here, there = new.get(key), old.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            found += _differences(here, there, f"{prefix}{key}.")
        elif here != there:
            found.append(f"{prefix}{key} is {here!r}, there {there!r}")
    return found


def record(
    run: Run, prepared: Prepared, model: Any, command: str, steps: int, measured: dict[str, Any]
) -> dict[str, Any]:
    """Returns what `run.json` keeps: the resolved run, what it stands on, and what its ranks follow from."""
    held = prepared.held
    return {
        "id": new_id(),
        "run": run.to_dict(),
        "resolved": {"lr": run.lr, "where": run.where or run.form.where, "task": prepared.task, "steps": steps},
        "processes": processes(),
        "data": {
            "rows": len(prepared.train),
            "fingerprint": prepared.examples.fingerprint,
            "skipped": len(prepared.examples.skipped),
            "eval_rows": len(prepared.evaluation),
            "eval_fingerprint": held.fingerprint if held else None,
            "media": media_digest(itertools.chain(prepared.examples.rows, held.rows if held else ())),
            **prepared.selected,
        },
        "tokens": tokens_of(prepared),
        "layout": prepared.examples.layout,
        "unread": list(prepared.unread),
        "told": prepared.told,
        "base": base_of(model),
        **({} if run.from_adapter is None else {"start": fingerprint_of(run)}),
        "measured": measured,
        "command": command,
        "versions": versions(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def tokens_of(prepared: Prepared) -> str:
    """What the rows are under the base's tokenizer and chat template."""
    from luthier.data import digest

    return digest(itertools.chain(prepared.train, prepared.evaluation))


def base_of(model: Any) -> dict[str, str]:
    """Returns the base's class, and a hash of what tells it from others."""
    from luthier.core.sites.fresh import fresh_modules
    from luthier.core.storage.fingerprint import fingerprint

    found = fingerprint(model, leave=fresh_modules(model))
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return {"model": found["model"], "fingerprint": f"{EVERY}{digest}"}


def _same_base(folder: Path, here: dict[str, str], there: dict[str, str], model: Any) -> bool:
    """Whether the base is the one that a run was started with; warns of what an older record cannot vouch for."""
    from luthier.core.storage import fingerprint_old

    if there["fingerprint"].startswith(EVERY):
        return here == there
    warnings.warn(
        f"the run in {folder} was started by an older Luthier, which looked at up to {fingerprint_old.TENSORS} tensors "
        "of its base; whether the others are the same is not known.",
        stacklevel=4,
    )
    return there == {"model": here["model"], "fingerprint": fingerprint_old.digest(model)}


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    import torch
    import transformers

    return {"luthier": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def check_same_inputs(folder: Path, new: dict[str, Any], model: Any) -> None:
    """Raises if data, base or number of processes are no longer those that the run was started with."""
    old = read_record(folder)
    known = {"media": new["data"]["media"]} if "media" not in old["data"] else {}
    if new["data"] != {**old["data"], **known}:
        raise LuthierError(
            f"{new['run']['data']} has changed since the run in {folder} was started, so it cannot be resumed; "
            "start anew (overwrite, or another out)."
        )
    if new["tokens"] != old.get("tokens", new["tokens"]):
        raise LuthierError(
            f"the tokenizer or the chat template of {new['run']['model']} has changed since the run in {folder} was "
            "started: the same rows are other tokens now. Put it back, or start anew (overwrite, or another out)."
        )
    if new.get("start") != old.get("start"):
        raise LuthierError(
            f"the adapter {new['run']['from_adapter']} is no longer the one that the run in {folder} started from."
        )
    if new["processes"] != old.get("processes"):
        raise LuthierError(
            f"the run in {folder} was started with {old.get('processes')} processes, and here are {new['processes']}."
        )
    if not _same_base(folder, new["base"], old["base"], model):
        raise LuthierError(
            f"{new['run']['model']} is not the base that the run in {folder} was started with: its weights differ."
        )
    if known.get("media"):
        warnings.warn(
            f"the run in {folder} was started by an older Luthier, which did not look into pictures and sounds; "
            "whether they are the same is not known.",
            stacklevel=3,
        )
    tell_versions(folder, new["versions"], old)


def tell_versions(folder: Path, here: dict[str, str], old: dict[str, Any]) -> None:
    """Warns where a run goes on under other versions than it last ran under: its figures may then differ."""
    before = (old.get(RESUMED) or [old])[-1]["versions"]
    changed = [f"{name} {before.get(name)} (here {here[name]})" for name in here if before.get(name) != here[name]]
    if changed:
        warnings.warn(
            f"the run in {folder} last ran under {', '.join(changed)}; it goes on, but its losses may no longer be "
            "those that it would have had.",
            stacklevel=4,
        )


def note_resumed(folder: Path, step: int, new: dict[str, Any]) -> None:
    """Adds to the record when a run was gone on with, where, and under what."""
    old = read_record(folder)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    may = {key: new["run"]["training"][key] for key in MAY_CHANGE}
    entry = {"at": now, "step": step, "versions": new["versions"], **may}
    replace_json(folder / SPEC, old | {RESUMED: [*old.get(RESUMED, []), entry]})


def begin(folder: Path, values: dict[str, Any]) -> None:
    """Starts a run in its folder: `run.json` comes, and with that what an earlier run wrote is gone, or nothing is."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with replaced(folder, _id_there(folder)):
            replace_json(folder / SPEC, values)
    except BaseException:
        mend(folder)
        raise


def withdraw(folder: Path) -> None:
    """Takes back `begin` where nothing was trained, so that the same folder can be given again."""
    (folder / SPEC).unlink(missing_ok=True)


def mend(folder: Path) -> None:
    """Undoes or finishes what a killed process had begun to replace in a run folder."""
    finish_replacing(folder, _id_there(folder))


def _id_there(folder: Path) -> str | None:
    """The id of the run in a folder; None where there is none, or a damaged record."""
    try:
        return ids_of(read_record(folder))[0] if holds_run(folder) else None
    except LuthierError:
        return None
