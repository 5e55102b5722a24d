"""LoRA of UNets, as kohya's sd-scripts and diffusers wrote it; text encoders are in test_recorded.py."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from support.pictures import UNET, UNet2DConditionModel, answer, unet
from support.recorded import FOLDERS, base, cases

CASES = [case for case in cases() if case.format in ("kohya", "diffusers")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format}-{case.name}")
def test_merged_weights_are_base_and_factors(case, tmp_path):
    model = UNet2DConditionModel()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ours = lt.import_adapter(case.folder, tmp_path / "ours", base=model, source=case.format)
    lt.merge(lt.load(model, ours))
    now = {name: p for name, p in model.named_parameters() if "adapters" not in name}
    held = load_file(next(case.folder.glob("*.safetensors")))
    moved = [name for name in before if not torch.equal(now[name], before[name])]
    assert len(moved) == sum(
        key.startswith(("lora_unet", "unet.")) and ("up.weight" in key or "_B" in key) for key in held
    )
    for name in moved:
        path = name.removesuffix(".weight")
        a, b, scale = factors(case, held, path)
        wanted = scale * (b.flatten(1) @ a.flatten(1)).view_as(before[name])
        torch.testing.assert_close(now[name] - before[name], wanted, rtol=1e-4, atol=1e-5)


def factors(case, held: dict[str, torch.Tensor], path: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    if case.format == "diffusers":
        a, b = (held[f"unet.{path}.lora_{side}.weight"] for side in "AB")
        return a, b, 3.0 if case.name == "clip-told" else 1.0
    name = f"lora_unet_{path.replace('.', '_')}"
    a, b = held[f"{name}.lora_down.weight"], held[f"{name}.lora_up.weight"]
    return a, b, float(held[f"{name}.alpha"]) / len(a)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format}-{case.name}")
def test_the_unet_answers_as_in_the_library(case, tmp_path):
    """Where diffusers is installed (the extra diffusion)."""
    pytest.importorskip("diffusers")
    model = unet(UNET)
    ours = lt.import_adapter(case.folder, tmp_path / "ours", base=model, source=case.format)
    lt.load(model, ours)
    wanted = load_file(case.folder.parent / "unet.safetensors")[case.name]
    found = answer(model, UNET)
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("key", "why"),
    {
        "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": "of LoHa",
        "lora_unet_mid_block_attentions_0_proj_in.lokr_w1": "of LoKr",
        "lora_unet_mid_block_attentions_0_proj_in.dora_scale": "of DoRA",
        "lora_unet_input_blocks_9_1_proj_in.lora_down.weight": "which is not a layer of this UNet2D",
        "lora_unet_down_blocks_9_attentions_0_proj_in.lora_down.weight": "which is not a layer of this UNet2D",
        "something.else": "begin with lora_unet_ or lora_te_",
    }.items(),
)
def test_other_kinds_are_refused_by_their_names(key, why, tmp_path):
    folder = shutil.copytree(FOLDERS / "kohya_folders" / "clip-plain", tmp_path / "theirs")
    held = load_file(folder / "last.safetensors")
    save_file(held | {key: torch.ones(2, 2)}, folder / "last.safetensors")
    with pytest.raises(lt.LuthierError, match=why):
        lt.import_adapter(folder, tmp_path / "ours", base=UNet2DConditionModel())
    assert not (tmp_path / "ours").exists()


def test_another_model_is_refused_and_other_parts_are_told(tmp_path):
    with pytest.raises(lt.LuthierError, match="this base is a LlamaForCausalLM"):
        lt.import_adapter(CASES[0].folder, tmp_path / "ours", base=base("llama"))
    with pytest.warns(UserWarning, match="holds tensors of unet too"):
        lt.import_adapter(CASES[0].folder, tmp_path / "ours", base=base("clip"))
