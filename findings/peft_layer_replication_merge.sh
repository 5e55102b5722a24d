#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: `merge_adapter` and `merge_and_unload` leave the answers as they are, as for any LoRA, or refuse.
# What happens: with `layer_replication`, the copies of a block share its weights, which saves memory, and each has
# factors of its own. Merging adds the changes of all copies to the one weight that they share, so that each copy runs
# with the changes of the others too. Answers are wholly other ones, and nothing warns. Where no block is repeated, all
# is well.
#
# Output seen (Llama with 2 blocks, largest differences of logits):
#   blocks 0 1: merged 0.0000, unmerged again 0.0000, warnings about merging 0
#   blocks 0 1 1: merged 1.8716, unmerged again 0.0000, warnings about merging 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ids = torch.arange(1, 13)[None]
found = {}
for name, ranges in (("blocks 0 1", [(0, 2)]), ("blocks 0 1 1", [(0, 2), (1, 2)])):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**size, initializer_range=0.2))
    more = {"layer_replication": ranges, "init_lora_weights": False}
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **more)).eval()
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        active = model(ids).logits
        model.merge_adapter()
        merged = float((model(ids).logits - active).abs().max())
        model.unmerge_adapter()
        again = float((model(ids).logits - active).abs().max())
    spoken = sum("merg" in str(each.message).lower() for each in told)
    found[name] = (merged, again)
    print(f"{name}: merged {merged:.4f}, unmerged again {again:.4f}, warnings about merging {spoken}")
assert found["blocks 0 1"][0] < 1e-3 and found["blocks 0 1 1"][0] > 0.1, "it behaves otherwise now"
PY
