#!/usr/bin/env bash
# transformers 5.23.0, `save_pretrained(folder, state_dict=...)` of a model with a quantizer (bitsandbytes 0.50.2, NF4).
#
# Expected: the tensors of `state_dict` are what is saved, as the argument's documentation says and as for any other
#           model: callers use it to leave parameters out, or to save what they gathered themselves.
# Happens:  the argument is dropped without a word, and the model's own state dictionary is saved. The quantizer's
#           `get_state_dict_and_metadata(model)` overwrites the variable, with None for most quantizers.
# Seen:     a parameter that hangs on a layer is left out of `state_dict`; it is not in the saved file of the model in
#           float32, and it is in the saved file of the one in NF4.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0 bitsandbytes==0.50.2
WORK="$work" "$work/venv/bin/python" - <<'PY'
import os
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

work = Path(os.environ["WORK"])
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes)).save_pretrained(work / "base")


def saved(**settings):
    """Whether a parameter that is not in `state_dict` is in the saved file."""
    model = AutoModelForCausalLM.from_pretrained(work / "base", **settings)
    model.model.layers[0].mlp.up_proj.extra = torch.nn.Parameter(torch.zeros(3))
    wanted = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith(".extra")}
    out = work / f"saved{len(settings)}"
    model.save_pretrained(out, state_dict=wanted)
    with safe_open(out / "model.safetensors", "pt") as file:
        return any(key.endswith(".extra") for key in file.keys())


plain = saved()
quantised = saved(quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
print(f"left out of state_dict, yet saved: float32 {plain}, NF4 {quantised}")
assert not plain and quantised, "behaviour changed"
PY
echo "as described"
