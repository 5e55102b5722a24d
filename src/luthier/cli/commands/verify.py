"""`luthier verify`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Given, Telling


@dataclass(frozen=True)
class Verify(Telling):
    """Check that an adapter is what the owner of a key signed: no file changed, missing or added."""

    group: ClassVar[str] = "Ship"
    examples: ClassVar[tuple[str, ...]] = ("luthier verify run --key author.pub",)

    adapter: str
    """A run folder, or an adapter's."""
    key: Path = field(kw_only=True)
    """Public key of whoever signed it, in PEM."""

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.interop.sign import verify

        folder = verify(self.adapter, self.key)
        say(f"{folder} is as the owner of {self.key} signed it.")
        return {"adapter": str(folder), "signed_by": str(self.key)}
