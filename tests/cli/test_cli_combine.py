"""`combine`: the command line end to end on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import luthier as lt
from luthier.interop.formats._merged import save_merged
from luthier.models import load
from support.cli_tools import save_adapter, save_llama


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits.float()


@pytest.fixture
def pair(llama, tmp_path) -> list:
    """Two adapters of the tiny model."""
    first = save_adapter(load(str(llama)).model, lt.LoRA(rank=2), tmp_path / "first", str(llama))
    torch.manual_seed(9)
    return [first, save_adapter(load(str(llama)).model, lt.WeGeFT(rank=2), tmp_path / "second", str(llama), "q_proj")]


def test_two_adapters_become_one(call, llama, pair, tmp_path):
    words = ["combine", "task_arithmetic", *pair, "--base", llama, "--weights", "0.5,-0.5", "--scale", 2]
    done = call(*words, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "Cosine between inputs" in done.out and "same sign" in done.out and "combining 21 tensors" in done.err
    assert {"combined.json", "combined.png"} <= {file.name for file in (tmp_path / "out").iterdir()}
    found = json.loads((tmp_path / "out" / "combined.json").read_text())
    assert found["settings"] == {"scale": 2.0} and found["weights"] == [0.5, -0.5]
    both = load(str(llama)).model
    for folder in pair:
        lt.load(both, folder, folder.name)
    base = {name: tensor.clone() for name, tensor in both.named_parameters() if ".adapters." not in name}
    changed = {}
    for folder in pair:
        lt.disable(both)
        lt.merge(lt.enable(both, folder.name), folder.name)
        changed[folder] = {name: both.get_parameter(name).detach() - tensor for name, tensor in base.items()}
        lt.unmerge(both)
    bare = load(str(llama)).model
    with torch.no_grad():
        for name, tensor in bare.named_parameters():
            tensor += changed[pair[0]][name] - changed[pair[1]][name]
    assert torch.allclose(logits(lt.load(load(str(llama)).model, tmp_path / "out")), logits(bare), atol=1e-5)


def test_the_base_is_found_in_the_first_adapter_and_the_result_is_used_like_any_other(call, llama, pair, tmp_path):
    assert call("combine", "ties", *pair, "--out", tmp_path / "out").code == 0
    assert call("combine", "ties", *pair, "--out", tmp_path / "model", "--merged").code == 0
    answer = ["say one", "--max-new-tokens", 4, "--json"]
    adapted = call("generate", llama, "--adapter", tmp_path / "out", *answer)
    merged = call("generate", tmp_path / "model", *answer)
    assert adapted.code == merged.code == 0 and json.loads(adapted.out) == json.loads(merged.out)
    assert call("show", tmp_path / "out").code == 0
    again = call("combine", "lines", tmp_path / "out", "--alpha", 0.5, "--out", tmp_path / "again")
    assert again.code == 0, again.err


def test_a_rank_is_kept_and_its_error_told(call, pair, tmp_path):
    done = call("combine", "ties", *pair, "--rank", 3, "--out", tmp_path / "out")
    assert done.code == 0 and "Truncation to the rank lost" in done.out
    spec = json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert [part["form"] for part in spec["parts"]] == ["lora"] and spec["parts"][0]["settings"]["rank"] == 3


def test_a_model_moves_to_another_base(call, llama, tmp_path):
    model = load(str(llama))
    for name, size in (("tuned", 0.02), ("new", 0.01)):
        torch.manual_seed(len(name))
        with torch.no_grad():
            for tensor in model.model.parameters():
                tensor += size * torch.randn_like(tensor)
        model.model.save_pretrained(tmp_path / name)
        model.processor.save_pretrained(tmp_path / name)
    words = ["combine", "transfer", tmp_path / "tuned", "--base", tmp_path / "new"]
    assert "--source" in call(*words, "--out", tmp_path / "no").err
    done = call(*words, "--source", llama, "--out", tmp_path / "out", "--merged")
    assert done.code == 0 and "The bases differ by" in done.out, done.err
    parts = [dict(load(str(p)).model.named_parameters()) for p in (tmp_path / "out", tmp_path / "new")]
    source = [dict(load(str(p)).model.named_parameters()) for p in (tmp_path / "tuned", llama)]
    for name, tensor in parts[0].items():
        assert torch.allclose(tensor, parts[1][name] + source[0][name] - source[1][name], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["tie", "{0}"], "did you mean 'ties'"),
        (["ties", "{0}", "{1}", "--weights", "1"], "1 weights for 2 inputs"),
        (["ties", "{0}", "--weights", "a,b"], "expected numbers"),
        (["ties", "{0}", "--density", "2"], "from 0 to 1"),
        (["ties", "{0}x"], "no adapter folder"),
        (["ties", "{0}", "--source", "{1}"], "one base"),
        (["ties"], "at least one"),
        (["ties", "{0}", "--base", "{other}"], "another"),
    ],
)
def test_bad_words_are_refused_and_nothing_is_written(words, why, call, pair, tmp_path):
    other = save_llama(tmp_path / "other", seed=4) if "{other}" in words else ""
    given = [word.format(*pair, other=other) for word in words]
    done = call("combine", *given, "--out", tmp_path / "no")
    assert done.code == 2 and why in done.err, done.err
    assert not (tmp_path / "no").exists()


def test_settings_follow_the_method(call):
    assert "--gamma" in call("combine", "breadcrumbs", "--help").out
    assert "--gamma" not in call("combine", "ties", "--help").out and call("combine", "--help").code == 0


def test_help_loads_no_torch_without_a_method():
    code = "import sys, luthier.cli; luthier.cli.main(['combine', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.fixture
def classifiers(bert, tmp_path):
    """`classifiers(labels)`: an adapter and a model with these classes, whose heads the base lacks."""

    def made(name: str, labels: list[str], whole: bool = False):
        loaded = load(bert, task="classification", labels=labels)
        lt.attach(loaded.model, lt.LoRA(rank=2), "query, value")
        lt.attach(loaded.model, lt.Full(), " | ".join(f"params({module}.*)" for module in loaded.new_modules))
        for number, tensor in enumerate(lt.trainable(loaded.model).values()):
            tensor.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name) + number))
        if whole:
            save_merged(loaded.model, loaded.processor, tmp_path / name)
            return tmp_path / name
        return lt.save(loaded.model, tmp_path / name, base=bert, measured={"task": "classification", "labels": labels})

    return made


def head(bert: str, adapter) -> torch.Tensor:
    loaded = lt.load(load(bert, task="classification", labels=["a", "b"]).model, adapter)
    return lt.merge(loaded).classifier.weight.detach().clone()


@pytest.mark.parametrize("whole", [False, True])
def test_heads_that_the_base_lacks_are_averaged(call, bert, classifiers, tmp_path, whole):
    pair = [classifiers("first", ["a", "b"]), classifiers("second", ["a", "b"], whole)]
    for out in ("one", "two"):
        torch.manual_seed(3 if out == "one" else 4)  # the base's new head is random
        words = ["--base", bert, "--weights", "3,1", "--scale", 2, "--out", tmp_path / out]
        done = call("combine", "task_arithmetic", *pair, *words)
        assert done.code == 0, done.err
    files = [tmp_path / out / "adapter.safetensors" for out in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    one = head(bert, pair[0])
    two = load(str(pair[1]), task="classification").model.classifier.weight if whole else head(bert, pair[1])
    assert torch.allclose(head(bert, tmp_path / "one"), 0.75 * one + 0.25 * two, atol=1e-6)


def test_classifiers_of_other_classes_are_refused(call, bert, classifiers, tmp_path):
    pair = [classifiers("first", ["a", "b"]), classifiers("second", ["c", "d"])]
    words = ["combine", "task_arithmetic", *pair, "--base", bert, "--out", tmp_path / "out"]
    done = call(*words)
    assert done.code == 2 and "classification of a, b" in done.err and "classification of c, d" in done.err
    forced = call(*words, "--force")
    assert forced.code == 0 and "no common meaning" in forced.err


def test_models_of_classes_that_the_base_lacks(call, bert, classifiers, tmp_path):
    pair = [classifiers(name, ["a", "b", "c"], whole=True) for name in ("first", "second")]
    done = call("combine", "ties", *pair, "--base", bert, "--out", tmp_path / "out", "--merged")
    assert done.code == 0, done.err
    one, two, both = (load(str(folder), task="classification").model for folder in (*pair, tmp_path / "out"))
    assert both.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert torch.allclose(both.classifier.weight, (one.classifier.weight + two.classifier.weight) / 2, atol=1e-6)


def test_a_mean_needs_weights_that_sum_to_something(call, bert, classifiers, tmp_path):
    pair = [classifiers(name, ["a", "b"]) for name in ("first", "second")]
    words = ["combine", "task_arithmetic", *pair, "--base", bert, "--weights", "1,-1", "--out", tmp_path / "out"]
    done = call(*words)
    assert done.code == 2 and "positive sum" in done.err
