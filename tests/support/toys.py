"""A component dropped into a folder: whether the laws of its axis and the command line find it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def help_of_toy(folder: Path, axis: str, source: str, laws: str, *words: str) -> str:
    """`luthier WORDS --help` with the component `toy` of an axis in a folder of LUTHIER_PATH, whose laws hold."""
    (folder / axis).mkdir()
    (folder / axis / "toy.py").write_text(source, encoding="utf-8")
    environment = {**os.environ, "LUTHIER_PATH": str(folder)}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", laws, "-k", "toy and not seen"]
    done = subprocess.run(tests, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout  # 5 if none were found
    shown = [sys.executable, "-m", "luthier", *words, "--help"]
    return subprocess.run(shown, capture_output=True, text=True, env=environment, check=True).stdout
