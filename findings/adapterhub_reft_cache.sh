#!/usr/bin/env bash
# adapters 1.3.0, transformers 4.57.6, torch 2.13.0 (Python 3.10 or later).
#
# Expected: greedy generation gives the same logits with and without a cache of keys and values. A ReFT adapter with
# `prefix_positions=3, suffix_positions=0` (the default) edits the first three tokens of a sequence.
# What happens: positions are counted in each pass of the model. With a cache, which `generate` uses by default, a pass
# holds one new token, which is the first of it: every generated token is edited, as none was in training. LoRA beside
# it answers the same both ways.
#
# Output seen:
#   LoRAConfig: largest difference with and without a cache: 0.0000
#   LoReftConfig: largest difference with and without a cache: 1.6284
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q adapters==1.3.0 transformers==4.57.6 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import adapters
import torch
from adapters import LoRAConfig, LoReftConfig
from transformers import LlamaConfig, LlamaForCausalLM

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ids = torch.tensor([list(range(1, 17))])
found = {}
for config in (LoRAConfig(r=2), LoReftConfig(r=2)):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**size, initializer_range=0.2)).eval()
    adapters.init(model)
    model.add_adapter("a", config=config)
    for key, parameter in model.named_parameters():
        if ".refts.a." in key or ".loras.a." in key:
            noise = torch.randn_like(parameter)
            parameter.data += 0.3 * (noise.triu(1) if "original" in key else noise)
    model.set_active_adapters("a")
    logits = []
    with torch.no_grad():
        model.eval()(ids)
        cache = model(ids, use_cache=True, attention_mask=torch.ones_like(ids)).past_key_values
        more = torch.cat([ids, torch.tensor([[20]])], 1)
        mask = torch.ones_like(more)
        logits.append(model(more[:, -1:], past_key_values=cache, attention_mask=mask, use_cache=True).logits[:, -1])
        logits.append(model(more, attention_mask=mask).logits[:, -1])
    name = type(config).__name__
    found[name] = float((logits[0] - logits[1]).abs().max())
    print(f"{name}: largest difference with and without a cache: {found[name]:.4f}")
assert found["LoRAConfig"] < 1e-4, "LoRA differs too"
assert found["LoReftConfig"] > 0.01, "it behaves otherwise now"
PY
