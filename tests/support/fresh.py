"""Fresh Pythons at once: each is forked from one that has imported what takes seconds, and nothing of Luthier.

`run` does what `subprocess.run([sys.executable, *words])` does, for what needs a process that imports Luthier anew:
other folders of methods, another copy of the package, several ranks, kills. `python` is a program to give to
`subprocess.Popen` in place of `sys.executable`, for processes that go on and start others. What a process imports, or
how it is started, is tested on real ones (`test_imports.py`, `test_startup.py`, `test_launch.py`).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

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


@functools.cache
def python() -> str:
    """The path of a program that is called as Python is: a fork runs, with what it is given to read and to write, gets
    its signals and ends with it. What it starts by `sys.executable` is such a fork again."""
    folder = Path(tempfile.mkdtemp(prefix="forked-"))
    parent, program = _parent(), folder / "python"
    assert parent.stdin is not None and parent.stdout is not None
    program.write_text(f"#!{sys.executable} -SE\nPLACE = {str(folder / 'socket')!r}\n{PROGRAM}", encoding="utf-8")
    program.chmod(0o755)
    parent.stdin.write(json.dumps({"listen": str(program)}) + "\n")
    parent.stdin.flush()
    assert parent.stdout.readline()
    return str(program)


PROGRAM = """
import json, os, signal, socket, sys
forked, early = None, []
def told(number, frame):
    if forked is None:
        early.append(number)
        return
    try:
        os.kill(forked, number)
    except ProcessLookupError:  # it has ended
        pass
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, told)
here = socket.socket(socket.AF_UNIX)
here.connect(PLACE)
asked = json.dumps({"words": sys.argv[1:], "env": {**os.environ}, "cwd": os.getcwd()}).encode()
socket.send_fds(here, [len(asked).to_bytes(8, "big")], [0, 1, 2])
here.sendall(asked)
forked = int.from_bytes(here.recv(8), "big")
for number in early:
    told(number, None)
code = int.from_bytes(here.recv(8), "big", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


# --- in that process --------------------------------------------------------------------------------


def _serve() -> None:
    asking, telling = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's & has switched off
    sys.path.pop(0)  # this folder
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert not any(name.partition(".")[0] == "luthier" for name in sys.modules)
    gc.collect()
    gc.freeze()
    for line in asking:
        asked = json.loads(line)
        if "listen" in asked:
            _listen(Path(asked["listen"]), asking, telling)
            continue
        children = []
        for more in _ranks(asked["ranks"]):
            if (pid := os.fork()) == 0:
                asking.close()
                telling.close()
                _become({**asked, "env": {**asked["env"], **more}})
            children.append(pid)
        print(_ended(children), file=telling, flush=True)


def _listen(program: Path, asking: IO[str], telling: IO[str]) -> None:
    """A process that forks one for each call of the program, until this one ends."""
    place = socket.socket(socket.AF_UNIX)
    place.bind(str(program.parent / "socket"))
    place.listen(64)
    parent = os.getpid()
    if os.fork() == 0:
        asking.close()
        telling.close()
        while os.getppid() == parent:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            if select.select([place], [], [], 1)[0]:
                call = place.accept()[0]
                if os.fork() == 0:
                    place.close()
                    _answer(call, program)
                call.close()
        shutil.rmtree(program.parent, ignore_errors=True)
        os._exit(0)
    place.close()
    print("listening", file=telling, flush=True)


def _answer(call: socket.socket, program: Path) -> None:
    """Runs what one call asks for; says which process that is and how it ended. It is killed when the caller is."""
    length, handles, *_ = socket.recv_fds(call, 8, 3)
    asked = json.loads(call.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
    if (pid := os.fork()) == 0:
        call.close()
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        sys.executable = str(program)
        _become(asked)
    for handle in handles:
        os.close(handle)
    call.sendall(pid.to_bytes(8, "big"))
    ended = os.pidfd_open(pid)
    if call in select.select([ended, call], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        call.sendall(code.to_bytes(8, "big", signed=True))
    os._exit(0)


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
        if pid not in children:  # the one that listens
            continue
        children.remove(pid)
        if not code and (code := os.waitstatus_to_exitcode(status)):
            for other in children:
                os.kill(other, signal.SIGKILL)
    return code


def _become(asked: dict[str, Any]) -> None:
    """Runs the words as a Python of its own would, and exits."""
    if "folder" in asked:
        signal.alarm(SECONDS)
        _opened(Path(asked["folder"]))
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


def _opened(folder: Path) -> None:
    """Reads from a file `in`, writes to `out` and `err`."""
    for number, (name, flags) in enumerate({"in": os.O_RDONLY, "out": os.O_WRONLY, "err": os.O_WRONLY}.items()):
        handle = os.open(folder / name, flags | os.O_CREAT | (os.O_APPEND if number else 0))
        os.dup2(handle, number)
        os.close(handle)


def _python_path() -> list[str]:
    return [os.path.abspath(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]


if __name__ == "__main__":
    _serve()
