"""Writes tests/interop/kohya_folders and diffusers_folders with kohya's sd-scripts and diffusers: see recorded.py.

    python -m venv E; E/bin/pip install diffusers==0.35.2 transformers==4.57.6 peft==0.21.2 torch==2.13.0 safetensors
    git clone https://github.com/kohya-ss/sd-scripts; git -C sd-scripts checkout 48d368fa
    E/bin/python tests/support/record_diffusion.py BASES sd-scripts tests/interop

kohya's own network makes, runs and saves its files; of sd-scripts only networks/lora.py is used, and two names that it
imports are stood in for. diffusers' pipeline saves and loads its own. Each folder has parts of a UNet and of a text
encoder; `unet.safetensors` holds what the UNet answered and its parameters' names follow unet.json.
"""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from sd_scripts import lora_module
from transformers import CLIPTextConfig, CLIPTextModel

IDS = torch.tensor([[5, 9, 2, 30, 11, 8, 17, 3, 26, 14], [7, 7, 21, 4, 13, 29, 6, 1, 10, 19]])
UNET = {
    **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": [8, 16]},
    **{
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
    **{"cross_attention_dim": 16, "attention_head_dim": 4, "norm_num_groups": 4},
}

SDXL = {
    **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": [8, 16, 16]},
    **{
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
    **{"cross_attention_dim": 16, "attention_head_dim": [2, 4, 4], "norm_num_groups": 4, "use_linear_projection": True},
    **{"transformer_layers_per_block": [1, 2, 2], "addition_embed_type": "text_time", "addition_time_embed_dim": 8},
    "projection_class_embeddings_input_dim": 64,
}


def values(count, turn):
    steps = torch.arange(count, dtype=torch.float64) * 0.618033988749895 + turn * 0.7548776662466927
    return ((steps % 1) - 0.5).float()


def unet():
    model = UNet2DConditionModel(**UNET)
    for turn, (_, parameter) in enumerate(sorted(model.named_parameters())):
        spread = 0.3 * values(parameter.numel(), turn).view_as(parameter)
        parameter.data.copy_(spread if parameter.dim() > 1 else 1 + spread)
    return model.eval()


def text_encoder(bases):
    model = CLIPTextModel(CLIPTextConfig(**json.loads((bases / "clip" / "config.json").read_text())))
    held = load_file(bases / "clip" / "model.safetensors")
    model.load_state_dict({f"text_model.{key.removeprefix('text_model.')}": t for key, t in held.items()}, strict=False)
    return model.eval()


def answers(model, encoder):
    """(of the text encoder, of the UNet)"""
    with torch.no_grad():
        states = encoder(input_ids=IDS).last_hidden_state
        sample = values(2 * 4 * 8 * 8, 1).view(2, 4, 8, 8)
        context = values(2 * 10 * 16, 2).view(2, 10, 16)
        return states.contiguous(), model(sample, 7, context).sample.contiguous()


def drawn(parameters, spread):
    for turn, (name, parameter) in enumerate(sorted(parameters)):
        if "alpha" not in name:
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(turn))
            parameter.data = spread * draw


KOHYA = {
    "clip-plain": {"lora_dim": 4, "alpha": 2},
    "clip-conv": {"lora_dim": 2, "alpha": 2, "conv_lora_dim": 3, "conv_alpha": 1},
    "clip-alpha-0": {"lora_dim": 2, "alpha": 0},
}
DIFFUSERS = {"clip-plain": {"r": 2, "lora_alpha": 2}, "clip-told": {"r": 2, "lora_alpha": 6}}


def kohya(scripts, bases, out):
    LoRANetwork = lora_module(scripts).LoRANetwork
    found, states = {}, {"clip": answers(unet(), text_encoder(bases))[0]}
    found["clip"] = answers(unet(), text_encoder(bases))[1]
    for name, settings in KOHYA.items():
        model, encoder = unet(), text_encoder(bases)
        network = LoRANetwork(encoder, model, **settings).eval()
        network.apply_to(encoder, model)
        drawn(network.named_parameters(), 0.25)
        (out / name).mkdir(parents=True)
        save_file(network.state_dict(), out / name / "last.safetensors", {"ss_network_module": "networks.lora"})
        states[name], found[name] = answers(model, encoder)
    finish(out, states, found, {"sd-scripts": "48d368fa"})


def diffusers(bases, out):
    def pipeline():
        vae = AutoencoderKL(block_out_channels=[8], norm_num_groups=4)
        more = {"tokenizer": None, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(
            vae=vae, text_encoder=text_encoder(bases), unet=unet(), scheduler=DDIMScheduler(), **more
        )

    plain = pipeline()
    states, found = ({"clip": each} for each in answers(plain.unet, plain.text_encoder))
    for name, settings in DIFFUSERS.items():
        pipe = pipeline()
        config = LoraConfig(**settings, target_modules=["to_q", "to_v", "to_out.0", "conv1", "proj_in"])
        text = LoraConfig(**settings, target_modules=["q_proj", "k_proj", "fc1"])
        pipe.unet.add_adapter(config)
        pipe.text_encoder.add_adapter(text)
        for model in (pipe.unet, pipe.text_encoder):
            drawn([(n, p) for n, p in model.named_parameters() if "lora_" in n], 0.25)
        told = {}
        if settings["r"] != settings["lora_alpha"]:
            told = {
                "unet_lora_adapter_metadata": config.to_dict(),
                "text_encoder_lora_adapter_metadata": text.to_dict(),
            }
        StableDiffusionPipeline.save_lora_weights(
            out / name,
            unet_lora_layers=get_peft_model_state_dict(pipe.unet),
            text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
            **{key: {k: list(v) if isinstance(v, set) else v for k, v in each.items()} for key, each in told.items()},
        )
        again = pipeline()
        again.load_lora_weights(out / name)
        states[name], found[name] = answers(again.unet, again.text_encoder)
    finish(out, states, found, {each: version(each) for each in ("diffusers", "peft")})


def finish(out, states, found, versions):
    for name in states:
        print(
            name, float((states[name] - states["clip"]).abs().max()), float((found[name] - found["clip"]).abs().max())
        )
    save_file(states, out / "logits.safetensors")
    save_file(found, out / "unet.safetensors")
    told = {"versions": versions, "cases": {name: {"base": "clip"} for name in states if name != "clip"}}
    (out / "cases.json").write_text(json.dumps(told, indent=1) + "\n")
    shapes(out.parent / "diffusion_unet.json", UNET)


def shapes(path, config):
    """The configuration of a UNet, and the kinds and shapes of its layers."""
    modules = UNet2DConditionModel(**config).named_modules()
    told = {name: [type(m).__name__, list(m.weight.shape)] for name, m in modules if hasattr(m, "weight")}
    path.write_text(json.dumps({"config": config, "modules": told}) + "\n")


def sdxl(scripts, out):
    """The layers of a small SDXL, and their names by sd-scripts' own table (library/sdxl_model_util.py)."""
    shapes(out / "sdxl_unet.json", SDXL)
    source = (scripts / "library" / "sdxl_model_util.py").read_text()
    table = {}
    exec(re.search(r"def make_unet_conversion_map\(\):.*?\n(?=\S)", source, re.DOTALL)[0], table)
    known = sorted(table["make_unet_conversion_map"](), key=lambda pair: -len(pair[1]))
    found = {}
    for path in json.loads((out / "sdxl_unet.json").read_text())["modules"]:
        own, theirs = next((hf, sd) for sd, hf in known if f"{path}.".startswith(hf))
        found[path] = (theirs + f"{path}.".removeprefix(own)).removesuffix(".")
    (out / "sdxl_names.json").write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    kohya(Path(sys.argv[2]), Path(sys.argv[1]), Path(sys.argv[3]) / "kohya_folders")
    diffusers(Path(sys.argv[1]), Path(sys.argv[3]) / "diffusers_folders")
    sdxl(Path(sys.argv[2]), Path(sys.argv[3]))
