"""Trains in forked children that are killed at given moments, then to the end; run by `test_kill.py`.

Arguments: a JSON run. Prints, as JSON, how each kill left the checkpoints.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from luthier.training import Run, session, train

assert session  # its imports are paid once, before the forks


def child(run: Run) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            train(run, resume=True, progress=False)
            status = 0
        finally:
            os._exit(status)
    return pid


def kill_when(run: Run, moment: Callable[[], bool], delay: float) -> list[str]:
    """Kills a child `delay` seconds after `moment()` holds; the hidden folders that it left behind."""
    pid = child(run)
    while not moment():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the child ended before its moment"
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return [path.name for path in (run.folder / "checkpoints").glob(".*")]


def main() -> None:
    run = Run.from_dict(json.loads(sys.argv[1]))
    draw = random.Random(0)
    writing, metrics = run.folder / "checkpoints" / ".writing", run.folder / "metrics.jsonl"
    left = []
    for attempt in range(6):
        seen = lines(metrics)
        moments = (
            lambda seen=seen: lines(metrics) > seen + 2 and writing.exists(),
            lambda seen=seen: lines(metrics) > seen + 1,
        )
        longest = (0.002, 0.01)[attempt % 2]  # a save takes some milliseconds
        left.append(kill_when(run, moments[attempt % 2], draw.random() * longest))
    status = os.waitstatus_to_exitcode(os.waitpid(child(run), 0)[1])
    print(json.dumps({"left": left, "status": status}))


def lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


if __name__ == "__main__":
    main()
