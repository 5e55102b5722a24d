"""`merge`, `export`, `show`: what an adapter becomes."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt
from luthier.models import load
from support.cli_tools import Outcome, save_adapter, save_bert, save_llama, write_rows


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits.float()


def adapted(base, folder) -> torch.Tensor:
    return logits(lt.load(load(str(base)).model, folder))


@pytest.fixture
def merged(call, llama, adapter, tmp_path) -> tuple[Outcome, str]:
    return call("merge", llama, adapter, tmp_path / "merged"), str(tmp_path / "merged")


def test_the_merged_folder_loads_without_luthier(merged, llama, adapter):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done, folder = merged
    assert done.code == 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__.startswith("transformers.")
    wanted = adapted(llama, adapter)
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    assert not torch.allclose(logits(load(str(llama)).model), wanted, atol=1e-3)
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_the_merged_folder_holds_only_the_model(merged, llama):
    from pathlib import Path

    from safetensors import safe_open

    def keys(folder) -> set[str]:
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            return set(file.keys())

    assert keys(merged[1]) == keys(llama)
    config = json.loads((Path(merged[1]) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"]
    assert not list(Path(merged[1]).parent.glob(".*"))


def test_merge_reports_the_change_it_measured(merged):
    line = next(line for line in merged[0].out.splitlines() if line.startswith("Largest change"))
    assert float(line.split(": ")[1].split()[0]) < 1e-5


def test_merge_keeps_the_dtype(call, adapter, tmp_path, llama):
    half = load(str(llama), dtype="bfloat16")
    half.model.save_pretrained(tmp_path / "half")
    half.processor.save_pretrained(tmp_path / "half")
    assert call("merge", tmp_path / "half", adapter, tmp_path / "out").code == 0
    model = load(str(tmp_path / "out"), dtype="auto").model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_merging_a_tied_head_unties_it(call, llama, tmp_path):
    folder = save_adapter(load(str(llama)).model, lt.LoRA(rank=2), tmp_path / "adapter", str(llama), "lm_head")
    done = call("merge", llama, folder, tmp_path / "out")
    assert done.code == 0 and "untied" in done.err
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert torch.allclose(logits(load(str(tmp_path / "out")).model), adapted(llama, folder), atol=1e-5)


def test_what_cannot_be_merged_leaves_nothing(call, llama, tmp_path):
    folder = save_adapter(load(str(llama)).model, lt.LoReFT(rank=2), tmp_path / "adapter", str(llama))
    done = call("merge", llama, folder, tmp_path / "out")
    assert done.code == 2 and "cannot be merged" in done.err
    assert not (tmp_path / "out").exists()


def test_merge_does_not_overwrite(call, llama, adapter, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    done = call("merge", llama, adapter, tmp_path / "out")
    assert done.code == 2 and "not empty" in done.err and (tmp_path / "out" / "precious").exists()


def test_merge_into_another_base_needs_force(call, adapter, tmp_path):
    other = save_llama(tmp_path / "other", seed=1)
    done = call("merge", other, adapter, tmp_path / "out")
    assert done.code == 2 and "--force" in done.err
    assert call("merge", other, adapter, tmp_path / "out", "--force").code == 0


def test_export_loads_in_peft(call, llama, adapter, tmp_path):
    peft = pytest.importorskip("peft")
    assert call("export", adapter, tmp_path / "peft", "--model", llama).code == 0
    model = peft.PeftModel.from_pretrained(load(str(llama)).model, tmp_path / "peft")
    assert torch.allclose(logits(model), adapted(llama, adapter), atol=1e-5)


def test_export_finds_the_base_in_the_adapter(call, adapter, tmp_path):
    assert call("export", adapter, tmp_path / "peft").code == 0


def test_export_of_a_form_without_low_rank(call, llama, tmp_path):
    folder = save_adapter(load(str(llama)).model, lt.Sparse(), tmp_path / "adapter", str(llama), "k_proj")
    done = call("export", folder, tmp_path / "out")
    assert done.code == 2 and "--rank" in done.err
    done = call("export", folder, tmp_path / "out", "--rank", 16, "--tolerance", 0.01)
    assert done.code == 0 and "truncated" in done.out


def test_export_of_the_whole_model_is_what_merge_writes(call, llama, adapter, merged, tmp_path):
    assert call("export", adapter, tmp_path / "out", "--to", "merged").code == 0
    files = [tmp_path / folder / "model.safetensors" for folder in ("out", "merged")]
    assert files[0].read_bytes() == files[1].read_bytes()
    names = [{p.name for p in file.parent.iterdir()} for file in files]
    assert names[1] == {*names[0], "README.md"}


def test_export_and_import_give_the_adapter_back(call, llama, adapter, tmp_path):
    assert call("export", adapter, tmp_path / "peft").code == 0
    assert call("import", tmp_path / "peft", tmp_path / "back", "--model", llama).code == 0
    assert torch.allclose(adapted(llama, tmp_path / "back"), adapted(llama, adapter), atol=1e-6)
    done = call("import", tmp_path / "peft", tmp_path / "again", "--model", llama, "--positions", "f1")
    assert done.code == 2 and "takes no positions" in done.err


def test_the_flags_of_an_export_follow_its_format(call, adapter, tmp_path):
    assert "--dtype" in call("export", "--to", "gguf", "--help").out
    assert "--tolerance" in call("export", "--help").out
    done = call("export", adapter, tmp_path / "out", "--to", "gguf", "--dtype", "q8_0")
    assert done.code == 2 and "BPE without merges" in done.err and not (tmp_path / "out").exists()


def test_export_to_an_unknown_format(call, adapter, tmp_path):
    done = call("export", adapter, tmp_path / "out", "--to", "ggup")
    assert done.code == 2 and "did you mean 'gguf'" in done.err


# --- classes ---------------------------------------------------------------------------------------


@pytest.fixture
def classifier(tmp_path) -> tuple:
    """(base, adapter of three classes with its head)."""
    base = save_bert(tmp_path / "bert")
    labels = ["bad", "good", "odd"]
    model = load(str(base), task="classification", labels=labels).model
    lt.attach(model, lt.LoRA(rank=2))
    lt.attach(model, lt.Full(), "params(classifier.*)")
    measured = {"task": "classification", "labels": labels}
    return base, lt.save(model, tmp_path / "adapter", base=str(base), measured=measured)


@pytest.mark.parametrize("said", [[], ["--task", "classification"]])
def test_a_classifier_goes_to_peft_and_comes_back(said, call, classifier, tmp_path):
    """peft's folder says that it classifies; the names of the classes are nowhere in it."""
    base, adapter = classifier
    assert call("export", adapter, tmp_path / "peft").code == 0
    named = [*said, "--labels", "bad,good,odd"]
    assert call("import", tmp_path / "peft", tmp_path / "back", "--model", base, *named).code == 0

    def head(folder):
        model = load(str(base), task="classification", labels=["bad", "good", "odd"]).model
        with torch.no_grad():
            return lt.load(model, folder)(torch.arange(3, 40)[None]).logits

    assert torch.allclose(head(tmp_path / "back"), head(adapter), atol=1e-6)
    spec = json.loads((tmp_path / "back" / "adapter.json").read_text())
    assert spec["measured"]["labels"] == ["bad", "good", "odd"]


def test_data_of_fewer_classes_are_scored_with_all(call, classifier, tmp_path):
    rows = [{"text": "hm", "label": "odd"}, {"text": "ah", "label": "bad"}]
    words = ["evaluate", classifier[0], write_rows(tmp_path / "rows.jsonl", rows), "--adapter", classifier[1]]
    found = json.loads(call(*words, "--json").out)
    assert found["count"] == 2 and found["loss"] > 0.7  # of three classes, not of two


def test_an_unknown_class_is_refused(call, classifier, tmp_path):
    rows = [{"text": "hm", "label": "odder"}, {"text": "ah", "label": "bad"}, {"text": "oh", "label": "good"}]
    words = ["evaluate", classifier[0], write_rows(tmp_path / "rows.jsonl", rows), "--adapter", classifier[1]]
    done = call(*words)
    assert done.code == 2 and "odder" in done.err


def test_a_classifier_is_merged_with_its_head_and_labels(call, classifier, tmp_path):
    from transformers import AutoModelForSequenceClassification

    done = call("merge", *classifier, tmp_path / "out")
    assert done.code == 0, done.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "bad", 1: "good", 2: "odd"}


# --- show ------------------------------------------------------------------------------------------


def test_show_marks_the_answer(call, llama, rows):
    done = call("show", llama, rows)
    assert done.code == 0
    marked = [part.split("]]")[0] for part in done.out.split("[[")[1:]]
    assert "".join(marked) == "one<|im_end|>"


def test_show_takes_a_row(call, llama, rows):
    assert "'two<|im_end|>'" in call("show", llama, rows, "--row", 2).out
    done = call("show", llama, rows, "--row", 99)
    assert done.code == 2 and "last one is 8" in done.err


def test_show_tells_why_a_row_is_bad(call, llama, tmp_path):
    file = write_rows(tmp_path / "bad.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
    done = call("show", llama, file, "--row", 2)
    assert done.code == 2 and "cannot be used" in done.err


def test_show_sites(call, llama):
    done = call("show", llama, "--where", "q_proj, v_proj & layers(0, 1)")
    assert done.code == 0 and "4 sites" in done.out and "0-1" in done.out
    assert "o_proj" not in done.out and "lm_head" in call("show", llama).out


def test_show_adapter(call, adapter, llama):
    out = call("show", adapter).out
    assert "wegeft(" in out and "rank=4" in out and "all-linear: 21 sites" in out and str(llama) in out


def test_show_adapter_takes_no_data(call, adapter, rows):
    done = call("show", adapter, rows)
    assert done.code == 2 and "go with a model" in done.err


def test_classes_without_names_are_told(call, classifier, tmp_path):
    base, adapter = classifier
    assert call("export", adapter, tmp_path / "peft").code == 0
    done = call("import", tmp_path / "peft", tmp_path / "back", "--model", base)
    assert done.code == 2 and "load the base with the names of its 3 classes (--labels)" in done.err
    two = load(str(base), task="classification", labels=["a", "b"]).model
    lt.attach(two, lt.LoRA(rank=2))
    lt.save(lt.attach(two, lt.Full(), "params(classifier.*)"), tmp_path / "two")
    lt.export(tmp_path / "two", tmp_path / "theirs", to="peft", base=load(str(base), task="classification").model)
    done = call("import", tmp_path / "theirs", tmp_path / "unnamed", "--model", base)
    assert done.code == 0 and "names the classes of the head" in done.err and "evaluate" in done.out


def test_a_reward_model_of_peft_has_one_output(call, tmp_path):
    peft = pytest.importorskip("peft")
    base = save_bert(tmp_path / "bert")
    model = load(str(base), task="reward").model
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "peft")
    done = call("import", tmp_path / "peft", tmp_path / "ours", "--model", base)
    assert done.code == 0, done.err
    ours = lt.load(load(str(base), task="reward").model, tmp_path / "ours")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)
