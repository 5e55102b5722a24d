#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: a learned prefix (PREFIX_TUNING) conditions every token that is written behind it, as on models without a
# window.
# What happens: peft puts the prefix into the cache, where layers with a sliding window count it as text. From token
# `window - length` on, a layer sees less of it, and behind some windows the model answers exactly as without the
# adapter, with no warning: of a Mistral of 2 layers with a window of 8, from token 14 on.
#
# Output seen:
#   no window: the prefix moves tokens 0 to 31
#   a window of 8: the prefix moves tokens 0 to 13; the others are the base's
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM

size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ids = torch.arange(3, 35)[None]
moved = {}
for window in (None, 8):
    torch.manual_seed(0)
    config = MistralConfig(**size, num_key_value_heads=2, head_dim=8, sliding_window=window)
    model = MistralForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (parameter.dim() == 1)
    with torch.no_grad():
        plain = model(ids).logits[0]
        adapted = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")).eval()
        adapted.prompt_encoder.default.embedding.weight.data.normal_()
        apart = (adapted(input_ids=ids).logits[0] - plain).abs().amax(-1)
    moved[window] = max(i for i, each in enumerate(apart.tolist()) if each > 1e-4)
print(f"no window: the prefix moves tokens 0 to {moved[None]}")
print(f"a window of 8: the prefix moves tokens 0 to {moved[8]}; the others are the base's")
assert moved[None] == 31 and moved[8] < 16, "it behaves otherwise now"
PY
