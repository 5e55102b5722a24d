"""`luthier verify`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Command, Given


@dataclass(frozen=True)
class Verify(Command):
    """Check that an adapter is what the owner of a key signed: no file changed, missing or added."""

    examples: ClassVar[tuple[str, ...]] = ("luthier verify run --key author.pub",)

    adapter: str
    """A run folder, or an adapter's."""
    key: Path = field(kw_only=True)
    """Public key of whoever signed it, in PEM."""

    def run(self, given: Given) -> None:
        from luthier.interop.sign import verify

        say(f"{verify(self.adapter, self.key)} is as the owner of {self.key} signed it.")
