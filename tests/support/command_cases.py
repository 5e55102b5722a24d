"""What commands make of folders that are nearly right: each reads what it and the commands before it left, of which one
file is changed. The files are those that lie there, so that what a command comes to write is changed as well."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import luthier as lt
from support.mutations import Draw, Reader, changed_bytes, changed_value, dumped
from support.tiny import TEMPLATE, save_model, sums, write_rows

SHORT = "--rank 2 --steps 2 --batch 2"
WHOLE = f"{SHORT} --eval-fraction 0"
FACTS = "params(model.layers.0.mlp.down_proj.weight)"
MADE = {
    "run": f"train {{model}} {{rows.jsonl}} --method lora {WHOLE} --save-every 1 --keep 2 --out {{run}}",
    "second": f"train {{model}} {{rows.jsonl}} --method lora {WHOLE} --seed 1 --out {{second}}",
    "peft": "export {run} {peft} --to peft --model {model}",
    "study": "compare {model} {rows.jsonl} --methods lora,loreft --seeds 1 --steps 2 --max-new-tokens 1 --out {study}",
    "tower": "run {plan.yaml} # {tower} {model} {rows.jsonl} {more.jsonl}",
    "clients": f"federate {{model}} {{rows.jsonl}} --clients 2 --rounds 1 {SHORT} --eval-fraction 0.3 "
    "--out {clients}",
    "sequence": f"continue {{model}} --tasks {{rows.jsonl}} {{more.jsonl}} --by ewc --weight 2 {SHORT} --eval-fraction "
    "0.2 --max-new-tokens 1 --score loss --out {sequence}",
    "edited": f"edit {{model}} {{facts.jsonl}} --where {FACTS} --epochs 1 --out {{edited}}",
    "learned": "meta {model} --domains {rows.jsonl} {more.jsonl} --tests {third.jsonl} --steps 2 --episodes 2 --rank 2 "
    "--out {learned}",
    "sweep": "gpicl digits --tasks 1 --widths 8 --steps 2 --out {sweep}",
    "forgotten": "unlearn {model} --adapter {run} --forget {forget.jsonl} --retain {retain.jsonl} --by ascent "
    "--steps 1 --out {forgotten} # {rows.jsonl}",
}
"""The command that leaves each folder; a name in braces is one of these, or of `given`. What is behind # is read, and
not named."""
RESUMED = ("run", "tower", "clients", "sequence", "edited", "learned", "sweep", "forgotten")
AGAIN = {MADE[name].split()[0]: ["{} --resume {}{}".format(*MADE[name].partition(" #"))] for name in RESUMED}
READ = AGAIN | {
    "train": [*AGAIN["train"], "train {model} {rows.jsonl} --from {run} --steps 1 --batch 2 --out {new}"],
    "compare": [MADE["study"]],
    "rewrite": ["rewrite {model} {rows.jsonl} --judge exact_match --max-new-tokens 1 --out {new.jsonl}"],
    "evaluate": ["evaluate {model} {rows.jsonl} --adapter {run} --max-new-tokens 1"],
    "predict": ["predict {model} {rows.jsonl} --adapter {run} --max-new-tokens 1 --out {new.jsonl}"],
    "generate": ["generate {model} hello --adapter {run} --max-new-tokens 1"],
    "decode": ["decode {model} hello --by proxy --expert {model}@{run} --anti {model} --max-new-tokens 1"],
    "merge": ["merge {model} {run} {new}"],
    "export": ["export {run} {new} --to mlx_lm --model {model}"],
    "import": ["import {peft} {new} --model {model}"],
    "convert": ["convert {peft} {new} --to mlx_lm # {model}"],
    "combine": ["combine ties {run} {second} --base {model} --out {new}"],
    "examine": ["examine {run} --base {model} --json"],
    "show": ["show {run}"],
    "push": ["push {run} me/name --dry-run"],
    "select": ["select {rows.jsonl} --by random --rows 4 --out {new.jsonl}"],
    "monitor": ["monitor {log.jsonl} --data {more.jsonl}"],
    "check": ["check {model} --adapter {run} --gates {gates.toml} # {more.jsonl}"],
    "measure": ["measure {model} {more.jsonl} --out {new}"],
}
"""For each command, how it is asked to read what is there."""
ELSEWHERE = {
    "cache": "tests/core/test_cached.py", "models": "tests/models/test_models_fetch.py",
    "annotate": "labels of its own: tests/cli/test_annotate.py",
    "sign": "keys: tests/interop/test_sign.py", "verify": "keys: tests/interop/test_sign.py",
    "serve": "tests/serving", "studio": "tests/serving/test_studio.py", "doctor": "reads no file",
    "explain": "reads no file", "list": "reads no file",
    "search": "its record: tests/training/test_search.py", "metatune": "its scores: tests/comparing/test_left_out.py",
    "selftrain": "its record: tests/training/test_self_training.py",
}  # fmt: skip
"""Commands that are tried elsewhere, or read nothing."""
NAME = re.compile(r"\{([\w.]+)\}")


def given(root: Path) -> None:
    """What no command leaves: a model, rows, and files of settings."""
    save_model(root / "model", "llama", TEMPLATE)
    rows = {"rows": sums(8), "more": sums(24, 1), "third": sums(6, 2), "forget": sums(8)[:4], "retain": sums(8)[4:]}
    for name, each in rows.items():
        write_rows(root / f"{name}.jsonl", each)
    write_rows(root / "facts.jsonl", [{"prompt": f"the {c} is", "target": "99", "neighbours": "so"} for c in "ab"])
    stages = [{"name": "one", "data": "rows.jsonl"}, {"name": "two", "data": "more.jsonl"}]
    plan = {"model": "model", "out": "tower", "method": "lora", "stage": stages,
            "training": {"steps": 1, "batch": 2, "eval_fraction": 0.0}}  # fmt: skip
    (root / "plan.yaml").write_text(json.dumps(plan))
    (root / "gates.toml").write_text('[[gate]]\nby = "held_loss"\ndata = "more.jsonl"\ntolerance = 9.0\n')
    said = {"created": 1.8e9, "model": "base", "finish_reason": "stop", "usage": {"completion_tokens": 3}}
    write_rows(root / "log.jsonl", [said | {"messages": _turns(row)} for row in sums(24, 3)])


def _turns(row: dict[str, Any]) -> list[dict[str, str]]:
    sides = (("user", "prompt"), ("assistant", "completion"))
    return [{"role": role, "content": row[key]} for role, key in sides]


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    """Works in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def told(root: Path, words: str) -> tuple[int, str]:
    """(exit code, what was said on stderr) of a command over what lies in a folder."""
    from luthier.cli import main

    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err), within(root):
        try:
            code = main([NAME.sub(r"\1", word) for word in words.partition("#")[0].split()])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, err.getvalue()


@functools.cache
def _root() -> Path:
    """A folder with what is given, and what commands left there so far."""
    root = Path(tempfile.mkdtemp(prefix="luthier-commands-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    given(root)
    return root


def made(root: Path, words: str) -> None:
    """Runs what leaves the folders that a command names, where they are not there yet."""
    for name in NAME.findall(words):
        if name in MADE and not (root / name).exists():
            made(root, re.sub(rf"\{{{re.escape(name)}\}}", "", MADE[name]))
            code, said = told(root, MADE[name])
            assert code == 0 and (root / name).exists(), (name, said)


def changed(path: Path, draw: Draw) -> None:
    """A file becomes something else: another value where it is JSON or lines of it, else other bytes."""
    raw = path.read_bytes()
    try:
        lines = [raw] if path.suffix != ".jsonl" else raw.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = dumped(changed_value(json.loads(lines[at]), draw))
        raw = b"\n".join(lines) + b"\n" if draw.random() < 0.8 else changed_bytes(raw, draw)
    except (ValueError, RecursionError):
        raw = changed_bytes(raw, draw)
    path.write_bytes(raw)


def case(name: str, folder: Path, draw: Draw) -> tuple[Path, str]:
    """(a copy of what a command reads, of which a file is changed, the command)."""
    words = draw.choice(READ[name])
    made(_root(), words)
    named = [_root() / each for each in dict.fromkeys(NAME.findall(words)) if (_root() / each).exists()]
    for path in named:
        shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder)
    files = sorted(each for each in folder.rglob("*") if each.is_file() and each.suffix != ".png")
    if not draw.still:
        folders = draw.choice(sorted({each.parent for each in files}))  # a model's many files count as one
        changed(draw.choice([each for each in files if each.parent == folders]), draw)
    return folder, words


def read(given: tuple[Path, str]) -> None:
    """Raises `LuthierError` where a command refuses what lies there in lines that say so."""
    code, said = told(*given)
    assert code in (0, 2, 3) and "Traceback" not in said, said
    if code == 2:
        raise lt.LuthierError(said)


def reader(name: str) -> Reader:
    """The mutations of a command."""
    return Reader(lambda folder, draw: case(name, folder, draw), read)
