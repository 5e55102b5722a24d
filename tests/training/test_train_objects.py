"""`lt.train` with what is in memory: models, rows, settings by their names, callbacks, run files."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import luthier as lt
from support.tiny import save_model, sums, write_rows

ROWS = sums(12)
SHORT = {"steps": 2, "batch": 4, "eval_fraction": 0.0, "progress": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("base") / "llama", "llama"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wanted(base, tmp_path) -> dict[str, torch.Tensor]:
    """The adapter that the rows come to from a file."""
    return adapter(train(base, str(write_rows(tmp_path / "rows.jsonl", ROWS)), out=tmp_path / "file"))


def train(model, data, out, **more):
    return lt.train(model, data, method="lora", out=str(out), **{**SHORT, **more})


def adapter(result: lt.Result) -> dict[str, torch.Tensor]:
    return load_file(result.adapter / "adapter.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", ["list", "pandas", "datasets"])
def test_rows_in_memory_are_as_rows_of_a_file(kind, base, wanted, tmp_path):
    rows = ROWS
    if kind == "pandas":
        rows = pytest.importorskip("pandas").DataFrame(ROWS)
    if kind == "datasets":
        rows = pytest.importorskip("datasets").Dataset.from_list(ROWS)
    first = train(base, rows, out=tmp_path / kind)
    assert same(adapter(first), wanted)
    assert same(adapter(train(base, rows, out=tmp_path / kind, resume=True)), wanted)  # the same source again


def test_a_model_in_memory_is_adapted_where_it_lies(base, wanted, tmp_path):
    loaded = lt.model(base)
    result = train(loaded, ROWS, out=tmp_path / "loaded")
    assert result.model is loaded.model and lt.describe(loaded.model) and same(adapter(result), wanted)
    bare = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert same(adapter(train(bare, ROWS, out=tmp_path / "bare")), wanted)
    assert json.loads((tmp_path / "bare" / "run.json").read_text())["run"]["model"] == base
    half = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    train(half, ROWS, out=tmp_path / "half")
    assert json.loads((tmp_path / "half" / "run.json").read_text())["run"]["training"]["precision"] == "bfloat16"


def test_models_that_do_not_fit_are_refused(base, tmp_path):
    def refused(told, model, data=ROWS, **more):
        with pytest.raises(lt.LuthierError, match=told):
            train(model, data, out=tmp_path / "none", **more)

    from_config = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(base))
    from_config.name_or_path = ""
    refused("does not say where it came from", from_config)
    refused("model is Linear; expected a name", torch.nn.Linear(2, 2))
    refused("quantize=nf4 is for models that are loaded here", lt.model(base), quantize="nf4")
    refused("expected bfloat16", lt.model(base), precision="bfloat16")
    refused("loaded for causal-lm", lt.model(base), [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    labelled = lt.model(base, task="classification", labels=["x", "y"])
    refused("does not say which of its modules are new", labelled.model, [{"text": "a", "label": "x"}])
    refused("rows have the classes x, z", labelled, [{"text": "a", "label": "x"}, {"text": "b", "label": "z"}])


def test_rows_that_no_file_holds_are_refused(base, tmp_path):
    for rows, told in [
        ([{"prompt": "a", "completion": object()}], "row 1: completion holds object"),
        ([1, 2], "data is list of int; expected a source"),
        (3, "data is int; expected a source"),
    ]:
        with pytest.raises(lt.LuthierError, match=told):
            train(base, rows, out=tmp_path / "none")


def test_settings_by_their_names(base, tmp_path):
    rows = str(write_rows(tmp_path / "rows.jsonl", ROWS))
    training = lt.Training(lr=3e-3, steps=9, batch=4)
    result = lt.train(
        base, rows, form=lt.LoRA(rank=2), update="lora_plus", training=training, steps=1, out=str(tmp_path / "run"),
        progress=False,
    )  # fmt: skip
    told = json.loads((result.folder / "run.json").read_text())["run"]
    assert told["update"]["name"] == "lora_plus" and told["form"]["settings"]["rank"] == 2
    assert (told["training"]["lr"], told["training"]["steps"], told["training"]["batch"]) == (3e-3, 1, 4)
    for more, told in [
        ({"method": "lora", "form": lt.LoRA()}, "two words for one thing"),
        ({"method": "lora", "epoch": 2}, "did you mean 'epochs'"),
        ({"method": "lorra"}, "did you mean 'lora'"),
        ({"method": "lora", "update": "lisaa"}, "did you mean 'lisa'"),
        ({}, "needs a model, data and a form"),
    ]:
        with pytest.raises(lt.LuthierError, match=told):
            lt.train(base, rows, out=str(tmp_path / "none"), **more)  # type: ignore[call-overload]


def test_a_run_file_and_a_recipe(base, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    file = tmp_path / "run.toml"
    file.write_text(f'model = "{base}"\ndata = "{rows}"\nmethod = "lora"\n[form]\nrank = 3\n[training]\nsteps = 7\n')
    result = lt.train(file, steps=1, batch=4, out=str(tmp_path / "run"), progress=False)
    told = json.loads((result.folder / "run.json").read_text())["run"]
    assert told["form"]["settings"]["rank"] == 3 and told["training"]["steps"] == 1 and len(result.losses) == 1
    held = lt.model(base)
    assert lt.train(file, model=held, steps=1, out=str(tmp_path / "held"), progress=False).model is held.model
    with pytest.raises(lt.LuthierError, match="name the recipe in the file"):
        lt.train(file, recipe="lora", out=str(tmp_path / "none"))
    result = lt.train(base, rows, recipe="lora", steps=1, batch=4, out=str(tmp_path / "recipe"), progress=False)
    told = json.loads((result.folder / "run.json").read_text())["run"]
    from luthier.methods.recipe import read_recipe

    assert told["training"]["lr"] == read_recipe("lora").training["lr"]


def test_callbacks_are_told_of_every_step(base, tmp_path):
    seen = []

    class Steps(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **more):
            seen.append(state.global_step)

    train(base, ROWS, out=tmp_path / "run", callbacks=[Steps()])
    assert seen == [1, 2]


def test_the_signature_names_every_field():
    known = inspect.signature(lt.train).parameters
    assert {"rank" in known, "epochs" in known, "update" in known} == {False, True}
    assert known["update"].annotation == "Update | str | None" and known["out"].default == "run"
