#!/usr/bin/env bash
# torchtune 0.6.1 with torchao 0.13.0, peft 0.21.2 (which refuses that torchao, so each has an environment of its own),
# transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: the adapter_model.safetensors and adapter_config.json that FullModelHFCheckpointer writes for peft answer in
# peft as the trained model does in torchtune.
# What happens: for a Llama with LoRA they do. For a Qwen2 they do not: rows of q_proj and k_proj are permuted as a
# Llama's are, though torchtune's Qwen2 has them in transformers' order. For a Llama with DoRA they do not: the
# configuration does not say use_dora, so peft leaves the magnitudes out, without a word.
#
# Output seen:
#   llama lora: largest difference between torchtune and peft: 0.0000
#   qwen2 lora: largest difference between torchtune and peft: 4.9429
#   llama dora: largest difference between torchtune and peft: 4.6564
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for each in writes reads; do python3 -m venv "$work/$each"; done
"$work/writes/bin/pip" install -q torchtune==0.6.1 torchao==0.13.0 transformers==5.23.0 torch==2.13.0
"$work/reads/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
"$work/writes/bin/python" - <<'PY' 2>/dev/null
import torch
from torchtune import training
from torchtune.models.convert_weights import hf_to_tune
from torchtune.models.llama3._component_builders import lora_llama3
from torchtune.models.qwen2._component_builders import lora_qwen2
from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune
from torchtune.modules.peft import get_adapter_params
from torchtune.training import FullModelHFCheckpointer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
size |= {"num_key_value_heads": 2, "initializer_range": 0.2, "max_position_embeddings": 64}
theirs = {"vocab_size": 64, "embed_dim": 32, "intermediate_dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
theirs |= {"max_seq_len": 64, "norm_eps": 1e-6, "rope_base": 10000.0, "lora_rank": 2, "lora_alpha": 4}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, lora_llama3, hf_to_tune, "LLAMA3"),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, lora_qwen2, qwen2_hf_to_tune, "QWEN2"),
}
ids = torch.tensor([list(range(1, 17))])
found = {}
for name, dora in (("llama", False), ("qwen2", False), ("llama", True)):
    torch.manual_seed(0)
    cls, config, builder, convert, kind = MODELS[name]
    case = f"{name} {'dora' if dora else 'lora'}"
    base = cls(config(**size)).eval()
    base.save_pretrained(f"base {case}")
    places = {"lora_attn_modules": ["q_proj", "k_proj"], "apply_lora_to_mlp": False, "apply_lora_to_output": False}
    model = builder(**places, **theirs, use_dora=dora).eval()
    model.load_state_dict(convert(base.state_dict(), num_heads=4, num_kv_heads=2, dim=32), strict=False)
    for module in model.modules():
        if type(module).__name__ == "DoRALinear":
            module.initialize_dora_magnitude()
    for key, parameter in get_adapter_params(model).items():
        noise = torch.randn_like(parameter)
        parameter.data = parameter.data * (1 + 0.2 * noise) if "magnitude" in key else 0.2 * noise
    keeper = FullModelHFCheckpointer(f"base {case}", ["model.safetensors"], kind, f"out {case}")
    keeper.load_checkpoint()
    told = {"r": 2, "lora_alpha": 4, "peft_type": "LORA", "target_modules": ["q_proj", "k_proj"]}
    keeper.save_checkpoint({training.ADAPTER_KEY: get_adapter_params(model), training.ADAPTER_CONFIG: told}, 0, False, True)
    with torch.no_grad():
        found[case] = model(ids)
torch.save(found, "wanted.pt")
PY
"$work/reads/bin/python" - <<'PY' 2>/dev/null
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

found = {}
for case, wanted in torch.load("wanted.pt").items():
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(f"base {case}"), f"out {case}/epoch_0").eval()
    with torch.no_grad():
        found[case] = float((wanted - model(torch.tensor([list(range(1, 17))])).logits).abs().max())
    print(f"{case}: largest difference between torchtune and peft: {found[case]:.4f}")
assert found["llama lora"] < 1e-3 < min(found["qwen2 lora"], found["llama dora"])
PY
