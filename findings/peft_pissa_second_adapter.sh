#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: loading a second adapter beside a first one (`load_adapter`) leaves what the first answers as it is, and
# `disable_adapter` gives the base's answers, as for a plain LoRA.
# What happens: a saved PiSSA or OLoRA adapter takes its start off the base's weights again whenever it is loaded. The
# second one does so from the weights that the first has left, so the first is then on another base than it was trained
# on, and so is the second. With PiSSA, `disable_adapter` gives the remainder of the base. A `pissa_niter_N` adapter
# finds its start by a random method, so that it does not even come back alone: what it answers depends on the state of
# torch's generator at loading. Nothing warns.
#
# Output seen (largest differences of logits):
#   True: loaded again 0.0000, the first beside a second 0.0000, base with adapters disabled 0.0000, warnings 0
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
from transformers import LlamaConfig, LlamaForCausalLM

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ids = torch.arange(1, 13)[None]


def base():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**size, initializer_range=0.2)).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(ids).logits


def far(a, b):
    return float((a - b).abs().max())


found = {}
for start in (True, "olora", "pissa", "pissa_niter_16"):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    model = get_peft_model(base(), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(f"{start}")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.manual_seed(2)
        again = PeftModel.from_pretrained(base(), f"{start}", adapter_name="first")
        before = logits(again)
        alone = far(before, logits(model))
        again.load_adapter(f"{start}", "second")
        again.set_adapter("first")
        beside = far(logits(again), before)
        with again.disable_adapter():
            plain = far(logits(again), logits(base()))
    spoken = sum("start" in str(each.message) or "init" in str(each.message).lower() for each in told)
    found[start] = (alone, beside, plain)
    print(
        f"{start}: loaded again {alone:.4f}, the first beside a second {beside:.4f}, "
        f"base with adapters disabled {plain:.4f}, warnings {spoken}"
    )
assert max(found[True]) < 1e-3, "it behaves otherwise now"
assert found["pissa"][0] < 1e-3 < found["pissa"][1] and found["pissa_niter_16"][0] > 1e-4, "it behaves otherwise now"
PY
