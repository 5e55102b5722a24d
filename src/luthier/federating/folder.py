"""The folder of a federated run: what it is, where it stands, and what clients have sent in the round under way."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from luthier.core.errors import LuthierError
from luthier.core.files import claimed, committed, discard, recover
from luthier.core.guard import guarded, on_disk
from luthier.core.records import recorded, replace_json, write_json
from luthier.federating.change import Change
from luthier.federating.client import Sent
from luthier.federating.plot import plot
from luthier.federating.spec import UNREAD
from luthier.training.folder import versions
from luthier.training.spec import Run

SPEC, METRICS, PLOT, CARD = "federation.json", "metrics.jsonl", "federation.png", "README.md"
STATE, ROUND, ADAPTER = "state", "round", "adapter"
CHANGE, LINES = "change.safetensors", "state.json"
TOKENS = "tokens"
FREE = ("rounds", "out")
"""What may differ when a run goes on: rounds may be added."""


def claim(out: str | Path, resume: bool, overwrite: bool) -> Path:
    """Returns the folder, if it may be used; changes nothing yet."""
    return claimed(out, SPEC, "a federated run", resume, overwrite)


def begin(folder: Path, spec: Mapping[str, Any], overwrite: bool) -> None:
    """Notes what the run is; raises if the folder holds another one and is not to be overwritten."""
    base = {}
    if (folder / SPEC).is_file() and not overwrite:
        with recorded(folder / SPEC) as old:
            refuse_changed(
                folder, spec, old | {"run": Run.from_dict(old.get("run", {})).to_dict()}
            )  # as this version writes it
            base = {"base": old["base"]} if "base" in old else {}
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in (STATE, ROUND, ADAPTER):
            discard(folder / name)
        for name in (METRICS, PLOT, CARD, SPEC):
            (folder / name).unlink(missing_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    replace_json(folder / SPEC, {**spec, **base, "versions": versions(), "created": now})


def same_base(folder: Path, base: Mapping[str, str]) -> None:
    """Notes which base the run is on; raises if it was started on another one."""
    with recorded(folder / SPEC) as spec:
        if spec.get("base", base) != base:
            raise LuthierError(
                f"{spec['run']['model']} is not the base that the federated run in {folder} was started with: its "
                "weights differ. Put them back, or start anew (overwrite, or another out)."
            )
    replace_json(folder / SPEC, {**spec, "base": dict(base)})


def refuse_changed(folder: Path, new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """Raises unless both are the same run; rounds may be added."""
    here = json.loads(json.dumps(new))
    known = old.get("data", here["data"])
    tokens = here["data"].pop(TOKENS)
    here["data"] = {key: value for key, value in here["data"].items() if key in known}
    found = [text for key in here if key != "command" for text in _differences(key, here[key], old.get(key))]
    if found:
        raise LuthierError(
            f"{folder} holds another federated run: {'; '.join(found[:3])}. Give the settings it was started with, or "
            "another folder (out)."
        )
    if tokens != known.get(TOKENS, tokens):
        raise LuthierError(
            f"the tokenizer or the chat template of {here['run']['model']} has changed since the federated run in "
            f"{folder} was started: the same rows are other tokens now. Put it back, or take another folder (out)."
        )


def _differences(name: str, here: Any, there: Any) -> list[str]:
    if isinstance(here, dict) and isinstance(there, dict):
        keys = [key for key in {**here, **there} if key not in (*FREE, TOKENS, *UNREAD)]
        return [text for key in keys for text in _differences(f"{name}.{key}", here.get(key), there.get(key))]
    return [] if here == there else [f"{name} is {here!r}, there {there!r}"]


def read_state(folder: Path) -> tuple[Change, list[dict[str, Any]]] | None:
    """Reads (what the server holds, one line per round) after the last whole round; None before the first."""
    recover(folder / STATE)
    if not (folder / STATE / LINES).is_file():
        return None
    with recorded(folder / STATE / LINES) as told:
        held = Change.of(load_file(folder / STATE / CHANGE))
        lines = [_line(number, line) for number, line in enumerate(told["rounds"])]
        if not lines:
            raise LuthierError(f"{folder / STATE / LINES} is damaged: it has no round.")
        return held, lines


def _line(number: int, line: dict[str, Any]) -> dict[str, Any]:
    """A round's line as `write_state` left it: numbered from 0, a number for every figure."""
    odd = [key for key, value in line.items() if not isinstance(value, dict if key == "clients" else int | float)]
    if odd or line.get("round") != number:
        raise ValueError(f"round {number} has no {(odd or ['round'])[0]}, or an odd one")
    return line


def write_state(folder: Path, held: Change, lines: list[dict[str, Any]], title: str) -> None:
    """Commits a round: what the server holds and its figures at once, then what follows from them."""
    with committed(folder / STATE) as temporary:
        save_file(held.tensors(), temporary / CHANGE)
        write_json(temporary / LINES, {"rounds": lines})
    shutil.rmtree(folder / ROUND, ignore_errors=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f".{METRICS}").write_text(text, encoding="utf-8")
    (folder / f".{METRICS}").replace(folder / METRICS)
    plot(lines, folder / PLOT, title)


def keep(folder: Path, number: int, client: int, sent: Sent) -> None:
    """Keeps what a client sent, so that a round goes on behind it."""
    path = sent_by(folder, number, client)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"rows": str(sent.rows), "loss": repr(sent.loss), "seconds": repr(sent.seconds)}
    temporary = path.with_name(f".{path.name}")
    with on_disk(str(path), "The rounds go on (resume)."):
        save_file(sent.change.tensors(), temporary, metadata=told)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


def kept(folder: Path, number: int, client: int) -> Sent | None:
    """Returns what a client sent before an interruption."""
    import safetensors

    path = sent_by(folder, number, client)
    if not path.is_file():
        return None
    with guarded(f"{path} is damaged, or was changed by hand"):
        with safetensors.safe_open(path, framework="pt") as file:
            told = file.metadata()
        return Sent(Change.of(load_file(path)), int(told["rows"]), float(told["loss"]), float(told["seconds"]))


def sent_by(folder: Path, number: int, client: int) -> Path:
    """Returns the file of a client in a round."""
    return folder / ROUND / f"{number}-{client}.safetensors"
