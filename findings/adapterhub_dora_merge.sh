#!/usr/bin/env bash
# adapters 1.3.0, transformers 4.57.6, torch 2.13.0 (Python 3.10 or later).
#
# Expected: a DoRA adapter (`LoRAConfig(use_dora=True)`) answers the same before and after `merge_adapter`, as a LoRA
# does, and takes the norm of W + (alpha / r) B A, as the paper and peft do.
# What happens: while it is active, the change is scaled by alpha / r and the norm is taken without that factor, and the
# bias is scaled with the weight. `merge_adapter` folds in the change without the factor and leaves the bias as it is. So
# merging changes what the model answers, without a word.
#
# Output seen:
#   lora: largest difference between active and merged: 0.0000
#   dora: largest difference between active and merged: 0.8397
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q adapters==1.3.0 transformers==4.57.6 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import adapters
import torch
from adapters import LoRAConfig
from transformers import BertConfig, BertModel

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
found = {}
for name, dora in (("lora", False), ("dora", True)):
    torch.manual_seed(0)
    model = BertModel(BertConfig(**size, initializer_range=0.2)).eval()
    adapters.init(model)
    model.add_adapter("a", config=LoRAConfig(r=2, alpha=8, use_dora=dora))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(std=0.2)
    model.set_active_adapters("a")
    ids = torch.tensor([list(range(1, 17))])
    with torch.no_grad():
        active = model(ids).last_hidden_state
        model.merge_adapter("a")
        merged = model(ids).last_hidden_state
    found[name] = float((active - merged).abs().max())
    print(f"{name}: largest difference between active and merged: {found[name]:.4f}")
assert found["lora"] < 1e-4 and found["dora"] > 0.01, "it behaves otherwise now"
PY
