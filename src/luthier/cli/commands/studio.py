"""`luthier studio`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from luthier.cli.commands.serve import api_key, need_extra
from luthier.cli.output import say, tell
from luthier.cli.parse import Command, Given
from luthier.core.errors import LuthierError
from luthier.core.paths import path_of


@dataclass(frozen=True)
class Studio(Command):
    """Fine-tune on a page in the browser: choose, look before the start, launch, watch, compare, chat, export.

    The page runs this command line: a run that is started there is a run folder like any other, and its command is
    shown. It reads the folders that are named here and writes below --runs. Ctrl-C ends it and stops what it started;
    runs can be resumed.
    """

    group: ClassVar[str] = "Use"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier studio",
        "luthier studio data models --runs runs --port 8200",
        "LUTHIER_API_KEY=secret luthier studio --host 0.0.0.0",
    )

    folders: tuple[Path, ...] = ()
    """Folders with data and models, which are read. Default: the current one."""
    runs: Path = field(default=Path("runs"), kw_only=True)
    """The folder of the runs; made if it is not there."""
    host: str = field(default="127.0.0.1", kw_only=True)
    """Address of the page. The default takes calls from this machine only; another one needs a key."""
    port: int = field(default=8200, kw_only=True)
    """Port of the page (0: a free one)."""
    api_key: str | None = field(default=None, kw_only=True)
    """Key that the page asks for. Default: $LUTHIER_API_KEY; without either, no key."""
    allowed_host: tuple[str, ...] = field(default=(), kw_only=True)
    """A further name that the page may be called by, as behind a proxy; may be repeated."""
    at_once: int = field(default=1, kw_only=True)
    """The number of runs that may be trained at a time."""

    def stopped(self, given: Given) -> str:
        return "runs under way were stopped, and can be resumed"

    def run(self, given: Given) -> None:
        need_extra()

        from luthier.serving.http.guard import LOOPBACK, Guard
        from luthier.serving.http.listening import address, bind
        from luthier.serving.studio import app
        from luthier.serving.studio.shelf import Shelf

        folders = tuple(path_of(each).resolve() for each in self.folders or (Path("."),))
        for folder in folders:
            if not folder.is_dir():
                raise LuthierError(f"there is no folder {folder}; name folders with data and models.")
        if len({folder.name for folder in folders}) < len(folders):
            raise LuthierError("two folders have one name, by which the page tells them apart; name one above both.")
        if self.at_once < 1:
            raise LuthierError(f"--at-once is {self.at_once}; expected 1 or more.")
        key, local = api_key(self.api_key), self.host in LOOPBACK
        if not local and key is None:
            raise LuthierError(f"everyone who reaches {self.host} could start commands; give a key (--api-key).")
        runs = path_of(self.runs).resolve()
        runs.mkdir(parents=True, exist_ok=True)
        with bind(self.host, self.port) as bound:
            hosts = (*LOOPBACK, *self.allowed_host) if local or self.allowed_host else ()
            where = address(self.host, bound)
            guard = Guard(key, hosts, open_paths=app.OPEN)
            if key is None:
                tell("note", "no key is set (--api-key): every program on this machine may use the page.")
            made = app.Studio(Shelf(folders, runs), self.at_once)
            app.serve(made, guard, bound, lambda: say(f"Studio at {where}; Ctrl-C ends it. Runs go to {runs}."))
