"""Run files: what a run is, written down and read back, under flags, over recipes, with variables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest

import luthier as lt
from luthier.cli import main
from luthier.cli.commands.train import Train
from luthier.cli.parse import parse
from luthier.core.contracts.component import find, names
from luthier.methods.choices import CHOICES
from luthier.methods.recipe import read_recipe, recipe_files
from luthier.methods.targeted_form import TargetedForm
from luthier.training.runfile import SUFFIXES, parsed, read_run_file, save_run_file
from luthier.training.spec import Run, Training
from support.tiny import save_model, sums, write_rows

FULL = Run(
    "some/model",
    'odd "name".jsonl',
    lt.LoReFT(rank=2, positions="f5,l5"),
    "stream(blocks[1:3])",
    "a b",
    eval_data="held.jsonl",
    also=(TargetedForm(lt.Bottleneck(dim=3), "output(mlp)"), TargetedForm(lt.IA3())),
    ranks=lt.GeLoRA(),
    calibration=lt.Calibration(samples=7, seed=3),
    update=lt.LoRAPlus(ratio=3.0),
    objective=lt.MFT(),
    select=lt.BM25(),
    select_rows=5,
    target="task.jsonl",
    columns="text=body",
    strict=True,
    limit=9,
    training=Training(lr=1e-5, steps=3, clip=0.0, gradient_checkpointing=True),
)


def resolved(*words: str) -> Run:
    parsed = parse(["train", *words])
    assert parsed is not None and isinstance(parsed[0], Train)
    return parsed[0].resolved(parsed[1])


@pytest.fixture
def file(tmp_path):
    """Writes run.toml (or another), and gives its path."""

    def write(text: str, name: str = "run.toml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".TOML"])
@pytest.mark.parametrize("run", [FULL, Run("m", "d", lt.WeGeFT())], ids=["full", "plain"])
def test_a_run_comes_back_from_its_file(run, suffix, tmp_path):
    save_run_file(run, tmp_path / f"f{suffix}")
    assert read_run_file(tmp_path / f"f{suffix}").run() == run
    assert resolved(str(tmp_path / f"f{suffix}")) == run
    save_run_file(run, tmp_path / f"f{suffix}")  # the same may be written again
    with pytest.raises(lt.LuthierError, match="says something else"):
        save_run_file(dataclasses.replace(run, out="other"), tmp_path / f"f{suffix}")


@pytest.mark.parametrize("name", recipe_files())
def test_every_recipe_comes_back(name, tmp_path):
    more = {"mhr": ["--tasks", "a", "--tasks", "b"], "meteora": ["--experts", "a=r", "--experts", "b=s"]}
    run = resolved("m", "d", "--recipe", name, *more.get(name, []))
    save_run_file(run, tmp_path / "run.toml")
    assert resolved(str(tmp_path / "run.toml")) == run


def test_none_is_left_out_of_files_without_loss():
    """What may be none is none by default, in every component and table."""
    classes = [find(axis, each) for axis in {c.axis for c in CHOICES.values() if c.axis} for each in names(axis)]
    for cls in classes:
        for key, (hint, field) in cls.settings().items():
            assert type(None) not in get_args(hint) or field.default is None, f"{cls.name()}.{key}"
    for cls in (Run, Training, lt.Calibration):
        for field in dataclasses.fields(cls):
            assert "None" not in str(field.type) or field.default is None, field.name


def test_flags_go_before_the_file_and_the_file_before_its_recipe(file):
    path = file('model = "m"\ndata = "d"\nrecipe = "wegeft-math"\n[form]\nrank = 3\n[training]\nlr = 1e-3\n')
    run, recipe = resolved(path, "--lr", "2e-3", "--out", "there"), read_recipe("wegeft-math")
    assert (run.model, run.data, run.out, run.lr) == ("m", "d", "there", 2e-3)
    assert run.form.to_dict()["rank"] == 3 and run.form.to_dict()["alpha"] == recipe.form["alpha"]
    assert run.training.batch == recipe.training["batch"]
    assert resolved(path, "other.jsonl").data == "other.jsonl"
    assert read_run_file(path).run().lr == 1e-3


def test_variables_of_the_environment(file, monkeypatch):
    monkeypatch.setenv("ROWS", "/data")
    monkeypatch.setenv("STEPS", "12")
    monkeypatch.setenv("RANK", "5")
    path = file(
        'model = "${STEPS}"\ndata = "${ROWS}/${STEPS}.jsonl"\nmethod = "lora"\nlimit = "${STEPS}"\n'
        '[form]\nrank = "${RANK}"\n[training]\nsteps = "${STEPS}"\n'
    )
    run = resolved(path)
    assert (run.model, run.data, run.limit, run.training.steps) == ("12", "/data/12.jsonl", 12, 12)
    assert run.form == lt.LoRA(rank=5)
    monkeypatch.delenv("STEPS")
    with pytest.raises(lt.LuthierError, match=r"model is '\$\{STEPS\}', and the variable STEPS is not set"):
        read_run_file(path)


def test_paths_beside_the_file_are_taken_from_there(file, tmp_path):
    (tmp_path / "rows.jsonl").touch()
    run = resolved(file('model = "m"\ndata = "rows.jsonl"\neval_data = "elsewhere.jsonl"\n'))
    assert run.data == str(tmp_path / "rows.jsonl") and run.eval_data == "elsewhere.jsonl"


def test_yaml_reads_powers_of_ten(file):
    text = "model: m\ndata: d\nmethod: lora\ntraining:\n  lr: 1e-4\nform:\n  alpha: 2E+1\n"
    run = resolved(file(text, "run.yaml"))
    assert run.lr == 1e-4 and run.form.to_dict()["alpha"] == 20.0


@pytest.mark.parametrize(
    "text, told",
    [
        ('data = "d"', "names no model"),
        ('model = "m"\ndata = "d"\nmethd = "lora"', "did you mean 'method'"),
        ('model = "m"\ndata = "d"\nskip_bad_row = true', "did you mean 'skip_bad_rows'"),
        ('model = "m"\ndata = "d"\nlimit = "many"', "limit is 'many'; expected a whole number"),
        ('model = "m"\ndata = "d"\nstrict = 3', "expected true or false"),
        ('model = "m"\ndata = "d"\n[training]\nstep = 3', "did you mean 'steps'"),
        ('model = "m"\ndata = "d"\nmethod = "lora"\n[form]\nrnk = 3', "did you mean 'rank'"),
        ('model = "m"\ndata = "d"\n[update]\nratio = 3.0', "names nothing"),
        ('model = "m"\ndata = "d"\nrecipe = "lora"\nmethod = "dora"', "leave one of them out"),
        ('model = "m"\ndata =', "not valid TOML"),
    ],
)
def test_bad_run_files(text, told, file, capsys):
    assert main(["train", file(text)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("text", ["model: [", "model: 2026-13-45", "a: " + "[" * 9999, "? [a]: 1\n{", "model: \x00"])
def test_files_that_are_not_yaml(text, file, capsys):
    assert main(["train", file(text, "run.yaml")]) == 2
    assert "is not valid YAML" in capsys.readouterr().err


def test_bad_calls(file, tmp_path, capsys):
    path = file('model = "m"\ndata = "d"\nmethod = "lora"\n')
    for words, told in [
        (["--out", "x", path, "--rank", "3"], "a run file comes first"),
        ([path, "--recipe", "lora"], "name the recipe in the file"),
        ([path, "--method", "dora"], "is for lora, not for dora"),
        ([str(tmp_path / "none.toml")], "does not exist"),
        (["m"], "name them behind it"),
        ([path, "--dry-run", "--save-config", str(tmp_path / "f.txt")], "is to be a run file"),
    ]:
        assert main(["train", *words]) == 2, words
        assert told in capsys.readouterr().err, words


def test_a_finished_run_is_repeated_from_its_record_and_from_the_file_it_saved(tmp_path, capsys):
    base, rows = save_model(tmp_path / "base", "llama"), write_rows(tmp_path / "rows.jsonl", sums(12))
    first, config = str(tmp_path / "first"), str(tmp_path / "run.toml")
    words = ["--method", "lora", "--rank", "2", "--steps", "2", "--batch", "4", "--update", "lora_plus", "--out", first]
    assert main(["train", base, rows, *words, "--save-config", config, "--dry-run"]) == 0
    assert "holds the run" in capsys.readouterr().out and not Path(first).exists()
    assert main(["train", config]) == 0
    for number, source in enumerate((f"{first}/run.json", config)):
        assert main(["train", source, "--out", str(tmp_path / str(number))]) == 0
        again = (tmp_path / str(number) / "adapter" / "adapter.safetensors").read_bytes()
        assert again == (Path(first) / "adapter" / "adapter.safetensors").read_bytes()
    told = json.loads((Path(first) / "run.json").read_text())["run"]
    assert told["update"]["name"] == "lora_plus" and told["training"]["steps"] == 2


LAUGHS = "a: &a [x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Lists that hold one another ten times over."""


@pytest.mark.parametrize("text", [
    LAUGHS + "model: *i\n", "model: &a [*a]\n", "training: &a {x: *a}\n", "model: " + "[" * 900 + "]" * 900,
    "model: " + ":".join(["59"] * 20_000), "model: !!python/object/apply:os.getcwd []",
], ids=["laughs", "itself in a list", "itself in a table", "deep", "a long number in base 60", "code"])  # fmt: skip
def test_yaml_that_never_ends_or_runs_code_is_refused(text, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(lt.LuthierError, match="is not valid YAML"):
        read_run_file(tmp_path / "run.yaml")


@pytest.mark.parametrize("text", [
    "model: a\nmodel: b\n", "model: a\ntraining: {steps: 1, lr: 1, steps: 2}\n", "training:\n  'lr': 1\n  lr: 2\n",
])  # fmt: skip
def test_a_key_that_stands_twice_in_yaml_is_refused(text, tmp_path):
    """PyYAML takes the last one."""
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(lt.LuthierError, match=r"the key '\w+' stands twice in one table \(line \d\)"):
        read_run_file(tmp_path / "run.yaml")


def test_aliases_in_yaml_are_read(tmp_path):
    (tmp_path / "run.yaml").write_text("model: &m tiny\ndata: *m\nmethod: lora\nout: o\n")
    assert read_run_file(tmp_path / "run.yaml").fields["data"] == "tiny"
    (tmp_path / "two.yaml").write_text("a: &a {lr: 1}\nb: &b {lr: 2, steps: 1}\nc: {<<: *a, <<: *b, lr: 3}\n")
    assert parsed(tmp_path / "two.yaml")["c"] == {"lr": 3, "steps": 1}
