#!/usr/bin/env bash
# peft 0.17.1 over transformers 4.57.6 writes, peft 0.21.2 over transformers 5.23.0 reads; torch 2.13.0 (Python 3.10 or
# later).
#
# Expected: a LoRA on mixtures of experts answers under transformers 5, which keeps the experts of a layer as one
# parameter, as it was trained under 4, or is refused; peft converts such adapters when it loads them.
# What happens, without a warning that says so:
#   - rsLoRA: gates and up-projections become one change of rank 2 r with alpha 2 a, and the scale of rsLoRA is a / sqrt(r),
#     so they are sqrt(2) times too strong (Qwen3-MoE; Mixtral and DeepSeek-V3 alike).
#   - Qwen2-MoE: routed experts are left out; the layers of the shared expert are loaded.
#   - DeepSeek-V3: the layers of shared experts and of dense blocks are left out.
#
# Output seen:
#   qwen3_moe: peft 0.17.1, adapter on: the base's logits moved by 3.0794; loaded again: no difference
#   qwen2_moe: peft 0.17.1, adapter on: the base's logits moved by 2.9828; loaded again: no difference
#   deepseek_v3: peft 0.17.1, adapter on: the base's logits moved by 4.4282; loaded again: no difference
#   qwen3_moe: peft 0.21.2: logits differ by 1.7356; warnings of missing or unexpected keys: 0
#   qwen3_moe: … with gate_up_proj divided by sqrt(2): logits differ by 0.0000
#   qwen2_moe: peft 0.21.2: logits differ by 3.1697; warnings of missing or unexpected keys: 0
#   qwen2_moe: … from the adapter without what was left out: logits differ by 0.0000
#   deepseek_v3: peft 0.21.2: logits differ by 5.0445; warnings of missing or unexpected keys: 0
#   deepseek_v3: … from the adapter without what was left out: logits differ by 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for each in writes reads; do python3 -m venv "$work/$each"; done
"$work/writes/bin/pip" install -q peft==0.17.1 transformers==4.57.6 torch==2.13.0
"$work/reads/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
export HF_HUB_OFFLINE=1
cat > common.py <<'PY'
import torch

IDS = torch.arange(1, 13)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def far(a, b):
    return float((a - b).abs().max())
PY
"$work/writes/bin/python" - <<'PY' 2>/dev/null
import torch
from common import far, logits
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, DeepseekV3Config, Qwen2MoeConfig, Qwen3MoeConfig

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
size |= {"num_key_value_heads": 4, "initializer_range": 0.2, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
deepseek = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
cases = {  # configuration, rsLoRA, what is said to be left out
    "qwen3_moe": (Qwen3MoeConfig(**size, num_experts=4), True, ()),
    "qwen2_moe": (Qwen2MoeConfig(**size, num_experts=4, shared_expert_intermediate_size=16), False, (".experts.",)),
    "deepseek_v3": (DeepseekV3Config(**size, **latent, **deepseek), False, (".shared_experts.", ".layers.0.mlp.")),
}
answers = {}
for name, (config, rslora, left) in cases.items():
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(f"{name}-base")
    answers[f"{name}-base"] = logits(base)
    targets = ["gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=targets, use_rslora=rslora, init_lora_weights=False)
    model = get_peft_model(base, lora)
    model.save_pretrained(name)
    answers[name] = logits(model)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(f"{name}-base"), name)
    assert far(logits(again), answers[name]) < 1e-5
    for path, parameter in model.named_parameters():
        if "lora_B" in path and any(each in path for each in left):
            parameter.data.zero_()
    answers[f"{name}-left"] = logits(model)
    moved = far(answers[name], answers[f"{name}-base"])
    print(f"{name}: peft 0.17.1, adapter on: the base's logits moved by {moved:.4f}; loaded again: no difference")
torch.save(answers, "answers.pt")
PY
"$work/reads/bin/python" - <<'PY' 2>/dev/null
import warnings

import torch
from common import far, logits
from peft import PeftModel
from transformers import AutoModelForCausalLM

answers = torch.load("answers.pt")
for name in ("qwen3_moe", "qwen2_moe", "deepseek_v3"):
    base = AutoModelForCausalLM.from_pretrained(f"{name}-base", dtype=torch.float32)
    assert far(logits(base), answers[f"{name}-base"]) < 1e-4, "the base itself"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, name)
    lost = far(logits(model), answers[name])
    said = [str(each.message)[:60] for each in told if "missing" in str(each.message) or "unexpected" in str(each.message)]
    print(f"{name}: peft 0.21.2: logits differ by {lost:.4f}; warnings of missing or unexpected keys: {len(said)}")
    if name == "qwen3_moe":
        for _, module in model.named_modules():
            if getattr(module, "parameter_name", None) == "gate_up_proj":
                module.scaling["default"] /= 2**0.5
        now = far(logits(model), answers[name])
        print(f"{name}: … with gate_up_proj divided by sqrt(2): logits differ by {now:.4f}")
    else:
        now = far(logits(model), answers[f"{name}-left"])
        print(f"{name}: … from the adapter without what was left out: logits differ by {now:.4f}")
    assert lost > 0.01 and now < 1e-4 and not said, "it behaves otherwise now"
PY
