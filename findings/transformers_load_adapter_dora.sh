#!/usr/bin/env bash
# transformers 5.23.0, peft 0.21.2, torch 2.13.0 (Python 3.10 or later).
#
# Expected: `model.load_adapter(folder)` and `AutoModelForCausalLM.from_pretrained(folder)` of transformers give what
# `PeftModel.from_pretrained` gives for the DoRA that peft saved in the folder.
# What happens: the trained magnitudes are left out. peft saves `….lora_magnitude_vector`; transformers makes
# `….lora_magnitude_vector.default` of it, where the model has `….lora_magnitude_vector.default.weight`, and goes on with
# the magnitudes that a new DoRA starts from, the norms of the base's rows. The logger shows a table of keys that are
# unexpected and missing, beside that of any model with a new head; nothing raises. A file whose keys end in `.weight`
# is loaded rightly by both libraries.
#
# Output seen (largest differences of logits from those of the trained adapter):
#   lora: peft 0.0000, transformers load_adapter 0.0000, transformers from_pretrained 0.0000
#   dora: peft 0.0000, transformers load_adapter more than 0.1, transformers from_pretrained more than 0.1
#   dora, keys of magnitudes end in .weight: peft 0.0000, transformers load_adapter 0.0000, transformers from_pretrained 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
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


def loaded(folder):
    """By peft, and by transformers in two ways."""
    by_transformers = base()
    by_transformers.load_adapter(folder)
    return PeftModel.from_pretrained(base(), folder), by_transformers, AutoModelForCausalLM.from_pretrained(folder)


def told(name, folder, wanted):
    found = [float((logits(model) - wanted).abs().max()) for model in loaded(folder)]
    size = ["more than 0.1" if each > 0.1 else f"{each:.4f}" for each in found]
    print(f"{name}: peft {size[0]}, transformers load_adapter {size[1]}, transformers from_pretrained {size[2]}")
    return found


found = {}
for name in ("lora", "dora"):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=name == "dora", init_lora_weights=False)
    model = get_peft_model(base(), config)
    for key, parameter in model.named_parameters():
        if "magnitude" in key:
            parameter.data *= 1.5
    model.save_pretrained(name)
    wanted = logits(model)
    found[name] = told(name, name, wanted)
file = "dora/adapter_model.safetensors"
held = {f"{key}.weight" if key.endswith("magnitude_vector") else key: tensor for key, tensor in load_file(file).items()}
save_file(held, file, {"format": "pt"})
found["renamed"] = told("dora, keys of magnitudes end in .weight", "dora", wanted)
assert max(found["lora"] + found["renamed"]) < 1e-3 and found["dora"][0] < 1e-3, "it behaves otherwise now"
assert min(found["dora"][1:]) > 0.1, "it behaves otherwise now"
PY
