"""Commands that run beside the studio: each a `luthier` of its own, whose output is kept and which can be stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.serving.http.refusal import Refusal

LINES = 200
"""Lines of output that are kept."""
LARGEST = 8 * 2**20
"""Bytes of JSON that a command may tell."""
PIECE = 2**14
LOOKS = 2
"""Commands that are waited for at a time."""
LEAVE = 20.0
"""Seconds that commands have to save when the studio ends."""


def apart() -> dict[str, Any]:
    """Returns how a process is started so that Ctrl-C in the terminal does not reach it, and `interrupt` does."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def interrupt() -> int:
    """Returns the signal that ends a command as Ctrl-C does; on Windows groups of their own are sent Ctrl-Break."""
    return signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT


class Job:
    """One command: its words, what it says, how it ended."""

    def __init__(self, process: asyncio.subprocess.Process, words: Sequence[str]) -> None:
        self.process, self.words = process, list(words)
        self.lines: deque[str] = deque(maxlen=LINES)
        self.out = bytearray()
        self.ended = asyncio.ensure_future(self._read())

    @classmethod
    async def start(cls, words: Sequence[str], folder: Path, environment: Mapping[str, str] = {}) -> Job:
        """Starts `luthier WORDS` in a folder, in a session of its own: Ctrl-C in the terminal is the studio's."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "luthier", *words,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=folder, env={**os.environ, **environment}, **apart(),
        )  # fmt: skip
        return cls(process, words)

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return not self.ended.done()

    @property
    def code(self) -> int | None:
        """The exit code, once it has ended."""
        return self.process.returncode if self.ended.done() else None

    def stop(self) -> None:
        """Asks it to end, as Ctrl-C does; a run of training then says how to continue."""
        with suppress(ProcessLookupError):
            self.process.send_signal(interrupt())

    async def end(self, patience: float = LEAVE) -> None:
        """Stops it, and kills it where it does not end in time."""
        self.stop()
        await asyncio.wait((self.ended,), timeout=patience)
        if self.runs:
            self.process.kill()
            await self.ended

    def told(self) -> Any:
        """Returns the JSON that it told; raises `Refusal` with its own words where it failed."""
        if self.code:
            raise Refusal(400, self.trouble() or f"the command ended with {self.code}.", code="command_failed")
        try:
            return json.loads(self.out)
        except (ValueError, RecursionError):
            raise Refusal(500, "the command told no JSON.", code="command_failed") from None

    def trouble(self) -> str | None:
        """Returns the line in which it says what was wrong."""
        said = [line.removeprefix("error: ") for line in self.lines if line.startswith("error: ")]
        return said[-1] if said else (self.lines[-1] if self.code and self.lines else None)

    async def _read(self) -> None:
        await asyncio.gather(self._take(self.process.stdout, False), self._take(self.process.stderr, True))
        await self.process.wait()

    async def _take(self, stream: Any, lines: bool) -> None:
        rest = b""
        while part := await stream.read(PIECE):
            if not lines:
                self.out += part[: max(0, LARGEST - len(self.out))]
            *whole, rest = (rest + part).split(b"\n")
            if lines:
                self.lines += [line.decode(errors="replace").rstrip() for line in whole]
            rest = rest[-PIECE:]
        if lines and rest:
            self.lines.append(rest.decode(errors="replace"))


class Jobs:
    """The commands under way, by what they are for: `train NAME`, `export NAME`, `chat`."""

    def __init__(self, folder: Path, most: int) -> None:
        """`most` runs of training go on at a time."""
        self.folder, self.most = folder, most
        self.known: dict[str, Job] = {}
        self._lock, self._looks = asyncio.Lock(), asyncio.Semaphore(LOOKS)

    def running(self, kind: str) -> list[str]:
        """Returns the names of those of a kind that have not ended."""
        return [name.partition(" ")[2] for name, job in self.known.items() if job.runs and name.startswith(f"{kind} ")]

    async def begin(self, name: str, words: Sequence[str], environment: Mapping[str, str] = {}) -> Job:
        """Starts a command under a name; raises `Refusal` where that one runs, or as many as may."""
        kind = name.partition(" ")[0]
        async with self._lock:
            if name in self.known and self.known[name].runs:
                raise Refusal(409, f"{name} is under way already.", code="under_way")
            others = self.running(kind)
            if kind == "train" and len(others) >= self.most:
                message = (
                    f"{', '.join(others)} is being trained; stop it, wait, or start the studio with a higher --at-once."
                )
                raise Refusal(409, message, code="under_way")
            self.known[name] = await Job.start(words, self.folder, environment)
            return self.known[name]

    async def result(self, words: Sequence[str], patience: float = 600.0) -> Any:
        """Returns the JSON of a command that ends by itself; one that nobody waits for any more is ended."""
        async with self._looks:
            return await self._result(words, patience)

    async def _result(self, words: Sequence[str], patience: float) -> Any:
        job = await Job.start(words, self.folder)
        try:
            await asyncio.wait_for(asyncio.shield(job.ended), patience)
            return job.told()
        except asyncio.TimeoutError:
            raise Refusal(504, f"the command took longer than {patience:g} s.", code="command_failed") from None
        finally:
            if job.runs:
                await job.end(2.0)

    async def close(self) -> None:
        """Stops all; runs of training can be resumed."""
        await asyncio.gather(*(job.end() for job in self.known.values() if job.runs))
