"""Scorers of other packages, in one process of their own that is started once: some evaluate what a model wrote.

An answer that takes too long, or ends the process, has no score (`ScorerFailed`); a new process takes its place.
"""

from __future__ import annotations

import atexit
import base64
import functools
import json
import os
import pickle
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.data.sandbox.run import ENVIRONMENT, START, Limits

WORKER = Path(__file__).with_name("worker.py")
LIMITS = Limits(seconds=5.0, memory=2048)
"""The time that one answer may take, and the memory of the process with the packages that it imports."""
IMPORT = 120.0
"""Seconds that a package may take to be imported on a busy machine."""
LONGEST = 1 << 16
"""Bytes of a reply that are read."""
KEPT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Variables without which an interpreter may not start; nothing else of the environment is handed on."""
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Libraries start no threads, which the sandbox would refuse."""


class ScorerFailed(Exception):
    """Says why an answer has no score: what its scorer raised, or the limit that it met."""


def score_apart(module: str, function: str, name: str, answer: str, entry: Any) -> float:
    """Returns `float(function(name)(answer, entry))` of an installed module, called in this process' worker.

    Raises `ScorerFailed` where the scorer raises, takes longer than `LIMITS` or ends its process, and `LuthierError`
    where no worker starts.
    """
    return worker(module, function, os.getpid()).score(name, answer, entry)


WORKERS: dict[tuple[str, str, int], Worker] = {}


def worker(module: str, function: str, owner: int) -> Worker:
    """Returns the worker of a process, one for all of its threads; a forked one has its own."""
    key = module, function, owner
    found = WORKERS.get(key)  # no lock, which a fork could copy while it is held; of two new ones, one is kept
    return found if found is not None else WORKERS.setdefault(key, Worker(module, function, owner))


class Worker:
    """A process that scores, started with the first answer and again after one that ended it."""

    def __init__(self, module: str, function: str, owner: int, limits: Limits = LIMITS, slack: float = START) -> None:
        self.module, self.function, self.owner = module, function, owner
        self.limits, self.slack = limits, slack
        self.process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        atexit.register(self.close)

    def score(self, name: str, answer: str, entry: Any) -> float:
        """Returns the score of one answer; raises as `score_apart`."""
        packed = base64.b64encode(pickle.dumps(entry)).decode()
        token = secrets.token_hex(8)  # a reply that an earlier answer left behind does not know it
        with self._turn:
            process = self._running()
            asked = {"token": token, "name": name, "answer": answer, "entry": packed}
            said, late = self._asked(process, asked, self.limits.seconds + self.slack)
            if late or said.get("token") != token:
                self.close()
            if said.get("token") != token:
                raise ScorerFailed(_why(process.returncode, late, self.limits))
        if "failed" in said:
            raise ScorerFailed(str(said["failed"]))
        return float(said["score"])

    def close(self) -> None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was not read any more
                pipe.close()  # type: ignore[union-attr]
        process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.process = self._started()
        return self.process

    def _started(self) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(WORKER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tempfile.gettempdir(),
            env={**ENVIRONMENT, **ALONE, **kept}, start_new_session=True,
        )  # fmt: skip
        path = [each for each in sys.path if os.path.isabs(each)]
        given = {"path": path, "module": self.module, "function": self.function, "seconds": self.limits.seconds}
        given |= {"slack": self.slack, "memory": self.limits.memory << 20}
        said, late = self._asked(self.process, given, IMPORT)
        if not said.get("ready"):
            self.close()
            why = "it takes too long" if late else said.get("failed", "it ended")
            raise LuthierError(f"the process that scores with {self.module} does not start: {why}.")
        _tell_unlocked(self.module, str(said.get("unlocked", "")))
        return self.process

    def _asked(self, process: subprocess.Popen[bytes], line: dict[str, Any], seconds: float) -> tuple[Any, bool]:
        """(The reply, whether it was too late); an empty reply where the process ended."""
        try:
            return _exchanged(process, json.dumps(line).encode() + b"\n", seconds)
        except BaseException:  # an interrupt: its reply would be taken for the next one
            self.close()
            raise


def _exchanged(process: subprocess.Popen[bytes], line: bytes, seconds: float) -> tuple[dict[str, Any], bool]:
    late = threading.Event()
    timer = threading.Timer(seconds, lambda: (late.set(), process.kill()))
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(line)  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        return _read(process.stdout.readline(LONGEST)), late.is_set()  # type: ignore[union-attr]
    except OSError:
        return {}, late.is_set()
    finally:
        timer.cancel()


def _read(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except Exception:  # an answer may have written there what it liked
        return {}
    return found if isinstance(found, dict) else {}


def _why(code: int, late: bool, limits: Limits) -> str:
    if late or code in _timers():
        return f"its scorer ran for more than {limits.seconds:g} seconds"
    if code >= 0:
        return f"its scorer ended its process (code {code})"
    return f"its scorer's process was ended (signal {-code})"


def _timers() -> tuple[int, ...]:
    return () if sys.platform == "win32" else (-signal.SIGPROF, -signal.SIGALRM)


@functools.cache
def _tell_unlocked(module: str, why: str) -> None:
    if why:
        warnings.warn(
            f"answers are scored by {module} in a process of its own, with a limit of time alone: {why}.", stacklevel=2
        )
