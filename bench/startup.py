"""How long Luthier takes to answer: processes started one after the other in turns, the file cache warm, medians.

python -m bench startup [--rounds 10] [--only "import luthier"] [--out bench/results/startup.json]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench._registry import results_of

COMMANDS = {
    "python (nothing)": ["-c", "pass"],
    "import luthier": ["-c", "import luthier"],
    "luthier --help": ["-m", "luthier", "--help"],
    "luthier list forms": ["-m", "luthier", "list", "forms"],
    "luthier train --help": ["-m", "luthier", "train", "--help"],
    "import luthier, attach": ["-c", "import luthier; luthier.attach"],
    "import torch": ["-c", "import torch"],
    "import peft": ["-c", "import peft"],
}
VERSIONS = ("luthier", "torch", "transformers", "peft")


def seconds(words: list[str]) -> float:
    """Wall time of one process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Times, prints a line each, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--out", type=Path, default=results_of("startup"))
    options = parser.parse_args(arguments)
    times: dict[str, list[float]] = {name: [] for name in options.only}
    for turn in range(options.rounds + 1):
        for name in options.only:
            taken = seconds(COMMANDS[name])
            if turn:  # the first round fills the file cache
                times[name].append(taken)
    rows = {
        name: {"median": round(statistics.median(t), 3), "lowest": round(min(t), 3), "highest": round(max(t), 3)}
        for name, t in times.items()
    }
    for name, row in rows.items():
        print(f"{name:24s} {row['median']:6.3f} s  ({row['lowest']:.3f} to {row['highest']:.3f})")
    machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()}
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    result = {"machine": machine, "versions": versions, "rounds": options.rounds, "seconds": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
