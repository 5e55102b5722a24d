#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: an adapter that was not trained changes nothing, and one that is merged answers as before it was.
# What happens: with `trainable_token_indices` on a head that has a bias (Phi's `lm_head`), the wrapped layer runs
# `F.linear` with the weight alone, so that the bias is gone as soon as the adapter is there. Merging brings it back: what
# was trained without it then answers with it.
#
# Output seen:
#   largest bias: 2.0595
#   adapter, untrained: logits differ by 2.0595
#   merged: logits differ by 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from peft import LoraConfig, get_peft_model
from transformers import PhiConfig, PhiForCausalLM

torch.manual_seed(0)
size = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
model = PhiForCausalLM(PhiConfig(**size)).eval()
model.lm_head.bias.data.normal_()
ids = torch.tensor([[1, 5, 7, 9]])
largest = float(model.lm_head.bias.abs().max())
with torch.no_grad():
    plain = model(ids).logits
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices={"lm_head": [3]})).eval()
    untrained = float((adapted(ids).logits - plain).abs().max())
    merged = float((adapted.merge_and_unload()(ids).logits - plain).abs().max())
print(f"largest bias: {largest:.4f}")
print(f"adapter, untrained: logits differ by {untrained:.4f}")
print(f"merged: logits differ by {merged:.4f}")
assert untrained > 0.1 and merged < 1e-5, "it behaves otherwise now"
PY
