"""`luthier cache`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Command, Given
from luthier.core.errors import LuthierError, near

if TYPE_CHECKING:
    from luthier.core.cached import Entry

ALL = "all"
ROWS = "rows"
KINDS = ("models", "encoded", "measured", "imported", ROWS)


@dataclass(frozen=True)
class Cache(Command):
    """List what the cache holds, check it byte for byte, or clear some of it.

    It holds models (converted once), encoded rows of runs, what was measured, and imported adapters, in $LUTHIER_CACHE
    (~/.cache/luthier), all of which can be made again; and rows of runs that were given in Python, which cannot.
    """

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier cache",
        "luthier cache check models",
        "luthier cache clear encoded",
        "luthier cache clear all",
    )

    action: Literal["list", "check", "clear"] = "list"
    """What to do: list, check or clear."""
    names: tuple[str, ...] = ()
    """Entries, or kinds of them (models, encoded, measured, imported, rows), or all. What is cleared has to be named;
    all leaves the rows, which runs resume with."""
    json: bool = field(default=False, kw_only=True)
    """Print JSON."""

    def run(self, given: Given) -> None:
        from luthier.core.cached import listed

        if self.action == "clear" and not self.names:
            raise LuthierError("clear what? Name entries or kinds (`luthier cache` lists them), or all.")
        chosen = _chosen(listed(), self.names or (ALL,))
        if self.action == "clear":
            chosen = [e for e in chosen if e.kind != ROWS or {ROWS, e.name} & set(self.names)]
        {"list": self._list, "check": self._check, "clear": self._clear}[self.action](chosen)

    def _list(self, entries: Sequence[Entry]) -> None:
        if self.json:
            say_json([vars(e) | {"path": str(e.path), "about": dict(e.about)} for e in entries])
            return
        rows = [(e.kind, e.name, f"{e.bytes / 1e6:,.1f} MB", _told(e)) for e in entries]
        table(("kind", "name", "size", "what it is"), rows)
        say(f"{sum(e.bytes for e in entries) / 1e6:,.1f} MB in all.")

    def _check(self, entries: Sequence[Entry]) -> None:
        from luthier.core.cached import damage

        found = {f"{e.kind}/{e.name}": damage(e.path, thorough=True) for e in entries if e.path.is_dir()}
        damaged = {name: why for name, why in found.items() if why is not None}
        if self.json:
            say_json(found)
        if damaged:
            told = "; ".join(f"{name}: {why}" for name, why in damaged.items())
            raise LuthierError(f"{len(damaged)} of {len(found)} are damaged, and made again at their next use: {told}.")
        if not self.json:
            say(f"{len(found)} read, none is damaged.")

    def _clear(self, entries: Sequence[Entry]) -> None:
        from luthier.core.cached import remove, sweep

        for entry in entries:
            remove(entry)
        freed = sum(entry.bytes for entry in entries) + sweep([k for k in KINDS if {ALL, k} & set(self.names)])
        if self.json:
            say_json({"removed": [f"{e.kind}/{e.name}" for e in entries], "bytes": freed})
            return
        say(f"{len(entries)} removed, {freed / 1e6:,.1f} MB.")


def _chosen(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """The entries that are named, by their own name or their kind."""
    known = {ALL, *(e.kind for e in entries), *(e.name for e in entries)}
    for name in names:
        if name not in known and name not in KINDS:
            raise LuthierError(f"the cache holds nothing called {name!r}{near(name, known) or '.'}")
    return [e for e in entries if {ALL, e.kind, e.name} & set(names)]


def _told(entry: Entry) -> str:
    about = entry.about
    if "source" not in about:
        return ""
    return f"{about['rows']:,} rows of {about['source']} for {about['task']}, up to {about['most']} tokens"
