"""peft's adapters of models that read pictures beside text: every layout of the names gives peft's own outputs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from luthier.core.sites.probe import dummy_inputs
from support.tiny_pictures import MODELS, built

peft = pytest.importorskip("peft")

SPOKEN, SEEN, VISUAL = "model.language_model.", "model.vision_tower.", "model.visual."
LAYOUTS = {
    "transformers 5": {},
    "transformers 4": {SPOKEN: "language_model.model.", SEEN: "vision_tower.", VISUAL: "visual."},
    "no language_model": {SPOKEN: "model.", VISUAL: "visual."},
    "CLIP of transformers 4": {SPOKEN: "language_model.model.", SEEN: "vision_tower.vision_model."},
}
"""What stands in the file, by what stands in the model."""
LEFT_OUT = r"(visual|vision_tower)\..*"
"""What the expression of a folder of transformers 4 leaves out, by the names of then."""
TARGETS = {
    "the language model": r".*language_model.*\.(q_proj|v_proj)",
    "both": ["q_proj", "v_proj", "qkv"],
    "the convolution of pictures": ["patch_embed.proj", "patch_embedding", "q_proj"],
}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**dummy_inputs(model)).logits


def written(name: str, targets, folder) -> torch.Tensor:
    """What peft's model answers, whose adapter is saved in the folder."""
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    theirs = peft.get_peft_model(built(name), config).eval()
    theirs.save_pretrained(folder)
    return logits(theirs.base_model.model)


@pytest.mark.parametrize("parts", TARGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_every_layout_gives_pefts_outputs(name, layout, parts, tmp_path):
    wanted = written(name, TARGETS[parts], tmp_path / "peft")
    assert (wanted - logits(built(name))).abs().max() > 1e-3
    file = tmp_path / "peft" / "adapter_model.safetensors"
    held = load_file(file)
    moved = dict(held)
    for own, stored in LAYOUTS[layout].items():
        moved = {key.replace(own, stored): tensor for key, tensor in moved.items()}
    assert len(moved) == len(held) and any(SPOKEN in key for key in held)
    save_file(moved, file)
    folder = lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=built(name))
    assert torch.allclose(logits(lt.load(built(name), folder)), wanted, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_out_by_the_names_of_then_is_not_missed(name, tmp_path):
    wanted = written(name, TARGETS["the language model"], tmp_path / "peft")
    file, told = (tmp_path / "peft" / each for each in ("adapter_model.safetensors", "adapter_config.json"))
    save_file({key.replace(SPOKEN, "language_model.model."): t for key, t in load_file(file).items()}, file)
    changes = {"target_modules": TARGETS["both"], "exclude_modules": LEFT_OUT}
    told.write_text(json.dumps(json.loads(told.read_text()) | changes))
    folder = lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=built(name))
    assert torch.allclose(logits(lt.load(built(name), folder)), wanted, atol=1e-5)
    told.write_text(json.dumps(json.loads(told.read_text()) | {"exclude_modules": None}))
    with pytest.raises(lt.LuthierError, match=r"lacks the tensors of model\.vi"):
        lt.import_adapter(tmp_path / "peft", tmp_path / "again", base=built(name))


@pytest.mark.parametrize("name", MODELS)
def test_names_of_another_model_are_told(name, tmp_path):
    written(name, TARGETS["the language model"], tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_model.safetensors"
    save_file({key.replace("q_proj", "query"): tensor for key, tensor in load_file(file).items()}, file)
    with pytest.raises(lt.LuthierError, match=r"query.*q_proj"):
        lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=built(name))


@pytest.mark.parametrize("name", MODELS)
def test_the_command_line_reads_it_and_what_it_prints_works(name, tmp_path, capsys):
    import shlex

    from luthier.cli import main
    from support.tiny import tokenizer

    built(name).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    wanted = written(name, TARGETS["both"], tmp_path / "peft")
    words = ["import", tmp_path / "peft", tmp_path / "ours", "--model", tmp_path / "base"]
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert torch.allclose(logits(lt.load(built(name), tmp_path / "ours")), wanted, atol=1e-5)
    said = capsys.readouterr().out.split("Next: luthier ", 1)[1]
    assert main([*shlex.split(said), "--max-new-tokens", "2"]) == 0, capsys.readouterr().err
