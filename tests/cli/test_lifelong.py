"""`luthier continue`, `edit`, `unlearn`, `meta`, `gpicl`: small runs, what they print, and bad input in one line."""

from __future__ import annotations

import json

import pytest

from luthier.core.errors import LuthierError
from support.tiny import save_model, sums, write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("m") / "llama", "llama")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("tasks")
    return [write_rows(folder / f"{name}.jsonl", sums(12, seed)) for seed, name in enumerate(("a", "b"))]


def one_line(done) -> str:
    assert done.code == 2 or done.code == 1
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert "Traceback" not in done.err
    return lines[-1]


def test_continue(call, model, tasks, tmp_path):
    words = ["continue", model, "--tasks", *tasks, "--by", "ewc", "--weight", "2", "--rank", "2", "--epochs", "1"]
    words += ["--eval-fraction", "0.2", "--max-new-tokens", "4", "--out", tmp_path / "run"]
    done = call(*words, "--score", "loss")
    assert done.code == 0, done.err
    for told in ("on 1-a", "after 2-b", "average accuracy", "forgetting", "95% interval", "holds the sequence"):
        assert told in done.out
    again = call(*words, "--score", "loss", "--resume", "--json")
    assert json.loads(again.out)["by"] == "ewc" and json.loads(again.out)["kept"]["bytes"] > 0
    assert "holds a sequence already" in one_line(call(*words))
    assert "no way 'replai'" in one_line(call("continue", model, "--tasks", *tasks, "--by", "replai"))
    assert "is not a sequence" in one_line(call("continue", model, "--tasks", tasks[0]))


def test_penalties_and_updates_of_sequences_are_refused_in_train(call, model, tasks, tmp_path):
    for flag, name in (("--penalty", "ewc"), ("--update", "agem")):
        for more in ((), ("--dry-run",)):
            done = call("train", model, tasks[0], "--method", "lora", flag, name, "--out", tmp_path / "x", *more)
            assert f"{name} goes by tasks that were trained before" in one_line(done)


def test_edit(call, model, tmp_path):
    rows = [{"prompt": f"the {c} is", "target": "99", "neighbours": "so"} for c in "abc"]
    file = write_rows(tmp_path / "facts.jsonl", rows)
    where = "params(model.layers.0.mlp.down_proj.weight)"
    words = ["edit", model, file, "--where", where, "--epochs", "2", "--out", tmp_path / "run"]
    done = call(*words, "--held", file.replace("facts", "held"))
    assert "no data file" in one_line(done)
    done = call(*words)
    assert done.code == 0, done.err
    assert "3 facts at" in done.out and "locality" in done.out and "reliability" in done.out
    assert json.loads(call(*words, "--resume", "--json").out)["figures"]["reliability"]["count"] == 3
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "it is 99", "target": "99"}])
    assert "already holds the target" in call("edit", model, bad).err


def test_meta(call, model, tasks, tmp_path):
    test = write_rows(tmp_path / "c.jsonl", sums(6, 5))
    words = ["meta", model, "--domains", *tasks, "--tests", test, "--steps", "2", "--episodes", "2", "--rank", "2"]
    done = call(*words, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "in context" in done.out and "fomaml" in done.out and "joint" in done.out
    assert "is learned and tested" in one_line(call("meta", model, "--domains", *tasks, "--tests", tasks[0]))


def test_meta_on_masks_says_what_a_model_or_a_recipe_cannot_serve(call, model, tasks):
    words = ["meta", model, "--by", "chameleon", "--domains", *tasks, "--tests", "c.jsonl"]
    assert "reads no pictures; masks need one that does" in one_line(call(*words))
    assert "which a meta-training would ignore" in one_line(call(*words, "--recipe", "lora"))
    assert "two kinds of mask are called a" in one_line(call(*words[:-1], "other/a.jsonl"))


def test_unlearn_refuses_what_is_no_run(call, model, tasks, tmp_path):
    done = call("unlearn", model, "--adapter", tmp_path, "--forget", tasks[0], "--retain", tasks[1])
    assert "is not a run of luthier train" in one_line(done)


def test_gpicl(call, tmp_path):
    words = ["gpicl", "digits", "--tasks", "1", "8", "--widths", "8", "--steps", "3", "--out", tmp_path / "run"]
    done = call(*words)
    assert done.code == 0, done.err
    assert "new tasks, first quarter" in done.out and "chance is 0.500" in done.out and "phases.png" in done.out
    cells = json.loads(call(*words, "--resume", "--json").out)["cells"]
    assert [(cell["width"], cell["tasks"]) for cell in cells] == [(8, 1), (8, 8)]
    assert all(len(cell[name]["by place"]) == 24 for cell in cells for name in ("seen", "unseen"))
    assert "holds a sweep already" in one_line(call(*words))
    assert "has 10 classes, and classes is 20" in one_line(call("gpicl", "digits", "--classes", "20"))
    assert "is not an .npz file" in one_line(call("gpicl", tmp_path / "none.npz"))


def test_a_recipe_of_another_form_or_with_more_than_a_meta_training_takes_is_refused(tmp_path):
    from luthier.cli.commands.meta import chosen_form, from_recipe
    from luthier.core.contracts.component import find
    from luthier.core.contracts.meta import Meta

    recipe = tmp_path / "own.toml"
    text = 'description = "x"\npaper = "y"\nsource = "z"\nmethod = "lora"\n[form]\nrank = 4\n[training]\nlr = 1e-3\n'
    recipe.write_text(text)
    assert from_recipe(str(recipe)) == ({"lr": 1e-3}, {"rank": 4})
    with pytest.raises(LuthierError, match="is for lora, not for dora"):
        chosen_form(find("metas", "fomaml", Meta), "dora", str(recipe))
    recipe.write_text('budget = "0.1%"\n' + text)
    with pytest.raises(LuthierError, match="sets budget, which a meta-training would ignore"):
        from_recipe(str(recipe))
