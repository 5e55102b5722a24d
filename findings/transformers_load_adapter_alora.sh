#!/usr/bin/env bash
# transformers 5.23.0, peft 0.21.2, torch 2.13.0 (Python 3.10 or later).
#
# Expected: `model.load_adapter(folder)` and `AutoModelForCausalLM.from_pretrained(folder)` of transformers answer as
# `PeftModel.from_pretrained` does with the activated LoRA (aLoRA, `alora_invocation_tokens`) that peft saved in the
# folder, or refuse it.
# What happens: the factors are loaded, every one, and the answers are those of the base, also for text that holds the
# invocation. Where an invocation begins is found by PeftModel's own `forward` and `generate`, which hand it to the
# layers; transformers' are without them, and a layer that is told nothing acts on no token. Nothing warns or raises.
#
# Output seen (largest differences of logits from those of the base, and from those of the trained adapter):
#   peft: from the base 3.34, from the trained adapter 0.00
#   transformers load_adapter: from the base 0.00, from the trained adapter 3.34
#   transformers from_pretrained: from the base 0.00, from the trained adapter 3.34
#   warnings: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ids = torch.arange(1, 13)[None]
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(**size, initializer_range=0.2)).save_pretrained("base")


def base():
    return AutoModelForCausalLM.from_pretrained("base")


def logits(model):
    with torch.no_grad():
        return model.eval()(ids).logits


config = LoraConfig(
    r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM",
    alora_invocation_tokens=[5, 6],
)
trained = get_peft_model(base(), config)
trained.save_pretrained("alora")
wanted, plain = logits(trained), logits(base())
by_transformers = base()
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    by_transformers.load_adapter("alora")
    loaded = {
        "peft": PeftModel.from_pretrained(base(), "alora"),
        "transformers load_adapter": by_transformers,
        "transformers from_pretrained": AutoModelForCausalLM.from_pretrained("alora"),
    }
    found = {name: logits(model) for name, model in loaded.items()}
apart = {name: [float((each - other).abs().max()) for other in (plain, wanted)] for name, each in found.items()}
for name, (of_base, of_trained) in apart.items():
    print(f"{name}: from the base {of_base:.2f}, from the trained adapter {of_trained:.2f}")
print("warnings:", len([each for each in seen if "alora" in str(each.message).lower()]))
held = {key: each for key, each in by_transformers.named_parameters() if "lora_B" in key}
assert held and all(each.abs().max() > 0 for each in held.values()), "the factors are not loaded now"
assert apart["peft"][1] < 1e-4 and apart["peft"][0] > 0.1, "it behaves otherwise now"
assert all(each[0] == 0 for name, each in apart.items() if name != "peft"), "it behaves otherwise now"
PY
