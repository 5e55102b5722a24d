#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: `load_lora_weights` gives each layer of a kohya file (lora_down, lora_up, alpha) the strength alpha / r that
# its own alpha says, or raises.
# What happens: where the alphas of layers differ, as in a file that sd-scripts' resize_lora.py made with dynamic ranks,
# the attention layers of the UNet and all layers of the text encoder run with the most frequent alpha of the file
# instead. The keys of `alpha_pattern` are made from kohya's names (`attn1.processor.to_q_lora.down`, or the parent's
# path), which no module has. Nothing says so. Feed-forward layers of the UNet are right.
#
# Output seen (rank 4; alphas of 4, 8, 2, 4 in turn, so that layers with the most frequent one are right anyway):
#   one alpha everywhere: wrong strength in 0 of 83 layers of the UNet, 0 of 12 of the text encoder
#   alphas that differ: wrong strength in 16 of 83 layers of the UNet, 6 of 12 of the text encoder
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

RANK = 4
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, layers_per_block=1, block_out_channels=[8, 16], cross_attention_dim=16, attention_head_dim=4,
    norm_num_groups=4, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
)
text_encoder = CLIPTextModel(
    CLIPTextConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
)
pipe = StableDiffusionPipeline(
    vae=AutoencoderKL(block_out_channels=[8], norm_num_groups=4), text_encoder=text_encoder, unet=unet,
    scheduler=DDIMScheduler(), tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
LAYERS = {
    (part, path): (mark + path.removeprefix("text_model.").replace(".", "_"), module)
    for part, model, mark in (("UNet", unet, "lora_unet_"), ("text encoder", text_encoder, "lora_te_text_model_"))
    for path, module in model.named_modules()
    if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
}
found = {}
for name, alphas in (("one alpha everywhere", [4.0]), ("alphas that differ", [4.0, 8.0, 2.0, 4.0])):
    held, wanted = {}, {}
    for turn, (place, (key, module)) in enumerate(LAYERS.items()):
        shape, alpha = module.weight.shape, alphas[turn % len(alphas)]
        held[f"{key}.lora_down.weight"] = torch.randn(RANK, *shape[1:])
        held[f"{key}.lora_up.weight"] = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2))
        held[f"{key}.alpha"] = torch.tensor(alpha)
        wanted[place] = alpha / RANK
    save_file(held, f"{name}.safetensors")
    pipe.load_lora_weights(".", weight_name=f"{name}.safetensors", adapter_name="a")
    wrong = {"UNet": [], "text encoder": []}
    for part, path in LAYERS:
        layer = (unet if part == "UNet" else text_encoder).get_submodule(path)
        wrong[part].append(abs(layer.scaling["a"] - wanted[part, path]) > 1e-6)
    found[name] = [sum(each) for each in wrong.values()]
    told = [f"{sum(each)} of {len(each)}" for each in wrong.values()]
    print(f"{name}: wrong strength in {told[0]} layers of the UNet, {told[1]} of the text encoder")
    pipe.unload_lora_weights()
assert found["one alpha everywhere"] == [0, 0] and min(found["alphas that differ"]) > 0, "it behaves otherwise now"
PY
