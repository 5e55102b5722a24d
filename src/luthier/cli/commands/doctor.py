"""`luthier doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.cli.output import say, say_json, table, tell
from luthier.cli.parse import Command, Given


@dataclass(frozen=True)
class Doctor(Command):
    """Show versions, devices, the cache, and what each extra would bring.

    It looks and changes nothing. Packages that are older than what Luthier declares are told as problems.
    """

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = ("luthier doctor", "luthier doctor --json")

    json: bool = field(default=False, kw_only=True)
    """Print JSON."""

    def run(self, given: Given) -> None:
        from luthier.cli.doctor import looked_at

        found = looked_at()
        if self.json:
            say_json(found)
            return
        _versions(found["versions"])
        _machine(found)
        table(
            ("extra", "installed", "brings", "packages"),
            [
                (name, "yes" if each["installed"] else "no", each["brings"], _listed(each["packages"]))
                for name, each in found["extras"].items()
            ],
            "Extras: pip install 'luthier[NAME]'",
        )
        for problem in found["problems"]:
            tell("problem", problem)


def _versions(versions: dict[str, str | None]) -> None:
    say(", ".join(f"{name} {version or 'missing'}" for name, version in versions.items()))


def _machine(found: dict[str, Any]) -> None:
    for device in found["devices"]:
        memory = f", {device['memory_bytes'] / 2**30:.1f} GiB" if device["memory_bytes"] else ""
        say(f"{device['name']}: {device['what']}{memory}; fast in {', '.join(device['fast_dtypes'])}")
    cache = found["cache"]
    say(f"cache: {cache['folder']}, {cache['bytes'] / 1e9:.2f} GB")
    for name, each in found["variables"].items():
        say(f"{name}: {'set' if each['set'] else 'not set'} ({each['what']})")
    say()


def _listed(packages: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" if version else name for name, version in packages.items())
