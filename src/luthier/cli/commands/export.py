"""`luthier export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Command, Given


@dataclass(frozen=True)
class Export(Command):
    """Write an adapter in another library's format.

    Low-rank forms (lora, wegeft, …) are exact. Others are truncated to --rank by SVD, within --tolerance.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier export run out --model smollm2-135m",
        "luthier export run out --model path/to/model --rank 16 --tolerance 0.05",
    )

    adapter: str
    """A run folder, or an adapter's."""
    out: str
    """The folder to write."""
    to: str = field(default="peft", kw_only=True)
    """The format."""
    model: str | None = field(default=None, kw_only=True)
    """The base that it was fitted on (none: the name in the adapter)."""
    rank: int | None = field(default=None, kw_only=True)
    """Rank for forms that are not of low rank."""
    tolerance: float = field(default=0.0, kw_only=True)
    """Largest relative error of a layer that truncation may make."""

    def run(self, given: Given) -> None:
        from luthier.cli.adapter import read_adapter
        from luthier.cli.base import base_of
        from luthier.core.export import export
        from luthier.core.files import must_be_free

        folder, spec = read_adapter(self.adapter)
        out = must_be_free(self.out)
        base = base_of(self.model, spec).model
        lost = export(folder, out, to=self.to, base=base, rank=self.rank, tolerance=self.tolerance)
        say(f"{out} holds the adapter in the format of {self.to}.")
        if lost:
            worst = max(lost, key=lost.__getitem__)
            say(f"{len(lost)} layers were truncated; the largest relative error is {lost[worst]:.2%} ({worst}).")
