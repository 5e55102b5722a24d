"""A page of the documentation, run as a reader would run it: block by block, in one folder, at small size."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from luthier.cli import main
from luthier.serving.http import server
from luthier.serving.studio import app as studio

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.M | re.S)
NOT_RUN = {"pip", "make", "docker"}
"""Commands that set up what the tests stand on, or need a daemon."""
SERVERS = {"serve": (server, "Server"), "studio": (studio, "Listening")}
"""Commands that go on, with the class of uvicorn's servers that they start."""
SMALL = {
    "train": {"--epochs": None, "--steps": "2", "--batch": "4"},
    "compare": {"--epochs": None, "--steps": "1", "--batch": "4", "--seeds": "1", "--timing": "0", "--others": "0"},
    "evaluate": {"--limit": "6", "--max-new-tokens": "4"},
    "generate": {"--max-new-tokens": "4"},
    "measure": {"--no-crosscheck": ""},
}
"""Flags of a command at small size: another value, or None for none."""

IN_PLACE = {"--tune": "1", "--budget": "20%", "--most-seeds": "2"}
"""Values of flags wherever they are given: most of a tiny model are its tables, so a budget takes a larger share."""


@dataclass
class Reader:
    """Somebody who types what a page says, in the folder where Python runs now."""

    names: dict = field(default_factory=dict)
    """What the Python blocks have defined."""
    port: int = field(default_factory=lambda: free_port())
    running: tuple[uvicorn.Server, threading.Thread] | None = None
    """The server that a block has started."""

    def read(self, page: Path) -> int:
        """Runs every block of the page in order; how many were run."""
        found = list(FENCE.finditer(page.read_text(encoding="utf-8")))
        try:
            return sum(self.run(page, each["language"], each["title"], each["text"]) for each in found)
        finally:
            self.end()

    def run(self, page: Path, language: str, title: str | None, text: str) -> bool:
        """Runs a block, whether it is one that runs."""
        text = text.replace("8000", str(self.port))
        if title is not None:
            Path(title).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, str(page), "exec"), self.names)
        elif language == "console":
            for line in re.findall(r"^\$ (.*)$", text.replace("\\\n", " "), re.M):
                self.type(shlex.split(line, comments=True))
        return language in ("python", "console")

    def type(self, words: Sequence[str]) -> None:
        """Runs a command line."""
        command, *rest = words
        known: dict[str, Callable[[list[str]], None]] = {
            "luthier": self.luthier,
            "cp": copy,
            "uvicorn": self.uvicorn,
            "curl": ask,
        }
        if command not in NOT_RUN:
            known[command](rest)

    def luthier(self, words: list[str]) -> None:
        """A command of ours at small size; a server goes on until the page ends."""
        if words[0] in SERVERS:
            self.serve(words, *SERVERS[words[0]])
        else:
            assert main(small(words)) == 0, words

    def serve(self, words: list[str], module: Any, name: str) -> None:
        """`luthier serve` or `luthier studio` on a thread; `module.name` is the server that it starts."""
        started: list[uvicorn.Server] = []

        class Recorded(getattr(module, name)):
            async def startup(self, sockets=None) -> None:
                await super().startup(sockets)
                started.append(self)

        words = words if "--port" in words else [*words, "--port", str(self.port)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, Recorded)
            self.background(lambda: main(words), started)

    def uvicorn(self, words: list[str]) -> None:
        """`uvicorn app:app --port N` on a thread; the module is a file that the page has written."""
        names: dict = {}
        module, _, name = words[0].partition(":")
        exec(compile(Path(f"{module}.py").read_text(encoding="utf-8"), f"{module}.py", "exec"), names)
        made = uvicorn.Server(uvicorn.Config(names[name], port=self.port, log_level="warning"))
        self.background(made.run, [made])

    def background(self, run: Callable[[], object], servers: list[uvicorn.Server]) -> None:
        """Starts a server and waits until it takes requests; it ends with the page, or when the next one starts."""
        self.end()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while not (servers and servers[0].started):
            assert thread.is_alive() and time.monotonic() < end, "the server did not start"
            time.sleep(0.02)
        self.running = servers[0], thread

    def end(self) -> None:
        """Ends the server that runs."""
        if self.running is not None:
            running, thread = self.running
            running.should_exit, self.running = True, None
            thread.join(15)
            assert not thread.is_alive(), "the server does not end"


def small(words: Sequence[str]) -> list[str]:
    """A command line with the flags of `SMALL` in place of its own; --help and --dry-run stay."""
    made, changes = list(words), SMALL.get(words[0], {})
    for flag, value in changes.items():
        if flag in made:
            at = made.index(flag)
            del made[at : at + 2]
        if value is not None:
            made += [flag, value] if value else [flag]
    for flag in IN_PLACE.keys() & set(made):
        made[made.index(flag) + 1] = IN_PLACE[flag]
    return made


def copy(words: list[str]) -> None:
    """`cp FILE… FOLDER`, from the root of the repository."""
    for each in words[:-1]:
        shutil.copy(ROOT / each, words[-1])


def ask(words: list[str]) -> None:
    """`curl --get URL --data-urlencode KEY=VALUE`."""
    url = next(word for word in words if word.startswith("http"))
    key, _, value = words[words.index("--data-urlencode") + 1].partition("=")
    answer = httpx.get(url, params={key: value}, timeout=30)
    assert answer.status_code == 200, answer.text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return made.getsockname()[1]
