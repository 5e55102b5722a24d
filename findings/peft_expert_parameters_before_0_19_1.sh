#!/usr/bin/env bash
# peft 0.18.1 writes, peft 0.21.2 reads; transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: a LoRA on the experts of OLMoE (`target_parameters`) answers under a newer peft as it was trained, or is
# refused: the file says which peft wrote it (`peft_version`).
# What happens: until 0.19.0, peft took the experts' weights [experts, out, in] for [experts, in, out], so that its A has
# the width of what leaves the layer and B of what enters it. From 0.19.1 on it is the other way round, and nothing looks
# at `peft_version`. Where the two widths differ, loading raises (size mismatch); where they are the same, as in
# OLMoE-1B-7B's gate_up_proj (2 x 1024 by 2048), each expert gets the transposed change, without a word.
#
# Output seen:
#   peft 0.18.1, adapter on: the base's logits moved by 1.3441
#   peft 0.18.1, loaded again: logits differ by 0.0000
#   peft 0.21.2, loaded: logits differ by 1.7580; warnings that speak of the adapter: 0
#   peft 0.21.2, loaded, factors of each expert exchanged and transposed: logits differ by 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for each in writes reads; do python3 -m venv "$work/$each"; done
"$work/writes/bin/pip" install -q peft==0.18.1 transformers==5.23.0 torch==2.13.0
"$work/reads/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
export HF_HUB_OFFLINE=1
cat > common.py <<'PY'
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

IDS = torch.arange(1, 13)[None]


def base():
    """OLMoE's proportions: two times the width of an expert is the width of the model."""
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1}
    return OlmoeForCausalLM(OlmoeConfig(**size, **more)).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def far(a, b):
    return float((a - b).abs().max())
PY
"$work/writes/bin/python" - <<'PY' 2>/dev/null
import torch
from common import base, far, logits
from peft import LoraConfig, PeftModel, get_peft_model

config = LoraConfig(r=2, lora_alpha=4, target_modules=[], target_parameters=["mlp.experts.gate_up_proj"], init_lora_weights=False)
model = get_peft_model(base(), config)
model.save_pretrained("adapter")
wanted = logits(model)
torch.save(wanted, "wanted.pt")
print(f"peft 0.18.1, adapter on: the base's logits moved by {far(wanted, logits(base())):.4f}")
print(f"peft 0.18.1, loaded again: logits differ by {far(logits(PeftModel.from_pretrained(base(), 'adapter')), wanted):.4f}")
PY
"$work/reads/bin/python" - <<'PY' 2>/dev/null
import json
import warnings

import torch
from common import base, far, logits
from peft import PeftModel
from safetensors.torch import load_file, save_file

wanted = torch.load("wanted.pt")
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = far(logits(PeftModel.from_pretrained(base(), "adapter")), wanted)
spoken = sum("adapter" in str(each.message) or "lora" in str(each.message).lower() for each in told)
print(f"peft 0.21.2, loaded: logits differ by {found:.4f}; warnings that speak of the adapter: {spoken}")

EXPERTS, RANK = 4, 2
held = load_file("adapter/adapter_model.safetensors")
for key in [key for key in held if "lora_A" in key]:
    a, b = held[key], held[other := key.replace("lora_A", "lora_B")]
    a, b = a.view(EXPERTS, RANK, -1), b.view(len(b), RANK, EXPERTS)
    held[key] = b.permute(2, 1, 0).reshape(EXPERTS * RANK, -1).contiguous()
    held[other] = a.permute(2, 1, 0).reshape(-1, RANK * EXPERTS).contiguous()
save_file(held, "adapter/adapter_model.safetensors", {"format": "pt"})
turned = far(logits(PeftModel.from_pretrained(base(), "adapter")), wanted)
print(f"peft 0.21.2, loaded, factors of each expert exchanged and transposed: logits differ by {turned:.4f}")
assert json.load(open("adapter/adapter_config.json"))["peft_version"].startswith("0.18.1")
assert found > 0.1 and turned < 1e-4 and not spoken, "it behaves otherwise now"
PY
