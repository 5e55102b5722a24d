"""Every recipe tells whose each of its numbers is, and trains: two steps on a model and rows of its kind."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from luthier.cli import main
from luthier.cli.commands.train import Train
from luthier.cli.parse import parse
from luthier.cli.whose import TRAINING, stated
from luthier.core.contracts.component import find
from luthier.core.contracts.objective import Objective
from luthier.methods.recipe import Recipe, read_recipe, recipe_files
from luthier.training import Run, train
from support.tiny import save_model, write_rows

RECIPES = list(recipe_files())
KINDS = {
    "hydra": "image",
    "mosa": "image",
    "chameleon": "image",
    "levi": "label",
    "petl-ast": "image",
    "petl-ast-conformer": "image",
    "wegeft-fgvc": "image",
    "wegeft-vtab": "image",
    "loreft-glue": "label",
    "dsee": "label",
}
"""Recipes for other rows than questions and answers."""
BASES = {"image": "vit", "label": "bert", "text": "llama", "pairs": "llama"}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""As wide as quantised weights need."""
FEW = {"group": 2, "max_tokens": 4, "cache": None, "sft_steps": 1, "every": 1}
"""What objectives that sample answers do in little time."""
SMALL = {"rank": 2, "heads": 2, "length": 3, "dim": 4}
"""What a tiny model has room for."""


def deepest(recipe: Recipe) -> int:
    """The highest number of a block that the recipe names."""
    named = re.search(r"layers\(([^)]*)\)", recipe.where or "")
    return max((int(each) for each in re.findall(r"\d+", named[1])), default=0) if named else 0


def run_of(*words: str) -> Run:
    parsed = parse(["train", *words])
    assert parsed is not None and isinstance(parsed[0], Train)
    return parsed[0].resolved(parsed[1])


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, str]:
    """A tiny model for each kind of rows."""
    import transformers

    folder = tmp_path_factory.mktemp("recipes")
    made = {kind: save_model(folder / kind, name, **(WIDE if name == "llama" else {})) for kind, name in BASES.items()}
    for stale in (folder / "image").glob("*token*"):
        stale.unlink()
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(made["image"])
    return made


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> dict[str, str]:
    """Rows of each kind, with the columns that objectives ask for."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("rows")
    found: dict[str, list[dict]] = {kind: [] for kind in BASES}
    for i in range(24):
        task = ("first", "second")[i % 2]
        image.new("RGB", (16, 16), (10 * i, 9 * i, 90)).save(folder / f"{i}.png")
        found["image"].append({"image": f"{i}.png", "label": task})
        found["label"].append({"text": f"say {i}", "label": task})
        answered = {"prompt": f"say {i}", "completion": f"{i} it is"}
        found["text"].append(answered | {"task": task, "rationale": "because"})
        found["pairs"].append({"prompt": f"say {i}", "chosen": f"{i} it is", "rejected": "no"})
    return {kind: write_rows(folder / f"{kind}.jsonl", each) for kind, each in found.items()}


def kind_of(recipe: Recipe) -> str:
    """The rows that a recipe is for."""
    named = recipe.objective.get("name", "sft")
    return "pairs" if "pairs" in find("objectives", named, Objective).reads else KINDS.get(recipe.name, "text")


def small(run: Run, folder) -> Run:
    """The run in two steps, at sizes that a tiny model holds; all else is the recipe's."""
    own = {key: value for key, value in SMALL.items() if key in run.form.settings()}
    form = type(run.form).from_dict({**run.form.to_dict(), **own})
    few = {key: value for key, value in FEW.items() if run.objective.samples and key in run.objective.settings()}
    objective = type(run.objective).from_dict({**run.objective.to_dict(), **few})
    steps = 3 if run.update.name() == "green_trainer" else 2  # it probes in two before it selects
    training = replace(run.training, steps=steps, batch=2, accumulate=1, max_length=64, eval_fraction=0.25)
    return replace(
        run,
        form=form,
        objective=objective,
        training=training,
        calibration=replace(run.calibration, samples=24),
        out=str(folder),
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name, bases, rows, tmp_path):
    recipe = read_recipe(name)
    kind = kind_of(recipe)
    base = bases[kind]
    if deepest(recipe) > 2:
        base = save_model(tmp_path / "deep", BASES[kind], **WIDE, num_hidden_layers=deepest(recipe) + 2)
    if recipe.training.get("quantize"):
        pytest.importorskip("bitsandbytes")
    more = ["--tasks", "first", "--tasks", "second"] if name in ("mhr", "polyhistor") else []
    if name == "meteora":
        expert = small(
            run_of(bases[kind], rows[kind], "--method", "lora", "--where", "all-linear"), tmp_path / "expert"
        )
        train(expert, progress=False)
        more = ["--experts", f"first={expert.out}", "--experts", f"second={expert.out}"]
    words = [base, rows[kind], "--recipe", name, *more]
    run = small(run_of(*words), tmp_path / "run")
    result = train(run, progress=False)
    assert len(result.losses) == run.training.steps and result.trainable > 0
    spec = json.loads((result.adapter / "adapter.json").read_text())
    assert spec["parts"][0]["form"] in (recipe.method, "sparse")


def numbers(recipe: Recipe) -> set[str]:
    """The keys of all that is a number, and of what each training has."""
    real = {row.key for row in stated(recipe) if isinstance(row.value, int | float) and not isinstance(row.value, bool)}
    return real | {row.key for row in stated(recipe) if row.key.partition(".")[2] in TRAINING}


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_is_the_source_s_or_declared_ours(name):
    recipe = read_recipe(name)
    rows = {row.key: row.whose for row in stated(recipe)}
    assert recipe.source, "it names no source"
    assert "arXiv" in recipe.source or any(len(word.strip(":")) == 7 for word in recipe.source.split()), recipe.source
    assert not {key for key in numbers(recipe) if rows[key] == "default"}
    assert set(recipe.ours) <= set(rows), "ours names what the recipe does not set"


def test_settings_of_the_authors_repositories():
    """Numbers read in the repositories that the recipes name."""
    read = {name: read_recipe(name).training for name in RECIPES}
    for name in ("corda-instruction", "corda-knowledge"):
        told = read[name]
        assert (told["lr"], told["schedule"], told["warmup"], told["epochs"]) == (2e-5, "cosine", 0.03, 1.0)
        assert told["batch"] * told["accumulate"] == 128
    lisa = read["lisa"]
    assert (lisa["lr"], lisa["schedule"], lisa["max_length"], lisa["batch"]) == (2e-5, "cosine", 512, 1)
    assert read["meteora"]["clip"] == 0.3 and read["mam"]["steps"] == 100000
    for name in ("wegeft-instruct", "wegeft-code", "wegeft-metamath"):
        told, form = read[name], read_recipe(name).form
        assert (told["epochs"], told["batch"], told["schedule"], told["warmup"]) == (1.0, 32, "cosine", 0.03)
        assert (form["rank"], form["alpha"], form["share"]) == (64, 128.0, "type")
        assert read_recipe(name).ours == ["training.lr"]  # an argument of their script
    for name in ("wegeft-fgvc", "wegeft-vtab"):
        told, form = read[name], read_recipe(name).form
        assert (told["epochs"], told["batch"], told["lr"], told["warmup"]) == (100.0, 64, 1e-4, 0.1)
        assert form["rank"] == form["alpha"] == 16  # their code has no scale


def test_explain_tells_whose_each_setting_is(capsys):
    assert main(["explain", "wegeft-code"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["training.lr"].endswith("ours") or "ours" in lines["training.lr"]
    assert "the source's" in lines["training.warmup"] and "run_codefeedback.sh" in lines["source"]
    assert main(["explain", "recipe:lora", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["axis"] == "recipes" and {row["whose"] for row in found["settings"]} == {"source", "default"}
    assert main(["explain", "lora"]) == 0
    said = capsys.readouterr().out
    assert "lora (forms)" in said and "luthier explain recipe:lora" in said


@pytest.mark.parametrize("words, told", [
    (["--recipe", "wegeft-code"], ["recipe wegeft-code: savadikarc/gift", "not the source's: training.lr=0.0002"]),
    (["--method", "lora"], ["no recipe: what no flag sets is lora's own default", "--recipe lora"]),
])  # fmt: skip
def test_train_says_which_settings_it_takes(words, told, bases, rows, tmp_path, capsys):
    assert main(["train", bases["text"], rows["text"], *words, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert all(each in shown.err for each in told)
    rate = "0.0002 (as told)" if "--recipe" in words else "0.0005 (lora's own)"
    assert f"learning rate {rate}" in " ".join(shown.out.split())


def test_epochs_go_before_a_recipe_s_steps():
    assert run_of("m", "d.jsonl", "--recipe", "mam").training.steps == 100000
    asked = run_of("m", "d.jsonl", "--recipe", "mam", "--epochs", "2").training
    assert (asked.steps, asked.epochs) == (None, 2.0)


@pytest.mark.parametrize("text, told", [
    ('method = "lora"\nours = ["lr"]', "ours holds 'lr'"),
    ('method = "lora"\nours = [3]', "expected a list of strings"),
    ('method = "lora"\nours = "training.lr"', "expected a list of strings"),
])  # fmt: skip
def test_bad_declarations(text, told, tmp_path):
    from luthier.core.errors import LuthierError

    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(LuthierError, match=told):
        read_recipe(str(file))
