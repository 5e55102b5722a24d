"""The command line, called in this process or in another, and what it works on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import fresh
from support.cli_tools import ROWS, Outcome, save_adapter, save_llama, write_rows


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", ROWS)


@pytest.fixture
def call(capsys):
    """`call(*words)`: the command line in this process."""

    def run(*words: object) -> Outcome:
        from luthier.cli import main

        capsys.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def shell(tmp_path):
    """`shell(*words, **environment)`: the command line as a user starts it."""

    def run(*words: object, stdin: str = "", **environment: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "luthier", *map(str, words)],
            capture_output=True,
            text=True,
            input=stdin,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


SESSION = """
import contextlib, io, json, sys
from luthier.cli import main
done = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    done.append([code, out.getvalue(), err.getvalue()])
json.dump(done, sys.stdout)
"""


@pytest.fixture
def session(tmp_path):
    """`session(lines, **environment)`: several command lines in one fresh process, which spares its imports."""

    def run(*lines: list, **environment: str) -> list[Outcome]:
        asked = json.dumps([[str(word) for word in line] for line in lines])
        done = fresh.run("-c", SESSION, stdin=asked, cwd=tmp_path, env={**os.environ, **environment})
        assert done.returncode == 0, done.stderr
        return [Outcome(*each) for each in json.loads(done.stdout)]

    return run


@pytest.fixture
def adapter(llama, tmp_path) -> Path:
    """A folder with a WeGeFT adapter on the tiny model whose parameters are not zero."""
    import luthier as lt
    from luthier.models import load

    return save_adapter(load(str(llama)).model, lt.WeGeFT(rank=4), tmp_path / "adapter", base=str(llama))
