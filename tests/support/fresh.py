"""Fresh Pythons at once: each is forked from one that has imported what takes seconds, and nothing of Luthier.

`run` does what `subprocess.run([sys.executable, *words])` does, for what needs a process that imports Luthier anew:
other folders of methods, another copy of the package, several ranks, kills. What a process imports, or how it is
started, is tested on real ones (`test_imports.py`, `test_startup.py`, `test_launch.py`).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HEAVY = (
    "torch", "torch.distributed.fsdp", "transformers", "transformers.trainer", "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2", "accelerate", "datasets",
    "safetensors.torch", "matplotlib.figure", "rich.console", "cyclopts", "pytest",
)  # fmt: skip
SECONDS = 300
"""After which a process is killed."""


def run(
    *words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, stdin: str = "", ranks: int = 0
) -> subprocess.CompletedProcess[str]:
    """What a Python with these words (`-c CODE`, `-m MODULE` or a script, then arguments) returned and wrote.

    With `ranks` so many processes that meet as torchrun's do; the first one's failure ends the others.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in").write_text(stdin, encoding="utf-8")
        asked = {"words": list(map(str, words)), "env": {**(os.environ if env is None else env)}, "ranks": ranks}
        parent = _parent()
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdin.write(json.dumps({**asked, "cwd": str(cwd or Path.cwd()), "folder": temporary}) + "\n")
        parent.stdin.flush()
        code = int(parent.stdout.readline())
        out, err = ((folder / name).read_text(encoding="utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess(asked["words"], code, out, err)


@functools.cache
def _parent() -> subprocess.Popen[str]:
    """The process that is forked, for this one; it ends when this one does."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # which is read when torch is loaded
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, __file__], env=alone, text=True, **pipes)


# --- in that process --------------------------------------------------------------------------------


def _serve() -> None:
    asking, telling = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.pop(0)  # this folder
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert not any(name.partition(".")[0] == "luthier" for name in sys.modules)
    gc.collect()
    gc.freeze()
    for line in asking:
        asked = json.loads(line)
        children = []
        for more in _ranks(asked["ranks"]):
            if (pid := os.fork()) == 0:
                asking.close()
                telling.close()
                _become({**asked, "env": {**asked["env"], **more}})
            children.append(pid)
        print(_ended(children), file=telling, flush=True)


def _ranks(count: int) -> Iterator[dict[str, str]]:
    """The variables of each process."""
    if not count:
        yield {}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    yield from ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))


def _ended(children: list[int]) -> int:
    """The first code that is not 0, once all have ended."""
    code = 0
    while children:
        pid, status = os.wait()
        children.remove(pid)
        if not code and (code := os.waitstatus_to_exitcode(status)):
            for other in children:
                os.kill(other, signal.SIGKILL)
    return code


def _become(asked: dict[str, Any]) -> None:
    """Runs the words as a Python of its own would, and exits."""
    signal.alarm(SECONDS)
    folder = Path(asked["folder"])
    for number, (name, flags) in enumerate({"in": os.O_RDONLY, "out": os.O_WRONLY, "err": os.O_WRONLY}.items()):
        handle = os.open(folder / name, flags | os.O_CREAT | (os.O_APPEND if number else 0))
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    own = _python_path()
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.path[:] = [*_python_path(), *(each for each in sys.path if each not in own)]
    os.chdir(asked["cwd"])
    first, *rest = asked["words"]
    if first == "-c":
        sys.path.insert(0, "")
        sys.argv = [first, *rest[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.path.insert(0, asked["cwd"])
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(first).parent))
        sys.argv = asked["words"]
        runpy.run_path(first, run_name="__main__")
    sys.exit()


def _python_path() -> list[str]:
    return [os.path.abspath(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]


if __name__ == "__main__":
    _serve()
