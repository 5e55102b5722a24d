"""`luthier compare` as it is typed, and study files."""

from __future__ import annotations

import dataclasses

import pytest

import luthier as lt
from luthier.cli import main
from luthier.cli.commands.compare import seeds, words
from luthier.comparing import Study, read_study, records, runner
from luthier.comparing.study import label
from luthier.core.errors import LuthierError
from luthier.methods.recipe import read_recipe
from luthier.training import Training

FILE = """
models = {{tiny = "{model}"}}
methods = ["lora", "full"]
seeds = [4]
[training]
steps = 2
batch = 4
[data.sums]
train = "{train}"
test = "{test}"
max_new_tokens = 2
[data.sums.training]
steps = 3
[settings.lora]
form = {{rank = 2}}
training = {{lr = 0.01}}
"""


@pytest.fixture
def file(llama, additions, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(FILE.format(model=llama, **{name: additions[name] for name in ("train", "test")}))
    return path


def test_a_dry_run_lists_the_runs_and_writes_nothing(llama, additions, tmp_path, capsys):
    command = ["compare", llama, additions["train"], "--test", additions["test"], "--methods", "base,lora,gelora,full"]
    assert main([*command, "--seeds", "2", "--budget", "10%", "--dry-run", "--out", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "8 runs" in out and "as measured" in out and "exempt from the budget" in out
    assert not (tmp_path / "s").exists()


def test_what_a_dry_run_says_is_trained_is_trained(file, tmp_path):
    study = read_study(file)
    plan = runner.prepared(study, tmp_path / "s")
    said = {job.method.name: job.trainable for job in plan.jobs}
    done = runner.carry_out(study, tmp_path / "s", progress=False)
    assert {run.method: run.trainable for run in done.records} == said


def test_a_file_and_its_flags(file, tmp_path, capsys):
    out = str(tmp_path / "s")
    assert main(["compare", str(file), "--methods", "lora", "--timing", "1", "--out", out]) == 0
    assert "lora" in capsys.readouterr().out
    (run,) = records(out)
    assert run.key == ("tiny", "sums", "lora", 4) and len(run.losses) == 3
    assert run.settings["form"]["settings"]["rank"] == 2 and run.settings["training"]["lr"] == 0.01
    assert main(["compare", f"{out}/study.json", "--methods", "full", "--out", out]) == 0
    assert {run.method for run in records(out)} == {"lora", "full"}
    assert main(["compare", str(file), "--steps", "9", "--out", out]) == 2
    assert "training.steps is 9, there 2" in capsys.readouterr().err


def test_layers_of_settings(file):
    study = read_study(file)
    from luthier.comparing.plan import checked

    jobs = {job.method.name: job for job in checked(study).jobs}
    assert jobs["lora"].run.training.steps == 3 and jobs["lora"].run.lr == 0.01 and jobs["full"].run.lr == 2e-5
    assert jobs["lora"].run.training.warmup == Training().warmup and jobs["lora"].run.training.batch == 4


def test_a_name_means_in_compare_what_it_means_in_train(file):
    """The form with its own settings, not the recipe of the same name; recipe:lora is the recipe."""
    from luthier.cli.commands.train import Train
    from luthier.cli.parse import parse
    from luthier.comparing.plan import checked
    from luthier.comparing.runner import taken

    parsed = parse(["train", "m", "d.jsonl", "--method", "lora"])
    assert parsed is not None and isinstance(parsed[0], Train)
    trained, study = parsed[0].resolved(parsed[1]), read_study(file)
    plan = checked(dataclasses.replace(study, methods=["lora", "recipe:lora"], settings={}))
    jobs = {job.method.name: job.run for job in plan.jobs}
    assert jobs["lora"].form == trained.form and jobs["lora"].where == trained.where and jobs["lora"].lr == trained.lr
    recipe = read_recipe("lora")
    assert jobs["recipe:lora"].lr == recipe.training["lr"] and jobs["recipe:lora"].where == recipe.where
    said = dict(line.split(": ", 1) for line in (line.replace("recipe:", "recipe-") for line in taken(plan)))
    assert (
        "lora (rank 8, alpha 16.0" in said["lora"] and "the form's own settings, not those of recipe-" in said["lora"]
    )
    assert "rank 32, alpha 64.0" in said["recipe-lora"] and "learning rate 0.0003 (as told)" in said["recipe-lora"]


@pytest.mark.parametrize(
    "text, fault",
    [
        ("models = 3", "models"),
        ('models = "m"', "has no data set"),
        ('models = "m"\n[data.d]\ntest = "t"', "data.d lacks train"),
        ('models = "m"\n[data.d]\ntrain = "t"\nrowz = 3', "unknown entry 'rowz'; did you mean 'rows'"),
        ('models = "m"\nmethods = ["lora", "lora"]\n[data.d]\ntrain = "t"', "methods holds lora twice"),
        ('models = "m"\n[data.d]\ntrain = "t"\n[settings.dora]\nwhere = "q"', "settings are for 'dora'"),
        ('models = "m"\n[data."a b"]\ntrain = "t"', "cannot name"),
        ('models = ["x/m", "y/m"]\n[data.d]\ntrain = "t"', "two are called 'm'"),
        ("models = ", "not a study"),
    ],
)
def test_bad_files(tmp_path, text, fault):
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(LuthierError, match=fault):
        read_study(tmp_path / "study.toml")


def test_words_and_seeds():
    assert words(" a, b,") == ["a", "b"] and seeds("3") == 3 and seeds("0, 4") == [0, 4] and seeds("4,") == [4]
    with pytest.raises(LuthierError, match="number of seeds"):
        seeds("many")


def test_names_of_sources():
    assert [label(each) for each in ("glue/cola/train.jsonl", "a/b.csv", "gym:chain_sum?size=3", "x/smollm2-135m")] == [
        "cola",
        "b",
        "chain_sum",
        "smollm2-135m",
    ]


def test_a_study_survives_json(file):
    study = read_study(file)
    assert Study.from_dict(study.to_dict()) == study


def test_the_public_name():
    assert lt.compare is runner.compare
    with pytest.raises(LuthierError, match="cannot read the study"):
        lt.compare("gone.toml")
