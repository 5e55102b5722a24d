#!/usr/bin/env bash
# adapters 1.3.0, transformers 4.57.6, torch 2.13.0 (Python 3.10 or later).
#
# Expected: an adapter answers the same after `save_adapter` and `load_adapter`, as LoReFT and NoReFT do.
# What happens: DiReFT leaves the projection of the hidden state unsubtracted, by `subtract_projection = False`. The name
# has no annotation in the configuration's class, so that it is no field of the dataclass, is not saved, and is True in
# the folder that is loaded: a DiReFT comes back as NoReFT, without a word. Folders of the two are alike.
#
# Output seen:
#   LoReftConfig: largest difference after loading: 0.0000
#   NoReftConfig: largest difference after loading: 0.0000
#   DiReftConfig: largest difference after loading: 3.6174
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q adapters==1.3.0 transformers==4.57.6 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import adapters
import torch
from adapters import DiReftConfig, LoReftConfig, NoReftConfig
from transformers import BertConfig, BertModel

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ids = torch.tensor([list(range(1, 17))])


def fresh():
    torch.manual_seed(0)
    model = BertModel(BertConfig(**size, initializer_range=0.2)).eval()
    adapters.init(model)
    return model


found = {}
for config in (LoReftConfig(r=2), NoReftConfig(r=2), DiReftConfig(r=2)):
    model = fresh()
    model.add_adapter("a", config=config)
    for key, parameter in model.named_parameters():
        if ".refts.a." in key:
            parameter.data += 0.3 * (torch.randn_like(parameter).triu(1) if "original" in key else torch.randn_like(parameter))
    model.set_active_adapters("a")
    name = type(config).__name__
    model.save_adapter(name, "a")
    again = fresh()
    again.set_active_adapters(again.load_adapter(name))
    with torch.no_grad():
        difference = model.eval()(ids).last_hidden_state - again.eval()(ids).last_hidden_state
    found[name] = float(difference.abs().max())
    print(f"{name}: largest difference after loading: {found[name]:.4f}")
assert max(found["LoReftConfig"], found["NoReftConfig"]) < 1e-5, "the others differ too"
assert found["DiReftConfig"] > 0.01, "it behaves otherwise now"
PY
