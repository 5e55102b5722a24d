#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: `add_weighted_adapter(["a"], [1.0], "b")` makes an adapter that answers as "a", whatever "a" holds, or raises,
# as it does for `target_parameters` and for two adapters with `modules_to_save` of one module.
# What happens: A and B are combined and nothing else is. The new adapter has the configuration of the first (use_dora,
# lora_bias, trainable_token_indices, modules_to_save) and a fresh start of what that names: DoRA's magnitudes are the
# norms of the base's rows, biases of B zeros, trained tokens and whole modules those of the base. No warning speaks of it.
# The same with all combination types (`svd` and `cat` are called precise in its documentation).
#
# Output seen:
#   plain LoRA: moves the logits by 3.6618; of weight 1: off by linear 0.0000, svd 0.0000, cat 0.0000; warnings: 0
#   use_dora: moves the logits by 3.5139; of weight 1: off by linear 1.3483, svd 1.3483, cat 1.3483; warnings: 0
#   lora_bias: moves the logits by 4.2935; of weight 1: off by linear 2.2672, svd 2.2672, cat 2.2672; warnings: 0
#   trainable_token_indices: moves the logits by 3.5111; of weight 1: off by linear 4.1484, svd 4.1484, cat 4.1484; warnings: 0
#   modules_to_save: moves the logits by 5.6983; of weight 1: off by linear 3.4036, svd 3.4036, cat 3.4036; warnings: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/peft"
"$work/peft/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/peft/bin/python" - <<'PY' 2>/dev/null
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

IDS = torch.arange(1, 13)[None]
CASES = {
    "plain LoRA": {},
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "trainable_token_indices": {"trainable_token_indices": [3, 5]},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
}


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


for name, more in CASES.items():
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    base = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=4, initializer_range=0.2))
    plain = logits(base)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **more), "a")
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:  # what training would have moved
            parameter.data += 0.2 * torch.randn(parameter.shape)
    wanted = logits(model)
    moved, lost = float((wanted - plain).abs().max()), {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for kind in ("linear", "svd", "cat"):
            model.add_weighted_adapter(["a"], [1.0], kind, combination_type=kind)
            model.set_adapter(kind)
            lost[kind] = float((logits(model) - wanted).abs().max())
    said = [each for each in told if "weighted" in str(each.message) or "combin" in str(each.message)]
    by_kind = ", ".join(f"{kind} {value:.4f}" for kind, value in lost.items())
    print(f"{name}: moves the logits by {moved:.4f}; of weight 1: off by {by_kind}; warnings: {len(said)}")
    if name == "plain LoRA":
        assert max(lost.values()) < 1e-4, "the rest says nothing then"
    else:
        assert min(lost.values()) > 0.1 and not said, "it behaves otherwise now"
PY
