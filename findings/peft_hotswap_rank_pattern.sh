#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: after `hotswap_adapter(model, folder, "default")` the model answers as `PeftModel.from_pretrained(base, folder)`
# does, or it raises, as it does where `alpha_pattern` or `use_rslora` differ.
# What happens: layers whose rank is that of the file's `rank_pattern` keep another strength. alpha / r is worked out with
# the `r` of the whole configuration, and not the rank of the layer: a layer of rank 2 beside r=8 is a quarter as strong
# as it was trained. `rank_pattern` is not among the settings that are compared, and nothing warns.
#
# Output seen:
#   same rank everywhere: logits differ from those of the loaded adapter by 0.0000; strengths of q and v 2.0 2.0, trained with 2.0 2.0
#   rank_pattern: logits differ from those of the loaded adapter by 4.1689; strengths of q and v 2.0 2.0, trained with 2.0 8.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from transformers import LlamaConfig, LlamaForCausalLM

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ids = torch.arange(1, 13)[None]


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**size, initializer_range=0.2)).eval()


def saved(folder, seed, **more):
    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **more)
    get_peft_model(base(), config).save_pretrained(folder)


def strengths(model):
    layer = model.base_model.model.model.layers[0].self_attn
    return [layer.q_proj.scaling["default"], layer.v_proj.scaling["default"]]


found = {}
for name, more in (("same rank everywhere", {}), ("rank_pattern", {"rank_pattern": {"v_proj": 2}})):
    saved(f"{name} first", 1)
    saved(f"{name} second", 2, **more)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base(), f"{name} second").eval()
        swapped = PeftModel.from_pretrained(base(), f"{name} first").eval()
        hotswap_adapter(swapped, f"{name} second", adapter_name="default")
        found[name] = float((loaded(ids).logits - swapped(ids).logits).abs().max())
    now, trained = (" ".join(f"{each:.1f}" for each in strengths(model)) for model in (swapped, loaded))
    print(
        f"{name}: logits differ from those of the loaded adapter by {found[name]:.4f}; "
        f"strengths of q and v {now}, trained with {trained}"
    )
assert found["same rank everywhere"] < 1e-4 and found["rank_pattern"] > 0.1, "it behaves otherwise now"
PY
