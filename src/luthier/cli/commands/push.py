"""`luthier push`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Given, Telling


@dataclass(frozen=True)
class Push(Telling):
    """Push an adapter to the model hub.

    Exactly its three files go up, in one commit, after their checksums were verified. Log in with `hf auth login`.
    """

    group: ClassVar[str] = "Ship"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier push run user/name --dry-run",
        "luthier push run/adapter user/name --private",
    )

    adapter: str
    """The adapter: a run folder or an adapter folder."""
    repo: str
    """The repository, as user/name; it is created if it does not exist."""
    private: bool = field(default=False, kw_only=True)
    """Create a private repository; an existing public one of that name is refused."""
    dry_run: bool = field(default=False, kw_only=True)
    """Show what would be uploaded, without contacting the hub."""

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.interop.push import CARD, parcel, push

        made = parcel(self.adapter, self.repo)
        for name, data in made.files.items():
            say(f"{name:<20}  {len(data):>12,} bytes")
        for told in made.tells:
            say(f"Note: {told}.")
        if self.dry_run:
            say(made.files[CARD].decode().split("\n---\n", 1)[0].removeprefix("---\n"))
            say(f"Nothing was sent; without --dry-run, these files go to {self.repo}.")
        url = None if self.dry_run else push(self.adapter, self.repo, private=self.private)
        if url is not None:
            say(f"{url} holds the adapter.")
        sizes = {name: len(data) for name, data in made.files.items()}
        return {"repository": self.repo, "bytes": sizes, "notes": list(made.tells), "sent_to": url and str(url)}
