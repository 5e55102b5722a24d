#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: an adapter with `ensure_weight_tying=True` answers after `save_pretrained` and `from_pretrained` as it did
# before, whatever the base calls its table.
# What happens: on GPT-2 (`wte`) and T5 (`shared`) the adapter of `lm_head` is dropped without a word. While it is made,
# `lm_head` in `target_modules` is replaced by the name of the table, so that both are trained as one; that changed list
# is saved, and when it is read again, only `embed_tokens` and `lm_head` are known to be tied, so `lm_head` gets no
# adapter, though the file holds its factors. On Llama (`embed_tokens`) all is well.
#
# Output seen:
#   llama: saved target_modules ['model.embed_tokens'], logits differ after loading by 0.0000
#   gpt2: saved target_modules ['transformer.wte'], logits differ after loading by more than 0.1 (lm_head's factors in the file: 2)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


ids, found = torch.arange(8)[None], {}
for make in (llama, gpt2):
    name, config = make.__name__, LoraConfig(r=4, target_modules=["lm_head"], ensure_weight_tying=True)
    model = get_peft_model(make(), config).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    before = model(ids).logits
    model.save_pretrained(name)
    after = PeftModel.from_pretrained(make(), name).eval()(ids).logits
    found[name] = float((before - after).abs().max())
    with open(f"{name}/adapter_config.json") as file:
        saved = json.load(file)["target_modules"]
    with safe_open(f"{name}/adapter_model.safetensors", "pt") as file:
        head = sum("lm_head" in key for key in file.keys())
    size = "more than 0.1" if found[name] > 0.1 else f"{found[name]:.4f}"
    more = f" (lm_head's factors in the file: {head})" if name == "gpt2" else ""
    print(f"{name}: saved target_modules {saved}, logits differ after loading by {size}{more}")
assert found["llama"] < 1e-4 and found["gpt2"] > 0.1, "it changed"
PY
