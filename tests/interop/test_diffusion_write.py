"""LoRA of the parts of a pipeline, written as diffusers and kohya's sd-scripts read it.

Run with diffusers, the files are loaded by its own `load_lora_weights` (`make interop` does so); without, their names
are compared with those that sd-scripts' own table gives (sdxl_names.json).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import luthier as lt
from support.pictures import SDXL, UNET, named_unet
from support.recorded import FOLDERS, base

NAMES = json.loads((FOLDERS / "sdxl_names.json").read_text())
WHERE = "to_q, to_v, to_out.0, ff.net.0.proj"
CONVOLUTIONS = "conv(conv1, proj_in, conv_shortcut, downsamplers.0.conv, upsamplers.0.conv)"


def adapted(model: nn.Module, where: str = WHERE, convolutions: str | None = CONVOLUTIONS) -> nn.Module:
    """LoRA of two ranks and scales, with numbers in both factors."""
    lt.attach(model, lt.LoRA(rank=3, alpha=4.5), where=where)
    if convolutions:
        lt.attach(model, lt.LoRA(rank=2, alpha=1.0), where=convolutions)
    for turn, (_, parameter) in enumerate(sorted(lt.trainable(model).items())):
        draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(turn))
        parameter.data = 0.3 * draw
    return model.eval()


def changes(model: nn.Module) -> dict[str, torch.Tensor]:
    """{name of a weight: what merging adds to it}."""
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "adapters" not in name}
    lt.merge(model)
    after = {name: p.detach() for name, p in model.named_parameters() if "adapters" not in name}
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def written(model: nn.Module, form: str, tmp_path: Any, plain: nn.Module, **settings: Any) -> Any:
    lt.save(model, tmp_path / "ours")
    lt.export(tmp_path / "ours", tmp_path / form, to=lt.find("formats", form, lt.Format)(**settings), base=plain)
    return tmp_path / form


@pytest.mark.parametrize("kind", [UNET, SDXL], ids=["sd", "sdxl"])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_linear_layers_and_convolutions_of_a_unet_come_back(form, kind, tmp_path):
    out = written(adapted(named_unet(kind)), form, tmp_path, named_unet(kind))
    back = lt.import_adapter(out, tmp_path / "back", base=named_unet(kind))
    wanted, found = changes(adapted(named_unet(kind))), changes(lt.load(named_unet(kind), back))
    assert wanted.keys() == found.keys() and any(change.dim() == 4 for change in wanted.values())
    for name, change in wanted.items():
        torch.testing.assert_close(found[name], change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_all_layers_have_one_rank_and_its_alpha(form, tmp_path):
    """What readers of several versions take to mean the same."""
    held = load_file(next(written(adapted(named_unet(UNET)), form, tmp_path, named_unet(UNET)).glob("*.safetensors")))
    assert {len(t) for key, t in held.items() if "lora_down" in key or "lora_A" in key} == {3}
    assert {float(t) for key, t in held.items() if key.endswith(".alpha")} == ({3.0} if form == "kohya" else set())


def test_layers_of_sdxl_are_called_as_sd_scripts_calls_them(tmp_path):
    held = load_file(written(adapted(named_unet(SDXL)), "kohya", tmp_path, named_unet(SDXL)) / "lora.safetensors")
    known = {f"lora_unet_{name.replace('.', '_')}" for name in NAMES.values()}
    assert held and {key.partition(".")[0] for key in held} <= known
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha" in held


@pytest.mark.parametrize(
    ("name", "settings", "mark"),
    [
        ("clip", {}, "lora_te_text_model_encoder_layers_0_"),
        ("clip", {"sdxl": True}, "lora_te1_text_model_encoder_layers_0_"),
        ("clip_projected", {}, "lora_te2_text_model_encoder_layers_0_"),
    ],
)
def test_text_encoders_are_called_by_their_place_in_the_pipeline(name, settings, mark, tmp_path):
    model = adapted(base(name), "(q_proj & layers(0)) | (fc1 & layers(0))", None)
    out = written(model, "kohya", tmp_path, base(name), **settings)
    held = load_file(out / "lora.safetensors")
    assert held and all(key.startswith(mark) for key in held)
    back = lt.import_adapter(out, tmp_path / "back", base=base(name))
    wanted, found = changes(model), changes(lt.load(base(name), back))
    assert wanted.keys() == found.keys()
    for each, change in wanted.items():
        torch.testing.assert_close(found[each], change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "form", "where", "why"),
    [
        ("unet", "kohya", "linear_1, to_q", "has LoRA on layers of attentions, resnets"),
        ("unet", "kohya", "conv(conv_in)", "has LoRA on layers of attentions, resnets"),
        ("clip", "kohya", "token_embedding", "the linear layers in the blocks of a text encoder alone"),
        ("clip_projected", "diffusers", "text_projection", "the linear layers in the blocks of a text encoder alone"),
        ("llama", "diffusers", "q_proj", "LlamaForCausalLM is none of the parts of a pipeline"),
        ("llama", "kohya", "q_proj", "LlamaForCausalLM is none of the parts of a pipeline"),
    ],
)
def test_what_the_files_have_no_place_for_is_refused(name, form, where, why, tmp_path):
    made = (lambda: named_unet(UNET)) if name == "unet" else (lambda: base(name))
    with pytest.raises(lt.LuthierError, match=why):
        written(adapted(made(), where, None), form, tmp_path, made())
    assert not (tmp_path / form).exists()


def test_sdxl_is_refused_for_another_unet(tmp_path):
    with pytest.raises(lt.LuthierError, match="has no add_embedding"):
        written(adapted(named_unet(UNET)), "kohya", tmp_path, named_unet(UNET), sdxl=True)


@pytest.mark.parametrize("kind", [UNET, SDXL], ids=["sd", "sdxl"])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_answers_with_what_was_written(form, kind, tmp_path):
    """Where diffusers is installed: a UNet by its own `load_lora_weights`, within 1e-5."""
    from support.pictures import answer, pipeline, unet

    pytest.importorskip("diffusers")
    wanted = answer(adapted(unet(kind)), kind)
    out = written(adapted(unet(kind)), form, tmp_path, unet(kind))
    pipe = pipeline(kind)
    plain = answer(pipe.unet, kind)
    pipe.load_lora_weights(out)
    found = answer(pipe.unet, kind)
    assert (wanted - plain).abs().max() > 0.05
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(("name", "part"), [("clip", "text_encoder"), ("clip_projected", "text_encoder_2")])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_text_encoders_answer_with_what_was_written(form, name, part, tmp_path):
    """Where diffusers is installed."""
    from support.pictures import pipeline
    from support.recorded import logits

    pytest.importorskip("diffusers")
    where = "q_proj, k_proj, out_proj, fc1"
    wanted = logits(adapted(base(name), where, None))
    out = written(adapted(base(name), where, None), form, tmp_path, base(name))
    pipe = pipeline(SDXL)
    setattr(pipe, part, base(name))
    plain = logits(getattr(pipe, part))
    pipe.load_lora_weights(out)
    assert (wanted - plain).abs().max() > 0.05
    assert (logits(getattr(pipe, part)) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_a_unet_in_sd_scripts_answers_with_what_was_written(tmp_path):
    """kohya's own network, where SD_SCRIPTS is a checkout of sd-scripts (`make interop` has one)."""
    from support.pictures import answer, unet
    from support.sd_scripts import lora_module

    pytest.importorskip("diffusers")
    if "SD_SCRIPTS" not in os.environ:
        pytest.skip("SD_SCRIPTS is not set")
    wanted = answer(adapted(unet(UNET)), UNET)
    out = written(adapted(unet(UNET)), "kohya", tmp_path, unet(UNET)) / "lora.safetensors"
    model, encoder = unet(UNET), base("clip")
    lora = lora_module(Path(os.environ["SD_SCRIPTS"]))
    network, _ = lora.create_network_from_weights(1.0, str(out), None, encoder, model)
    network.apply_to(encoder, model)
    read = network.load_weights(str(out))
    assert not read.missing_keys and not read.unexpected_keys
    assert (answer(model, UNET) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(("form", "file"), [("kohya", "last"), ("diffusers", "pytorch_lora_weights")])
def test_a_text_encoder_has_the_names_that_the_library_writes(form, file, tmp_path):
    """Whatever transformers the base is from."""
    theirs = load_file(FOLDERS / f"{form}_folders" / "clip-plain" / f"{file}.safetensors")
    names = {key for key in theirs if "text" in key or "lora_te_" in key}
    where = "q_proj, k_proj, v_proj, out_proj, fc1, fc2" if form == "kohya" else "q_proj, k_proj, fc1"
    out = written(adapted(base("clip"), where, None), form, tmp_path, base("clip"))
    assert set(load_file(next(out.glob("*.safetensors")))) == names
