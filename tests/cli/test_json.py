"""`--json`: every command has it, and prints nothing else on stdout."""

from __future__ import annotations

import json

import pytest

import luthier as lt
from luthier import models
from luthier.cli import main
from luthier.cli.output import say_json
from luthier.cli.parse import commands
from support import command_cases
from support.tiny import save_model, sums, write_rows

ENDLESS = {"serve", "studio"}
"""Commands that run until they are stopped."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, str]:
    """A model, rows and a run."""
    folder = tmp_path_factory.mktemp("json")
    model, rows = save_model(folder / "model", "llama"), write_rows(folder / "rows.jsonl", sums(12))
    words = ["--method", "lora", "--rank", "2", "--steps", "1", "--out", str(folder / "run")]
    assert main(["train", model, rows, *words]) == 0
    other = lt.attach(models.load(model).model, lt.LoRA(rank=2), "q_proj")
    for parameter in lt.trainable(other).values():
        parameter.data += 0.1
    lt.save(other, folder / "other")
    return {"MODEL": model, "ROWS": rows, "RUN": str(folder / "run"), "AT": str(folder), "OTHER": str(folder / "other")}


def test_every_command_has_it():
    without = {name for name, cls in commands().items() if "json" not in cls.__dataclass_fields__}
    assert without == ENDLESS


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("train MODEL ROWS --method lora --rank 2 --steps 1 --out AT/second", {"folder", "adapter", "loss"}),
        ("train MODEL ROWS --method lora --rank 2 --steps 1 --out AT/third --dry-run", {"dry_run", "run"}),
        ("merge MODEL RUN AT/merged", {"out", "class", "largest_change_of_an_output"}),
        ("export RUN AT/peft --to peft", {"out", "format", "lost"}),
        ("convert RUN AT/mlx --to mlx-lm", {"out", "format", "lost"}),
        ("import AT/peft AT/back --model MODEL", {"out", "format", "base"}),
        ("combine task_arithmetic RUN OTHER --base MODEL --out AT/both", {"folder", "method", "weights"}),
        ("compare MODEL ROWS --methods lora --dry-run --out AT/study", {"dry_run", "runs"}),
        ("federate MODEL ROWS --clients 2 --rounds 1 --dry-run --out AT/federation", {"dry_run", "rounds", "clients"}),
        ("push RUN me/adapter --dry-run", {"repository", "bytes", "sent_to"}),
        ("show RUN", {"name", "base", "parts"}),
        ("show MODEL", {"sites"}),
        ("show MODEL ROWS", {"features"}),
    ],
)
def test_stdout_is_json_alone(line, keys, made, capsys):
    words = line.split()
    words = [made.get(word) or word.replace("AT/", f"{made['AT']}/") for word in words]
    assert main([*words, "--json"]) == 0
    assert keys <= set(json.loads(capsys.readouterr().out))


def test_a_dry_run_tells_the_columns_that_the_file_has(call, made, tmp_path):
    rows = [{"instruction": "add", "input": f"{i}+1", "output": str(i + 1)} for i in range(6)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    words = ["train", made["MODEL"], file, "--method", "lora", "--dry-run", "--eval-fraction", "0", "--json"]
    told = json.loads(call(*words, "--out", tmp_path / "run").out)
    assert told["columns"] == {"instruction": "instruction", "input": "input", "output": "output"}
    assert told["rows"] and all(each["tokens"] for each in told["rows"])


# --- every command, over what commands leave ---------------------------------------------------------

KEYS = "sign and verify need keys: tests/interop/test_sign.py"
APART = {"sign": KEYS, "verify": KEYS, "annotate": "asks: tests/cli/test_annotate.py"}
"""Commands that are tried elsewhere."""
OTHER = {
    "cache": "cache", "doctor": "doctor", "explain": "explain lora", "list": "list forms", "models": "models",
    "search": "search {plan.json} --budget 1 --out {found}",
    "metatune": "metatune {model} --sets {yes.jsonl} {no.jsonl} --rank 2 --steps 1 --out {tuned}",
    "selftrain": "selftrain {model} --labelled {first.jsonl} --unlabelled {others.jsonl} --words a=a b=b --rank 2 "
    "--steps 1 --rounds 1 --out {student}",
}  # fmt: skip
"""Those that read no folder of others."""
LINES = {name: words[0] for name, words in command_cases.READ.items()} | OTHER
LINED = ("decode",)
"""Commands that print an object a line, as answers come."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What the commands read."""
    root = tmp_path_factory.mktemp("commands")
    command_cases.given(root)
    rows = [{"text": row["prompt"], "label": "ab"[number % 2]} for number, row in enumerate(sums(12))]
    for name, part in {"first": rows[:4], "others": rows[4:]}.items():
        write_rows(root / f"{name}.jsonl", part)
    for name, start in (("yes", 0), ("no", 6)):
        asked = [{"prompt": f"{name} {start + i}?", "completion": ("yes", "no")[i % 2]} for i in range(6)]
        told = [{**row, "task": name, "group": name, "from": {"source": name, "row": i}} for i, row in enumerate(asked)]
        write_rows(root / f"{name}.jsonl", told)
    plan = {"model": "model", "data": "more.jsonl", "training": {"steps": 1, "batch": 2}}
    (root / "plan.json").write_text(json.dumps(plan))
    return root


def test_every_command_is_tried():
    assert set(LINES) | set(APART) | ENDLESS == set(commands())


@pytest.mark.parametrize("name", LINES)
def test_it_prints_json_as_others_read_it(name, root, capsys):
    """Alone on stdout, and without NaN and infinities, which are Python's and not JSON's."""
    words = LINES[name].replace("{new", f"{{{name}")
    command_cases.made(root, words)
    line = [command_cases.NAME.sub(r"\1", word) for word in words.partition("#")[0].split() if word != "--json"]
    capsys.readouterr()
    with command_cases.within(root):
        code = main([*line, "--json"])
    told = capsys.readouterr()
    assert code in (0, 3), told.err
    texts = told.out.splitlines() if name in LINED else [told.out]
    assert texts and all(json.loads(text, parse_constant=refused) for text in texts)


def refused(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def test_a_figure_that_is_no_number_is_null(capsys):
    say_json({"pearson": float("nan"), "cells": [(1.5, float("inf"))], "rows": 2})
    assert json.loads(capsys.readouterr().out) == {"pearson": None, "cells": [[1.5, None]], "rows": 2}


def test_the_correlation_with_a_constant_is_null(made, tmp_path, call):
    """On stdout and in the file."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "a" * (1 + i), "label": 0.5} for i in range(12)])
    base, out = save_model(tmp_path / "bert", "bert"), tmp_path / "run"
    call("train", base, rows, "--method", "lora", "--steps", "1", "--eval-fraction", "0", "--out", out)
    told = call("evaluate", base, rows, "--adapter", out, "--out", tmp_path / "scores.json", "--json").out
    written = (tmp_path / "scores.json").read_text()
    assert all(json.loads(text, parse_constant=refused)["metrics"]["pearson"] is None for text in (told, written))
