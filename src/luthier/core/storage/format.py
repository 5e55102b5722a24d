"""The format of `adapter.json`: its versions, how an older one becomes the present one, what every value must be."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.core.checks import (
    LONGEST,
    boolean,
    many,
    mapping,
    maybe,
    number,
    plain,
    record,
    refuse,
    shown,
    text,
    whole,
)
from luthier.core.errors import LuthierError
from luthier.core.files import own_file
from luthier.core.records import read_json
from luthier.core.version import __version__

FORMAT = 4
SPEC = "adapter.json"
LARGEST = 8 * 2**20
"""Bytes of the longest spec that is read: some fifty thousand sites."""
CHECKSUM = "checksum"
"""Of the spec itself: SHA-256 over the JSON of all its other values, keys sorted, without spaces."""

Spec = dict[str, Any]

# --- versions --------------------------------------------------------------------------------------


def _to_2(spec: Spec) -> Spec:
    """Format 2 knows licences, the adapter's and the base's, and has a checksum of the spec itself."""
    return spec | {"license": None, "base": {"license": None} | spec["base"]}


def _to_3(spec: Spec) -> Spec:
    """From format 3 on, alpha stays where s = alpha / sqrt(rank); before, it grew with a site's own rank."""
    for part in spec["parts"]:
        if part.get("ranks") and part["settings"].get("scaling") == "rslora":
            raise LuthierError(
                "its ranks differ from site to site under scaling rslora, and were scaled by another rule when it was "
                "saved. Fit it again."
            )
    return spec


def _to_4(spec: Spec) -> Spec:
    """From format 4 on, every tensor of the base counts; of an older spec's, what it sampled is checked as before."""
    return spec | {"base": spec["base"] | {"digests": {}}}


MIGRATIONS: dict[int, Callable[[Spec], Spec]] = {1: _to_2, 2: _to_3, 3: _to_4}
"""`MIGRATIONS[n]` makes a spec of format n + 1 of one of format n."""


def read(folder: Path) -> Spec:
    """The spec in `folder` in the present format, every value checked; raises `LuthierError` for anything else."""
    path = own_file(folder, SPEC)
    spec = read_json(path, LARGEST)
    try:
        return _present(spec)
    except LuthierError as error:
        raise LuthierError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise LuthierError(f"{path} is not an adapter's spec, or a damaged one.") from None


def _present(spec: Any) -> Spec:
    version = spec["format"]
    if type(version) is not int or version < min(MIGRATIONS):
        raise LuthierError(f"its format is {shown(version)}; expected a whole number up to {FORMAT}.")
    if version > FORMAT:
        raise LuthierError(f"it has format {shown(version)}, and this Luthier reads up to {FORMAT}. {_newer(spec)}")
    if version > 1 and spec.get(CHECKSUM) != checksum(spec):
        raise LuthierError(
            "it is damaged, or was changed by hand: its checksum is another. Fetch or save the adapter again."
        )
    for older in range(version, FORMAT):
        spec = MIGRATIONS[older](spec) | {"format": older + 1}
    check(spec)
    return spec


def _newer(spec: Spec) -> str:
    """What to install for a format of the future."""
    wrote = spec["versions"]["luthier"]
    plain = isinstance(wrote, str) and re.fullmatch(r"\d+(\.\w+){0,4}", wrote, re.ASCII)
    wanted = f"luthier>={wrote}" if plain else "luthier"
    return f"Install the version that wrote it (this is {__version__}): pip install -U '{wanted}'."


def checksum(spec: Mapping[str, Any]) -> str:
    """Hexadecimal SHA-256 of all of a spec but its checksum, whatever the layout of its file."""
    rest = {key: value for key, value in spec.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(spec: Mapping[str, Any]) -> Spec:
    """Returns the spec as JSON holds it, checked as when it is read, with its checksum."""
    try:
        plain = json.loads(json.dumps(spec))
    except (TypeError, ValueError, RecursionError) as error:
        raise LuthierError(f"the adapter's spec cannot be written as JSON: {error}.") from None
    check(plain)
    return plain | {CHECKSUM: checksum(plain)}


# --- contents --------------------------------------------------------------------------------------


def pair(at: str, value: Any) -> None:
    """Checks the [path, kind] of a site."""
    if not isinstance(value, list) or len(value) != 2:
        refuse(at, value, "[path, kind]")
    for each in value:
        text(1024)(at, each)


SITES = TENSORS = 2**17
PART = record(
    {
        "form": text(64, r"[a-z][a-z0-9_]*", "the name of a form"),
        "settings": mapping(plain, 64),
        "where": text(LONGEST),
        "sites": many(pair, 1, SITES),
    },
    {"ranks": mapping(whole(0, 2**31 - 1), SITES), "relative": boolean},
)
BASE = record(
    {
        "name": text(4096),
        "model": text(256),
        "architecture": text(64, r"[0-9a-f]*", "a hash"),
        "dtype": many(text(32), 0, 64),
        "sample": mapping(many(number, 0, 64), TENSORS),
        "digests": mapping(maybe(text(64, r"[0-9a-f]*", "a hash")), TENSORS),
        "license": maybe(text(256)),
    }
)
CONTENTS = record(
    {
        "format": whole(FORMAT, FORMAT),
        "name": text(64, r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "letters, digits, '_' and '-'"),
        "parts": many(PART, 1, 64),
        "base": BASE,
        "license": maybe(text(256)),
        "measured": mapping(plain, 1000),
        "versions": mapping(text(64), 64),
        "created": text(64),
        "sha256": text(64, r"[0-9a-f]{64}", "a hash"),
    },
    {CHECKSUM: text(64)},
)
"""What the spec of the present format holds."""


def check(spec: Any) -> None:
    """Raises `LuthierError` unless every value of a spec is as it must be, before any is used."""
    CONTENTS("", spec)
    base = spec["base"]
    if base["digests"] and {path for path, digest in base["digests"].items() if digest} != set(base["sample"]):
        raise LuthierError("base.sample and base.digests are of different tensors.")
    for index, part in enumerate(spec["parts"]):
        most = 8192 + 2 * sum(16 + len(path) for path, _ in part["sites"])
        if len(part["where"]) > most:  # each of its words is compared with each layer
            refuse(f"parts[{index}].where", part["where"], f"at most {most} characters for its sites")
        if len({(path, kind) for path, kind in part["sites"]}) < len(part["sites"]):
            raise LuthierError(f"parts[{index}].sites holds the same site twice.")
