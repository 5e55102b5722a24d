"""Recipes build what they describe, and stand under the flags."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from luthier.cli.commands.train import Train
from luthier.cli.parse import parse
from luthier.core.contracts.component import find
from luthier.core.errors import LuthierError
from luthier.core.sites.select import select
from luthier.methods.recipe import read_recipe, recipe_files
from luthier.methods.targeted_form import TargetedForm
from luthier.training import Run, Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHIPPED = [
    "continual-code",
    "corda-instruction",
    "corda-knowledge",
    "dora",
    "dualtune",
    "eva",
    "gelora",
    "hft",
    "hydra",
    "iaa",
    "l2m",
    "levi",
    "lift-math",
    "lisa",
    "lora",
    "lora-ga",
    "lora-pro-math",
    "lora-sb-math",
    "loramoe",
    "loraxs-math",
    "loreft-commonsense",
    "loreft-glue",
    "loreft-instruct",
    "loreft-math",
    "lt-sft",
    "mam",
    "masked-thought",
    "meteora",
    "mftcoder-coba",
    "mhr",
    "mixlora",
    "morepair",
    "mosa",
    "petl-ast",
    "petl-ast-conformer",
    "pissa",
    "polyhistor",
    "s2ft",
    "tslam",
    "wegeft",
    "wegeft-code",
    "wegeft-commonsense",
    "wegeft-fgvc",
    "wegeft-instruct",
    "wegeft-math",
    "wegeft-metamath",
    "wegeft-vtab",
]
IMAGES = ("hydra", "mosa", "petl-ast", "petl-ast-conformer", "wegeft-fgvc", "wegeft-vtab")
"""Recipes for a ViT."""


def run_of(*words: str) -> Run:
    parsed = parse(["train", "some-model", "some-data.jsonl", *words])
    assert parsed is not None
    command, given = parsed
    assert isinstance(command, Train)
    return command.resolved(given)


def test_the_shipped_recipes_are_found():
    assert set(SHIPPED) <= set(recipe_files())


@functools.cache
def base_for(images: bool) -> PreTrainedModel:
    """A ViT, or a Llama of 32 blocks, without weights."""
    from transformers import LlamaConfig, ViTConfig

    from luthier.models import meta_model

    vit, llama = (["ViTForImageClassification"], ["LlamaForCausalLM"])
    return meta_model(ViTConfig(architectures=vit) if images else LlamaConfig(architectures=llama))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_builds(name):
    recipe = read_recipe(name)
    assert recipe.description and recipe.paper
    form = find("forms", recipe.method).from_dict(recipe.form)
    assert Training.from_dict(recipe.training)
    if recipe.update:
        settings = dict(recipe.update)
        update = find("updates", settings.pop("name")).from_dict(settings)
        assert run_of("--recipe", name).update == update
    model = base_for(name in IMAGES)
    assert len(select(model, recipe.where or form.where))
    assert all(len(select(model, TargetedForm.from_dict(each).place)) for each in recipe.also)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_makes_a_run(name):
    recipe, run = read_recipe(name), run_of("--recipe", name)
    assert run.form.name() == recipe.method and run.where == recipe.where
    assert {k: v for k, v in run.form.to_dict().items() if k in recipe.form} == recipe.form
    assert {k: v for k, v in run.training.to_dict().items() if k in recipe.training} == recipe.training
    stated = dict(recipe.objective)
    assert type(run.objective) is find("objectives", stated.pop("name", "sft"))
    assert {k: v for k, v in run.objective.to_dict().items() if k in stated} == stated
    assert run.also == tuple(map(TargetedForm.from_dict, recipe.also))
    assert run.init is None or find("inits", recipe.init["name"]) is type(run.init)


@pytest.mark.parametrize(
    "name, words",
    {  # the commands of examples/loreft/README.md: rank, positions, dropout; epochs, rate, rows a step, warm-up, tokens
        "loreft-commonsense": (8, "f7+l7", 0.0, 6.0, 9e-4, 32, 0.1, 512),
        "loreft-math": (8, "f7+l7", 0.0, 12.0, 9e-4, 32, 0.1, 512),
        "loreft-instruct": (4, "f5,l5", 0.0, 9.0, 9e-4, 128, 0.0, 768),
        "loreft-glue": (1, "f1", 0.05, 3.0, 6e-4, 32, 0.09, 256),
    }.items(),
)
def test_lorefts_recipes_are_the_authors_commands(name, words):
    run = run_of("--recipe", name)
    form, training = run.form.to_dict(), run.training
    told = (form["rank"], form["positions"], form["dropout"], training.epochs, training.lr)
    assert (*told, training.batch * training.accumulate, training.warmup, training.max_length) == words
    assert (training.weight_decay, training.schedule, training.precision) == (0.0, "linear", "bfloat16")


def test_flags_before_recipe_before_defaults():
    run = run_of("--recipe", "wegeft-math", "--rank", "8", "--lr", "1e-3", "--where", "q_proj")
    assert (run.form.rank, run.training.lr, run.where) == (8, 1e-3, "q_proj")  # flags
    assert (run.form.alpha, run.training.batch) == (128.0, 16)  # recipe
    assert run.training.keep == Training().keep  # default


def test_a_flag_equal_to_the_default_still_wins():
    assert run_of("--recipe", "wegeft-math", "--batch", str(Training().batch)).training.batch == Training().batch
    assert run_of("--recipe", "wegeft-math", "--share", "none").form.share is None


def test_a_recipe_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('method = "lora"\n[form]\nrank = 3\n[training]\ntruncate = true\n', encoding="utf-8")
    assert run_of("--recipe", str(file)).form.to_dict()["rank"] == 3
    assert run_of("--recipe", str(file)).training.truncate
    assert not run_of("--recipe", str(file), "--no-truncate").training.truncate
    assert run_of("--recipe", str(file), "--scaling", "rslora").form.to_dict()["scaling"] == "rslora"


def test_a_recipe_in_the_search_path(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text('method = "red"\n', encoding="utf-8")
    monkeypatch.setenv("LUTHIER_PATH", str(tmp_path))
    assert run_of("--recipe", "mine").form.name() == "red"


@pytest.mark.parametrize(
    "text, told",
    [
        ("method = 3", "expected a string"),
        ('methd = "lora"', "did you mean 'method'"),
        ("[form]\nrank = 2", "names no method"),
        ("method = ", "not valid TOML"),
        ('method = "lora"\nform = 3', "expected a table"),
    ],
)
def test_bad_recipe_files(tmp_path, text, told):
    file = tmp_path / "bad.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(LuthierError, match=told):
        read_recipe(str(file))


def test_bad_recipes_on_the_command_line(call, tmp_path):
    done = call("train", "m", "d.jsonl", "--recipe", "wegeft-maths")
    assert done.code == 2 and "did you mean 'wegeft-math'" in done.err
    done = call("train", "m", "d.jsonl", "--recipe", "wegeft", "--method", "lora")
    assert done.code == 2 and "leave one of the two out" in done.err
    done = call("train", "m", "d.jsonl", "--method", "wegeft-math")
    assert done.code == 2 and "takes it by --recipe wegeft-math" in done.err
    file = tmp_path / "odd.toml"
    file.write_text('method = "lora"\n[form]\nrnk = 2\n', encoding="utf-8")
    done = call("train", "m", "d.jsonl", "--recipe", file)
    assert done.code == 2 and "did you mean 'rank'" in done.err


def test_the_repeating_command_is_accepted():
    """The command that a run folder keeps parses into the same run."""
    import shlex

    from luthier.training.command import command

    run = run_of(
        "--recipe", "wegeft-math", "--rank", "8", "--skip-bad-rows", "--truncate", "--out", "a b", "--clip", "0"
    )
    words = shlex.split(command(run))
    assert words[:4] == ["luthier", "train", "some-model", "some-data.jsonl"]
    assert run_of(*words[4:]) == run


def test_names_are_given_one_by_one():
    run = run_of("--recipe", "meteora", "--experts", "boolq=run1", "--experts", "arc=run2", "--rank", "16")
    assert run.form.to_dict()["experts"] == ("boolq=run1", "arc=run2") and run.form.to_dict()["train"] == "router"
    assert run.objective.to_dict() == {"beta": 50.0}
    run = run_of("--recipe", "mhr", "--tasks", "boolq", "--tasks", "arc")
    assert run.form.to_dict()["tasks"] == ("boolq", "arc") and run.update.to_dict() == {"ratio": 100.0}


def test_ranks_and_start_of_one_paper_share_their_setting():
    """They read one pass: a tau that one of them alone heard of would change nothing."""
    run = run_of("--method", "lora", "--ranks", "eva", "--init", "eva", "--tau", "0.5")
    assert run.ranks is not None and run.init is not None
    assert run.ranks.to_dict()["tau"] == run.init.to_dict()["tau"] == 0.5
    import shlex

    from luthier.training.command import command

    assert run_of(*shlex.split(command(run))[4:]) == run


def test_two_settings_of_one_pass_are_refused(tmp_path):
    from luthier.training import prepare
    from support.tiny import save_model, sums, write_rows

    base, rows = save_model(tmp_path / "base", "llama"), write_rows(tmp_path / "rows.jsonl", sums(8))
    file = tmp_path / "mine.toml"
    file.write_text(
        'method = "lora"\n[ranks]\nname = "eva"\ntau = 0.9\n[init]\nname = "eva"\ntau = 0.5\n', encoding="utf-8"
    )
    parsed = parse(["train", base, rows, "--recipe", str(file)])
    assert parsed is not None and isinstance(parsed[0], Train)
    with pytest.raises(LuthierError, match=r"settle at 0\.9 and at 0\.5; give both one tau"):
        prepare.prepare(parsed[0].resolved(parsed[1]))
