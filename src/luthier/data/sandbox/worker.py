"""The process that scores answers with a package's own scorers: it imports the package, locks itself in, and serves.

Only the standard library; nothing of luthier. Reads lines of JSON from stdin: first what is to be imported and the
limits, then one answer a line; writes a line for each to what stdout was. Ends when stdin does.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import pickle
import runpy
import signal
import sys
from typing import Any

lock = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside.py"))["lock"]
PACKAGES = ("site-packages", "dist-packages")
"""Folders that scorers may read: those of installed packages, which import parts of themselves late."""


def main() -> None:
    """Imports, locks, serves."""
    null = os.open(os.devnull, os.O_RDWR)
    asked, told = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(null, 0)  # what a scorer reads or prints stays out of the replies
    os.dup2(null, 1)
    given = json.loads(asked.readline())
    sys.path[:] = given["path"]
    try:
        module = importlib.import_module(given["module"])
        make = getattr(module, given["function"])
    except Exception as error:
        _tell(told, {"failed": _said(error)})
        return
    _tell(told, {"ready": True, "unlocked": _locked(given["memory"], module)})
    made: dict[str, Any] = {}
    for line in asked:
        request = json.loads(line)
        _tell(told, {"token": request["token"], **_scored(request, make, made, given)})


def _locked(memory: int, module: Any) -> str:
    """Why there are no limits of files, network and memory; empty where there are."""
    _default_signals()
    installed = [each for each in sys.path if os.path.basename(each) in PACKAGES]
    try:
        lock(None, memory, [*installed, os.path.dirname(os.path.abspath(module.__file__))])
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def _scored(request: dict[str, Any], make: Any, made: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    try:
        name = request["name"]
        if name not in made:
            made[name] = make(name)
        entry = pickle.loads(base64.b64decode(request["entry"]))  # the parent's own object
        _timers(given["seconds"], given["slack"])
        return {"score": float(made[name](request["answer"], entry))}
    except BaseException as error:  # SystemExit too: scorers raise whatever they like
        return {"failed": _said(error)}
    finally:
        _timers(0, 0)


def _default_signals() -> None:
    """Timers end the process, whatever the parent made of their signals."""
    if sys.platform != "win32":
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _timers(seconds: float, slack: float) -> None:
    """The system ends the process after `seconds` of processor time, or `slack` later by the clock; 0 takes it back.

    The parent waits no longer either; this is for a process that its parent has left.
    """
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds + slack)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _tell(told: int, found: dict[str, Any]) -> None:
    os.write(told, json.dumps(found).encode() + b"\n")


if __name__ == "__main__":
    main()
