#!/usr/bin/env bash
# mlx-lm 0.32.2, mlx 0.32.4 (CPU), transformers 5.24.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: mlx-lm answers as transformers does for a Llama that transformers 5 saved, with whatever rotary base.
# What happens: transformers 5 writes the rotary base inside `rope_parameters` and nowhere else. mlx-lm's Llama reads
# `rope_theta` alone (its Qwen3 reads both), so it takes its default of 10,000 without a word, and answers differ. The
# last line is the same model with the key added to config.json.
#
# Output seen:
#   transformers: rope_theta in config.json: False in rope_parameters: 500.0
#   largest difference of a logit: 7.3541
#   the same with rope_theta in config.json: 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q mlx-lm==0.32.2 'mlx[cpu]==0.32.4' transformers==5.24.0 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
rope = {"rope_type": "default", "rope_theta": 500.0}
model = LlamaForCausalLM(LlamaConfig(**size, rope_parameters=rope, initializer_range=0.3)).eval()
model.save_pretrained("llama")
file, ids = Path("llama/config.json"), list(range(1, 33))
config = json.loads(file.read_text())
print("transformers: rope_theta in config.json:", "rope_theta" in config, "in rope_parameters:", config["rope_parameters"]["rope_theta"])
with torch.no_grad():
    wanted = model(torch.tensor([ids])).logits.numpy()


def difference():
    found = load_model(Path("llama"), lazy=False)[0](mx.array([ids]))
    return float(np.abs(np.array(found) - wanted).max())


silent = difference()
print(f"largest difference of a logit: {silent:.4f}")
file.write_text(json.dumps(config | {"rope_theta": 500.0}))
told = difference()
print(f"the same with rope_theta in config.json: {told:.4f}")
assert silent > 0.01 and told < 1e-3, "it behaves otherwise now"
PY
