"""`--json`: every command has it, and prints nothing else on stdout."""

from __future__ import annotations

import json

import pytest

import luthier as lt
from luthier import models
from luthier.cli import main
from luthier.cli.parse import commands
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
