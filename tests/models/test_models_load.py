from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.models import load, positions


def test_a_causal_model_is_whole_and_tied(tiny_llama):
    loaded = load(str(tiny_llama))
    assert loaded.new_modules == [] and loaded.path == tiny_llama and not loaded.model.training
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert loaded.model.dtype == torch.float32


def test_the_pad_token_is_not_the_end_token(tiny_llama):
    loaded = load(str(tiny_llama))
    assert (loaded.processor.pad_token, loaded.processor.eos_token) == ("<unk>", "</s>")
    assert loaded.model.config.pad_token_id == loaded.model.generation_config.pad_token_id == 0
    assert loaded.model.get_input_embeddings().num_embeddings == 32


def test_a_classifier_has_a_new_head_and_its_labels(tiny_llama):
    loaded = load(str(tiny_llama), task="classification", labels=["no", "yes", "maybe"])
    assert loaded.new_modules == ["score"]
    assert loaded.model.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert loaded.model.config.label2id["maybe"] == 2
    assert loaded.model.config.pad_token_id == 0


def test_a_short_row_padded_on_the_right_classifies_alike(tiny_llama):
    loaded = load(str(tiny_llama), task="classification", num_labels=3)
    alone = loaded.processor("a b", return_tensors="pt")
    padded = loaded.processor(["a b", "a b c d e"], return_tensors="pt", padding=True)
    with torch.no_grad():
        difference = loaded.model(**padded).logits[:1] - loaded.model(**alone).logits
    assert difference.abs().max() < 1e-6


def test_regression_has_one_output(tiny_llama):
    config = load(str(tiny_llama), task="regression").model.config
    assert (config.num_labels, config.problem_type) == (1, "regression")


@pytest.fixture
def classifier(tiny_llama, tmp_path):
    loaded = load(str(tiny_llama), task="classification", labels=["no", "yes"])
    loaded.model.save_pretrained(tmp_path / "c")
    loaded.processor.save_pretrained(tmp_path / "c")
    return tmp_path / "c"


def test_a_trained_classifier_keeps_its_head_and_order(classifier):
    for labels in (None, ["yes", "no"]):
        loaded = load(str(classifier), task="classification", labels=labels)
        assert loaded.new_modules == []
        assert loaded.model.config.id2label == {0: "no", 1: "yes"}


def test_another_number_of_labels_makes_a_new_head(classifier):
    loaded = load(str(classifier), task="classification", num_labels=5)
    assert loaded.new_modules == ["score"] and loaded.model.score.out_features == 5


def test_an_encoder_gets_a_new_classifier_only(tiny_bert):
    loaded = load(str(tiny_bert), task="classification", num_labels=2)
    assert loaded.new_modules == ["classifier"]
    assert load(str(tiny_bert), task="embedding").new_modules == []


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"task": "clasification"}, "did you mean 'classification'"),
        ({"dtype": "float8"}, "did you mean"),
        ({"quantize": "nf3"}, "did you mean 'nf4'"),
        ({"labels": ["a", "b"]}, "takes no labels"),
        ({"task": "regression", "num_labels": 2}, "one output"),
        ({"task": "classification", "labels": ["a", "a"]}, "given twice: a"),
        ({"task": "classification", "labels": ["a"]}, "expected two or more"),
        ({"task": "classification", "labels": ["a", "b"], "num_labels": 3}, "as many"),
        ({"task": "seq2seq"}, "serves the task seq2seq"),
    ],
)
def test_bad_settings_are_told(tiny_llama, settings, message):
    with pytest.raises(LuthierError, match=message):
        load(str(tiny_llama), **settings)


def test_a_truncated_checkpoint_is_told(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(LuthierError, match="is whole"):
        load(str(folder))


def test_a_foreign_checkpoint_is_told(tiny_llama, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    save_file({"other": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LuthierError, match="none of the weights"):
        load(str(folder))


def test_a_pickled_checkpoint_is_refused(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(LuthierError, match="safetensors"):
        load(str(folder))


def test_weights_in_several_files_are_read_and_a_missing_one_is_named(tiny_llama, tmp_path):
    whole = load(str(tiny_llama))
    whole.model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    whole.processor.save_pretrained(tmp_path / "m")
    files = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(files) > 1
    ids = torch.arange(3, 19)[None]
    assert torch.equal(load(str(tmp_path / "m")).model(ids).logits, whole.model(ids).logits)
    files[1].unlink()
    with pytest.raises(LuthierError, match=f"lacks 1 of the {len(files)} files.*{files[1].name}"):
        load(str(tmp_path / "m"))


def test_a_folder_without_weights_is_told(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LuthierError, match="no weights"):
        load(str(folder))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapter.json", "an adapter's or a run's. Give the model .* MODEL --adapter"),
        ("run.json", "an adapter's or a run's"),
        ("adapter_config.json", "luthier import"),
        ("model-q8_0.gguf", "gguf files in it by its own name: model-q8_0.gguf"),
        ("snapshots/abc/config.json", "Models are in it: snapshots/abc"),
    ],
)
def test_a_wrong_folder_is_told_by_what_it_is(tmp_path, file, message):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(LuthierError, match=message):
        load(str(tmp_path))


def test_a_missing_tokenizer_is_told(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(LuthierError, match="no tokenizer"):
        load(str(tmp_path))


def test_an_unreachable_hub_is_told_at_once(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LuthierError, match="no folder org/absent exists here"):
        load("org/absent")


@pytest.mark.parametrize("name, module", [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_quantised_base_stays_near_and_passes_gradients(tiny_llama, name, module):
    pytest.importorskip(module)
    plain, packed = load(str(tiny_llama)).model, load(str(tiny_llama), quantize=name).model
    ids = torch.arange(3, 19)[None]
    expected, found = plain(ids).logits, packed(ids).logits
    error = ((found - expected).norm() / expected.norm()).item()
    assert 0 < error < 0.25
    embedded = packed.get_input_embeddings()(ids).detach().requires_grad_()
    packed(inputs_embeds=embedded).logits.square().sum().backward()
    assert embedded.grad is not None and embedded.grad.abs().sum() > 0


@pytest.mark.parametrize("name, module", [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_new_head_of_a_quantised_base_stays_dense_and_trains(tiny_bert, name, module):
    pytest.importorskip(module)
    loaded = load(str(tiny_bert), task="classification", num_labels=3, quantize=name)
    assert loaded.new_modules == ["classifier"]
    assert type(loaded.model.classifier) is torch.nn.Linear
    loaded.model(input_ids=torch.arange(3, 19)[None]).logits.square().sum().backward()
    assert loaded.model.classifier.weight.grad is not None


def test_a_missing_quantisation_library_names_the_extra(tiny_llama, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LuthierError, match=r"luthier\[quant\]"):
        load(str(tiny_llama), quantize="nf4")


BOUNDS = {"llama": None, "gpt2": 128, "opt": 128, "bert": 128, "roberta": 127, "t5": None, "bart": 1024, "clip": 128}


@pytest.mark.parametrize(("architecture", "most"), [*BOUNDS.items(), ("falcon", None)])
def test_positions_are_a_bound_where_a_table_holds_them(architecture, most):
    """RoBERTa numbers its tokens from after the padding's; the tables of OPT and BART have two rows more."""
    from support.architectures import ARCHITECTURES

    assert positions(ARCHITECTURES[architecture].build()) == most


def test_an_adapter_in_the_models_folder_is_told_and_not_applied(tiny_llama, tmp_path):
    """transformers puts it on the model, which often holds it already: merged beside the adapter."""
    peft = pytest.importorskip("peft")
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    made = peft.get_peft_model(load(str(tiny_llama)).model, peft.LoraConfig(target_modules=["q_proj"]))
    for parameter in made.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    made.save_pretrained(folder)
    plain = load(str(tiny_llama)).model
    with pytest.warns(UserWarning, match="holds an adapter of peft's beside the model"):
        found = load(str(folder)).model
    assert type(found) is type(plain) and found.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in plain.state_dict().items())
    (folder / "config.json").unlink()
    with pytest.raises(LuthierError, match=r"it is an adapter's or a run's\. Give the model that it was fitted on"):
        load(str(folder))


@pytest.mark.parametrize("longest", [{}, "many", True], ids=repr)
def test_a_tokenizer_whose_longest_text_is_no_number_is_refused(longest, tiny_llama, tmp_path):
    """transformers compares it with every text that is tokenised."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": longest}))
    with pytest.raises(LuthierError, match=r"model_max_length .* expected a number"):
        load(str(folder))
