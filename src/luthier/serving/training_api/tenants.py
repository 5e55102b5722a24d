"""Who asks: tenants by their keys, and what each may have."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from luthier.core.contracts.component import check_fields, known_fields
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.toml import tomllib

OWN = "tml-"
"""What the keys of the official client begin with; it refuses to send others."""


@dataclass(frozen=True)
class Quota:
    """What a tenant may have at a time, and a day."""

    adapters: int = 16
    """Models in training at a time."""
    waiting: int = 512
    """Requests that wait at a time."""
    bytes: int = 2**28
    """Bytes of their bodies together."""
    tokens: int | None = None
    """Tokens a day (UTC) that are trained on, read as prompts or asked for as answers; None: any."""


@dataclass(frozen=True)
class Tenant:
    """Somebody whose sessions, models and checkpoints no other tenant sees."""

    name: str
    quota: Quota = Quota()


class Tenants:
    """From a key to its tenant."""

    def __init__(self, api_key: str | None, listed: Mapping[str, tuple[str, Quota]] = {}) -> None:
        """`listed` are (key, quota) by the tenant's name; without any, whoever has `api_key` is one tenant, and without
        that, everybody who sends a key is the tenant of that key."""
        self._known = {_digest(key): Tenant(name, quota) for name, (key, quota) in listed.items()}
        self._open = api_key is None and not listed
        if api_key is not None and not listed:
            self._known[_digest(api_key)] = Tenant("default")

    def of(self, key: str | None) -> Tenant | None:
        """Returns the tenant of a key; None for a key that is nobody's."""
        if self._open:
            return Tenant("everyone" if key is None else f"key-{_digest(key)[:16]}")
        mark = _digest(key or "")
        return next((each for known, each in self._known.items() if hmac.compare_digest(known, mark)), None)


def read_tenants(file: str | Path) -> dict[str, tuple[str, Quota]]:
    """Returns (key, quota) by tenant, from TOML with a table for each: `key`, and what `Quota` has."""
    found: dict[str, tuple[str, Quota]] = {}
    with guarded(f"{file} cannot be read as TOML"):
        listed = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    for name, table in listed.items():
        if not isinstance(table, dict) or not isinstance(table.get("key"), str) or not table["key"].strip():
            raise LuthierError(f"{file}: the tenant {name!r} needs a table with a key, as [{name}] key = 'tml-…'.")
        found[name] = table["key"], _quota(f"{file}, {name}", {k: v for k, v in table.items() if k != "key"})
    keys = [key for key, _ in found.values()]
    if not keys or len(set(keys)) < len(keys):
        raise LuthierError(f"{file}: {'two tenants have one key' if keys else 'there are no tenants in it'}.")
    return found


def _quota(where: str, given: dict[str, Any]) -> Quota:
    try:
        made = Quota(**known_fields(Quota, given))
        check_fields(made)
    except LuthierError as error:
        raise LuthierError(f"{where}: {error}") from error
    if low := [f.name for f in fields(Quota) if (value := getattr(made, f.name)) is not None and value < 1]:
        raise LuthierError(f"{where}: {low[0]} is {getattr(made, low[0])}; expected 1 or more.")
    return made


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
