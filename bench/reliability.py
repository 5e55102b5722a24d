"""What full disks, kills and damaged files do to a run, and to every reader.

Every step of a run fails once, runs of two processes are killed, and every reader gets thousands of files that are
nearly right.

python -m bench reliability [--cases 10000] [--kills 200] [--only readers runs kills] [--readers JSONL …] [--out …]

Counts of the last run on the machine at hand are in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench._registry import results_of

PARTS = ("runs", "kills", "readers")
REFUSED = 3
"""Exit code of a process that was told that another one is in the folder."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries, prints a line each, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--readers", nargs="+", metavar="NAME", help="only these, each with its share of the cases")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=results_of("reliability"))
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the faults and changes are those of the suite
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder)
        for part in options.only:
            begun = time.monotonic()
            if part == "readers":
                readers(root / part, options, found)  # takes longest, and writes each as it goes
                continue
            made = {"runs": runs, "kills": kills}[part](root / part, options)
            found[part] = {**made, "seconds": round(time.monotonic() - begun)}
            _write(found, options)
            print(part, json.dumps(found[part]))
    bad = sum(found[part]["faults"] for part in options.only)
    print(f"{bad} faults")
    sys.exit(1 if bad else 0)


def tiny(root: Path) -> Any:
    """A run of some seconds, with a checkpoint a step."""
    import luthier as lt
    from luthier.training import Run, Training
    from support.tiny import TEMPLATE, save_model, sums, write_rows

    root.mkdir(parents=True)
    model = save_model(root / "model", "llama", TEMPLATE)
    rows = write_rows(root / "rows.jsonl", sums(24))
    settings = Training(steps=6, batch=2, save_every=1, lr=1e-2, eval_fraction=0)
    return Run(model, rows, lt.LoRA(rank=2), where="q_proj", out=str(root / "run"), training=settings)


def weights(run: Any) -> bytes:
    """The adapter that a run came to."""
    return (run.folder / "adapter" / "adapter.safetensors").read_bytes()


def runs(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every step of writing a run fails once, as on a full disk; then there is space, and it goes on."""
    import luthier as lt
    from luthier.training import train
    from support.faults import faults

    run = tiny(root)
    run = replace(run, training=replace(run.training, steps=2))
    with faults(root, 10**9) as fault:
        train(replace(run, out=str(root / "whole")), progress=False)
    expected, told, ends = weights(replace(run, out=str(root / "whole"))), [], Counter()
    for at in range(1, fault.count + 1):
        here = replace(run, out=str(root / "each" / str(at)))
        outcome = "done all the same"
        with faults(root, at) as hit:
            try:
                train(here, progress=False)
            except lt.LuthierError as error:
                outcome = "one line" if "\n" not in str(error) else "more lines"
            except Exception as error:
                outcome = f"{type(error).__name__}"
        train(here, progress=False, resume=(here.folder / "run.json").exists())
        same = weights(here) == expected
        ends[f"{outcome}, then {'the same adapter' if same else 'another adapter'}"] += 1
        if not same or outcome not in ("one line", "done all the same"):
            told.append(f"{hit.what}: {outcome}")
    return {"steps": fault.count, "ends": dict(ends), "faults": len(told), "told": told[:20]}


def kills(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Two processes start the same run at once, and both are killed, over and over until it is done."""
    from luthier.training import session, train

    assert session  # its imports are paid once, before the forks
    run, draw = tiny(root), random.Random(options.seed)
    train(replace(run, out=str(root / "alone")), progress=False)
    expected = weights(replace(run, out=str(root / "alone")))
    count: Counter[str] = Counter()
    number = 0
    while count["kills"] < options.kills:
        here = replace(run, out=str(root / f"run{number}"))
        number += 1
        while not _once(here, draw, count):
            pass
        same = weights(here) == expected
        lines = (here.folder / "metrics.jsonl").read_text().count('"loss"') == run.training.steps
        count["runs"] += 1
        count["bitwise equal"] += same
        count["faults"] += not (same and lines)
    return {**count, "faults": count["faults"]}


def _once(run: Any, draw: random.Random, count: Counter[str]) -> bool:
    """Two processes over a run, killed after a while; whether one of them had finished it."""
    children = [_child(run) for _ in range(2)]
    end = time.monotonic() + draw.uniform(0.2, 3.0)
    codes: dict[int, int] = {}
    while len(codes) < 2 and time.monotonic() < end:
        for pid in set(children) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for pid in set(children) - set(codes):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        count["kills"] += 1
    count["refused"] += sum(code == REFUSED for code in codes.values())
    count["faults"] += sum(code not in (0, REFUSED) for code in codes.values())
    return 0 in codes.values()


def _child(run: Any) -> int:
    import luthier as lt
    from luthier.training import train

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train(run, resume=True, progress=False)
            code = 0
        except lt.LuthierError as error:
            code = REFUSED if "is in use" in str(error) else 1
            if code == 1:
                print(error, file=sys.stderr)
        finally:
            os._exit(code)
    return pid


def readers(root: Path, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Seeded changes of good files, for every reader, and of the folders that every command reads."""
    from support.command_cases import READ, reader
    from support.mutations import READERS, run

    every = READERS | {f"luthier {name}": reader(name) for name in READ}
    known = found["readers"]["readers"] if options.readers and "readers" in found else {}
    for name in options.readers or every:
        begun = time.monotonic()
        count = run(every[name], root / name, max(1, options.cases // len(every)), options.seed)
        told = {**asdict(count), "slowest": round(count.slowest, 2), "faults": len(count.faults)}
        known[name] = {**told, "seed": options.seed, "seconds": round(time.monotonic() - begun)}
        totals = {key: sum(each.get(key, 0) for each in known.values()) for key in ("cases", "faults", "seconds")}
        found["readers"] = {"readers": known, **totals}
        _write(found, options)
        print(name, json.dumps(known[name]), flush=True)
        for number, fault in enumerate(count.faults):
            print(f"{name}: {fault}" if number < 5 else f"{name}: {fault[:60]!r}", file=sys.stderr, flush=True)


def _write(found: dict[str, Any], options: argparse.Namespace) -> None:
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
