"""The trusted side of the sandbox: starts the process, waits no longer than it may, and reads what it says."""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import LuthierError

INSIDE = Path(__file__).with_name("inside.py")
START = 10.0
"""Seconds that an interpreter may take to start on a busy machine, beside the program's own."""


@dataclass(frozen=True)
class Limits:
    """What a program may take."""

    seconds: float = 5.0
    """Of processor time, and of time beside the interpreter's start."""
    memory: int = 512
    """MiB of address space."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 3600:
            raise LuthierError(f"a program may run for {self.seconds:g} seconds; expected above 0 and at most 3,600.")
        if not 64 <= self.memory <= 2**20:
            raise LuthierError(f"a program may take {self.memory} MiB; expected 64 to {2**20:,}.")


LIMITS = Limits()
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
"""All that a program sees of the environment."""


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    passed: bool
    """Whether it ran to its end."""
    reason: str = ""
    """Why it did not: the exception, or the limit."""


def run_program(code: str, limits: Limits = LIMITS) -> Ran:
    """Runs Python code in the sandbox, with the standard library alone; what it prints goes nowhere.

    A program that ends itself (`sys.exit`, `os._exit`) has not passed. One that sets out to cheat can: it runs in the
    interpreter that reports on it; the limits hold for it all the same. Raises `LuthierError` where there is no
    sandbox.
    """
    check_sandbox()
    return _run(code, limits)


@functools.cache
def check_sandbox() -> None:
    """Raises `LuthierError` where programs cannot be shut in; tried once, on a program that breaks every rule."""
    found = _run(BREAKOUT, Limits(5.0, 256)) if sys.platform == "linux" else Ran(False, f"it runs {sys.platform}")
    if not found.passed:
        raise LuthierError(
            f"generated code is run in a sandbox alone, and this machine cannot give one: {found.reason}. It takes "
            "Linux 5.13 or newer with Landlock and seccomp. Score by exact_match instead, or run on such a machine."
        )


BREAKOUT = """
import os, socket, sys, threading

def fails(work):
    try:
        work()
    except (OSError, RuntimeError, MemoryError):
        return
    raise AssertionError("the sandbox let a program " + work.__doc__)

def read(): "read a file"; open("/etc/passwd").read()
def proc(): "read of other processes"; os.listdir("/proc")
def write(): "write a file"; open("/tmp/luthier-sandbox-probe", "w").write("x")
def mode(): "change a file's mode"; os.chmod(os.__file__, 0o644)
def dial(): "open a socket"; socket.socket()
def pair(): "open a pair of sockets"; socket.socketpair()
def fork(): "start a process"; os.fork()
def thread(): "start a thread"; threading.Thread(target=int).start()
def kill(): "send a signal"; os.kill(os.getppid(), 0)
def memory(): "take all memory"; bytearray(1 << 33)
for work in (read, proc, write, mode, dial, pair, fork, thread, kill, memory):
    fails(work)
import decimal, math, re, json, random, collections, heapq, statistics, datetime
"""


def _run(code: str, limits: Limits) -> Ran:
    token = secrets.token_hex(16)
    given = json.dumps({"code": code, "seconds": limits.seconds, "memory": limits.memory << 20, "token": token})
    reading, writing = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="luthier-sandbox-") as empty:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(INSIDE), str(writing)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=empty,
                env=ENVIRONMENT, pass_fds=(writing,), start_new_session=True,
            )  # fmt: skip
            os.close(writing)
            writing = -1
            late = _wait(process, given.encode(), limits)
        return _told(os.read(reading, 8192), token, process.returncode, late, limits)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _wait(process: subprocess.Popen[bytes], given: bytes, limits: Limits) -> bool:
    """Whether it had to be killed."""
    try:
        process.communicate(given, timeout=limits.seconds + START)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    except BaseException:
        process.kill()
        process.wait()
        raise
    return False


def _told(said: bytes, token: str, code: int, late: bool, limits: Limits) -> Ran:
    if late or code == -signal.SIGXCPU or (code == -signal.SIGKILL and not said):
        return Ran(False, f"it ran for more than {limits.seconds:g} seconds")
    try:
        found = json.loads(said.decode().splitlines()[-1])
    except Exception:  # a program may write what it likes
        return Ran(False, f"it ended itself (code {code})" if code >= 0 else f"it was ended by signal {-code}")
    if "unlockable" in found:
        return Ran(False, str(found["unlockable"]))
    if code == 0 and found.get("token") == token:
        return Ran(True)
    return Ran(False, str(found.get("failed", f"it ended itself (code {code})")))
