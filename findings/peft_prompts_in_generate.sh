#!/usr/bin/env bash
# peft 0.21.2 (the newest), transformers 5.24.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: `generate` writes what the model's own logits say, token by token, with PREFIX_TUNING and with PROMPT_TUNING;
# with transformers 5.23.0 it does.
# What happens: transformers 5.24 calls the cache `cache` and no longer `past_key_values`. peft looks for the former name
# in each step, finds none and takes each for the first one. The learned prefix is given beside the cache and dropped, so
# that what is written is the base model's; a learned prompt goes in anew before each token. A model that was tuned and
# evaluated well answers as the base, or otherwise; only the prefix is told of, by a FutureWarning about a name.
#
# Output seen:
#   PREFIX_TUNING, transformers 5.23.0: generate writes what the logits say
#   PROMPT_TUNING, transformers 5.23.0: generate writes what the logits say
#   PREFIX_TUNING, transformers 5.24.0: generate writes what the base writes
#   PROMPT_TUNING, transformers 5.24.0: generate writes neither what the logits say nor what the base writes
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cat >"$work/tuned.py" <<'PY'
import sys

import torch
import transformers
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZE = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SETTINGS = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
ids = torch.arange(3, 11)[None]
said = []
for tuning in (PrefixTuningConfig, PromptTuningConfig):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE)).double().eval()
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (parameter.dim() == 1)
    base = model.generate(ids, **SETTINGS).tolist()
    config = tuning(num_virtual_tokens=4, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config).double().eval()
    tuned.prompt_encoder.default.embedding.weight.data.normal_()
    text = ids
    with torch.no_grad():
        for _ in range(SETTINGS["max_new_tokens"]):
            text = torch.cat([text, tuned(input_ids=text).logits[:, -1:].argmax(-1)], dim=1)
    written = tuned.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **SETTINGS).tolist()
    assert text.tolist() != base
    known = {str(text.tolist()): "what the logits say", str(base): "what the base writes"}
    said.append(known.get(str(written), "neither what the logits say nor what the base writes"))
    print(f"{config.peft_type.value}, transformers {transformers.__version__}: generate writes {said[-1]}")
assert (set(said) == {"what the logits say"}) == (sys.argv[1] == "right"), "it behaves otherwise now"
PY
cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
"$work/venv/bin/python" tuned.py right 2>/dev/null
"$work/venv/bin/pip" install -q transformers==5.24.0
"$work/venv/bin/python" tuned.py wrong 2>/dev/null
